"""The results of a sweep as arrays, as fits take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flops_fit_ray.analysis import Points
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.learning_rates import TriedRates, tried_rates
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import Measurements
from flops_fit_ray.sweep.recorded import LrAgain


def points_of(
    results: Sequence[ExperimentResult],
    non_embedding: Mapping[str, int] | None = None,
    trunks: Sequence[int] | None = None,
    measured: tuple[Floats, Floats] | None = None,
    epochs: Mapping[str, float] | None = None,
    tried: TriedRates | None = None,
) -> Points:
    """The arrays that a fit takes. D and C are what was really seen and what that costs from scratch.

    Args:
        non_embedding: N of that definition, by key.
        trunks: a number for each result, the same for those of one trunk: a part of their noise is the trunk's.
        measured: N and FLOPs per token of every size, as `token_cost` returns them.
        epochs: how often each experiment sees its data, by key, where that is known.
        tried: rates that were tried, where those of the results were probed.
    """

    def column(name: str) -> Floats:
        return np.array([getattr(r, name) for r in results], dtype=np.float64)

    others = {
        "all parameters": column("params_total"),
        "non-embedding parameters": np.array([(non_embedding or {}).get(r.key, 0) for r in results], dtype=np.float64),
    }
    params, tokens = column("params"), column("tokens_seen")
    seen = np.array([max((epochs or {}).get(r.key, np.nan), 1.0) for r in results], dtype=np.float64)
    return Points(
        budget=column("budget"),
        flops=column("flops"),
        params=params,
        tokens=tokens,
        unique=tokens / seen if len(seen) and np.isfinite(seen).all() else None,
        loss=column("loss"),
        seconds=column("seconds"),
        run=None if trunks is None else np.array(trunks, dtype=np.int64),
        lr=None if tried is None else column("lr"),
        tried=tried,
        metrics={
            name: np.array([r.metrics.get(name, np.nan) for r in results], dtype=np.float64)
            for name in sorted({name for r in results for name in r.metrics})
        },
        token_cost=measured,
        params_as={name: n for name, n in others.items() if (n > 0).all() and not np.array_equal(n, params)},
    )


def token_cost(measurements: Measurements) -> tuple[Floats, Floats]:
    """Return N and FLOPs per token of every measured size, also of those that were not run."""
    sizes = measurements.sizes
    return (
        np.array([s.params for s in sizes], dtype=np.float64),
        np.array([s.flops_per_token for s in sizes], dtype=np.float64),
    )


def tried_in_sweep(results: Sequence[ExperimentResult], before: LrAgain | None = None) -> TriedRates | None:
    """Return the rates that results, probes and checks too, tried at one N and D; None where none has three.

    Args:
        before: with the runs that the rates of the sweep rest on, of the sweep before `extend --lr-again`.
    """
    rows = [*rates_tried(results), *(() if before is None else before.tried)]
    return tried_rates(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)


def rates_tried(results: Sequence[ExperimentResult]) -> list[tuple[float, float, float, float]]:
    """Return N, D, learning rate and loss of every result of the sweep itself; other values on an axis are none."""
    return [(float(r.params), float(r.tokens_seen), r.lr, r.loss) for r in results if r.axis is None]


def curves_of(ledger: Ledger, results: Sequence[ExperimentResult]) -> tuple[Points | None, list[ExperimentResult]]:
    """Return every kept point of every run, the mean training loss since the point before; and the runs without any."""
    parts, without = [], []
    for i, r in enumerate(results):
        tokens, loss = ledger.curve(r.key)
        if not len(loss):
            without.append(r)
        parts.append(np.stack([np.full(len(loss), float(i)), np.full(len(loss), float(r.params)), tokens, loss,
                               tokens * r.flops / r.tokens_seen]))  # fmt: skip
    if not parts:
        return None, without
    run, params, tokens, loss, flops = np.concatenate(parts, axis=1)
    good = np.isfinite(loss) & (loss > 0) & (tokens > 0)
    run, params, tokens, loss, flops = (values[good] for values in (run, params, tokens, loss, flops))
    if not len(loss):
        return None, without
    points = Points(budget=flops, flops=flops, params=params, tokens=tokens, loss=loss, run=run.astype(np.int64))
    return points, without
