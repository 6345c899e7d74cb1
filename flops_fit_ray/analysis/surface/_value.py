"""The loss surface L(N, D) = E + (A/N^alpha + B/D^beta)^k and its optima.

k = 1 is the additive law of Hoffmann et al. 2022, section 3.3; other k the coupled one of arXiv 2608.07222.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats


@dataclass(frozen=True, kw_only=True)
class CostLaw:
    """The cost C = k · N^n_exponent · D of an experiment, fitted to the FLOPs spent; 6·N·D is k = 6, n_exponent = 1."""

    log_k: float
    n_exponent: float
    scatter: float  # standard deviation of ln C about the law


def fit_cost_law(params: Floats, tokens: Floats, cost: Floats) -> CostLaw:
    """Least squares of ln(C/D) = ln k + c·ln N; arrays (points,). With one size only, c = 1."""
    x, y = np.log(params), np.log(cost / tokens)
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread > 1e-12 else 1.0
    residuals = y - y.mean() - slope * centred
    return CostLaw(
        log_k=float(y.mean() - slope * x.mean()), n_exponent=slope, scatter=float(np.sqrt(np.mean(residuals**2)))
    )


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """One or many surfaces: all arrays (surfaces,), in nats, parameters and tokens. NaN where a draw has no surface."""

    log_e: Floats
    log_a: Floats
    log_b: Floats
    alpha: Floats
    beta: Floats
    k: Floats  # 1 where the law is additive

    def loss(self, params: Floats, tokens: Floats) -> Floats:
        """Loss at N and D, which broadcast against the surfaces."""
        with np.errstate(over="ignore"):
            inner = np.exp(self.log_a - self.alpha * np.log(params)) + np.exp(self.log_b - self.beta * np.log(tokens))
            return np.asarray(np.exp(self.log_e) + inner**self.k)

    def params_exponent(self, cost: CostLaw) -> Floats:
        """Exponent of N_opt ~ C^a: a = beta / (alpha + c·beta) (Hoffmann et al. 2022, equation 4, for c = 1)."""
        return np.asarray(self.beta / (self.alpha + cost.n_exponent * self.beta))

    def optimum(self, budget: float, cost: CostLaw) -> tuple[Floats, Floats, Floats]:
        """Return ln N_opt, ln D_opt and L_opt at C = `budget`.

        1) D = X / N^c with X = C/k_C, so L = E + (A·N^-alpha + B·X^-beta·N^(c·beta))^k, lowest where the sum is
        2) dL/dN = 0 where N^(alpha + c·beta) = alpha·A / (c·beta·B) · X^beta  (equation 4 for c = 1, k = 6)
        """
        log_x, c = np.log(budget) - cost.log_k, cost.n_exponent
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            log_ratio = np.log(self.alpha) + self.log_a - np.log(c * self.beta) - self.log_b
            log_n = (log_ratio + self.beta * log_x) / (self.alpha + c * self.beta)
            log_d = log_x - c * log_n
            n_term, d_term = np.exp(self.log_a - self.alpha * log_n), np.exp(self.log_b - self.beta * log_d)
            return log_n, log_d, np.asarray(np.exp(self.log_e) + (n_term + d_term) ** self.k)

    def at(self, index: int) -> Surfaces:
        """Return one surface, as arrays (1,)."""
        return Surfaces(**{name: getattr(self, name)[index : index + 1] for name in self.__dataclass_fields__})
