"""Scores of forecasts against the runs that came later, of the sweep itself or given from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import json_value
from flops_fit_ray.errors import FlopsFitError, first_line
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import IN_FIT, read_experiment
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.forecasts import Forecast, Pair, Sealed, read_forecasts, recipe_of, same_budget
from flops_fit_ray.sweep.scored_runs import FoundMinimum, Run, ScoredRuns, given_runs, minima_of

SAME_SIZE = 1.1  # factor of N within which a run is one of the N that was forecast


@dataclass(frozen=True, kw_only=True)
class Score:
    """Verdict on one quantity of a forecast: said, and come out. `inside` is None where nothing can be said yet."""

    forecast: str  # its file
    sealed_at: float
    budget: float
    quantity: Literal["L", "N_opt"]
    said: float
    interval: Pair
    confidence: float
    params: float  # N that `said` is of: the forecast's, or that of the run
    observed: float | None = None
    observed_interval: Pair | None = None  # of the minimum that was found
    inside: bool | None = None
    message: str = ""


@dataclass(frozen=True)
class Scores:
    """Scores of all forecasts of a sweep, and a line for each file that was left out."""

    scores: tuple[Score, ...]
    problems: tuple[str, ...]

    @property
    def calibration(self) -> tuple[str, ...]:
        """Return how many forecasts held, a line for each confidence."""
        lines = []
        for confidence in sorted({s.confidence for s in self.scores}):
            verdicts = [s.inside for s in self.scores if s.confidence == confidence and s.inside is not None]
            if verdicts:
                lines.append(f"{sum(verdicts)} of {len(verdicts)} inside {100 * confidence:g} %")
        return tuple(lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """Return everything as lines; none without forecasts."""
        held = (f"forecasts: {line}" for line in self.calibration)
        return (*(s.message for s in self.scores), *held, *self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        verdicts = [s.inside for s in self.scores if s.inside is not None]
        return {
            "scores": [asdict(s) for s in self.scores],
            "scored": len(verdicts),
            "inside": sum(verdicts),
            "calibration": list(self.calibration),
            "problems": list(self.problems),
        }


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Outcome at one C: runs and the minimum of their valley; or the reason why there is none yet."""

    runs: tuple[Run, ...] = ()
    minimum: FoundMinimum | None = None
    pending: str = "no run yet"


def scores_of(sweep: Sweep) -> Scores:
    """Score every forecast of a sweep. Fits the sweep only where a forecast's budget has been run."""
    found = read_forecasts(sweep)
    if not found.sealed:
        return Scores((), found.problems)
    others, problems = given_runs(sweep)
    scores: list[Score] = []
    for sealed in found.sealed:
        try:
            outcome = _outcome(sweep, sealed.forecast, others)
        except FlopsFitError as e:
            outcome = _Outcome(pending=f"its runs cannot be fitted: {first_line(e)}")
        scores += _scores(sealed, outcome)
    return Scores(tuple(scores), (*found.problems, *problems))


def _outcome(sweep: Sweep, forecast: Forecast, others: Sequence[ScoredRuns]) -> _Outcome:
    c = forecast.budget
    own = [r for r in sweep.standing if same_budget(r.budget, c)]
    if own:
        if any(r.finished_at < forecast.sealed_at for r in own):
            return _Outcome(pending="not scored: runs of this C ended before the forecast was made")
        if changed := _changed(forecast.recipe, recipe_of(sweep.spec), sweep.spec.is_one_run):
            return _Outcome(pending=f"not scored: this sweep's runs have another recipe ({changed})")
        done = {o.key for o in sweep.outcomes}
        left = sum(same_budget(e.budget, c) and e.key not in done for e in sweep.plan.experiments)
        if left:
            return _Outcome(pending=f"{left} of its runs are not done yet")
        minima = () if sweep.spec.is_one_run else minima_of(sweep.fit)
        return _Outcome(
            runs=tuple(Run(budget=r.budget, params=r.params, loss=r.loss) for r in own),
            minimum=next((m for m in minima if same_budget(m.budget, c)), None),
        )
    outside = _left_out(sweep, forecast)
    if outside:
        return _Outcome(runs=outside)
    for given in others:
        runs = tuple(r for r in given.runs if same_budget(r.budget, c))
        if runs and any((r.finished_at or given.added_at) < forecast.sealed_at for r in runs):
            return _Outcome(pending=f"not scored: the runs of {given.source} ended before the forecast was made")
        if runs:
            return _Outcome(runs=runs, minimum=next((m for m in given.minima if same_budget(m.budget, c)), None))
    return _Outcome()


def _left_out(sweep: Sweep, forecast: Forecast) -> tuple[Run, ...]:
    """Return the ledger's runs of the forecast's C that are not of the plan, such as a run that `predict` recommended.

    They ended after the forecast was made, and by its recipe but for the learning rate.
    """
    planned, ledger, found = {e.key for e in sweep.plan.experiments}, Ledger(sweep.paths), []
    train = forecast.recipe.get("train", {})
    for r in ledger.results(sorted(sweep.paths.recorded_keys() - planned)):
        e = read_experiment(sweep.paths.planned(r.key))
        if e is None or r.role not in IN_FIT or not same_budget(r.budget, forecast.budget):
            continue
        recipe = json_value(asdict(e.recipe))
        shared = (train.keys() & recipe.keys()) - {"lr"}
        if r.finished_at >= forecast.sealed_at and all(recipe[name] == train[name] for name in shared):
            found.append(Run(budget=r.budget, params=r.params, loss=r.loss, finished_at=r.finished_at))
    return tuple(found)


