"""Repeated data: the worth of tokens that are seen again, and runs as if all their tokens were new.

    L = E + A/N'^alpha + B/D'^beta
    D' = U + U·R_D*·(1 - exp(-R_D/R_D*)),        R_D = D/U - 1
    N' = U_N + U_N·R_N*·(1 - exp(-R_N/R_N*)),    R_N = max(N/U_N - 1, 0)     (Muennighoff et al. 2023, eq. 5 and 6)

U are the distinct tokens of a run and U_N is the N that is optimal for them. R_D* and R_N* say after how many repeats
(or times U_N) more of the same is worth little. N' is used only where the losses show that it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flops_fit_ray.analysis._law import Interval
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.published import PUBLISHED
from flops_fit_ray.analysis.surface import CostLaw, Surfaces, fit_surface, robust_reach, root_weights
from flops_fit_ray.fit_options import SurfaceOptions
from flops_fit_ray.flags import Flag

_MUENNIGHOFF = PUBLISHED["muennighoff2023"].constants
PUBLISHED_TOKENS, PUBLISHED_PARAMS = _MUENNIGHOFF["R_D"], _MUENNIGHOFF["R_N"]
PRIOR_SD = 1.0  # of ln R_D* about the published value: 95 % lie within a factor of 7
NEARLY_FRESH = 4.0  # epochs up to which repeated tokens are nearly as good as new ones (the same)
REPEATED = 1.001  # epochs from which data count as repeated, more than the rounding to whole batches
CELLS = 12  # pairs of R_D* and R_N* that stand for what the losses leave possible
TOLD = 2.0  # standard errors from which 1/R_N* differs from 0
STEP = 1e-5  # of a parameter, for its derivatives
LARGEST = 15.0  # ln of N / U_N, beyond which nothing changes


@dataclass(frozen=True, kw_only=True, eq=False)
class Repetition:
    """Cost of repeated data: R_D*, and R_N* where it is told; arrays (points,)."""

    tokens_scale: float  # R_D*
    tokens_interval: Interval | None  # 95 %; None where the runs allow no fit, and R_D* is the published value
    params_scale: float | None  # R_N*; None: N counts in full
    epochs: Floats  # D / U, 1 where all tokens are new
    effective_params: Floats  # N'
    effective_tokens: Floats  # D'
    loss_share: float | None  # of the loss at the largest C: what it is higher by than with new tokens alone
    cases: tuple[Points, ...]  # the runs under other possible R_D* and R_N*
    pairs: tuple[tuple[float, float], ...]  # R_D* and 1 / R_N* of each of them
    fresh: Points  # the runs with N', D' and their C

    @property
    def max_epochs(self) -> float:
        """Largest number of epochs of a run."""
        return float(self.epochs.max())

    @property
    def decides(self) -> bool:
        """True if data are repeated so often that valleys do not stand for new data."""
        return self.max_epochs > NEARLY_FRESH * REPEATED

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        within = self.tokens_interval
        return {
            "tokens_scale": self.tokens_scale,
            "tokens_scale_ci95": None if within is None else [within.low, within.high],
            "params_scale": self.params_scale,
            "max_epochs": self.max_epochs,
            "loss_share": self.loss_share,
            "message": self.words,
            "epochs": self.epochs.tolist(),
            "effective_tokens": self.effective_tokens.tolist(),
        }

    @property
    def words(self) -> str:
        """The finding in one sentence."""
        often = int((self.epochs > NEARLY_FRESH * REPEATED).sum())
        beyond = f" ({often} more than {NEARLY_FRESH:g})" if often else ""
        counted = (
            f"{int((self.epochs > REPEATED).sum())} of {len(self.epochs)} losses are of data seen more than once, up "
            f"to {self.max_epochs:.3g} epochs{beyond}"
        )
        if self.tokens_interval is None:
            return f"{counted}; the runs do not tell what that costs"
        low, high = self.tokens_interval.low, self.tokens_interval.high
        return (
            f"{counted}: however often they are seen, they count for at most 1 + R_D* times their number, R_D* = "
            f"{self.tokens_scale:.3g} [{low:.3g}, {high:.3g}], and the loss at the largest C is "
            f"{100 * (self.loss_share or 0.0):.2g} % higher than with new data"
        )

    @property
    def flag(self) -> Flag:
        """The finding as a warning; a note up to four epochs."""
        laws = (
            "surfaces are fitted to effective tokens, and their laws are those of new data; valleys are those of this "
            "much data"
        )
        return Flag("repeated_data", "warning" if self.decides else "info", f"{self.words}; {laws}")


def fit_repetition(points: Points, options: SurfaceOptions) -> Repetition | None:
    """Fit what repeated data cost; None where the distinct tokens are unknown, or all were seen once."""
    if points.unique is None or float((points.tokens / points.unique).max()) <= REPEATED:
        return None
    known = fresh_points(points, points.unique, PUBLISHED_TOKENS, 0.0, None)
    start = fit_surface(known, options)
    usable = start.usable and start.surface is not None and start.cost is not None and points.num_runs > 7
    if not usable or start.surface is None or start.cost is None:
        return _described(points, known, scale=PUBLISHED_TOKENS)
    model = _Model(points, points.unique, start.cost, options)
    found = model.fit(start.surface, with_params=True)
    if not found.kappa > TOLD * found.kappa_error:
        found = model.fit(start.surface, with_params=False)
    low, high = np.exp(found.log_scale + np.array([-1, 1]) * found.quantile * found.scale_error)
    fresh = model.fresh(found.surface, found.log_scale, found.kappa)
    top = int(np.argmax(points.flops))
    new = float(found.surface.loss(points.params[top], points.tokens[top])[0])
    share = 1 - new / float(found.surface.loss(fresh.params[top], fresh.tokens[top])[0])
    pairs = tuple(found.pairs())
    return _described(points, fresh, scale=float(np.exp(found.log_scale)), kappa=found.kappa, share=share,
                      cases=tuple(model.fresh(found.surface, *pair) for pair in pairs),
                      pairs=tuple((float(np.exp(log_scale)), kappa) for log_scale, kappa in pairs),
                      interval=Interval(float(low), float(high)))  # fmt: skip


def _described(
    points: Points,
    fresh: Points,
    *,
    scale: float,
    kappa: float = 0.0,
    share: float | None = None,
    cases: tuple[Points, ...] = (),
    pairs: tuple[tuple[float, float], ...] = (),
    interval: Interval | None = None,
) -> Repetition:
    assert points.unique is not None
    return Repetition(
        tokens_scale=scale,
        tokens_interval=interval,
        params_scale=1 / kappa if kappa else None,
        epochs=points.tokens / points.unique,
        effective_params=fresh.params,
        effective_tokens=fresh.tokens,
        loss_share=share,
        cases=cases,
        pairs=pairs,
        fresh=fresh,
    )


def fresh_points(
    points: Points, unique: Floats, scale: float, kappa: float, excess: tuple[Floats, CostLaw] | None
) -> Points:
    """Return the runs with N', D' and the C = f(N')·D' that these would have cost.

    Args:
        unique: distinct tokens (points,).
        scale: R_D*.
        kappa: 1 / R_N*; 0 takes N as it is.
        excess: U_N (points,), at most N, and the cost of a token; needed where kappa is not 0.
    """
    tokens = faded(points.tokens, unique, 1 / scale)
    params, per_token = points.params, np.ones(len(points))
    if kappa and excess is not None:
        params = faded(points.params, excess[0], kappa)
        per_token = np.exp(excess[1].per_token(np.log(params))[0] - excess[1].per_token(np.log(points.params))[0])
    cost = per_token * tokens / points.tokens
    return replace(
        points,
        params=params,
        tokens=tokens,
        flops=points.flops * cost,
        params_as={name: n * params / points.params for name, n in points.params_as.items()},
        flops_as={name: c * cost for name, c in points.flops_as.items()},
        unique=None,
    )


def optimal_for(s: Surfaces, cost: CostLaw, log_n: Floats, log_unique: Floats) -> Floats:
    """Return U_N, the N whose optimal D is U, or N where it is less: alpha·A·N^-alpha = c·beta·B·U^-beta (equation 4).

    Args:
        log_n: ln N, which broadcasts with `log_unique` and the surfaces.
    """
    ratio = np.log(s.alpha) + s.log_a - np.log(cost.n_exponent * s.beta) - s.log_b
    return np.asarray(np.exp(np.clip((ratio + s.beta * log_unique) / s.alpha, log_n - LARGEST, log_n)))


def worth(tokens: Floats | float, epochs: Floats | float) -> Floats:
    """Return D', the new tokens that `tokens` seen in so many epochs are worth at the published R_D*."""
    seen = np.asarray(tokens) / np.maximum(epochs, 1.0)
    return faded(np.asarray(tokens, dtype=np.float64), seen, 1 / PUBLISHED_TOKENS)


def faded(value: Floats, base: Floats, rate: Floats | float) -> Floats:
    """Return base + base·(1 - exp(-R·rate)) / rate with R = value / base - 1; the value itself where the rate is 0."""
    told = np.asarray(rate) > 1e-12
    safe = np.where(told, rate, 1.0)
    repeats = value / base - 1
    return np.asarray(np.where(told, base * (1 - np.expm1(-repeats * safe) / safe), value))


@dataclass(frozen=True, kw_only=True)
class _Found:
    surface: Surfaces
    log_scale: float  # ln R_D*
    kappa: float  # 1 / R_N*
    covariance: Floats  # (2, 2) of both
    df: int

    @property
    def scale_error(self) -> float:
        return float(np.sqrt(self.covariance[0, 0]))

    @property
    def kappa_error(self) -> float:
        return float(np.sqrt(self.covariance[1, 1]))

    @property
    def quantile(self) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(self.df, 0.975))

    def pairs(self) -> Iterator[tuple[float, float]]:
        """Yield (ln R_D*, 1 / R_N*) at equal steps of probability, by t; the second given the first."""
        from scipy.special import stdtrit

        z = stdtrit(self.df, (np.arange(CELLS) + 0.5) / CELLS)
        v = self.covariance
        slope = v[0, 1] / max(v[0, 0], 1e-300)
        left = np.sqrt(max(float(v[1, 1] - slope * v[0, 1]), 0.0))
        other = np.random.default_rng(0).permutation(z)
        for a, b in zip(z, other, strict=True):
            step = np.sqrt(v[0, 0]) * a
            kappa = max(self.kappa + slope * step + left * b, 0.0) if self.kappa else 0.0
            yield float(self.log_scale + step), float(kappa)


