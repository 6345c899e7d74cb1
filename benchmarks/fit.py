"""The Huber surface fit and its bootstrap, beside minimal scripts written as in the literature; and the scale of both.

    python -m benchmarks.fit [TABLE.csv] [--quick]

Peers, as Besiroglu et al. 2024 publish them: a grid of 4,500 starts, each by L-BFGS-B with numerical gradients, and a
bootstrap of 4,000 draws, each by BFGS with automatic gradients (here torch's). Without a table 240 runs are drawn from
that paper's own surface with 0.02 nats of noise. A peer that would take too long is timed on a part of its starts or
draws, which are independent and alike, and the line says on how many.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.harness import Line
from flops_fit_ray.analysis import FitOptions, Points, fit_sweep
from flops_fit_ray.analysis.surface import SurfaceOptions, bootstrap_surface, fit_surface
from flops_fit_ray.tables import TableOptions, read_table
from tests.surfaces import BESIROGLU, points_from

DELTA = 1e-3
GRID = [(a, b, e, alpha, beta) for a in range(0, 30, 5) for b in range(0, 30, 5) for e in (-1.0, -0.5, 0.0, 0.5, 1.0)
        for alpha in (0.0, 0.5, 1.0, 1.5, 2.0) for beta in (0.0, 0.5, 1.0, 1.5, 2.0)]  # fmt: skip
DRAWS = 4000
REPEATS = 25


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", type=Path)
    parser.add_argument("--where", action="append", default=[], help="NAME=VALUE, as `flops-fit-ray fit`")
    parser.add_argument("--quick", action="store_true", help="a part of the peers' starts and draws")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table is None:
        points = drawn(240)
    else:
        where = [tuple(pair.split("=", 1)) for pair in arguments.where]
        points = read_table(arguments.table, TableOptions(where=where)).points
    options = SurfaceOptions(loss="huber", delta=DELTA)
    _fit_line(points, options, 100 if arguments.quick else len(GRID))
    _bootstrap_line(points, options, 20 if arguments.quick else 400)
    for number in (35, 1000) if arguments.quick else (35, 1000, 10_000):
        _scale_line(number)


def drawn(number: int) -> Points:
    """Runs all over N and D on a published surface, 0.02 nats of noise."""
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7.5, 10, number), 10 ** rng.uniform(9, 11.5, number)
    e, a, b, alpha, beta = BESIROGLU
    loss = e + a / n**alpha + b / d**beta + 0.02 * rng.standard_normal(number)
    flops = 6 * n * d
    return points_from(flops, flops, n, d, loss, labelled=False)


def _fit_line(points: Points, options: SurfaceOptions, starts: int) -> None:
    started = time.process_time()
    for _ in range(REPEATS):
        ours = fit_surface(points, options)
    seconds = (time.process_time() - started) / REPEATS
    picked = np.random.default_rng(0).permutation(len(GRID))[:starts]
    started = time.process_time()
    best = min(_by_lbfgs(points, np.array(GRID[i], dtype=float)) for i in picked)
    peer = (time.process_time() - started) * len(GRID) / starts
    assert ours.objective is not None
    Line(
        name="fit: surface, Huber",
        ratio=peer / seconds,
        ci95=None,
        pairs=1,
        target=5000,
        limit="CPU seconds, one thread",
        same_answer=ours.objective <= best * (1 + 1e-6),
        details={"points": len(points), "our_seconds": seconds, "peer_seconds": peer, "starts_timed": starts,
                 "starts": len(GRID), "our_objective": ours.objective, "peer_objective": best},
    ).print()  # fmt: skip


def _by_lbfgs(points: Points, start: np.ndarray) -> float:
    """One start of the grid: the textbook objective, gradients by differences."""
    log_n, log_d, log_l = np.log(points.params), np.log(points.tokens), np.log(points.loss)

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full(len(log_n), e)])
        top = terms.max(axis=0)
        r = top + np.log(np.exp(terms - top).sum(axis=0)) - log_l
        return float(np.where(np.abs(r) <= DELTA, r * r / 2, DELTA * (np.abs(r) - DELTA / 2)).sum())

    found = minimize(objective, start, method="L-BFGS-B")
    return float(found.fun)


def _bootstrap_line(points: Points, options: SurfaceOptions, peer_draws: int) -> None:
    fit = fit_surface(points, options)
    started = time.process_time()
    ours = bootstrap_surface(fit, points, options, DRAWS, np.random.default_rng(0))
    seconds = time.process_time() - started
    assert ours.draws is not None and fit.surface is not None
    s = fit.surface
    start = np.array([s.log_a[0], s.log_b[0], s.log_e[0], s.alpha[0], s.beta[0]])
    rng = np.random.default_rng(0)
    log_n, log_d, log_l = (torch.tensor(np.log(v)) for v in (points.params, points.tokens, points.loss))
    alphas = []
    started = time.process_time()
    for _ in range(peer_draws):
        rows = torch.tensor(rng.integers(0, len(points), len(points)))
        alphas.append(_by_bfgs(log_n[rows], log_d[rows], log_l[rows], start)[3])
    peer = (time.process_time() - started) * DRAWS / peer_draws
    own, other = float(np.nanstd(ours.draws.alpha)), float(np.std(alphas))
    spread = 3 / math.sqrt(2 * peer_draws)  # three standard errors of a standard deviation
    Line(
        name="bootstrap: surface, Huber",
        ratio=peer / seconds,
        ci95=None,
        pairs=1,
        target=150,
        limit="CPU seconds, one thread",
        same_answer=abs(own / other - 1) < spread,
        details={"points": len(points), "draws": DRAWS, "our_seconds": seconds, "peer_seconds": peer,
                 "peer_draws_timed": peer_draws, "our_stderr_alpha": own, "peer_stderr_alpha": other,
                 "lost_draws": ours.lost_draws},
    ).print()  # fmt: skip


def _by_bfgs(log_n: Any, log_d: Any, log_l: Any, start: np.ndarray) -> np.ndarray:
    """One draw: the same objective, gradients by autograd."""

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        t = torch.tensor(theta, requires_grad=True)
        terms = torch.stack([t[0] - t[3] * log_n, t[1] - t[4] * log_d, t[2].expand(len(log_n))])
        r = torch.logsumexp(terms, dim=0) - log_l
        loss = torch.nn.functional.huber_loss(r, torch.zeros_like(r), delta=DELTA, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        assert t.grad is not None
        return float(loss.detach()), t.grad.numpy()

    scale = 1 / DELTA**2  # else BFGS takes the start for the minimum
    found = minimize(lambda theta: tuple(scale * v for v in objective(theta)), start, jac=True, method="BFGS")
    return np.asarray(found.x)


def _scale_line(number: int) -> None:
    points = drawn(number)
    labelled = replace(points, labelled=False)
    started = time.process_time()
    fit = fit_sweep(labelled, FitOptions(draws=1000))
    seconds = time.process_time() - started
    options = SurfaceOptions(loss="huber", delta=DELTA)
    started = time.process_time()
    bootstrap_surface(fit_surface(points, options), points, options, 1000, np.random.default_rng(0))
    alone = time.process_time() - started
    Line(
        name="scale: fit and 1,000 resamples",
        ratio=None,
        ci95=None,
        pairs=1,
        target=5.0 if number == 10_000 else None,
        limit="CPU seconds",
        same_answer=fit.params_opt is not None,
        details={"points": number, "surface_seconds": alone, "all_methods_seconds": seconds},
    ).print()


if __name__ == "__main__":
    main()