def _changed(before: Any, now: Any, one_run: bool) -> str:
    """Return the first setting that differs; a single run's rate is the one that the sweep's rule comes to."""
    flat_before, flat_now = dict(_leaves(before)), dict(_leaves(now))
    for path in sorted(flat_before.keys() | flat_now.keys()):
        if flat_before.get(path) != flat_now.get(path) and not (one_run and path.startswith("train.lr")):
            return f"{path}: {flat_before.get(path)} -> {flat_now.get(path)}"
    return ""


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict) and content:
        for name, value in content.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, list(content) if isinstance(content, tuple) else content


def _scores(sealed: Sealed, outcome: _Outcome) -> Iterator[Score]:
    yield _loss_score(sealed, outcome)
    if len({r.params for r in outcome.runs}) > 1 or not outcome.runs:
        yield _params_score(sealed, outcome)


def _loss_score(sealed: Sealed, outcome: _Outcome) -> Score:
    """Score L: the loss at the minimum of a valley, as that is what was forecast, else the run nearest to its N."""
    f = sealed.forecast
    n, said, interval = f.params, f.loss, f.run_interval or f.loss_interval
    observed, note = None, ""
    if outcome.minimum is not None and outcome.minimum.loss is not None:
        observed, note = outcome.minimum.loss, f" at the minimum of {len(outcome.runs)} runs"
    elif outcome.runs:
        run_n = min((r.params for r in outcome.runs), key=lambda params: abs(math.log(params / n)))
        loss = float(np.mean([r.loss for r in outcome.runs if r.params == run_n]))
        there = _at(f, run_n)
        if there is not None:
            (said, interval), n, observed = there, run_n, loss
        elif max(run_n / n, n / run_n) <= SAME_SIZE:
            observed = loss
        else:
            note = f"cannot be scored: the run has N = {fmt.count(run_n)}, and no surface says what its loss would be"
    score = Score(
        forecast=sealed.path.name,
        sealed_at=f.sealed_at,
        budget=f.budget,
        quantity="L",
        said=said,
        interval=interval,
        confidence=f.confidence,
        params=n,
        observed=observed,
        inside=None if observed is None else interval[0] <= observed <= interval[1],
    )
    words = (
        f"C = {fmt.flops(f.budget)}: said L = {said:.4g} [{interval[0]:.4g}, {interval[1]:.4g}] at N = {fmt.count(n)} "
        f"on {f.date}, "
    )
    if observed is None:
        return replace(score, message=words + (note or outcome.pending))
    return replace(score, message=f"{words}came out {observed:.4g}{note}: {'inside' if score.inside else 'outside'}")


def _at(forecast: Forecast, params: float) -> tuple[float, Pair] | None:
    """Return the loss that was forecast for a run of this N, and its interval, linear in ln N between the sizes."""
    sizes = forecast.by_size
    if not sizes or not sizes[0].params <= params <= sizes[-1].params:
        return None
    x = np.log([s.params for s in sizes])
    columns = [s.loss for s in sizes], [s.interval[0] for s in sizes], [s.interval[1] for s in sizes]
    loss, low, high = (float(np.interp(math.log(params), x, values)) for values in columns)
    return loss, (low, high)


def _params_score(sealed: Sealed, outcome: _Outcome) -> Score:
    """Score N_opt: inside if the minimum lies in the interval, or as near to it as the minimum's own error allows.

    The distance from what was said is compared with both half-widths on that side, in quadrature, in ln N.
    """
    f, found = sealed.forecast, outcome.minimum
    score = Score(
        forecast=sealed.path.name,
        sealed_at=f.sealed_at,
        budget=f.budget,
        quantity="N_opt",
        said=f.params,
        interval=f.params_interval,
        confidence=f.confidence,
        params=f.params,
    )
    said = f"N_opt = {fmt.count(f.params)} {fmt.interval(*f.params_interval)}"
    words = f"C = {fmt.flops(f.budget)}: said {said} on {f.date}, "
    if found is None:
        return replace(
            score, message=words + ("its runs have no minimum between them" if outcome.runs else outcome.pending)
        )
    side = 1 if found.params > f.params else 0
    theirs, own = math.log(f.params_interval[side] / f.params), 0.0
    if found.interval is not None:
        own = math.log(found.interval[1 - side] / found.params)
    strictly = f.params_interval[0] <= found.params <= f.params_interval[1]
    inside = strictly or abs(math.log(found.params / f.params)) <= math.hypot(theirs, own)
    verdict = "inside" if strictly else "inside with the error of the minimum" if inside else "outside"
    bounds = "" if found.interval is None else f" {fmt.interval(*found.interval)}"
    return replace(
        score,
        message=f"{words}the minimum came out at {fmt.count(found.params)}{bounds}: {verdict}",
        observed=found.params,
        observed_interval=found.interval,
        inside=inside,
    )
