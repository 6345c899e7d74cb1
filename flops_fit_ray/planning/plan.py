"""The plan of a sweep: what is decided, what is expected to follow, and its price."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from flops_fit_ray.planning.experiment import (
    DataFacts,
    Experiment,
    LrFound,
    Measurements,
    ModelSize,
    SweepConstants,
    experiment_from_json,
)
from flops_fit_ray.planning.price import Price, Rates, price_from_json, price_of
from flops_fit_ray.storage.codec import value_of
from flops_fit_ray.storage.paths import SCHEMA_VERSION

if TYPE_CHECKING:
    import pandas as pd


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
    measurements: Measurements
    warnings: tuple[str, ...]
    disk: Disk
    constants: SweepConstants
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
        return sorted((s for s in self.measurements.sizes if s.size in used), key=lambda s: s.params)

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
            "data": asdict(self.measurements.data),
            "sizes": [asdict(s) | {"flops_per_token_6n": 6.0 * s.params} for s in self.measurements.sizes],
            "skipped": list(self.measurements.skipped),
            "warnings": list(self.warnings),
            "disk": asdict(self.disk),
            "frame": asdict(self.constants),
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
    measurements = Measurements(
        sizes=sizes, data=value_of(DataFacts, content["data"]), skipped=tuple(content["skipped"])
    )
    experiments = tuple(map(experiment_from_json, content["experiments"]))
    lr, price = content.get("lr"), content.get("price")
    old_constants = {
        "identity": "",
        "base_budget": min((e.budget for e in experiments), default=0.0),
        "warmup_limit": 0,
    }
    return Plan(
        name=content["name"],
        experiments=experiments,
        measurements=measurements,
        warnings=tuple(content["warnings"]),
        disk=value_of(Disk, content.get("disk", {"per_running": 0, "in_the_end": 0})),
        constants=value_of(SweepConstants, content.get("frame", old_constants)),
        final=content.get("final", True),
        forecast=tuple(map(experiment_from_json, content.get("forecast", ()))),
        notes=tuple(content.get("notes", ())),
        lr=None if lr is None else value_of(LrFound, {**lr, "optima": tuple(map(tuple, lr["optima"]))}),
        price=None if price is None else price_from_json(price),
    )


def _size(content: Mapping[str, Any]) -> ModelSize:
    tables = tuple(map(tuple, content.get("tables", ())))
    return value_of(ModelSize, {**content, "uncounted": tuple(content.get("uncounted", ())), "tables": tables})


def priced(
    plan: Plan,
    wish: str,
    *,
    rates: Rates | None = None,
    slots: int | None = None,
    money_per_hour: float | None = None,
) -> Plan:
    """The plan with its price, what is expected to follow included; arguments as in `price_of`."""
    price = price_of(
        plan.expected,
        forecast=len(plan.forecast),
        rates=rates,
        slots=slots,
        wish=wish,
        money_per_hour=money_per_hour,
    )
    return replace(plan, price=price)
