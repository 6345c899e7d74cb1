"""The best learning rates as far as the probes of a sweep tell them, and what that leaves open of every loss.

    loss = loss at the best rate + kappa · (ln lr - ln best(N, D))²,   ln best = m + p · ln N + q · ln D

A rate that is off raises the losses of a budget differently along N, and those of large budgets more, where the rule of
the rates is an extrapolation. So the minima move together, and no scatter of the losses shows it. Every draw of the
bootstrap therefore has best rates of its own, and what each run's rate then costs is taken off its loss.

The posterior is exact for each kappa of a grid: a run of a group, one (N, D) at three rates, is linear in the group's
level and in kappa·ln best. Priors: p and q at published values, kappa by the loss (Li et al. 2025: rates half and twice
the best cost 0.007 and 0.019 of 2.6 nats), known within a factor of e.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.random_effects import draw_cells

PARAMS_SLOPE, PARAMS_SLOPE_SD = -0.3, 0.3  # prior of p
# Of q, at one N and batch size: -0.3 in Bjorck et al. 2024, near 0 where rates follow the width alone
TOKENS_SLOPE, TOKENS_SLOPE_SD = -0.2, 0.2
LEVEL_SD = 100.0  # of m: not known
KAPPA, KAPPA_SD = 0.01, 1.0  # prior of kappa over the loss, and the standard deviation of its logarithm
KAPPAS = np.geomspace(2e-4, 1.0, 33)
SCATTER = 0.1  # of ln best about its law, and of a parabola's vertex about it
LEAST_NOISE = 1e-6  # of the loss
NEAREST = 3  # rates of a group that are read: the one with the lowest loss and its neighbours


@dataclass(frozen=True, kw_only=True, eq=False)
class TriedRates:
    """Groups of runs that differ in their learning rate alone: the three rates nearest to the best of each."""

    params: Floats  # (groups,)
    tokens: Floats  # (groups,)
    log_lr: Floats  # (groups, 3)
    loss: Floats  # (groups, 3)


def tried_rates(params: Floats, tokens: Floats, lr: Floats, loss: Floats) -> TriedRates | None:
    """Group runs (runs,) by N and D; None where no (N, D) was trained at three rates. Runs of one rate are averaged."""
    groups: dict[tuple[float, float], dict[float, list[float]]] = {}
    for n, d, rate, value in zip(params, tokens, lr, loss, strict=True):
        groups.setdefault((float(n), float(d)), {}).setdefault(float(rate), []).append(float(value))
    found = []
    for (n, d), losses in groups.items():
        rates = sorted(losses)
        if len(rates) < NEAREST:
            continue
        means = [float(np.mean(losses[rate])) for rate in rates]
        first = min(max(int(np.argmin(means)) - 1, 0), len(rates) - NEAREST)
        near = slice(first, first + NEAREST)
        found.append((n, d, np.log(rates[near]), means[near]))
    if not found:
        return None
    n_of, d_of, log_lr, means_of = zip(*found, strict=True)
    return TriedRates(params=np.array(n_of), tokens=np.array(d_of), log_lr=np.array(log_lr), loss=np.array(means_of))


@dataclass(frozen=True, kw_only=True, eq=False)
class BestRates:
    """The posterior of kappa and of the law of the best rates, about the mean of ln N and ln D of the groups."""

    kappas: Floats  # (kappas,), nats per squared ln lr
    probability: Floats  # (kappas,)
    mean: Floats  # (kappas, 3): m, p, q
    covariance: Floats  # (kappas, 3, 3)
    middle: Floats  # (2,): ln N, ln D
    groups: int

    def excess(self, params: Floats, tokens: Floats, lr: Floats, draws: int, seed: int) -> Floats:
        """Draw what the rates of runs (runs,) cost over the best ones: nats (draws, runs)."""
        rng = np.random.default_rng([seed, 4])
        (cell,) = draw_cells(self.probability, rng.random(draws))
        root = np.linalg.cholesky(self.covariance)[cell]
        law = self.mean[cell] + np.einsum("dij,dj->di", root, rng.standard_normal((draws, 3)))
        off = np.log(lr) - law @ _design(params, tokens, self.middle).T
        return np.asarray(self.kappas[cell][:, None] * off**2)

    @property
    def words(self) -> str:
        """The posterior in words."""
        mean = self.probability @ self.mean
        square = np.einsum("k,kii->ki", self.probability, self.covariance).sum(axis=0)
        sd = np.sqrt(square + self.probability @ (self.mean - mean) ** 2)
        twice = float(self.probability @ self.kappas) * np.log(2) ** 2
        return (
            f"best rates ~ N^{mean[1]:+.2f}·D^{mean[2]:+.2f}, exponents ± {sd[1]:.2f} and {sd[2]:.2f}; a factor of 2 "
            f"costs {twice:.2g} nats"
        )


def best_rates(tried: TriedRates, sigma: float) -> BestRates:
    """Compute the posterior; `sigma`: standard deviation of a loss, in nats.

    For each kappa and group, with x = ln lr less its mean:

    1) r = loss - kappa·x² is a line over x, with the slope b = -2·kappa·(ln best - mean ln lr) and a residual
    2) so ln best = mean ln lr - b / 2·kappa, with the variance sigma² / (4·kappa²·sum x²) + SCATTER²
    3) (m, p, q) by Bayesian regression; kappa by the residuals, by what the regression leaves, and by its prior
    """
    unit = float(tried.loss.min(axis=1).mean())
    kappas = KAPPAS * unit
    noise = max(sigma, LEAST_NOISE * unit)
    groups = len(tried.params)
    places = np.log(np.stack([tried.params, tried.tokens], axis=1))
    middle = places.mean(axis=0)
    x = tried.log_lr - tried.log_lr.mean(axis=1, keepdims=True)
    power = (x**2).sum(axis=1)
    r = tried.loss - kappas[:, None, None] * x**2  # (kappas, groups, 3)
    r = r - r.mean(axis=2, keepdims=True)
    slope = (r * x).sum(axis=2) / power
    left = ((r - slope[:, :, None] * x) ** 2).sum(axis=(1, 2))
    best = tried.log_lr.mean(axis=1) - slope / (2 * kappas[:, None])  # (kappas, groups)
    variance = noise**2 / (4 * kappas[:, None] ** 2 * power) + SCATTER**2
    prior = np.array([float(tried.log_lr.mean()), PARAMS_SLOPE, TOKENS_SLOPE])
    precision = np.diag(np.array([LEVEL_SD, PARAMS_SLOPE_SD, TOKENS_SLOPE_SD]) ** -2.0)
    design = _design(tried.params, tried.tokens, middle)
    information = np.einsum("gi,kg,gj->kij", design, 1 / variance, design) + precision
    covariance = np.linalg.inv(information)
    mean = prior + np.einsum("kij,gj,kg->ki", covariance, design, (best - design @ prior) / variance)
    off, moved = best - mean @ design.T, mean - prior
    square = (off**2 / variance).sum(axis=1) + np.einsum("ki,ij,kj->k", moved, precision, moved)
    log = -0.5 * (left / noise**2 + square + np.log(variance).sum(axis=1) + np.linalg.slogdet(information)[1])
    log -= groups * np.log(kappas)  # from densities of ln best to those of slopes
    log -= 0.5 * (np.log(KAPPAS / KAPPA) / KAPPA_SD) ** 2
    probability = np.exp(log - log.max())
    return BestRates(
        kappas=kappas,
        probability=probability / probability.sum(),
        mean=mean,
        covariance=covariance,
        middle=middle,
        groups=groups,
    )


def _design(params: Floats, tokens: Floats, middle: Floats) -> Floats:
    """Rows (runs, 3) of ln best: 1, ln N and ln D about `middle`."""
    return np.stack([np.ones(len(params)), np.log(params) - middle[0], np.log(tokens) - middle[1]], axis=1)
