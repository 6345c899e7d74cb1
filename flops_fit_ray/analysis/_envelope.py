"""Approach 1: the lower envelope of all training curves over C (Hoffmann et al. 2022, section 3.1).

A loss read before the end of a learning rate schedule is too high, the more so the further away the end is, so the
envelope is biased. The other methods are preferred wherever they can be fitted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._law import LawDraws, fit_lines, fit_power_law
from flops_fit_ray.analysis._methods import Method
from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.points import Points, smoothed

CAVEAT = (
    "the envelope compares losses from the middle of learning rate schedules, which are too high; it needs runs whose "
    "schedule does not depend on their length"
)
PLACES = 100  # C, evenly spaced in log, at which the lowest curve is looked up
MIN_RUNS = 3
MAX_DRAWS = 500


def envelope_method(curves: Points | None, draws: int, rng: np.random.Generator) -> Method | None:
    """Fit the laws of the envelope; None where no run has more than one loss. The bootstrap resamples whole runs."""
    if curves is None or curves.run is None or curves.num_runs == len(curves):
        return None
    # 1) every run on one grid of log C: L, log10 D (runs, PLACES) and N (runs,); NaN outside the run
    curves = smoothed(curves)
    runs, log_c = curves.runs, np.log10(curves.flops)
    places = np.linspace(log_c.min(), log_c.max(), PLACES)
    count = curves.num_runs
    loss = np.full((count, PLACES), np.nan)
    tokens = np.full((count, PLACES), np.nan)
    params = np.zeros(count)
    for run in range(count):
        here = np.flatnonzero(runs == run)
        here = here[np.argsort(log_c[here], kind="stable")]
        inside = (places >= log_c[here[0]]) & (places <= log_c[here[-1]])
        loss[run, inside] = np.interp(places[inside], log_c[here], curves.loss[here])
        tokens[run, inside] = np.interp(places[inside], log_c[here], np.log10(curves.tokens[here]))
        params[run] = curves.params[here[0]]
    # 2) the run with the lowest loss at each C
    best = _lowest(loss, params)
    chosen = np.unique(best[best >= 0])
    if len(chosen) < MIN_RUNS:
        reason = f"{fmt.counted(len(chosen), 'run')} on the envelope, and a law needs {MIN_RUNS}"
        return Method(name="envelope", status="no_law", reason=reason,
                      params_opt=None, tokens_opt=None, loss_opt=None)  # fmt: skip
    # 3) power laws through N, D and L of those runs over C
    seen = np.flatnonzero(best >= 0)
    values = (
        params[best[seen]],
        10 ** tokens[best[seen], seen],
        loss[best[seen], seen],
    )
    laws = [fit_power_law(10 ** places[seen], value) for value in values]
    drawn = _draw(loss, tokens, params, places, min(draws, MAX_DRAWS), rng)
    laws = [replace(law, stderr_ols=None, draws=draw if draws else None) for law, draw in zip(laws, drawn, strict=True)]
    return Method(name="envelope", status="fitted", reason=CAVEAT, params_opt=laws[0], tokens_opt=laws[1],
                  loss_opt=laws[2], draws=len(drawn[0].exponent),
                  lost_draws=int(np.isnan(drawn[0].exponent).sum()))  # fmt: skip


def _lowest(loss: Floats, params: Floats) -> Ints:
    """Index (PLACES,) of the run with the lowest loss; -1 where no smaller or no larger model has a loss there."""
    known = ~np.isnan(loss)
    best = np.where(known, loss, np.inf).argmin(axis=0)
    smallest = np.where(known, params[:, None], np.inf).min(axis=0)
    largest = np.where(known, params[:, None], -np.inf).max(axis=0)
    inside = (params[best] > smallest) & (params[best] < largest)
    return np.where(inside, best, -1)


def _draw(
    loss: Floats, tokens: Floats, params: Floats, places: Floats, draws: int, rng: np.random.Generator
) -> tuple[LawDraws, LawDraws, LawDraws]:
    laws = np.full((3, 2, draws), np.nan)
    for i in range(draws):
        runs = np.unique(rng.integers(0, len(params), len(params)))
        best = _lowest(loss[runs], params[runs])
        seen = np.flatnonzero(best >= 0)
        if len(np.unique(best[seen])) < 2:
            continue
        rows = runs[best[seen]]
        y = np.stack([np.log10(params[rows]), tokens[rows, seen], np.log10(loss[rows, seen])])
        laws[:, 0, i], laws[:, 1, i] = fit_lines(places[seen], y, np.ones(len(seen)))
    n, d, loss_opt = (LawDraws(exponent=law[0], log10_coefficient=law[1]) for law in laws)
    return n, d, loss_opt
