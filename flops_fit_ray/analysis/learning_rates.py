"""The best learning rates as far as the probes of a sweep tell them, and what that leaves open of every loss.

    loss = loss at the best rate + kappa·g(u),   u = ln lr - ln best(N, D),   ln best = m + p·ln N + q·ln D
    g(u) = u²·(1 + a·u) above the best rate, u² / (1 - a·u) below it

A rate that is off raises the losses of a budget differently along N, and those of large budgets more, where the rule of
the rates is an extrapolation. So the minima move together, and no scatter of the losses shows it. Every draw of the
bootstrap therefore has best rates of its own, and what each run's rate then costs is taken off its loss.

Priors: published rates agree about p + q, along which minima lie (D in proportion to N): -0.25 in Bi et al. 2024, as
lr ~ C^-0.125, and -0.41 in Step Law (Li et al. 2025), where p is -0.71 and q +0.31. p - q, that of sizes at one C, is
left wide. kappa and a are those of Step Law, where half the best rate costs 0.007 of 2.6 nats, twice the best 0.019 and
four times 0.097; kappa is a share of the loss, known within a factor of e.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.random_effects import draw_cells

ALONG, ALONG_SD = -0.4, 0.2  # prior of p + q
ACROSS, ACROSS_SD = -0.1, 0.5  # of p - q
# Of p and of q as plans take them: -0.3 in Bjorck et al. 2024, near 0 where rates follow the width alone
PARAMS_SLOPE, PARAMS_SLOPE_SD = -0.3, 0.3
TOKENS_SLOPE, TOKENS_SLOPE_SD = -0.2, 0.2
LEVEL_SD = 100.0  # of m: not known
KAPPA, KAPPA_SD = 0.01, 1.0  # prior of kappa over the loss, and the standard deviation of its logarithm
KAPPAS = np.geomspace(2e-4, 1.0, 41)
STEEPER, STEEPER_SD = 2 / 3, 0.4  # prior of a
STEEPERS = np.arange(5) / 3
SCATTERS, SCATTER_PRIOR = np.array([0.02, 0.05, 0.1, 0.2]), np.array([0.3, 0.3, 0.25, 0.15])  # of ln best about its law
LEAST_NOISE = 1e-6  # of the loss
LEAST, WITHIN = 3, 4.1  # rates of a group that are read: so many at least, and those within this factor of the best one
STEPS, LONGEST = 6, 0.5  # of Gauss and Newton, in ln lr
FARTHEST = 2.0  # standard deviation of ln best where a group tells nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class TriedRates:
    """Groups of runs that differ in their learning rate alone; those near to the best rate of each."""

    params: Floats  # (groups,)
    tokens: Floats  # (groups,)
    log_lr: Floats  # (groups, rates), increasing
    loss: Floats  # (groups, rates), NaN behind the last rate of a group


def tried_rates(params: Floats, tokens: Floats, lr: Floats, loss: Floats) -> TriedRates | None:
    """Group runs (runs,) by N and D; None where no (N, D) was trained at three rates. Runs of one rate are averaged."""
    groups: dict[tuple[float, float], dict[float, list[float]]] = {}
    for n, d, rate, value in zip(params, tokens, lr, loss, strict=True):
        groups.setdefault((float(n), float(d)), {}).setdefault(float(rate), []).append(float(value))
    found = []
    for place, losses in groups.items():
        rates = np.array(sorted(losses))
        if len(rates) < LEAST:
            continue
        means = np.array([np.mean(losses[rate]) for rate in rates])
        distance = np.abs(np.log(rates / rates[means.argmin()]))
        near = distance <= max(np.log(WITHIN), np.sort(distance)[LEAST - 1])
        found.append((place, rates[near], means[near]))
    if not found:
        return None
    most = max(len(rates) for _, rates, _ in found)
    log_lr, values = np.zeros((len(found), most)), np.full((len(found), most), np.nan)
    for i, (_, rates, means) in enumerate(found):
        log_lr[i, : len(rates)], values[i, : len(rates)] = np.log(rates), means
    places = np.array([place for place, _, _ in found])
    return TriedRates(params=places[:, 0], tokens=places[:, 1], log_lr=log_lr, loss=values)


def cost_of_rate(u: Floats, steeper: Floats) -> Floats:
    """Compute g(u) of the module's first lines; `steeper` is a."""
    bend = 1 + steeper * np.abs(u)
    return np.asarray(u**2 * np.where(u > 0, bend, 1 / bend))


def _slope(u: Floats, steeper: Floats) -> Floats:
    """g'(u)."""
    bend = 1 + steeper * np.abs(u)
    return np.asarray(np.where(u > 0, 2 * u + 3 * steeper * u**2, u * (1 + bend) / bend**2))


@dataclass(frozen=True, kw_only=True, eq=False)
class BestRates:
    """The posterior: cells of a, kappa and scatter, and in each the law of the best rates about `middle`."""

    steeper: Floats  # (cells,), a
    kappa: Floats  # (cells,), nats per squared ln lr
    probability: Floats  # (cells,)
    mean: Floats  # (cells, 3): m, p, q
    covariance: Floats  # (cells, 3, 3)
    middle: Floats  # (2,): ln N, ln D

    def excess(self, params: Floats, tokens: Floats, lr: Floats, draws: int, seed: int) -> Floats:
        """Draw what the rates of runs (runs,) cost over the best ones: nats (draws, runs)."""
        rng = np.random.default_rng([seed, 4])
        (cell,) = draw_cells(self.probability, rng.random(draws))
        root = np.linalg.cholesky(self.covariance)[cell]
        law = self.mean[cell] + np.einsum("dij,dj->di", root, rng.standard_normal((draws, 3)))
        off = np.log(lr) - law @ _design(params, tokens, self.middle).T
        return np.asarray(self.kappa[cell][:, None] * cost_of_rate(off, self.steeper[cell][:, None]))

    @property
    def words(self) -> str:
        """The posterior in words."""
        mean = self.probability @ self.mean
        square = self.probability @ np.einsum("kii->ki", self.covariance)
        sd = np.sqrt(square + self.probability @ (self.mean - mean) ** 2)
        twice = float(self.probability @ (self.kappa * cost_of_rate(np.log([2.0]), self.steeper)))
        return (
            f"best rates ~ N^{mean[1]:+.2f}·D^{mean[2]:+.2f}, exponents ± {sd[1]:.2f} and {sd[2]:.2f}; twice the best "
            f"costs {twice:.2g} nats"
        )


