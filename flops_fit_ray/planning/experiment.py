"""The values of a plan. All frozen, all JSON, units beside the fields."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from flops_fit_ray.storage.codec import value_of
from flops_fit_ray.storage.paths import SCHEMA_VERSION

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit_ray.planning.price import Price

Role = Literal["grid", "probe", "seed", "lr_check", "rerun"]  # why an experiment is in the plan
IN_FIT: frozenset[str] = frozenset({"grid", "seed", "rerun"})  # roles whose losses are points of a valley


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """One model of the sweep, measured without weights."""

    size: int | str  # the value of the size parameter; text where several arguments make the size
    kwargs: Mapping[str, Any]  # constructor arguments that make this size
    params: int  # N, as `params_source` counts it
    params_total: int  # every parameter
    params_non_embedding: int  # without lookup tables and without a head that is as large as the vocabulary
    params_source: str
    flops_per_token: float  # forward and backward
    flops_source: str
    lr: float | None = None  # what the user's function gave
    uncounted: tuple[str, ...] = ()  # modules with parameters in which the counter saw no FLOPs
    modules: Mapping[str, int] = field(default_factory=dict)  # with weights of their own: how many, by kind
    tables: tuple[tuple[int, int], ...] = ()  # entries and width of each lookup table that is not another's


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the plan must know of the data."""

    train_samples: int | None  # None: the data cannot say, or never end
    eval_samples: int  # 0: no held-out data, the smoothed training loss stands in
    tokens_per_sample: int
    token_unit: str  # what one token is, in words
    eval_source: str
    fingerprint: str  # of the training and held-out samples
    tensor_bytes: int = 0  # of data that are made of tensors, which each process would hold

    @property
    def tokens_per_epoch(self) -> int | None:
        """D of one pass over the training set, where its length is known."""
        return None if self.train_samples is None else self.train_samples * self.tokens_per_sample


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The measured facts that a plan is made from. `skipped` are candidates the model refused, with its reason."""

    sizes: tuple[ModelSize, ...]
    data: DataFacts
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one experiment is trained, every rule already resolved for its own N and D."""

    batch_size: int  # samples in one optimizer step
    micro_batch_size: int  # samples in one forward and backward
    optimizer: str
    lr: float  # peak
    betas: tuple[float, float]
    momentum: float
    weight_decay: float
    grad_clip: float | None  # largest global norm
    schedule: str
    warmup_steps: int
    decay_fraction: float
    decay_shape: str
    final_lr_fraction: float
    seed: int
    precision: str
    compile: bool  # by torch.compile
    cuda_graph: bool  # the whole step as one graph


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A planned point (C, N) with its D. `key` is a hash of all that changes the result."""

    key: str
    budget: float  # C, FLOPs asked for
    size: int | str
    size_kwargs: Mapping[str, Any]
    params: int  # N
    params_total: int
    tokens: int  # D, exactly what will be seen
    tokens_per_sample: int | None  # None: counted in the targets of each batch
    steps: int  # optimizer steps
    flops: float  # tokens × flops_per_token; differs from `budget` by at most half a batch
    flops_per_token: float
    epochs: float | None  # None where the length of the data is not known
    recipe: Recipe
    role: Role = "grid"
    reason: str = ""  # why it is here
    of: str | None = None  # key of the experiment that a seed, a check or a rerun stands beside
    # Where it begins: at the trunk checkpoint of another experiment of this size, or from scratch. On the CPU both give
    # the same bits, so neither is a part of the key.
    parent: str | None = None
    start_step: int = 0  # optimizer steps that the parent has taken for it

    @cached_property
    def trunk_step(self) -> int:
        """Steps at the peak rate: where the trunk ends and the decay of this experiment's own begins."""
        return self.steps - decay_steps(self.recipe, self.steps)

    @property
    def flops_executed(self) -> float:
        """FLOPs that this experiment itself has to spend: without what it takes over from its parent."""
        return self.flops * (self.steps - self.start_step) / self.steps

    def from_scratch(self) -> Experiment:
        """The same experiment without a parent."""
        return replace(self, parent=None, start_step=0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in plan.json."""
        return {**asdict(self), "seed": self.recipe.seed, "flops_executed": self.flops_executed}


def decay_steps(recipe: Recipe, steps: int) -> int:
    """The optimizer steps over which a warmup-stable-decay schedule decays: one at least, and never into the warmup."""
    return min(max(1, round(recipe.decay_fraction * steps)), steps - recipe.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of an experiment, as far as planning cares. `loss` is None where there is none."""

    loss: float | None
    diverged: bool = False


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a sweep decides once and keeps when budgets, sizes or seeds are added, so that nothing is renamed."""

    identity: str  # of model, data, loss and recipe; a frame serves no other sweep
    base_budget: float  # the smallest C: where learning rates are probed and the first valley lies
    warmup_limit: int  # tokens; a tenth of the smallest D of the sweep


@dataclass(frozen=True, kw_only=True)
class LrFound:
    """A learning rate that was measured: lr = coefficient · (N / at) ^ exponent."""

    coefficient: float
    at: float  # N
    exponent: float
    optima: tuple[tuple[int, float], ...]  # (N, best rate) of each probed size

    def of(self, params: float) -> float:
        """The rate of a model of N = `params`."""
        return float(self.coefficient * (params / self.at) ** self.exponent)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a sweep needs besides its results."""

    per_running: int  # checkpoints of the largest experiment; times the experiments that run side by side
    in_the_end: int  # trunks, and best checkpoints and weights of all of them, where they are asked for


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every experiment of a sweep that is decided, and what its owner should know before paying for it.

    `forecast` are the experiments that are expected to follow once results are there; `final` says that none will.
    """

    name: str
    experiments: tuple[Experiment, ...]
    survey: Survey
    warnings: tuple[str, ...]
    disk: Disk
    frame: Frame
    final: bool = True
    forecast: tuple[Experiment, ...] = ()
    notes: tuple[str, ...] = ()  # what was decided on the way, and on what grounds
    lr: LrFound | None = None
    price: Price | None = None

    def with_experiments(self, others: Mapping[str, Experiment]) -> Plan:
        """The plan with some experiments in place of those of the same keys."""
        return replace(self, experiments=tuple(others.get(e.key, e) for e in self.experiments))

    @property
    def expected(self) -> tuple[Experiment, ...]:
        """What is decided and what is expected to follow."""
        return (*self.experiments, *self.forecast)

    @property
    def sizes(self) -> list[ModelSize]:
        """The sizes that are used, by increasing N."""
        used = {e.size for e in self.expected}
        return sorted((s for s in self.survey.sizes if s.size in used), key=lambda s: s.params)

    @property
    def flops(self) -> float:
        """Training FLOPs that the whole sweep is expected to execute."""
        return sum(e.flops_executed for e in self.expected)

    def to_frame(self) -> pd.DataFrame:
        """One row per experiment, decided or only expected: budget, size, params, tokens, steps, lr, flops and more."""
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
        """What a notebook shows."""
        said = [f"{len(self.experiments)} experiments", f"{self.flops:.3g} FLOPs", *self.notes]
        said += [f"warning: {warning}" for warning in self.warnings]
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in said)
        shown = self.to_frame().drop(columns=["key", "decided"])
        table = shown.to_html(max_rows=60, index=False, float_format="{:.4g}".format)
        return f"<p><strong>{html.escape(self.name)}</strong></p>{lines}{table}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in plan.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "flops": self.flops,
            "data": asdict(self.survey.data),
            "sizes": [asdict(s) | {"flops_per_token_6n": 6.0 * s.params} for s in self.survey.sizes],
            "skipped": list(self.survey.skipped),
            "warnings": list(self.warnings),
            "disk": asdict(self.disk),
            "frame": asdict(self.frame),
            "final": self.final,
            "notes": list(self.notes),
            "lr": None if self.lr is None else asdict(self.lr),
            "price": None if self.price is None else self.price.to_json(),
            "experiments": [e.to_json() for e in self.experiments],
            "forecast": [e.to_json() for e in self.forecast],
        }


def plan_from_json(content: Mapping[str, Any]) -> Plan:
    """The inverse of `Plan.to_json`, also for plans of earlier versions, which say less.

    Raises:
        KeyError, TypeError: the content is not a plan of this schema.
    """
    sizes = tuple(_size(s) for s in content["sizes"])
    survey = Survey(sizes=sizes, data=value_of(DataFacts, content["data"]), skipped=tuple(content["skipped"]))
    experiments = tuple(map(experiment_from_json, content["experiments"]))
    from flops_fit_ray.planning.price import price_from_json

    lr, price = content.get("lr"), content.get("price")
    old_frame = {"identity": "", "base_budget": min((e.budget for e in experiments), default=0.0), "warmup_limit": 0}
    return Plan(
        name=content["name"],
        experiments=experiments,
        survey=survey,
        warnings=tuple(content["warnings"]),
        disk=value_of(Disk, content.get("disk", {"per_running": 0, "in_the_end": 0})),
        frame=value_of(Frame, content.get("frame", old_frame)),
        final=content.get("final", True),
        forecast=tuple(map(experiment_from_json, content.get("forecast", ()))),
        notes=tuple(content.get("notes", ())),
        lr=None if lr is None else value_of(LrFound, {**lr, "optima": tuple(map(tuple, lr["optima"]))}),
        price=None if price is None else price_from_json(price),
    )


def _size(content: Mapping[str, Any]) -> ModelSize:
    tables = tuple(map(tuple, content.get("tables", ())))
    return value_of(ModelSize, {**content, "uncounted": tuple(content.get("uncounted", ())), "tables": tables})


# What plans of earlier versions do not say, because there was nothing else
_OLD_RECIPE = {"decay_shape": "linear", "compile": False, "cuda_graph": False}


def experiment_from_json(content: Mapping[str, Any]) -> Experiment:
    """The inverse of `Experiment.to_json`.

    Raises:
        KeyError, TypeError: the content is not an experiment of this schema.
    """
    recipe = {"micro_batch_size": content["recipe"]["batch_size"], **_OLD_RECIPE, **content["recipe"]}
    return value_of(Experiment, {**content, "recipe": value_of(Recipe, {**recipe, "betas": tuple(recipe["betas"])})})


def content_key(identity: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the identity as canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
