"""Forms of the second step from a held-out loss to another metric, and their posterior.

1) A share between bounds (accuracy, pass rate, exact match): y = b + (c - b) / (1 + exp(k·(L - L0))), floor b and
   ceiling c (Llama 3, arXiv 2407.21783, section 3.2.1; Bhagia et al. 2024, arXiv 2412.04403, section 3). A rate of
   errors is the same turned over.
2) Another loss: y = E2 + A·(L - E1)^kappa (Brandfonbrener et al. 2024, arXiv 2411.12925).

Priors are flat in b, c, E1 and E2 between their bounds and in ln A; ln k is normal about ln(4 / range of the losses)
with 1.5, L0 about their median with 3 ranges, ln kappa about 0 with 0.5. Noise is normal, of density 1/sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats, Ints

CANDIDATES = 4000  # drawn from the priors, of which the likeliest begin
EXACT = 1e-9  # of the range of a metric: noise below it is none
KAPPA_SPREAD, SLOPE_SPREAD, MIDDLE_SPREAD = 0.5, 1.5, 3.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ShareLink:
    """A share between `low` and `high` that rises as the loss falls; parameters (many, 4), with a known floor 3."""

    low: float
    high: float
    floor: float | None  # of guessing, where it is known
    middle: float  # median of the losses
    span: float  # range of the losses

    @property
    def size(self) -> int:
        """Number of parameters."""
        return 3 if self.floor is not None else 4

    def values(self, theta: Floats, loss: Floats) -> Floats:
        """Return the metric (many, losses) at these losses (losses,), or (many, losses) of each."""
        floor, ceiling, slope, middle = self.named(theta)
        with np.errstate(over="ignore"):
            rise = 1 / (1 + np.exp(slope[:, None] * (loss - middle[:, None])))
        return np.asarray(floor[:, None] + (ceiling - floor)[:, None] * rise)

    def named(self, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return floor, ceiling, slope k and midpoint L0, (many,) each."""
        floor = np.full(len(theta), self.floor)
        if self.floor is None:
            floor = self.low + (self.high - self.low) * _expit(theta[:, 3])
        ceiling = floor + (self.high - floor) * _expit(theta[:, 2])
        return floor, ceiling, np.exp(theta[:, 0]), theta[:, 1]

    def log_prior(self, theta: Floats) -> Floats:
        """Return the log density (many,) of the priors over these coordinates."""
        prior = -0.5 * ((theta[:, 0] - np.log(4 / self.span)) / SLOPE_SPREAD) ** 2
        prior -= 0.5 * ((theta[:, 1] - self.middle) / (MIDDLE_SPREAD * self.span)) ** 2
        return np.asarray(prior + _flat(theta[:, 2:]))

    def candidates(self, rng: np.random.Generator) -> Floats:
        """Draw from the priors."""
        theta = rng.standard_normal((CANDIDATES, self.size))
        theta[:, 0] = np.log(4 / self.span) + SLOPE_SPREAD * theta[:, 0]
        theta[:, 1] = self.middle + MIDDLE_SPREAD * self.span * theta[:, 1]
        theta[:, 2:] = _logit(rng.random((CANDIDATES, self.size - 2)))
        return theta

    def formula(self, theta: Floats, name: str) -> str:
        """Return the link of one set of parameters (1, size) as text."""
        floor, ceiling, slope, middle = (float(value[0]) for value in self.named(theta))
        return f"{name} = {floor:.4g} + {ceiling - floor:.4g}/(1 + exp({slope:.4g}·(L - {middle:.4g})))"

    def progress(self, theta: Floats, loss: float) -> Floats:
        """Return the share (many,) of the way from the floor to the upper bound that the metric has come at a loss."""
        floor = self.named(theta)[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((self.values(theta, np.array([loss]))[:, 0] - floor) / (self.high - floor))


@dataclass(frozen=True, kw_only=True, eq=False)
class LossLink:
    """Another loss; parameters (many, 4)."""

    least: float  # smallest loss
    least_metric: float
    middle: float  # median of the losses
    level: float  # median of the metric

    size = 4

    def values(self, theta: Floats, loss: Floats) -> Floats:
        """Return the metric (many, losses) at these losses (losses,), or (many, losses) of each; E2 below E1."""
        own, other, level, kappa = self.named(theta)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.maximum(loss - own[:, None], 0.0) / (self.middle - own)[:, None]
            return np.asarray(other[:, None] + level[:, None] * ratio ** kappa[:, None])

    def named(self, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return E1, E2, the metric less E2 at the median loss, and kappa, (many,) each."""
        with np.errstate(over="ignore"):
            return (self.least * _expit(theta[:, 0]), self.least_metric * _expit(theta[:, 1]), np.exp(theta[:, 2]),
                    np.exp(theta[:, 3]))  # fmt: skip

    def log_prior(self, theta: Floats) -> Floats:
        """Return the log density (many,) of the priors over these coordinates."""
        return np.asarray(_flat(theta[:, :2]) - 0.5 * (theta[:, 3] / KAPPA_SPREAD) ** 2)

    def candidates(self, rng: np.random.Generator) -> Floats:
        """Draw from the priors, the level near that of the metric."""
        theta = rng.standard_normal((CANDIDATES, 4))
        theta[:, :2] = _logit(rng.random((CANDIDATES, 2)))
        theta[:, 2] = np.log(self.level - self.least_metric * _expit(theta[:, 1]) + 1e-300) + 0.1 * theta[:, 2]
        theta[:, 3] *= KAPPA_SPREAD
        return theta

    def formula(self, theta: Floats, name: str) -> str:
        """Return the link of one set of parameters (1, 4) as text."""
        own, other, level, kappa = (float(value[0]) for value in self.named(theta))
        return f"{name} = {other:.4g} + {level / (self.middle - own) ** kappa:.4g}·(L - {own:.4g})^{kappa:.4g}"


Link = ShareLink | LossLink


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """Losses and metrics of runs, (runs,), in blocks of budgets that may share a deviation."""

    loss: Floats
    metric: Floats
    block: Ints  # from 0
    shared: float = 0.0  # variance that a block shares, over that of a run

    def log_likelihood(self, link: Link, theta: Floats) -> Floats:
        """Return the log likelihood (many,), the noise integrated out."""
        left = self.whitened(self.metric - link.values(theta, self.loss))
        squares = np.einsum("tr,tr->t", left, left) + len(self.loss) * (EXACT * (np.ptp(self.metric) + EXACT)) ** 2
        with np.errstate(invalid="ignore"):
            value = -0.5 * len(self.loss) * np.log(squares)
        return np.where(np.isfinite(value), value, -np.inf)

    def whitened(self, left: Floats) -> Floats:
        """Return residuals (many, runs) whose blocks share nothing any more.

        With covariance I + s·J in a block of n, r - (1 - 1/sqrt(1 + n·s))·mean(r) has covariance I.
        """
        if not self.shared:
            return left
        number = np.bincount(self.block)
        part = (1 - 1 / np.sqrt(1 + number * self.shared)) / number
        of_block = np.zeros((len(self.block), len(number)))
        of_block[np.arange(len(self.block)), self.block] = 1.0
        return np.asarray(left - (left @ of_block * part) @ of_block.T)


def _expit(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _logit(share: Floats) -> Floats:
    return np.asarray(np.log(share) - np.log1p(-share))


def _flat(theta: Floats) -> Floats:
    """Return the log density (many,) of coordinates whose `_expit` is uniform."""
    return np.asarray(np.sum(-np.logaddexp(0, theta) - np.logaddexp(0, -theta), axis=1))
