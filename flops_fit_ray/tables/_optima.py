"""A table of optima: a row per budget with its best N, and perhaps D and loss; power laws through the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import Interval
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.flags import Flag
from flops_fit_ray.tables._columns import ColumnMap, TableOptions
from flops_fit_ray.tables._load import Loaded
from flops_fit_ray.tables._plausible import FLOPS_PER_TOKEN_AND_PARAM, unit_faults
from flops_fit_ray.tables._splits import Split, kinds

MIN_FOR_INTERVAL = 3  # rows: a line through two has no scatter
NAMES = {"params": "N_opt", "tokens": "D_opt", "loss": "L_opt"}


@dataclass(frozen=True, kw_only=True)
class OptimaLaw:
    """y = 10^log10_coefficient · C^exponent through the optima, by least squares of log10 y on log10 C."""

    exponent: float
    log10_coefficient: float
    log10_c: Floats  # (rows,)
    sigma: float | None  # standard deviation of log10 y about the line; None with two rows

    def at(self, budget: float) -> float:
        """y at C = `budget` FLOPs."""
        return float(10 ** (self.log10_coefficient + self.exponent * np.log10(budget)))

    def exponent_interval(self, confidence: float) -> Interval | None:
        """Interval of the exponent: exponent ± t·sigma / sqrt(sum (x - mean)²), t with rows - 2 degrees of freedom."""
        if self.sigma is None:
            return None
        half = self._t(confidence) * self.sigma / np.sqrt(self._spread)
        return Interval(float(self.exponent - half), float(self.exponent + half))

    def interval(self, budget: float, confidence: float) -> Interval | None:
        """Interval of the law at C = `budget`: the line's error grows with the distance from the mean of log10 C."""
        if self.sigma is None:
            return None
        x = np.log10(budget) - self.log10_c.mean()
        half = self._t(confidence) * self.sigma * np.sqrt(1 / len(self.log10_c) + x**2 / self._spread)
        middle = self.at(budget)
        return Interval(float(middle / 10**half), float(middle * 10**half))

    def to_json(self, confidence: float) -> dict[str, Any]:
        """Return plain values for JSON."""
        bounds = self.exponent_interval(confidence)
        return {
            "exponent": self.exponent,
            "coefficient": float(10**self.log10_coefficient),
            "exponent_interval": None if bounds is None else [bounds.low, bounds.high],
        }

    @property
    def _spread(self) -> float:
        return float(np.sum((self.log10_c - self.log10_c.mean()) ** 2))

    def _t(self, confidence: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(len(self.log10_c) - 2, (1 + confidence) / 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class Optima:
    """The optima of a file, and how they were read."""

    path: Path
    flops: Floats
    values: Mapping[str, Floats]  # params, tokens, loss: those that the table has
    columns: Mapping[str, str]
    notes: tuple[Flag, ...]

    def laws(self) -> dict[str, OptimaLaw]:
        """Fit a power law to each quantity.

        Raises:
            FitError: fewer than two different budgets.
        """
        x = np.log10(self.flops)
        if len(np.unique(x)) < 2:
            raise FitError(f"a power law needs optima at 2 or more different budgets (got {len(np.unique(x))})")
        laws = {}
        for name, values in self.values.items():
            slope, intercept = np.polyfit(x, np.log10(values), 1)
            off = np.log10(values) - intercept - slope * x
            sigma = float(np.sqrt(off @ off / (len(x) - 2))) if len(x) >= MIN_FOR_INTERVAL else None
            laws[name] = OptimaLaw(exponent=float(slope), log10_coefficient=float(intercept), log10_c=x, sigma=sigma)
        return laws

    def to_json(self, at: Sequence[float], confidence: float) -> dict[str, Any]:
        """Return the laws and their values at the budgets `at` as a JSON object."""
        laws = self.laws()
        return {
            "schema_version": 1,
            "table": {"path": str(self.path), "rows": len(self.flops), "columns": dict(self.columns), "kind": "optima"},
            "confidence": confidence,
            **{f"{NAMES[name].lower()}": law.to_json(confidence) for name, law in laws.items()},
            "predictions": [
                {"budget": c, "extrapolation": self.extrapolation(c)} | _predicted(laws, c, confidence) for c in at
            ],
            "warnings": [note.to_json() for note in self.notes],
        }

    def extrapolation(self, budget: float) -> float:
        """Ratio of C = `budget` to the nearest one of the table; 1 inside of it."""
        return max(budget / float(self.flops.max()), float(self.flops.min()) / budget, 1.0)

    def lines(self, at: Sequence[float], confidence: float) -> Iterator[str]:
        """Yield the laws and their values at the budgets `at` as lines of text."""
        taken = ", ".join(f"{ours} = {theirs!r}" for ours, theirs in self.columns.items())
        yield f"{self.path}: a table of optima, {fmt.counted(len(self.flops), 'row')}; {taken}"
        for note in self.notes:
            yield note.line
        percent = f"{100 * confidence:g} %"
        laws = self.laws()
        for name, law in laws.items():
            bounds = law.exponent_interval(confidence)
            words = f"  exponent {percent} [{bounds.low:.3f}, {bounds.high:.3f}]" if bounds else "  no interval: 2 rows"
            yield f"{NAMES[name]} = {10**law.log10_coefficient:.4g} · C^{law.exponent:.4f}{words}"
        for c in at:
            yield f"C = {fmt.flops(c)} FLOPs, extrapolation factor {self.extrapolation(c):.3g}"
            for name, law in laws.items():
                within = law.interval(c, confidence)
                shown = f"{law.at(c):.4f}" if name == "loss" else fmt.count(law.at(c))
                if within is not None:
                    low, high = within.low, within.high
                    shown += f"  [{low:.4f}, {high:.4f}]" if name == "loss" else f"  {fmt.interval(low, high)}"
                yield f"  {NAMES[name][0]}  {shown}"


def _predicted(laws: Mapping[str, OptimaLaw], budget: float, confidence: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, law in laws.items():
        within = law.interval(budget, confidence)
        found[name] = law.at(budget)
        found[f"{name}_interval"] = None if within is None else [within.low, within.high]
    return found


def read_optima(path: Path, loaded: Loaded, columns: ColumnMap, options: TableOptions, notes: Sequence[Flag]) -> Optima:
    """Read the rows as optima.

    Args:
        notes: on rows that are left out, and on what was assumed so far.

    Raises:
        SpecError: C is missing, a cell is no positive number, or several kinds of model share the budgets.
    """
    frame = loaded.frame
    c = next((name for name in ("flops", "budget") if name in columns.taken), None)
    if c is None:
        raise SpecError(str(path), ["is a table of optima without C; name its column, --column flops=COLUMN"])
    if "params_opt" not in columns.taken:
        raise SpecError(str(path), ["is a table of optima without N; name its column, --column params_opt=COLUMN"])
    wanted = {"flops": c, "params": "params_opt", "tokens": "tokens_opt" if "tokens_opt" in columns.taken else "tokens",
              "loss": "loss"}  # fmt: skip
    used = {ours: name for ours, name in wanted.items() if name in columns.taken}
    values = {ours: columns.values(frame, name) for ours, name in used.items()}
    if "loss" in values and float(np.ptp(values["loss"])) == 0:
        del values["loss"], used["loss"]
    bad = [(i, ours) for ours, array in values.items() for i in np.flatnonzero(~(np.isfinite(array) & (array > 0)))]
    if bad:
        i, ours = bad[0]
        column = columns.taken[used[ours]]
        raise SpecError(
            str(path), [f"line {loaded.lines[i]}: {column} must be a positive number (got {frame[column].iloc[i]})"]
        )
    flops = values.pop("flops")
    names = [name for name in kinds(frame, list(columns.taken.values()), []) if name not in options.pool]
    if len(np.unique(flops)) < len(flops) and names:
        texts, number = np.unique(frame[names[0]].astype(str).to_numpy(dtype=object), return_counts=True)
        values_of = tuple(zip(map(str, texts), map(int, number), strict=True))
        split = Split(column=names[0], values=values_of, numeric=False, effect=None)
        raise SpecError(str(path), [split.message])
    said = []
    if "tokens" not in values:
        values["tokens"] = flops / (FLOPS_PER_TOKEN_AND_PARAM * values["params"])
        said.append("D_opt is computed as C/(6·N_opt)")
    triple = {"params": values["params"], "tokens": values["tokens"], "flops": flops}
    derived = [] if "tokens" in used else ["tokens"]
    faults = list(
        unit_faults(triple, derived, list(options.units), {o: columns.taken[used[o]] for o in triple if o in used})
    )
    if faults:
        raise SpecError(str(path), faults)
    said.append(
        "the optima are taken as given: intervals are from their scatter about the line, by t with rows - 2 degrees of "
        "freedom"
    )
    order = np.lexsort((values["params"], flops))
    return Optima(
        path=path,
        flops=flops[order],
        values={name: values[name][order] for name in NAMES if name in values},
        columns={ours: columns.taken[name] for ours, name in used.items()},
        notes=(*notes, *(Flag("optima", "info", words) for words in said)),
    )
