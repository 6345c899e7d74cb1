"""The run that a prediction asks for: a size that exists, its D, steps, batch, learning rate and hours; as a spec."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_ray.analysis import Interval, Prediction, SweepFit, pair, plain
from flops_fit_ray.analysis.isotime import seconds_interval, seconds_of, time_law
from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import flops
from flops_fit_ray.spec import Budget, LrTable, SweepSpec, dump_spec
from flops_fit_ray.storage.atomic import write_bytes
from flops_fit_ray.sweep.directory import Sweep

CANDIDATES = 9  # sizes around the best that are tried, in case the model refuses some
FAR_SIZE = 1.2  # a recorded size this far from N_opt is no answer


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommendation:
    """One training run. N and C per token of a size that was not run are read off the sizes that were."""

    budget: float
    size_param: str | None
    size: int | str | None  # None where several arguments make a size and none that was run is near
    params: float  # N of that size, or N_opt where there is none
    tokens: float  # D that C pays for at that size
    steps: int
    batch_size: int  # samples
    lr: float  # by the sweep's rule
    epochs: float | None
    seconds: float | None  # on one device of the sweep
    seconds_interval: Interval | None
    device: str
    notes: tuple[str, ...]
    candidates: tuple[int, ...]  # whole sizes, the nearest first
    spec: SweepSpec | None  # None where the sweep came from Python objects

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        left_out = ("spec", "candidates", "seconds_interval")
        content = {n: plain(getattr(self, n)) for n in self.__dataclass_fields__ if n not in left_out}
        return content | {"seconds_interval": pair(self.seconds_interval)}

    def write(self, path: Path, size: int | str | None = None) -> None:
        """Write the spec of this one run, with `size` in place of the own one.

        Raises:
            SpecError: there is none to write.
        """
        size = self.size if size is None else size
        if self.spec is None or size is None:
            why = "the sweep came from Python objects" if self.spec is None else "no size that was run is near N_opt"
            raise SpecError(str(path), [f"no spec can be written: {why}; train with N = {self.params:.3g} by hand"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, dump_spec(_with_size(self.spec, self.budget, size)).encode())


def recommend(sweep: Sweep, fit: SweepFit, prediction: Prediction) -> Recommendation:
    """The run that `prediction` asks for, from what the sweep measured."""
    notes: list[str] = []
    size, candidates = _size(sweep, prediction.params, notes)
    sizes = sorted(sweep.plan.measurements.sizes, key=lambda s: s.params)
    params = prediction.params
    if size is not None:
        params = _at_size(sweep, size)
    log_n = np.log([s.params for s in sizes])
    per_token = math.exp(_line(log_n, np.log([s.flops_per_token for s in sizes]), math.log(params)))
    tokens = prediction.budget / per_token
    some = sweep.plan.experiments[0]
    batch_tokens = some.tokens / some.steps
    rates = {e.params: e.recipe.lr for e in sweep.plan.experiments if e.role == "grid"}
    known = sorted(rates)
    lr = math.exp(_line(np.log(known), np.log([rates[n] for n in known]), math.log(params)))
    if not known[0] <= params <= known[-1]:
        notes.append("the learning rate is the sweep's rule, continued beyond its sizes")
    epoch = sweep.plan.measurements.data.tokens_per_epoch
    epochs = None if epoch is None else tokens / epoch
    if epochs is not None and epochs > sweep.spec.data.max_epochs:
        notes.append(f"D is {epochs:.3g} epochs of the sweep's data: it needs more data, or repeats them")
    seconds, within = _seconds(fit, prediction, params, tokens)
    from_python = sweep.command.startswith("find_optimal(")
    return Recommendation(
        budget=prediction.budget,
        size_param=sweep.spec.model.size_param,
        size=size,
        params=params,
        tokens=tokens,
        steps=max(1, round(tokens / batch_tokens)),
        batch_size=sweep.spec.train.batch_size,
        lr=lr,
        epochs=epochs,
        seconds=seconds,
        seconds_interval=within,
        device=", ".join(sorted({r.device for r in sweep.results})),
        notes=tuple(notes),
        candidates=candidates,
        spec=None if from_python else _spec(sweep, prediction.budget, lr),
    )


def _line(x: Any, y: Any, at: float) -> float:
    """Straight between the points, and on from the last two."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 2:
        return float(y[0])
    i = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    return float(y[i] + (y[i + 1] - y[i]) / (x[i + 1] - x[i]) * (at - x[i]))


def _whole_sizes(sweep: Sweep) -> tuple[list[int], list[int]]:
    """Sizes that are numbers, and their N, increasing."""
    pairs = sorted((s.size, s.params) for s in sweep.plan.measurements.sizes if isinstance(s.size, int))
    return [size for size, _ in pairs], [params for _, params in pairs]


def _size(sweep: Sweep, params: float, notes: list[str]) -> tuple[int | str | None, tuple[int, ...]]:
    """The size nearest to N, in the steps that all sizes of the sweep share; and the next nearest."""
    values, counts = _whole_sizes(sweep)
    if len(values) < 2:
        near = min(sweep.plan.measurements.sizes, key=lambda s: abs(math.log(s.params / params)))
        if max(near.params / params, params / near.params) > FAR_SIZE:
            notes.append(f"several arguments make a size; choose them for N = {params:.3g}")
            return None, ()
        return near.size, ()
    step = reduce(math.gcd, values)
    wish = math.exp(_line(np.log(counts), np.log(values), math.log(params)))
    middle = max(1, round(wish / step))
    around = [step * (middle + k) for k in range(-CANDIDATES, CANDIDATES + 1) if middle + k > 0]
    around.sort(key=lambda value: abs(math.log(_at_size(sweep, value) / params)))
    if not values[0] <= around[0] <= values[-1]:
        notes.append(f"size {around[0]} was not run: its N is read off the sizes that were")
    return around[0], tuple(around[:CANDIDATES])


def _at_size(sweep: Sweep, size: int | str) -> float:
    known = {s.size: s.params for s in sweep.plan.measurements.sizes}
    if size in known or not isinstance(size, int):
        return float(known[size])
    values, counts = _whole_sizes(sweep)
    return math.exp(_line(np.log(values), np.log(counts), math.log(size)))


def _seconds(
    fit: SweepFit, prediction: Prediction, params: float, tokens: float
) -> tuple[float | None, Interval | None]:
    found = time_law(fit.points)
    if found is None:
        return None, None
    cost, _ = found
    return seconds_of(cost, params, tokens), seconds_interval(cost, fit, prediction.budget)


def _spec(sweep: Sweep, budget: float, lr: float) -> SweepSpec:
    train = sweep.spec.train
    if isinstance(train.lr, LrTable) or sweep.plan.lr is not None:  # a rule that was measured is no spec's
        train = train.model_copy(update={"lr": lr})
    name = f"{sweep.spec.name[:40]}-{flops(budget)}"
    return sweep.spec.model_copy(update={"name": name, "train": train, "output": None})


def _with_size(spec: SweepSpec, budget: float, size: int | str) -> SweepSpec:
    value: Any = size
    if isinstance(size, str):
        value = {name: _number(text) for name, text in (part.split("=", 1) for part in size.split(","))}
    return spec.model_copy(update={"budgets": [Budget(flops=budget, sizes=[value])]})


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return text
