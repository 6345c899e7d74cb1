"""Scatter of the budgets' minima about a power law, and a bend of the law, beyond the noise of the losses.

    log10 y_i = line(x_i) + bend · q(x_i) + u_i + e_i,   u ~ N(0, tau²),   e ~ N(0, S),   x = log10 C

S is what the noise of the losses leaves of a minimum, tau the scatter between budgets, and q the parabola (x - mean)²/2
less its own line through the budgets, so that `bend` is the change of the exponent per decade of C.

This is random-effects meta-regression (DerSimonian and Laird 1986; Hartung and Knapp 2001). With the three to seven
budgets of a sweep one estimate of tau is often 0 by chance, so tau and bend are not estimated but drawn from their
posterior, on a grid. Its priors are stated: each is exactly 0 with probability `EXACT`, and else a half-Cauchy with the
scale `SCATTER` or `BEND`. Only the deviations from the line tell of them (restricted likelihood); beyond the budgets
the interval grows with the distance, as far as the minima leave a bend possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats, Ints

EXACT = 0.3  # prior probability that the minima lie exactly on the law, and that the law is exactly straight
SCATTER = 0.02  # scale of the prior of tau, in decades of N or D: 5 %
BEND = 0.02  # scale of the prior of the bend: change of the exponent per decade of C
SCATTERS = np.concatenate([[0.0], np.geomspace(0.002, 0.5, 24)])
BENDS = np.concatenate([[0.0], np.geomspace(0.003, 0.3, 12)])
EXACTLY = 1e-5  # decades, below which minima lie on a line exactly


def spike_and_cauchy(grid: Floats, scale: float) -> Floats:
    """Prior probabilities of a grid that begins with 0 and is even in log: `EXACT` at 0, else half-Cauchy."""
    weights = grid[1:] / (1 + (grid[1:] / scale) ** 2)  # density per log
    return np.concatenate([[EXACT], (1 - EXACT) * weights / weights.sum()])


def draw_cells(probability: Floats, choice: Floats) -> tuple[Ints, ...]:
    """Draw places of a grid by their probabilities, which need not sum to 1.

    Args:
        probability: of any shape.
        choice: uniform random numbers (draws,).

    Returns:
        the indices (draws,) over each axis.
    """
    cumulative = np.cumsum(probability.reshape(-1))
    cell = np.minimum(np.searchsorted(cumulative, choice * cumulative[-1]), len(cumulative) - 1)
    return np.unravel_index(cell, probability.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class EffectSource:
    """Random numbers that effects are drawn with: the same for N and D, so that a draw of both is one world."""

    choice: Floats  # (draws,), uniform
    scatter: Floats  # (draws, budgets), standard normal
    bend: Floats  # (draws,), standard normal

    def of(self, budgets: Sequence[int]) -> EffectSource:
        """The same numbers for some of the budgets."""
        return EffectSource(choice=self.choice, scatter=self.scatter[:, budgets], bend=self.bend)

    @property
    def mirrored(self) -> EffectSource:
        """The same numbers for D, which is too small where N is too large."""
        return EffectSource(choice=self.choice, scatter=-self.scatter, bend=-self.bend)


def effect_source(draws: int, budgets: int, seed: int) -> EffectSource:
    """Draw the random numbers of `draws` worlds with `budgets` budgets."""
    rng = np.random.default_rng([seed, 1])
    return EffectSource(
        choice=rng.random(draws),
        bend=rng.standard_normal(draws),
        scatter=rng.standard_normal((budgets, draws)).T,  # one budget more leaves the others as they were
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnEffects:
    """Effects of every draw."""

    scatter: Floats  # (draws, budgets), decades
    bend: Floats  # (draws,), per decade of C


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomEffects:
    """The posterior of scatter and bend; arrays (SCATTERS, BENDS)."""

    probability: Floats
    bend_mean: Floats
    bend_variance: Floats

    @property
    def tau(self) -> float:
        """Root of the mean of tau², in decades."""
        return float(np.sqrt(self.probability.sum(axis=1) @ SCATTERS**2))

    @property
    def scatter_probability(self) -> float:
        """Probability that the minima scatter beyond the noise of their losses."""
        return float(1 - self.probability[0].sum())

    @property
    def bend_probability(self) -> float:
        """Probability that the law is bent."""
        return float(1 - self.probability[:, 0].sum())

    @property
    def bend(self) -> float:
        """Mean bend: change of the exponent per decade of C."""
        return float((self.probability * self.bend_mean).sum())

    def draw(self, source: EffectSource) -> DrawnEffects:
        """Draw effects from the posterior."""
        i, j = draw_cells(self.probability, source.choice)
        bend = self.bend_mean[i, j] + np.sqrt(self.bend_variance[i, j]) * source.bend
        return DrawnEffects(scatter=SCATTERS[i][:, None] * source.scatter, bend=bend)


def random_effects(x: Floats, y: Floats, covariance: Floats) -> RandomEffects:
    """Compute the posterior of scatter and bend.

    1) z = Q'y, with Q an orthonormal basis (budgets, budgets - 2) of what no line can follow, is N(bend·Q'q, V) with
       V = Q'(S + tau²)Q
    2) bend ~ N(0, g²) integrates out: ln p(z) = -1/2·(ln|V| + ln(1 + g²·a) + c - b²·g² / (1 + g²·a)) with a = q'V^-1·q,
       b = q'V^-1·z and c = z'V^-1·z; given z, bend is N(v·b, v) with v = g² / (1 + g²·a)

    Args:
        x: log10 C (budgets,), two distinct at least.
        y: log10 of the minima (budgets,).
        covariance: of y by the noise of the losses (budgets, budgets), decades².
    """
    prior = _prior()
    squares = np.broadcast_to(BENDS**2, prior.shape)
    if len(x) < 3:  # nothing is left to tell: the prior
        return RandomEffects(probability=prior, bend_mean=np.zeros(prior.shape), bend_variance=np.array(squares))
    basis, q, v = _bend_and_noise(x, covariance)
    z = basis.T @ y
    solved = np.linalg.solve(v, np.stack([q, z], axis=1)[None])  # (SCATTERS, budgets - 2, 2)
    a, b, c = (solved[:, :, 0] @ q)[:, None], (solved[:, :, 1] @ q)[:, None], (solved[:, :, 1] @ z)[:, None]
    variance = squares / (1 + squares * a)
    log = -0.5 * (np.linalg.slogdet(v)[1][:, None] + np.log1p(squares * a) + c - b * b * variance)
    posterior = np.exp(log - log.max()) * prior
    return RandomEffects(probability=posterior / posterior.sum(), bend_mean=variance * b, bend_variance=variance)


def line_evidence(x: Floats, draws: Floats, covariance: Floats) -> Floats:
    """Log probability (draws,), but for a constant, of minima `draws` (draws, budgets) as of a law; 0 of two budgets.

    It is the sum over the cells of `random_effects` of prior times p(z).
    """
    if len(x) < 3:
        return np.zeros(len(draws))
    basis, q, v = _bend_and_noise(x, covariance)
    z = draws @ basis
    inverse = np.linalg.inv(v)
    a, b = np.einsum("i,sij,j->s", q, inverse, q), np.einsum("i,sij,dj->ds", q, inverse, z)
    c = np.einsum("di,sij,dj->ds", z, inverse, z)
    variance = BENDS**2 / (1 + BENDS**2 * a[:, None])  # (SCATTERS, BENDS)
    log = np.log(_prior()) - 0.5 * (np.linalg.slogdet(v)[1][:, None] + np.log1p(BENDS**2 * a[:, None]))
    log = log - 0.5 * (c[:, :, None] - (b * b)[:, :, None] * variance)
    most = log.max(axis=(1, 2), keepdims=True)
    return np.asarray(most[:, 0, 0] + np.log(np.exp(log - most).sum(axis=(1, 2))))


def _prior() -> Floats:
    """Prior of the cells (SCATTERS, BENDS)."""
    return spike_and_cauchy(SCATTERS, SCATTER)[:, None] * spike_and_cauchy(BENDS, BEND)


def _bend_and_noise(x: Floats, covariance: Floats) -> tuple[Floats, Floats, Floats]:
    """Return Q of `random_effects`, what a bend of 1 is in it (budgets - 2,), and V of each of SCATTERS."""
    basis = _beyond_lines(x)
    v = basis.T @ covariance @ basis + (SCATTERS**2 + EXACTLY**2)[:, None, None] * np.eye(basis.shape[1])
    return basis, basis.T @ (0.5 * (x - x.mean()) ** 2), v


def chi_square(x: Floats, y: Floats, covariance: Floats) -> tuple[float, int]:
    """Return the chi-square of minima about their line, z'(Q'SQ)^-1·z as in `random_effects`, and its df."""
    basis = _beyond_lines(x)
    z = basis.T @ y
    v = basis.T @ covariance @ basis + EXACTLY**2 * np.eye(len(z))
    return float(z @ np.linalg.solve(v, z)), len(z)


def _beyond_lines(x: Floats) -> Floats:
    """Orthonormal basis (budgets, budgets - 2) of what no line over x can follow."""
    line = np.stack([np.ones(len(x)), x - x.mean()], axis=1)
    return np.asarray(np.linalg.qr(line, mode="complete")[0][:, 2:])
