"""Forecasts of a sweep: sealed before the run that they are of, kept in its directory, never overwritten."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray._version import __version__
from flops_fit_ray.analysis import Interval, Prediction, SweepFit, losses_at
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning.cells import HARMLESS_DATA_KEYS, HARMLESS_TRAIN_KEYS
from flops_fit_ray.spec import SweepSpec, dump_spec
from flops_fit_ray.storage.atomic import SEAL, read_file, read_sealed, write_json
from flops_fit_ray.storage.codec import PositiveFloat, PositiveInt, Record, parse_json, value_of
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.directory import Sweep

SAME_BUDGET = 0.02  # relative distance of two C that are one budget: runs have whole batches
REACH, SIZES = 16.0, 65  # losses are forecast for this many N from N_opt / REACH to N_opt · REACH

Pair = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SizeForecast(Record):
    """The loss of one run at the forecast's C with another N than N_opt, and its interval."""

    params: PositiveFloat
    loss: float
    interval: Pair


@dataclass(frozen=True, kw_only=True)
class Forecast(Record):
    """N, D and L at one C as a sweep predicted them, with all that the prediction rests on."""

    budget: PositiveFloat  # C, FLOPs
    params: PositiveFloat
    params_interval: Pair
    tokens: PositiveFloat
    tokens_interval: Pair
    loss: float  # nats
    loss_interval: Pair  # of the law
    run_interval: Pair | None  # of the loss of one new run at N; None where the noise of a run is not known
    by_size: tuple[SizeForecast, ...]  # of one run with other N; empty where no surface tells it
    confidence: PositiveFloat
    method: str
    lack_of_fit: tuple[str, ...]  # tests of the method that failed or are doubtful
    warnings: tuple[str, ...]
    extrapolation: PositiveFloat
    params_extrapolation: PositiveFloat
    tokens_extrapolation: PositiveFloat
    options: Mapping[str, Any]  # of the fit
    spec: str  # the resolved spec, YAML
    recipe: Mapping[str, Any]  # model, data, loss and training of the spec: a run of another recipe is not scored
    identity: str  # hash of the same with the data's fingerprint, as plans have it
    results: PositiveInt  # number of results that the fit is of
    results_sha256: str
    version: str  # of flops_fit_ray
    sealed_at: PositiveFloat  # seconds since the epoch

    @property
    def date(self) -> str:
        """Return the day of the seal, UTC."""
        return datetime.fromtimestamp(self.sealed_at, UTC).strftime("%Y-%m-%d")

    def same_answer(self, other: Forecast) -> bool:
        """Return True if both say the same of the same results; only the time may differ."""
        names = (f.name for f in fields(self) if f.name not in ("sealed_at", "spec"))
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True)
class Sealed:
    """A forecast in its file."""

    path: StoragePath
    forecast: Forecast

    def to_json(self) -> dict[str, Any]:
        """Return the path and the content's sha256."""
        return {"path": str(self.path), "sha256": parse_json(read_file(self.path))[SEAL]}


@dataclass(frozen=True)
class Forecasts:
    """All forecasts of a directory, oldest first, and a line for each file that cannot be believed."""

    sealed: tuple[Sealed, ...]
    problems: tuple[str, ...]


