"""How much losses scatter about a fit, and new scatter of the same kind for the bootstrap.

Three things that make intervals too narrow are met here: the scatter is itself only estimated (every draw takes its own
sigma² · df / chi²), it may differ between budgets (variances are shrunk towards each other as far as they look alike,
Smyth 2004, section 6), and points of one run share a part of their error (a common term per run).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.points import Points

DIFFERENT = 0.05  # chance below which groups are taken to differ in their noise
MIN_PAIRS = 6  # of points in one run, below which a shared part cannot be seen
LEAST_LEVERAGE_LEFT = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """The scatter of losses about a fit, in nats. `sigma` and `df` hold one entry per group of points."""

    sigma: Floats
    df: Floats
    shared: float  # of the variance: the part that points of one run have in common
    pooled: float  # over all groups
    pooled_df: int


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """The spread between runs that differ in nothing but their seed."""

    sigma: float
    df: int


def group_noise(
    residuals: Sequence[Floats], df: Sequence[int], leverages: Sequence[Floats], runs: Ints
) -> Noise | None:
    """The noise of groups with their residuals; None where no group has more points than its curve has coefficients.

    Args:
        residuals: one array per group.
        df: points less coefficients of each group.
        leverages: diagonals of the hat matrices, one array per group.
        runs: run of each point, groups one after the other.
    """
    squares = np.array([float(r @ r) for r in residuals])
    counts = np.maximum(np.array(df, dtype=np.float64), 0)
    total = float(counts.sum())
    if total < 1:
        return None
    pooled = float(squares.sum() / total)
    prior_df, prior = _prior(squares, counts, pooled)
    if np.isinf(prior_df):
        variances, dfs = np.full(len(squares), pooled), np.full(len(squares), total)
    else:
        dfs = counts + prior_df
        variances = (squares + prior_df * prior) / dfs
    scale = np.sqrt(np.maximum(1 - np.concatenate(list(leverages)), LEAST_LEVERAGE_LEFT))
    standard = (
        np.concatenate(list(residuals)) / scale / np.sqrt(np.repeat(variances, [len(r) for r in residuals]) + 1e-300)
    )
    return Noise(
        sigma=np.sqrt(variances),
        df=dfs,
        shared=_shared_part(standard, runs),
        pooled=float(np.sqrt(pooled)),
        pooled_df=int(total),
    )


def _prior(squares: Floats, df: Floats, pooled: float) -> tuple[float, float]:
    """Degrees of freedom and variance of the prior of the groups' variances; infinite if they look alike."""
    seen = (df >= 1) & (squares > 0)
    if seen.sum() < 3:
        return np.inf, pooled
    from scipy.special import digamma, gammaincc, polygamma

    # Bartlett's test: groups are alike until they are seen to differ
    n, s = df[seen], squares[seen] / df[seen]
    total = float(n.sum())
    ratio = total * np.log(n @ s / total) - n @ np.log(s)
    ratio /= 1 + (np.sum(1 / n) - 1 / total) / (3 * (len(n) - 1))
    if gammaincc((len(n) - 1) / 2, ratio / 2) > DIFFERENT:
        return np.inf, pooled
    half = n / 2
    e = np.log(squares[seen] / df[seen]) - digamma(half) + np.log(half)
    excess = float(np.var(e, ddof=1) - np.mean(polygamma(1, half)))
    if excess <= 0:
        return np.inf, pooled
    y = 0.5 + 1 / excess  # Newton for trigamma(y) = excess (Smyth 2004, appendix)
    for _ in range(50):
        step = float(polygamma(1, y) * (1 - polygamma(1, y) / excess) / polygamma(2, y))
        y += step
        if abs(step) < 1e-10 * y:
            break
    return 2 * y, float(np.exp(np.mean(e) + digamma(y) - np.log(y)))


def _shared_part(standard: Floats, runs: Ints) -> float:
    """Mean product of standardised residuals over all pairs within a run, over their mean square."""
    count = np.bincount(runs)
    pairs = float((count * (count - 1)).sum() / 2)
    square = float(np.mean(standard**2))
    if pairs < MIN_PAIRS or square == 0:
        return 0.0
    sums = np.bincount(runs, weights=standard)
    products = float((sums**2).sum() - (standard**2).sum()) / 2
    return float(np.clip(products / pairs / square, 0, 1))


def draw_scatter(rng: np.random.Generator, draws: int, noise: Noise, group: Ints, runs: Ints, num_runs: int) -> Floats:
    """New scatter (draws, points) for points of the given groups and runs."""
    sigma = noise.sigma * np.sqrt(noise.df / rng.chisquare(noise.df, size=(draws, len(noise.df))))
    if np.all(noise.df == noise.df[0]) and np.all(noise.sigma == noise.sigma[0]):
        sigma = np.repeat(sigma[:, :1], len(noise.df), axis=1)  # one variance for all is one unknown, not many
    own = rng.standard_normal((draws, len(group)))
    if noise.shared:
        own *= np.sqrt(1 - noise.shared)
        own += np.sqrt(noise.shared) * rng.standard_normal((draws, num_runs))[:, runs]
    return np.asarray(own * sigma[:, group])


def seed_noise(points: Points) -> SeedNoise | None:
    """Pooled over the points that agree in budget, N and D; None without such points."""
    keys = np.stack([points.budget, points.params, points.tokens], axis=1)
    _, which = np.unique(keys, axis=0, return_inverse=True)
    which = which.reshape(-1)
    count = np.bincount(which)
    df = int((count - 1).sum())
    if df < 1:
        return None
    mean = np.bincount(which, weights=points.loss) / count
    return SeedNoise(sigma=float(np.sqrt(((points.loss - mean[which]) ** 2).sum() / df)), df=df)
