"""Optima of surfaces where a model costs f(N)·(D + S): trained on D tokens, and served at the price of S more.

Sardana et al. 2024 (arXiv 2401.00448), section 2, with the FLOPs per token f(N) as measured in place of 6·N. The
lowest loss at one total and the lowest total at one loss both lie where

    s·(D + S)/D = alpha·a / (beta·b),  a = A·N^-alpha,  b = B·D^-beta,  s = dln f/dln N

as the power k of the coupled law falls out of the ratio; S = 0 is the optimum of training alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface._cost import CostLaw
from flops_fit_ray.analysis.surface._value import Surfaces

FAR = 60.0  # of ln N about a first guess, within which an optimum is looked for
HALVINGS = 64  # after which ln N is known to the last digit


def balance(surfaces: Surfaces, cost: CostLaw, log_n: Floats, log_d: Floats, extra: float) -> Floats:
    """Return ln of the left side over the right one, (surfaces,): it rises with N along one total, or one loss.

    Args:
        log_n, log_d: ln N and ln D, (surfaces,).
        extra: S, tokens.
    """
    slope = cost.per_token(log_n)[1]
    with np.errstate(over="ignore", invalid="ignore"):
        n_term = np.log(surfaces.alpha) + surfaces.log_a - surfaces.alpha * log_n
        d_term = np.log(surfaces.beta) + surfaces.log_b - surfaces.beta * log_d
        served = np.logaddexp(0.0, np.log(extra) - log_d) if extra else 0.0  # ln of (D + S)/D
        return np.asarray(np.log(slope) + served - n_term + d_term)


def lowest_loss(
    surfaces: Surfaces, cost: CostLaw, total: float, extra: float, shift: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """Return ln N and ln D of the lowest loss at f(N)·(D + S) = `total` FLOPs, (surfaces,).

    Args:
        shift: of the balance at the optimum, (surfaces,).
    """

    def tokens(log_n: Floats) -> Floats:
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            return np.asarray(np.log(np.maximum(np.exp(np.log(total) - cost.per_token(log_n)[0]) - extra, 0.0)))

    middle = surfaces.optimum(total, cost)[0]
    log_n = _root(surfaces, cost, tokens, extra, shift, middle - FAR, middle + FAR)
    return log_n, tokens(log_n)


def lowest_total(
    surfaces: Surfaces, cost: CostLaw, loss: float | Floats, extra: float, shift: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """Return ln N and ln D of the lowest f(N)·(D + S) where L(N, D) = `loss` in nats, (surfaces,); NaN where none is.

    Args:
        shift: of the balance at the optimum, (surfaces,).
    """
    low = least_params(surfaces, loss)

    def tokens(log_n: Floats) -> Floats:
        return tokens_for(surfaces, loss, log_n)

    log_n = _root(surfaces, cost, tokens, extra, shift, low, low + 2 * FAR)
    return log_n, tokens(log_n)


def least_params(surfaces: Surfaces, loss: float | Floats) -> Floats:
    """Return ln of the N below which no D reaches `loss`, (surfaces,); NaN where no N does."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((surfaces.log_a - np.log(loss - np.exp(surfaces.log_e)) / surfaces.k) / surfaces.alpha)


def tokens_for(surfaces: Surfaces, loss: float | Floats, log_n: Floats) -> Floats:
    """Return ln of the D with which L(N, D) = `loss`; infinite where none does. Shapes broadcast."""
    with np.errstate(invalid="ignore", divide="ignore"):
        inner = np.exp(np.log(loss - np.exp(surfaces.log_e)) / surfaces.k)
        left = np.maximum(inner - np.exp(surfaces.log_a - surfaces.alpha * log_n), 0.0)
        return np.asarray((surfaces.log_b - np.log(left)) / surfaces.beta)


def _root(
    surfaces: Surfaces,
    cost: CostLaw,
    tokens: Callable[[Floats], Floats],
    extra: float,
    shift: Floats | float,
    low: Floats,
    high: Floats,
) -> Floats:
    """Return ln N where the balance is `shift`, by halving; NaN where `low` is."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        log_d = tokens(middle)
        # No tokens are left beside those served (D = 0), or none are enough (D infinite): N is too large, or too small
        value = np.where(
            np.isinf(log_d), -np.sign(log_d) * np.inf, balance(surfaces, cost, middle, log_d, extra) - shift
        )
        low, high = np.where(value < 0, middle, low), np.where(value < 0, high, middle)
    return np.asarray((low + high) / 2)