def best_rates(tried: TriedRates, sigma: float) -> BestRates:
    """Compute the posterior; `sigma`: standard deviation of a loss, in nats.

    In each cell of a, kappa and scatter:

    1) ln best of a group by least squares of its losses, their level free: its variance is sigma² / sum J²,
       J = -kappa·g' less its mean
    2) (m, p, q) by Bayesian regression of those, with the scatter of each
    3) the probability of the cell by what 1) and 2) leave, and its prior
    """
    unit = float(np.nanmin(tried.loss, axis=1).mean())
    steeper, kappa = (a.ravel() for a in np.meshgrid(STEEPERS, KAPPAS * unit, indexing="ij"))
    noise = max(sigma, LEAST_NOISE * unit)
    best, variance, left = _optima(tried, steeper, kappa, noise)
    places = np.log(np.stack([tried.params, tried.tokens], axis=1))
    middle = places.mean(axis=0)
    design = _design(tried.params, tried.tokens, middle)
    prior = np.array([float(tried.log_lr[:, 0].mean()), (ALONG + ACROSS) / 2, (ALONG - ACROSS) / 2])
    known = np.array([[1.0, 0, 0], [0, 1, 1], [0, 1, -1]])  # m, p + q and p - q
    precision = known.T @ np.diag(np.array([LEVEL_SD, ALONG_SD, ACROSS_SD]) ** -2.0) @ known
    steeper, kappa, left = (np.tile(values, len(SCATTERS)) for values in (steeper, kappa, left))
    best, variance = (np.tile(values, (len(SCATTERS), 1)) for values in (best, variance))
    scatter, weight = (np.repeat(values, len(kappa) // len(SCATTERS)) for values in (SCATTERS, SCATTER_PRIOR))
    total = variance + scatter[:, None] ** 2
    information = np.einsum("gi,kg,gj->kij", design, 1 / total, design) + precision
    covariance = np.linalg.inv(information)
    mean = prior + np.einsum("kij,gj,kg->ki", covariance, design, (best - design @ prior) / total)
    off, moved = best - mean @ design.T, mean - prior
    square = (off**2 / total).sum(axis=1) + np.einsum("ki,ij,kj->k", moved, precision, moved)
    log = -0.5 * (left + square + np.log(total / variance).sum(axis=1) + np.linalg.slogdet(information)[1])
    log -= 0.5 * (((steeper - STEEPER) / STEEPER_SD) ** 2 + (np.log(kappa / unit / KAPPA) / KAPPA_SD) ** 2)
    probability = np.exp(log - log.max()) * weight
    return BestRates(
        steeper=steeper,
        kappa=kappa,
        probability=probability / probability.sum(),
        mean=mean,
        covariance=covariance,
        middle=middle,
    )


def _optima(tried: TriedRates, steeper: Floats, kappa: Floats, noise: float) -> tuple[Floats, Floats, Floats]:
    """Return ln best and its variance (cells, groups), and the sum of squares left over noise² (cells,)."""
    known = ~np.isnan(tried.loss)
    count = known.sum(axis=1)
    loss = np.where(known, tried.loss, 0.0)
    a, k = steeper[:, None, None], kappa[:, None, None]

    def centred(values: Floats) -> Floats:
        values = np.where(known, values, 0.0)
        return np.where(known, values - values.sum(axis=-1, keepdims=True) / count[:, None], 0.0)

    def left(best: Floats) -> Floats:
        return centred(loss - k * cost_of_rate(tried.log_lr - best[:, :, None], a))

    middle = np.array([row[: int(n)].mean() for row, n in zip(tried.log_lr, count, strict=True)])
    starts = [np.broadcast_to(middle + shift, (len(kappa), len(middle))) for shift in np.linspace(-2, 2, 9)]
    squares = np.array([(left(start) ** 2).sum(axis=-1) for start in starts])
    best = np.take_along_axis(np.array(starts), squares.argmin(axis=0)[None], axis=0)[0]
    for _ in range(STEPS):
        moves = centred(-k * _slope(tried.log_lr - best[:, :, None], a))
        step = (moves * left(best)).sum(axis=-1) / np.maximum((moves**2).sum(axis=-1), 1e-300)
        best = best + np.clip(step, -LONGEST, LONGEST)
        best = np.clip(best, middle - 2 * FARTHEST, middle + 2 * FARTHEST)
    moves = centred(-k * _slope(tried.log_lr - best[:, :, None], a))
    variance = np.minimum(noise**2 / np.maximum((moves**2).sum(axis=-1), 1e-300), FARTHEST**2)
    return best, variance, (left(best) ** 2).sum(axis=(-2, -1)) / noise**2


def _design(params: Floats, tokens: Floats, middle: Floats) -> Floats:
    """Rows (runs, 3) of ln best: 1, ln N and ln D about `middle`."""
    return np.stack([np.ones(len(params)), np.log(params) - middle[0], np.log(tokens) - middle[1]], axis=1)
