"""The plan of a sweep: experiments decided, experiments expected to follow, and the price."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.flags import Flagged
from flops_fit_ray.planning._loss_facts import NOTHING_LEARNT, LossFacts
from flops_fit_ray.planning._plan_text import experiments_text, price_lines, tables_words, warning_lines
from flops_fit_ray.planning._price import Price, Rates, estimate_price
from flops_fit_ray.planning.experiment import (
    FLOAT32,
    AxisSizes,
    DataFacts,
    Experiment,
    MeasuredLr,
    Measurements,
    ModelSize,
    SweepConstants,
    with_whole_recipe,
)
from flops_fit_ray.storage.codec import Count, PositiveFloat, PositiveInt, Record, parse_json, value_of
from flops_fit_ray.storage.paths import SCHEMA_VERSION

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Disk(Record):
    """Bytes that a sweep needs besides its results."""

    per_running: Count  # checkpoints of the largest experiment; multiply by the experiments that run at a time
    in_the_end: Count  # trunks, and the best checkpoints and weights of all experiments if they are kept


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """All experiments of a sweep that are decided, with warnings, disk space and price.

    `forecast` are experiments that are expected to follow from results; `final` is True if none will.
    `warnings` are texts, each with its code behind it.
    """

    name: str
    experiments: tuple[Experiment, ...]
    measurements: Measurements
    warnings: tuple[Flagged, ...]
    disk: Disk
    constants: SweepConstants
    final: bool = True
    forecast: tuple[Experiment, ...] = ()
    notes: tuple[str, ...] = ()  # decisions taken from results, with their grounds
    evaluation_flops: float = 0.0  # of all evaluations, besides the FLOPs of the training
    eval_every_tokens: int | None = None  # `data.eval_every_tokens`
    lr: MeasuredLr | None = None
    reach: float | None = None  # of a grid that tapers: its valleys are read within this factor of their minima
    price: Price | None = None
    target: str = ""  # the model's constructor; empty in plans of earlier versions
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)  # of the constructor, the same at every size

    # The names that flops-fit has for these (docs/from-flops-fit.md)
    total_flops = property(attrgetter("flops"))

    @property
    def evaluation_cost(self) -> Callable[[Experiment], float]:
        """The function that gives the FLOPs of an experiment's evaluations."""
        from flops_fit_ray.planning._evaluation import evaluation_cost

        return evaluation_cost(self.measurements, self.eval_every_tokens)

    @property
    def num_experiments(self) -> int:
        """Number of decided experiments."""
        return len(self.experiments)

    @property
    def compute_budgets(self) -> list[float]:
        """C of every budget, increasing."""
        return sorted({e.budget for e in self.expected})

    @property
    def size_param(self) -> str:
        """Constructor arguments that make the size."""
        return ", ".join(self.measurements.sizes[0].kwargs)

    @property
    def model_cls_name(self) -> str:
        """Name of the model's constructor."""
        return self.target.rpartition(":")[2]

    def with_experiments(self, others: Mapping[str, Experiment]) -> Plan:
        """Return the plan with experiments replaced by those of the same key."""
        return replace(self, experiments=tuple(others.get(e.key, e) for e in self.experiments))

    @property
    def expected(self) -> tuple[Experiment, ...]:
        """Experiments decided and expected."""
        return (*self.experiments, *self.forecast)

    @property
    def sizes(self) -> list[ModelSize]:
        """Sizes that are used, by increasing N."""
        used = {e.size for e in self.expected}
        return sorted((s for s in self.measurements.sizes if s.size in used), key=lambda s: s.params)

    @property
    def flops(self) -> float:
        """Training FLOPs that the whole sweep executes, expected experiments included."""
        return sum(e.flops_executed for e in self.expected)

    def __repr__(self) -> str:
        more = f", {len(self.forecast)} more expected" if self.forecast else ""
        return (
            f"Plan({fmt.counted(self.num_experiments, 'experiment')}{more}, "
            f"{fmt.counted(len(self.compute_budgets), 'budget')}, "
            f"total_flops={self.total_flops:.2e})"
        )

    def __str__(self) -> str:
        """Return all experiments as a table, the price, and what is counted, as `plan` prints it."""
        size, data = self.measurements.sizes[0], self.measurements.data
        epoch = "an unknown number" if data.tokens_per_epoch is None else fmt.count(data.tokens_per_epoch)
        precision = self.experiments[0].recipe.precision
        if precision == "auto":
            precision = "auto: fp32 or bf16, whichever a worker measures as faster when the sweep starts"
        skipped = fmt.listed(self.measurements.skipped, 3, "; ")
        several = len({e.size for e in self.expected}) > 1
        return "\n".join(
            [
                experiments_text(self.expected, len(self.experiments)),
                self._number_and_flops,
                *(() if self.price is None else price_lines(self.price, several_sizes=several)),
                f"N: {size.params_source}{tables_words(self.sizes)}. FLOPs: {size.flops_source}, forward and backward. "
                f"D: one token is {data.token_unit}; the training set has {epoch}.",
                f"held-out: {f'{data.eval_samples} samples of ' if data.eval_samples else ''}{data.eval_source}",
                *data.notes,
                f"loss: {self.measurements.loss.average}",
                f"precision: {precision}{self.measurements.dtype_words}",
                f"disk: checkpoints take up to {fmt.size(self.disk.per_running)} per running experiment, and "
                f"{fmt.size(self.disk.in_the_end)} when the sweep is done",
                *([f"sizes at which the model cannot be built: {skipped}"] if skipped else []),
                *self.notes,
                *warning_lines(self.warnings, self.price),
            ]
        )

    @property
    def _number_and_flops(self) -> str:
        expected, evaluation = len(self.forecast), self.evaluation_flops
        follow = f", {expected} of them expected (chosen from results)" if expected else ""
        share = f", and {fmt.flops(evaluation)} ({100 * evaluation / self.flops:.2g} %) to evaluate"
        number = fmt.counted(len(self.expected), "experiment")
        line = f"{number}{follow}; {fmt.flops(self.flops)} FLOPs to execute{share if evaluation else ''}"
        return "\n".join([line, *self._axis_lines])

    @property
    def _axis_lines(self) -> Iterator[str]:
        for axis in self.measurements.axes:
            runs = [e for e in self.expected if e.role == "axis" and (e.axis or "").startswith(f"{axis.name}=")]
            flops = sum(e.flops_executed for e in runs)
            at = fmt.listed([fmt.flops(c) for c in sorted({e.budget for e in runs})], 6) or "no budget"
            values = fmt.listed(list(map(str, axis.values)), 10)
            yield (
                f"axis {axis.name}: {values} beside {axis.base} of the sweep itself ({axis.base_source}); "
                f"{fmt.counted(len(runs), 'experiment')} of these at C = {at}, {fmt.flops(flops)} FLOPs "
                f"({100 * flops / self.flops:.2g} %), which the fit leaves out"
            )

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per experiment, decided or expected."""
        import pandas as pd

        names = [
            "budget",
            "size",
            "params",
            "tokens",
            "steps",
            "epochs",
            "flops",
            "flops_executed",
            "key",
            "role",
            "axis",
            "reason",
        ]
        decided = len(self.experiments)
        return pd.DataFrame(
            [
                {n: getattr(e, n) for n in names} | {"lr": e.recipe.lr, "decided": i < decided}
                for i, e in enumerate(self.expected)
            ]
        )

    def _repr_html_(self) -> str:
        """Return the view of a notebook."""
        notes = [fmt.counted(len(self.experiments), "experiment"), f"{self.flops:.3g} FLOPs", *self.notes]
        notes += [f"warning: {warning}" for warning in self.warnings]
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in notes)
        shown = self.to_frame().drop(columns=["key", "decided"])
        table = shown.to_html(max_rows=60, index=False, float_format="{:.4g}".format)
        return f"<p><strong>{html.escape(self.name)}</strong></p>{lines}{table}"

    def to_json(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "target": self.target,
            "model_kwargs": dict(self.model_kwargs),
            "flops": self.flops,
            "data": asdict(self.measurements.data),
            "sizes": [asdict(s) | {"flops_per_token_6n": 6.0 * s.params} for s in self.measurements.sizes],
            "skipped": list(self.measurements.skipped),
            "axes": [asdict(axis) for axis in self.measurements.axes],
            "loss": asdict(self.measurements.loss),
            "default_dtype": self.measurements.default_dtype,
            "warnings": list(self.warnings),
            "disk": asdict(self.disk),
            "frame": asdict(self.constants),
            "final": self.final,
            "notes": list(self.notes),
            "evaluation_flops": self.evaluation_flops,
            "eval_every_tokens": self.eval_every_tokens,
            "lr": None if self.lr is None else asdict(self.lr),
            "reach": self.reach,
            "price": None if self.price is None else self.price.to_json(),
            "experiments": [e.to_json() for e in self.experiments],
            "forecast": [e.to_json() for e in self.forecast],
        }


@dataclass(frozen=True, kw_only=True)
class _PlanFile(Record):
    """The fields of plan.json that make a plan; those with a default are missing in files of earlier versions."""

    name: str
    sizes: tuple[ModelSize, ...]
    data: DataFacts
    skipped: tuple[str, ...]
    warnings: tuple[Flagged, ...]  # in files of earlier versions without codes
    experiments: tuple[Experiment, ...]
    loss: LossFacts = NOTHING_LEARNT
    default_dtype: str = FLOAT32
    disk: Disk = Disk(per_running=0, in_the_end=0)
    frame: SweepConstants | None = None
    final: bool = True
    forecast: tuple[Experiment, ...] = ()
    notes: tuple[str, ...] = ()
    evaluation_flops: float = 0.0
    eval_every_tokens: PositiveInt | None = None
    lr: MeasuredLr | None = None
    reach: PositiveFloat | None = None
    price: Price | None = None
    target: str = ""
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    axes: tuple[AxisSizes, ...] = ()


def plan_from_json(content: bytes | Mapping[str, Any]) -> Plan:
    """Return the plan in the text of plan.json or its parsed object, of an earlier version too.

    Raises:
        ValueError: the content is not a plan of this schema.
    """
    try:
        found = value_of(_PlanFile, content)
    except ValueError:
        found = value_of(_PlanFile, _with_whole_recipes(content))
    _check_experiments(found)
    old_constants = SweepConstants(
        identity="", base_budget=min((e.budget for e in found.experiments), default=0.0), warmup_limit=0
    )
    return Plan(
        name=found.name,
        experiments=found.experiments,
        measurements=Measurements(
            sizes=found.sizes,
            data=found.data,
            skipped=found.skipped,
            loss=found.loss,
            default_dtype=found.default_dtype,
            axes=found.axes,
        ),
        warnings=found.warnings,
        disk=found.disk,
        constants=found.frame or old_constants,
        final=found.final,
        forecast=found.forecast,
        notes=found.notes,
        evaluation_flops=found.evaluation_flops,
        eval_every_tokens=found.eval_every_tokens,
        lr=found.lr,
        reach=found.reach,
        price=found.price,
        target=found.target,
        model_kwargs=found.model_kwargs,
    )


def _check_experiments(found: _PlanFile) -> None:
    """Raise ValueError where the numbers of a plan contradict each other: files of earlier versions have no seal."""
    experiments = (*found.experiments, *found.forecast)
    if len({e.key for e in found.experiments}) < len(found.experiments):
        raise ValueError("two experiments have one key")
    if not found.sizes:
        raise ValueError("there are no sizes")
    for e in experiments:
        if e.start_step >= e.steps or not math.isclose(e.flops, e.tokens * e.flops_per_token, rel_tol=1e-6):
            raise ValueError(f"experiment {e.key}: steps, tokens and FLOPs do not go together")


def _with_whole_recipes(content: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    parsed = parse_json(content) if isinstance(content, bytes) else content
    if not isinstance(parsed, Mapping):
        return {}
    lists = {name: some for name in ("experiments", "forecast") if isinstance(some := parsed.get(name), list)}
    return {**parsed, **{name: list(map(with_whole_recipe, some)) for name, some in lists.items()}}


def priced(
    plan: Plan,
    start_mode: str,
    *,
    rates: Rates | None = None,
    slots: int | None = None,
    money_per_hour: float | None = None,
) -> Plan:
    """The plan with its price, what is expected to follow included; arguments as in `estimate_price`."""
    price = estimate_price(
        plan.expected,
        plan.evaluation_cost,
        forecast=len(plan.forecast),
        rates=rates,
        slots=slots,
        start_mode=start_mode,
        money_per_hour=money_per_hour,
    )
    return replace(plan, price=price)
