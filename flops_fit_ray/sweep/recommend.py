"""Training run that a prediction recommends: a model size that can be built, D, steps, batch, learning rate, hours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_ray.analysis import (
    CappedPrediction,
    Interval,
    Prediction,
    ServedPrediction,
    SweepFit,
    interval_to_json,
    json_value,
)
from flops_fit_ray.analysis.time_budgets import seconds_interval, seconds_of, time_law
from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import count, flops
from flops_fit_ray.spec import Budget, LrTable, SweepSpec, dump_spec
from flops_fit_ray.storage.atomic import write_bytes
from flops_fit_ray.sweep.directory import Sweep

CANDIDATES = 9  # sizes nearest to N_opt, the caller tries them in turn in case the model cannot be built at some
ALIKE = 1.1  # ratio of numbers of distinct tokens within which they are the same data
FAR_SIZE = 1.2  # a recorded size whose N is off by a larger factor is not recommended


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommendation:
    """One training run. N and FLOPs per token of a size that was not run are interpolated from the sizes that were."""

    budget: float  # C, FLOPs
    size_param: str | None
    size: int | str | None  # None where sizes differ in several arguments and none that was run is near N_opt
    params: float  # N of that size; N_opt without a size
    tokens: float  # D = C / FLOPs per token at that size
    steps: int
    batch_size: int  # samples
    lr: float  # by the sweep's rule
    epochs: float | None
    seconds: float | None  # on one device of the sweep
    seconds_interval: Interval | None
    device: str
    notes: tuple[str, ...]
    candidates: tuple[int, ...]  # integer sizes, nearest to N_opt first
    spec: SweepSpec | None  # None where the sweep came from Python objects

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        left_out = ("spec", "candidates", "seconds_interval")
        content = {n: json_value(getattr(self, n)) for n in self.__dataclass_fields__ if n not in left_out}
        return content | {"seconds_interval": interval_to_json(self.seconds_interval)}

    def write(self, path: Path, size: int | str | None = None) -> None:
        """Write the spec of this one run, with `size` in place of `self.size` if given.

        Raises:
            SpecError: the sweep has no spec, or no size is near N_opt.
        """
        size = self.size if size is None else size
        if self.spec is None or size is None:
            why = (
                "the sweep was made from Python objects" if self.spec is None else "no size that was run is near N_opt"
            )
            message = f"no spec can be written: {why}; choose a model of N = {self.params:.3g} and train it yourself"
            raise SpecError(str(path), [message])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, dump_spec(_with_size(self.spec, self.budget, size)).encode())


def recommend(sweep: Sweep, fit: SweepFit, prediction: Prediction) -> Recommendation:
    """Return the training run for `prediction`, from the sizes and learning rates that the sweep measured."""
    notes: list[str] = []
    size, candidates = _size(sweep, prediction.params, notes)
    if isinstance(prediction, CappedPrediction):
        size, candidates = _under_cap(sweep, prediction.params, size, candidates, notes)
    sizes = sorted(sweep.plan.measurements.sizes, key=lambda s: s.params)
    params = prediction.params
    if size is not None:
        params = _at_size(sweep, size)
    log_n = np.log([s.params for s in sizes])
    # 1) D = C / FLOPs per token, which is linear in log-log between sizes
    per_token = math.exp(_interpolate(log_n, np.log([s.flops_per_token for s in sizes]), math.log(params)))
    tokens = prediction.budget / per_token
    # 2) Steps = D / tokens of a batch
    first = sweep.plan.experiments[0]
    batch_tokens = first.tokens / first.steps
    # 3) Learning rate over N, linear in log-log between sizes
    rates = {e.params: e.recipe.lr for e in sweep.plan.experiments if e.role == "grid"}
    known = sorted(rates)
    lr = math.exp(_interpolate(np.log(known), np.log([rates[n] for n in known]), math.log(params)))
    if not known[0] <= params <= known[-1]:
        notes.append("the learning rate is extrapolated by the sweep's rule beyond its sizes")
    if isinstance(prediction, ServedPrediction) and prediction.ratio_extrapolation > ALIKE:
        notes.append("the learning rate is the sweep's for this N; over so many more tokens a lower one may be better")
    epoch = sweep.plan.measurements.data.tokens_per_epoch
    epochs = None if epoch is None else tokens / epoch
    spec = None if sweep.command.startswith("find_optimal(") else _spec(sweep, prediction.budget, lr)
    if prediction.unique is not None:
        if epoch is None or not 1 / ALIKE <= epoch / prediction.unique <= ALIKE:
            have = "an unknown number of" if epoch is None else count(epoch)
            notes.append(f"the sweep's own data have {have} distinct tokens: give the run {count(prediction.unique)}")
        if spec is not None and spec.data.max_epochs < prediction.epochs:
            most = math.ceil(prediction.epochs)
            notes.append(f"data.max_epochs is {most} in the spec of this run")
            spec = spec.model_copy(update={"data": spec.data.model_copy(update={"max_epochs": float(most)})})
    elif epochs is not None and epochs > sweep.spec.data.max_epochs:
        notes.append(f"D is {epochs:.3g} epochs of the sweep's data: give more data, or they are repeated")
    seconds, within = _seconds(fit, prediction, params, tokens)
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
        spec=spec,
    )


def _interpolate(x: Any, y: Any, at: float) -> float:
    """Interpolate linearly between points, and extrapolate from the outer two."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 2:
        return float(y[0])
    i = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    return float(y[i] + (y[i + 1] - y[i]) / (x[i + 1] - x[i]) * (at - x[i]))


