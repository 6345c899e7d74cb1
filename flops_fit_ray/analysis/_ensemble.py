"""Draws from a posterior of few parameters by an ensemble of walkers that need no tuning.

Goodman and Weare 2010 (Comm. App. Math. Comp. Sci. 5, 65), section 3: a walker moves along the line to another one, so
the moves take the shape of the posterior, however stretched and correlated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flops_fit_ray.analysis.arrays import Floats

WALKERS = 200
STEPS = 400  # of which the first half is left out
SCALE = 2.0  # of the stretch, as in the paper


def sample(log_posterior: Callable[[Floats], Floats], start: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Return draws (draws, parameters) of a posterior.

    Args:
        log_posterior: of parameters (many, parameters), up to a constant; -inf where there is none.
        start: (candidates, parameters) from wherever the posterior may lie; walkers begin at the likeliest of them.
    """
    at = log_posterior(start)
    likely = np.exp(at - at.max())
    walkers = start[rng.choice(len(start), WALKERS, p=likely / likely.sum())]
    walkers = walkers + 1e-3 * np.std(start, axis=0) * rng.standard_normal(walkers.shape)  # no two in one place
    value, half, kept = log_posterior(walkers), WALKERS // 2, []
    for step in range(STEPS):
        for moved, others in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
            here, partners = walkers[moved], walkers[others][rng.integers(half, size=half)]
            z = ((SCALE - 1) * rng.random(half) + 1) ** 2 / SCALE  # density ~ 1/sqrt(z) on [1/a, a]
            there = partners + z[:, None] * (here - partners)
            new = log_posterior(there)
            with np.errstate(invalid="ignore"):
                accept = np.log(rng.random(half)) < (here.shape[1] - 1) * np.log(z) + new - value[moved]
            walkers[moved] = np.where(accept[:, None], there, here)
            value[moved] = np.where(accept, new, value[moved])
        if step >= STEPS // 2:
            kept.append(walkers.copy())
    together = np.concatenate(kept)
    return together[rng.integers(len(together), size=draws)]