class _Model:
    """Model of ln L by E, A, B, alpha, beta, R_D* and R_N* together, fitted by the Huber loss."""

    def __init__(self, points: Points, unique: Floats, cost: CostLaw, options: SurfaceOptions) -> None:
        self._points, self._unique, self._cost, self._options = points, unique, cost, options
        self._root, self._log_loss = root_weights(points), np.log(points.loss)

    def fresh(self, surface: Surfaces, log_scale: float, kappa: float) -> Points:
        """Return the runs with N', D' and their C."""
        excess = (self._optimal_for_unique(surface), self._cost)
        return fresh_points(self._points, self._unique, float(np.exp(log_scale)), kappa, excess)

    def _optimal_for_unique(self, s: Surfaces) -> Floats:
        """U_N (points,)."""
        return optimal_for(s, self._cost, np.log(self._points.params), np.log(self._unique))

    def fit(self, start: Surfaces, *, with_params: bool) -> _Found:
        """Fit from a surface and the published R_D* and R_N*; pins stay as they are."""
        from scipy.optimize import least_squares

        names = ["log_e", "log_a", "log_b", "alpha", "beta"]
        pinned = {name.lower() for name in self._options.pins}
        free = [n for n in names if n.removeprefix("log_") not in pinned and np.isfinite(getattr(start, n)).all()]
        first = np.array([*(float(getattr(start, n)[0]) for n in free), np.log(PUBLISHED_TOKENS)])
        first = np.append(first, 1 / PUBLISHED_PARAMS) if with_params else first

        def unpacked(theta: Floats) -> tuple[Surfaces, float, float]:
            moved = {n: theta[i : i + 1] for i, n in enumerate(free)}
            kappa = float(theta[len(free) + 1]) if with_params else 0.0
            return replace(start, **moved), float(theta[len(free)]), kappa

        def residuals(theta: Floats, prior: float) -> Floats:
            surface, log_scale, kappa = unpacked(theta)
            n_d = self.fresh(surface, log_scale, kappa)
            off = (np.log(np.clip(surface.loss(n_d.params, n_d.tokens), 1e-300, 1e300)) - self._log_loss) * self._root
            return np.append(off, prior * (log_scale - np.log(PUBLISHED_TOKENS)) / PRIOR_SD)

        low, high = np.full(len(first), -np.inf), np.full(len(first), np.inf)
        for i, name in enumerate(free):
            if name in ("alpha", "beta"):
                low[i], high[i] = 0.01, 3.0
        low[len(free)], high[len(free)] = np.log(0.05), np.log(1e4)
        if with_params:
            low[-1], high[-1] = 0.0, 10.0
        spread = 0.0
        for _ in range(2):  # the second time with the prior, in units of the noise that the first has found
            found = least_squares(residuals, first, bounds=(low, high), args=(spread,), x_scale="jac", loss="huber",
                                  f_scale=self._options.delta, xtol=1e-12, ftol=1e-14, gtol=1e-14)  # fmt: skip
            off = residuals(found.x, 0.0)[:-1]
            reach = robust_reach(off)
            df = max(self._points.num_runs - len(first), 1)
            spread = float(np.sqrt(np.sum(np.clip(off, -reach, reach) ** 2) / df))
            first = np.clip(found.x, low + 1e-9, high - 1e-9)
        # Covariance of a linear model near the minimum, its columns scaled to 1
        steps = STEP * np.eye(len(first))
        around = [(residuals(found.x + h, spread) - residuals(found.x - h, spread)) / (2 * STEP) for h in steps]
        size = np.maximum(np.linalg.norm(around, axis=1), 1e-300)
        design = np.array(around).T / size
        inverse = np.linalg.pinv(design.T @ design) / np.outer(size, size)
        own = inverse[len(free) :, len(free) :] * spread**2
        covariance = np.zeros((2, 2))
        covariance[: len(own), : len(own)] = own
        surface, log_scale, kappa = unpacked(found.x)
        return _Found(surface=surface, log_scale=log_scale, kappa=kappa, covariance=covariance, df=df)
