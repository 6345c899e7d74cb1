"""How well a training curve foretells the loss at its end: would a law over whole curves be of use here?

    python -m benchmarks.curve_law DIR [DIR ...]

For every grid experiment of a sweep directory with `schedule: wsd`, the held-out loss at its end is foretold from its
training loss up to where the decay begins, by what the other experiments did. `multi_power` fits the multi-power law
(Luo et al. 2025, arXiv 2503.12811, eq. 1) to all curves of that size but this decay, and adds the mean difference
between held-out loss and law of the size's other runs; sizes with one run have none. `step` is a regression of
ln(end / trunk) on ln N and ln D over the other runs. `no_curve` leaves the curve out: ln(end) as a quadratic of ln N
and ln D. One JSON line for each: runs, median and rms of the error in per cent; and one for the noise of the mean of
the last 12 training losses.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from flops_fit_ray.ledger import Ledger
from flops_fit_ray.sweep.directory import Sweep, open_sweep

Floats = NDArray[np.float64]

SKIPPED = 40  # points of a curve, about a sixth of it: warmup and the first steep part
LAST = 40  # points before the decay that stand for the trunk
TAIL = 12  # points at the end of a decay
UNIT = 1e5  # tokens at the full rate
NOISE = 0.03  # of ln loss of one batch
START = np.array([math.log(1.3), 0.0, 0.5, math.log(0.1), 0.0, 0.6, 0.6, math.log(0.1)])
WIDTHS = np.array([3.0, 3.0, 0.5, 2.0, 3.0, 0.7, 0.7, 3.0])  # of a weak prior about START


@dataclass(frozen=True, eq=False)
class Curve:
    """One experiment: its curve, and the held-out loss at its end."""

    params: int
    total: int  # tokens
    tokens: Floats  # (points,)
    loss: Floats  # (points,), of training batches
    rate: Floats  # (points,), learning rate over the highest one
    end: float

    @property
    def trunk(self) -> int:
        """Points before the decay."""
        return int(np.flatnonzero(self.rate >= 0.999)[-1]) + 1

    @property
    def on_trunk(self) -> float:
        """Mean ln(training loss) where the decay begins."""
        return float(np.log(self.loss[max(SKIPPED, self.trunk - LAST) : self.trunk]).mean())


def main() -> None:
    """Print the lines of each directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    for directory in parser.parse_args().directories:
        curves = curves_of(open_sweep(directory))
        tails = [float(np.log(c.loss[-TAIL:]).std() / math.sqrt(TAIL)) for c in curves]
        _say(directory, "noise_of_tail", tails)
        for name, forecast in (("multi_power", _by_law), ("step", _by_step), ("no_curve", _without_curve)):
            found = [(forecast(c, [o for o in curves if o is not c]), c.end) for c in curves]
            _say(directory, name, [math.log(said / end) for said, end in found if said is not None])


def _say(directory: Path, name: str, errors: list[float]) -> None:
    percent = 100 * np.abs(errors)
    line = {"directory": directory.name, "forecast": name, "runs": len(errors),
            "median_percent": round(float(np.median(percent)), 2) if errors else None,
            "rms_percent": round(float(np.sqrt(np.mean(percent**2))), 2) if errors else None}  # fmt: skip
    sys.stdout.write(json.dumps(line) + "\n")


def curves_of(sweep: Sweep) -> list[Curve]:
    """Return the curves of the completed grid experiments."""
    ledger, ends, found = Ledger(sweep.paths), {r.key: r.loss for r in sweep.results}, []
    for e in sweep.plan.experiments:
        if e.role != "grid" or e.key not in ends:
            continue
        columns = {name: [row[name] for row in ledger.curve_rows(e.key)] for name in ("tokens", "train_loss", "lr")}
        tokens, loss, lr = (np.array(values, dtype=float) for values in columns.values())
        good = np.isfinite(loss) & (loss > 0)
        if good.sum() > 2 * SKIPPED:
            rate = lr[good] / lr[good].max()
            found.append(Curve(e.params, e.tokens, tokens[good], loss[good], rate, ends[e.key]))
    return found


def multi_power(p: Floats, curve: Curve) -> Floats:
    """Return the training loss at each point of a curve, (points,), by the multi-power law."""
    floor, a, alpha, b, c, beta, gamma, warm = p
    spent = np.cumsum(curve.rate * np.diff(curve.tokens, prepend=0.0)) / UNIT
    loss = math.exp(floor) + math.exp(a) * (spent + math.exp(warm)) ** -alpha
    drops = np.maximum(0.0, -np.diff(curve.rate, prepend=curve.rate[0]))
    for at in np.flatnonzero(drops):
        since = (spent[at:] - spent[at - 1]) * max(curve.rate[at], 1e-3) ** -gamma
        loss[at:] -= math.exp(b) * drops[at] * (1 - (1 + math.exp(c) * since) ** -beta)
    return np.asarray(np.maximum(loss, 1e-3))


def _by_law(curve: Curve, others: list[Curve]) -> float | None:
    same = [o for o in others if o.params == curve.params]
    if not same:
        return None
    used = [*((o, slice(SKIPPED, None)) for o in same), (curve, slice(SKIPPED, curve.trunk))]

    def residuals(p: Floats) -> Floats:
        parts = [np.log(multi_power(p, c)[at] / c.loss[at]) / NOISE for c, at in used]
        return np.concatenate([*parts, (p - START) / WIDTHS])

    p = least_squares(residuals, START, loss="soft_l1", max_nfev=200).x
    gap = np.mean([o.end - multi_power(p, o)[-1] for o in same])
    return float(multi_power(p, curve)[-1] + gap)


def _regressed(rows: Floats, values: Floats, wanted: Floats) -> float:
    return float(wanted @ np.linalg.lstsq(rows, values, rcond=None)[0])


def _at(curve: Curve) -> tuple[float, float]:
    return math.log(curve.params), math.log(curve.total)


def _by_step(curve: Curve, others: list[Curve]) -> float:
    rows = np.array([[1.0, *_at(o)] for o in others])
    steps = np.array([math.log(o.end) - o.on_trunk for o in others])
    return math.exp(curve.on_trunk + _regressed(rows, steps, np.array([1.0, *_at(curve)])))


def _without_curve(curve: Curve, others: list[Curve]) -> float:
    rows = np.array([_quadratic(*_at(o)) for o in others])
    return math.exp(_regressed(rows, np.array([math.log(o.end) for o in others]), np.array(_quadratic(*_at(curve)))))


def _quadratic(n: float, d: float) -> list[float]:
    n, d = n - 10.0, d - 14.0
    return [1.0, n, d, n * n, n * d, d * d]


if __name__ == "__main__":
    main()