def _whole_sizes(sweep: Sweep) -> tuple[list[int], list[int]]:
    """Return the integer sizes and their N, increasing."""
    pairs = sorted((s.size, s.params) for s in sweep.plan.measurements.sizes if isinstance(s.size, int))
    return [size for size, _ in pairs], [params for _, params in pairs]


def _size(sweep: Sweep, params: float, notes: list[str]) -> tuple[int | str | None, tuple[int, ...]]:
    """Return the size whose N is nearest to `params`, in steps of the sizes' common divisor; and the next nearest."""
    values, counts = _whole_sizes(sweep)
    if len(values) < 2:
        near = min(sweep.plan.measurements.sizes, key=lambda s: abs(math.log(s.params / params)))
        if max(near.params / params, params / near.params) > FAR_SIZE:
            notes.append(
                f"sizes differ in several arguments and none that was run is near N = {params:.3g}: choose one"
            )
            return None, ()
        return near.size, ()
    step = reduce(math.gcd, values)
    ideal = math.exp(_interpolate(np.log(counts), np.log(values), math.log(params)))
    middle = max(1, round(ideal / step))
    around = [step * (middle + k) for k in range(-CANDIDATES, CANDIDATES + 1) if middle + k > 0]
    around.sort(key=lambda value: abs(math.log(_at_size(sweep, value) / params)))
    if not values[0] <= around[0] <= values[-1]:
        notes.append(f"size {around[0]} was not run: its N is extrapolated from the sizes that were")
    return around[0], tuple(around[:CANDIDATES])


def _under_cap(
    sweep: Sweep, cap: float, size: int | str | None, candidates: tuple[int, ...], notes: list[str]
) -> tuple[int | str | None, tuple[int, ...]]:
    """Return `size`, or the first candidate whose N is not above the cap, and the candidates that are not."""
    under = tuple(one for one in candidates if _at_size(sweep, one) <= cap)
    if size is None or _at_size(sweep, size) <= cap:
        return size, under
    if not under:
        notes.append(f"no size that is known has N up to {count(cap)}: choose one")
    return (under[0] if under else None), under


def _at_size(sweep: Sweep, size: int | str) -> float:
    known = {s.size: s.params for s in sweep.plan.measurements.sizes}
    if size in known or not isinstance(size, int):
        return float(known[size])
    values, counts = _whole_sizes(sweep)
    return math.exp(_interpolate(np.log(values), np.log(counts), math.log(size)))


def _seconds(
    fit: SweepFit, prediction: Prediction, params: float, tokens: float
) -> tuple[float | None, Interval | None]:
    found = time_law(fit.points)
    if found is None:
        return None, None
    cost, _ = found
    # That is of N_opt and D_opt for new tokens; under a cap, with few tokens or with serving the run is another one
    within = seconds_interval(cost, fit, prediction.budget) if type(prediction) is Prediction else None
    return seconds_of(cost, params, tokens), within


def _spec(sweep: Sweep, budget: float, lr: float) -> SweepSpec:
    train = sweep.spec.train
    if isinstance(train.lr, LrTable) or sweep.plan.lr is not None:  # a measured rule cannot be written in a spec
        train = train.model_copy(update={"lr": lr})
    name = f"{sweep.spec.name[:40]}-{flops(budget)}"
    return sweep.spec.model_copy(update={"name": name, "train": train, "output": None, "budgets_for": None})


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