def seal(sweep: Sweep, fit: SweepFit, prediction: Prediction) -> Sealed:
    """Write a prediction of a sweep into its directory. One that is there with the same answer stays, and is returned.

    Raises:
        SpecError: its budget has results already, so that it is no forecast; or it has no interval to be scored by.
        StorageError: the directory cannot be written.
    """
    c = prediction.budget
    seen = next((r for r in sweep.results if same_budget(r.budget, c)), None)
    if seen is not None:
        raise SpecError(
            "seal",
            [
                f"C = {fmt.flops(c)} has results in this sweep already (C = {fmt.flops(seen.budget)}, size "
                f"{seen.size}), so that this is no forecast; give a C that was not run"
            ],
        )
    content = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(_forecast(sweep, fit, prediction))}))
    try:
        forecast = value_of(Forecast, content)
    except ValueError as e:
        raise SpecError("seal", ["this prediction has numbers that are not finite: no run could be outside"]) from e
    for other in read_forecasts(sweep).sealed:
        if other.forecast.same_answer(forecast):
            return other
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    when = datetime.fromtimestamp(forecast.sealed_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    path = sweep.paths.forecasts / f"{when}-{fmt.flops(c)}-{digest}.json"
    write_json(path, content, once=True, sealed=True)
    return Sealed(path, forecast)


def same_budget(a: float, b: float) -> bool:
    """Return True if two C are one budget but for the rounding to whole batches."""
    return abs(a / b - 1) <= SAME_BUDGET


def _forecast(sweep: Sweep, fit: SweepFit, p: Prediction) -> Forecast:
    within = (p.params_interval, p.tokens_interval, p.loss_interval)
    if None in within:
        fault = "this prediction has no intervals, so that no run could be outside; give --draws, e.g. 2000"
        raise SpecError("seal", [fault])
    params, tokens, loss = (_pair(i) for i in within if i is not None)
    n = np.geomspace(p.params / REACH, p.params * REACH, SIZES)
    around = losses_at(fit, p, n)
    return Forecast(
        budget=p.budget,
        params=p.params,
        params_interval=params,
        tokens=p.tokens,
        tokens_interval=tokens,
        loss=p.loss,
        loss_interval=loss,
        run_interval=None if p.run_interval is None else _pair(p.run_interval),
        by_size=tuple(
            SizeForecast(params=float(at), loss=value, interval=_pair(interval))
            for at, (value, interval) in zip(n, around or (), strict=bool(around))
        ),
        confidence=fit.options.confidence,
        method=p.method,
        lack_of_fit=tuple(t.words for t in fit.lack_of_fit if t.method == p.method and t.verdict != "fits"),
        warnings=tuple(map(str, p.warnings)),
        extrapolation=p.extrapolation,
        params_extrapolation=p.params_extrapolation,
        tokens_extrapolation=p.tokens_extrapolation,
        options=asdict(fit.options),
        spec=dump_spec(sweep.spec),
        recipe=recipe_of(sweep.spec),
        identity=sweep.plan.constants.identity,
        results=len(sweep.standing),
        results_sha256=sweep.results_sha256,
        version=__version__,
        sealed_at=time.time(),
    )


def recipe_of(spec: SweepSpec) -> dict[str, Any]:
    """Return the parts of a spec that change a result, but for sizes, budgets and seeds."""
    return {
        "model": {"target": spec.model.target, "kwargs": dict(spec.model.kwargs)},
        "data": spec.data.model_dump(mode="json", exclude=HARMLESS_DATA_KEYS),
        "loss": spec.loss,
        "train": spec.train.model_dump(mode="json", exclude=HARMLESS_TRAIN_KEYS | {"micro_batch_size"}),
    }


def _pair(interval: Interval) -> Pair:
    return float(interval.low), float(interval.high)


def read_forecasts(sweep: Sweep) -> Forecasts:
    """Read every forecast of a sweep back; one that was changed, or that this version does not know, is a line."""
    sealed, problems = [], []
    for name in sweep.paths.forecast_names():
        path = sweep.paths.forecasts / name
        found = _read(path)
        if isinstance(found, str):
            problems.append(f"forecasts/{name}: {found}; it is not scored")
        else:
            sealed.append(Sealed(path, found))
    return Forecasts(tuple(sealed), tuple(problems))


def _read(path: StoragePath) -> Forecast | str:
    """Return the forecast in a file, or the reason why it is none."""
    try:
        read_file(path)
    except (OSError, MemoryError) as e:
        return f"cannot be read ({getattr(e, 'strerror', None) or e})"
    content: Any = None
    with contextlib.suppress(ValueError):
        content = parse_json(read_sealed(path) or b"")
    if not isinstance(content, dict) or SEAL not in content:
        return "was changed after it was sealed: its sha256 is not that of its content"
    if content.get("schema_version") != SCHEMA_VERSION:
        return f"has schema_version {content.get('schema_version')}, and this version knows {SCHEMA_VERSION}"
    try:
        return value_of(Forecast, content)
    except ValueError:
        return "cannot be read as a forecast"
