"""Optimal design: how far runs that are not there yet would narrow one number that a linear law tells.

Near its fit a law is linear in its parameters theta: a run has the mean r'theta and the variance v, and the number that
is wanted is g'theta. With K the covariance of theta after the runs that are there, a set S of further ones leaves

    var(S) = g'Kg - a'(V + G)^-1·a,   a = R·K·g,  G = R·K·R',  V = diag(v)

which is the least squares fit to all of them (Fedorov 1972, section 2.5; a single run is the rank-one update). So K is
inverted once, and any set costs the solution of a system as large as the set.

What is unknown besides theta (scatter between budgets, a bend) is a mixture: every cell of a grid has a prior of theta
and a probability, and the width is that of the central interval of the mixture. Losses that come out as expected make
a cell more probable the narrower it predicted them: p ~ p·|V + G|^-1/2.

A law of the wrong form errs by a bias c·s that no repetition averages out, s unknown with the mean square `skew`. The
estimate moves by b·s, where b is what the same least squares makes of the losses c: with u = K·sum r·c/v,

    b(S) = g'u + a'(V + G)^-1·(c - R·u)

so a run far from where the law holds is worth less, however often it is repeated. Such runs also lie off what the
others predict, by d·s with d = c - R·u, and cells of more scatter explain that: p ~ p·exp(-skew·d'(V + G)^-1·d / 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flops_fit_ray.analysis.arrays import Floats, Ints

HALVINGS = 28  # of the bracket of a half width


@dataclass(frozen=True, kw_only=True, eq=False)
class _Base:
    """State after the runs that are there, as the candidates see it."""

    variance: Floats  # (C,): g'Kg
    towards: Floats  # (C, m): R·K·g
    between: Floats  # (C, m, m): G
    moved: Floats  # (C,): g'u
    fitted: Floats  # (C, m): R·u


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearLaw:
    """A law as a linear model: C cells, P parameters, n runs that are there, m candidates."""

    probability: Floats  # (C,)
    prior: Floats  # (C, P): information on each parameter before any run
    wanted: Floats  # (P,): g
    runs: Floats  # (n, P): r of each run that is there
    noise: Floats  # (n,): variance of its loss
    bias: Floats  # (n,): c, of its loss
    candidates: Floats  # (m, P)
    candidate_noise: Floats  # (m,)
    candidate_bias: Floats  # (m,)
    skew: float  # mean square of s
    df: float  # degrees of freedom that the noise is known by
    informs: Floats  # (m,): by how many of them a candidate adds to those
    confidence: float
    _known: dict[float, _Base] = field(default_factory=dict, repr=False)

    def half_width(self, sets: Ints) -> Floats:
        """Return half the width (sets,) of the interval of g'theta after each set of candidates, (sets, size)."""
        more = self.informs[sets].sum(axis=1) if sets.shape[1] else np.zeros(len(sets))
        widths = np.empty(len(sets))
        for added in np.unique(more):
            mine = more == added
            widths[mine] = self._width(*self._after(sets[mine], float(added)))
        return widths

    def variances(self, chosen: Ints) -> Floats:
        """Return the variance (C,) of g'theta in each cell after the candidates `chosen`, with the noise as known."""
        return np.asarray(self._after(chosen[None, :], 0.0)[0][0])

    def _after(self, sets: Ints, added: float) -> tuple[Floats, Floats]:
        """Variances and probabilities (sets, C) where the noise is known by `added` more degrees of freedom."""
        base, size = self._base(added), sets.shape[1]
        variances, p = np.broadcast_to(base.variance, (len(sets), len(base.variance))), self.probability
        biases = base.moved
        if size:
            inner = base.between[:, sets[:, :, None], sets[:, None, :]]  # (C, sets, size, size)
            inner[..., np.arange(size), np.arange(size)] += self._student(added) * self.candidate_noise[sets]
            a = base.towards[:, sets]
            off = self.candidate_bias[sets] - base.fitted[:, sets]
            solved = np.linalg.solve(inner, np.stack([a, off], axis=-1))
            variances = np.maximum(base.variance[:, None] - np.einsum("csi,csi->cs", a, solved[..., 0]), 0.0).T
            biases = (base.moved[:, None] + np.einsum("csi,csi->cs", solved[..., 0], off)).T
            seen = self.skew * np.einsum("csi,csi->cs", off, solved[..., 1])
            log = -0.5 * (np.linalg.slogdet(inner)[1] + seen).T
            p = p * np.exp(log - log.max(axis=1, keepdims=True))
        p = np.broadcast_to(p, variances.shape)
        return variances + self.skew * biases**2, p / p.sum(axis=1, keepdims=True)

    def _base(self, added: float) -> _Base:
        if added not in self._known:
            v = self._student(added) * self.noise
            information = (self.runs / v[:, None]).T @ self.runs + self.prior[:, :, None] * np.eye(len(self.wanted))
            scale = 1 / np.sqrt(np.einsum("cpp->cp", information))
            both = scale[:, :, None] * scale[:, None, :]
            k = np.linalg.inv(information * both) * both
            to, u = k @ self.wanted, k @ (self.runs.T @ (self.bias / v))
            self._known[added] = _Base(
                variance=to @ self.wanted,
                towards=to @ self.candidates.T,
                between=self.candidates @ k @ self.candidates.T,
                moved=u @ self.wanted,
                fitted=u @ self.candidates.T,
            )
        return self._known[added]

    def _student(self, added: float) -> float:
        """Squared ratio of Student's t to the normal quantile: what a variance known by `df` is worth."""
        from scipy.special import ndtri, stdtrit

        level = (1 + self.confidence) / 2
        return float((stdtrit(max(self.df + added, 1.0), level) / ndtri(level)) ** 2)

    def _width(self, variances: Floats, probability: Floats) -> Floats:
        """Half width (sets,) of the central interval of a mixture of normals (sets, C) about one mean, by bisection."""
        from scipy.special import ndtr, ndtri

        sd = np.sqrt(np.maximum(variances, 1e-300))
        level = (1 + self.confidence) / 2
        low, high = np.zeros(len(sd)), ndtri(level) * sd.max(axis=1)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            above = (ndtr(middle[:, None] / sd) * probability).sum(axis=1) > level
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return np.asarray(0.5 * (low + high))


def coarse_cells(probability: Floats, first: Floats, second: Floats, step: int = 3) -> tuple[Floats, Floats, Floats]:
    """Join neighbours of a grid of two scales, each of which begins with 0 that stays alone.

    Args:
        probability: (len(first), len(second)).
        first: scales of the rows; `second`: of the columns.
        step: neighbours that are joined.

    Returns:
        probability and the mean squares of both scales, (cells,) each.
    """
    rows, columns = (np.r_[0, np.arange(1, len(scale), step)] for scale in (first, second))

    def joined(values: Floats) -> Floats:
        return np.asarray(np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)).reshape(-1)

    p = np.maximum(joined(probability), 1e-300)
    squares = (joined(probability * scale**2) / p for scale in (first[:, None], second[None, :]))
    return (p / p.sum(), *squares)
