"""The noise of losses about a fit, and parametric draws from it for the bootstrap.

Three effects would make intervals too narrow, and are modelled:

1) sigma is itself an estimate with df degrees of freedom: every draw uses sigma²·df / chi²(df)
2) sigma may differ between budgets: variances are shrunk towards a common prior as far as they look alike, by the
   empirical Bayes estimate of Smyth 2004 (limma), section 6
3) points of one run share a part of their error: one common term per run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.points import Points

DIFFERENT = 0.05  # p-value of Bartlett's test below which groups differ in their noise
CLEARLY_MORE = 2.0  # twice a log-likelihood by which noise in proportion to the loss has to fit better
MIN_PAIRS = 6  # of points in one run, below which a shared part cannot be estimated
LEAST_LEVERAGE_LEFT = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """Standard deviation of losses about a fit, in nats; `sigma` and `df` have one entry per group of points."""

    sigma: Floats
    df: Floats
    shared: float  # share of the variance that points of one run have in common
    pooled: float  # over all groups
    pooled_df: int


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """Standard deviation between runs that differ only in their seed, in nats."""

    sigma: float
    df: int


def group_noise(
    residuals: Sequence[Floats],
    df: Sequence[float],
    leverages: Sequence[Floats],
    runs: Ints,
    levels: Sequence[float] | None = None,
) -> Noise | None:
    """Estimate the noise of groups of residuals; None where no group has more points than its curve has coefficients.

    Args:
        residuals: one array per group.
        df: points less coefficients of each group.
        leverages: diagonals of the hat matrices, one array per group.
        runs: run of each point, groups one after the other.
        levels: lowest loss of each group. A group without degrees of freedom takes the noise of the others in
            proportion to it, where that makes them clearly more alike; None: never.
    """
    # 1) pooled variance s² = sum r² / sum df
    squares = np.array([float(r @ r) for r in residuals])
    counts = np.maximum(np.array(df, dtype=np.float64), 0)
    total = float(counts.sum())
    if total < 1:
        return None
    pooled = float(squares.sum() / total)
    # 2) posterior variance of a group: (d0·s0² + d·s²) / (d0 + d), the prior having d0 degrees of freedom
    prior_df, prior = _prior(squares, counts, pooled)
    if np.isinf(prior_df):
        variances, dfs = np.full(len(squares), pooled), np.full(len(squares), total)
        if levels is not None:
            variances = _in_proportion(variances, squares, counts, np.array(levels, dtype=np.float64))
    else:
        dfs = counts + prior_df
        variances = (squares + prior_df * prior) / dfs
    # 3) standardised residuals r / (s·sqrt(1 - h)), whose products within a run show what its points share
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


def _in_proportion(variances: Floats, squares: Floats, df: Floats, levels: Floats) -> Floats:
    """Return the variances with those of groups without degrees of freedom in proportion to their level, if that fits.

    Losses that fall towards 0, as of a regression, leave residuals that fall with them: those of the small budgets say
    nothing of a large one. Where the level is hardly lower, as of text, either rule gives the same.
    """
    seen, silent = (df >= 1) & (squares > 0), df < 1
    if seen.sum() < 2 or not silent.any() or levels.min() <= 0:
        return variances
    relative = squares / levels**2
    if _unlikeness(df[seen], squares[seen]) - _unlikeness(df[seen], relative[seen]) < CLEARLY_MORE:
        return variances
    return np.where(silent, relative.sum() / df.sum() * levels**2, variances)


def _unlikeness(n: Floats, squares: Floats) -> float:
    """Return twice the log-likelihood that groups gain by variances of their own: n·ln s_pooled² - sum n_i·ln s_i²."""
    s = squares / n
    return float(n.sum() * np.log(n @ s / n.sum()) - n @ np.log(s))


def _prior(squares: Floats, df: Floats, pooled: float) -> tuple[float, float]:
    """Degrees of freedom d0 and variance s0² of the prior of the groups' variances; d0 is infinite if they look alike.

    Smyth 2004, section 6.2: moments of ln s² give d0 and s0².
    """
    seen = (df >= 1) & (squares > 0)
    if seen.sum() < 3:
        return np.inf, pooled
    from scipy.special import digamma, gammaincc, polygamma

    # 1) Bartlett's test of equal variances, (ntot·ln s_pooled² - sum n·ln s²) / correction ~ chi² (groups - 1):
    #    groups are taken for alike until they differ significantly
    n = df[seen]
    total = float(n.sum())
    ratio = _unlikeness(n, squares[seen])
    ratio /= 1 + (np.sum(1 / n) - 1 / total) / (3 * (len(n) - 1))
    if gammaincc((len(n) - 1) / 2, ratio / 2) > DIFFERENT:
        return np.inf, pooled
    # 2) e = ln s² - digamma(d/2) + ln(d/2), and trigamma(d0/2) = var(e) - mean trigamma(d/2)
    half = n / 2
    e = np.log(squares[seen] / df[seen]) - digamma(half) + np.log(half)
    excess = float(np.var(e, ddof=1) - np.mean(polygamma(1, half)))
    if excess <= 0:
        return np.inf, pooled
    # 3) y = d0/2 by Newton's method for trigamma(y) = excess (Smyth 2004, appendix)
    y = 0.5 + 1 / excess
    for _ in range(50):
        step = float(polygamma(1, y) * (1 - polygamma(1, y) / excess) / polygamma(2, y))
        y += step
        if abs(step) < 1e-10 * y:
            break
    # 4) ln s0² = mean(e) + digamma(d0/2) - ln(d0/2)
    return 2 * y, float(np.exp(np.mean(e) + digamma(y) - np.log(y)))


def _shared_part(standard: Floats, runs: Ints) -> float:
    """Correlation of errors within a run: mean product of standardised residuals over its pairs, over the mean square.

    The sum of products over the pairs of a run is ((sum r)² - sum r²) / 2.
    """
    count = np.bincount(runs)
    pairs = float((count * (count - 1)).sum() / 2)
    square = float(np.mean(standard**2))
    if pairs < MIN_PAIRS or square == 0:
        return 0.0
    sums = np.bincount(runs, weights=standard)
    products = float((sums**2).sum() - (standard**2).sum()) / 2
    return float(np.clip(products / pairs / square, 0, 1))


def draw_scatter(rng: np.random.Generator, draws: int, noise: Noise, group: Ints, runs: Ints, num_runs: int) -> Floats:
    """Draw noise (draws, points) for points of the given groups and runs.

    noise = sigma·sqrt(df / chi²)·(sqrt(1 - shared)·z_point + sqrt(shared)·z_run), z standard normal.
    """
    sigma = noise.sigma * np.sqrt(noise.df / rng.chisquare(noise.df, size=(draws, len(noise.df))))
    if np.all(noise.df == noise.df[0]) and np.all(noise.sigma == noise.sigma[0]):
        sigma = np.repeat(
            sigma[:, :1], len(noise.df), axis=1
        )  # one common variance is one unknown: one chi² for all groups
    z = rng.standard_normal((draws, len(group)))
    if noise.shared:
        z *= np.sqrt(1 - noise.shared)
        z += np.sqrt(noise.shared) * rng.standard_normal((draws, num_runs))[:, runs]
    return np.asarray(z * sigma[:, group])


def seed_noise(points: Points) -> SeedNoise | None:
    """Pool the noise over points with the same budget, N, D and distinct tokens; None without such points."""
    unique = points.tokens if points.unique is None else points.unique
    keys = np.stack([points.budget, points.params, points.tokens, unique], axis=1)
    _, which = np.unique(keys, axis=0, return_inverse=True)
    which = which.reshape(-1)
    count = np.bincount(which)
    df = int((count - 1).sum())
    if df < 1:
        return None
    mean = np.bincount(which, weights=points.loss) / count
    return SeedNoise(sigma=float(np.sqrt(((points.loss - mean[which]) ** 2).sum() / df)), df=df)
