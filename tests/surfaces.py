"""Sweeps on published loss surfaces, whose every answer is known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from flops_fit_ray.analysis import Points, group_by_nearness
from flops_fit_ray.planning.loss_surfaces import LossFunction

# L = E + A/N^alpha + B/D^beta with C = 6·N·D: (E, A, B, alpha, beta)
Surface = tuple[float, float, float, float, float]
HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)  # Hoffmann et al. 2022, section D.3
BESIROGLU = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024, table 1
LOPSIDED = (1.69, 120.0, 3000.0, 0.25, 0.40)  # a valley that leans
SYMMETRIC = (1.69, 400.0, 400.0, 0.31, 0.31)
BUDGETS = [1e18, 3e18, 1e19, 3e19, 1e20]


def optimum(surface: Surface, budget: float) -> tuple[float, float, float]:
    """N, D and loss at the minimum (Hoffmann et al. 2022, equation 4)."""
    e, a, b, alpha, beta = surface
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    n = g * (budget / 6) ** (beta / (alpha + beta))
    d = budget / 6 / n
    return n, d, e + a / n**alpha + b / d**beta


def points_from(budget: Any, flops: Any, params: Any, tokens: Any, loss: Any, **more: Any) -> Points:
    """Points from anything that numpy takes."""
    columns = [np.asarray(c, dtype=np.float64) for c in (budget, flops, params, tokens, loss)]
    return Points(budget=columns[0], flops=columns[1], params=columns[2], tokens=columns[3], loss=columns[4], **more)


def joined(*many: Points) -> Points:
    """One set of points from several; their required columns alone."""
    names = ("budget", "flops", "params", "tokens", "loss")
    return points_from(*(np.concatenate([getattr(points, name) for points in many]) for name in names))


def sweep_on(
    surface: Surface,
    budgets: list[float],
    *,
    window: float = 4.0,
    sizes: int = 7,
    off_centre: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """An IsoFLOP sweep on a known surface: sizes from 1/window to window times the optimum of each budget."""
    centres = [optimum(surface, budget)[0] * off_centre for budget in budgets]
    return sweep_about(loss_of(surface), budgets, centres, window=window, sizes=sizes, noise=noise, seed=seed)


def sweep_about(
    loss: LossFunction,
    budgets: list[float],
    centres: list[float],
    *,
    window: float = 4.0,
    sizes: int = 7,
    noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """An IsoFLOP sweep on any surface, about one N for each budget."""
    rng = np.random.default_rng(seed)
    rows = []
    for budget, centre in zip(budgets, centres, strict=True):
        for factor in np.geomspace(1 / window, window, sizes):
            n = centre * factor
            d = budget / 6 / n
            rows.append((budget, budget, n, d, loss(n, d) + noise * rng.standard_normal()))
    return points_from(*np.array(rows).T)


def scattered(surface: Surface, number: int, *, noise: float = 0.0, seed: int = 0) -> Points:
    """Runs all over N and D, as a laboratory has them."""
    return scattered_on(loss_of(surface), number, noise=noise, seed=seed)


def scattered_on(loss: LossFunction, number: int, *, noise: float = 0.0, seed: int = 0) -> Points:
    """Runs all over N and D on any surface."""
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7, 10, number), 10 ** rng.uniform(9, 12, number)
    values = loss(n, d) + noise * rng.standard_normal(number)
    return points_from(group_by_nearness(6 * n * d), 6 * n * d, n, d, values, labelled=False)


def loss_of(surface: Surface) -> LossFunction:
    """L(N, D) of an additive surface."""
    e, a, b, alpha, beta = surface
    return lambda n, d: e + a / n**alpha + b / d**beta
