"""The loss surface L(N, D) = E + (A/N^alpha + B/D^beta)^k and its optima.

k = 1 is the additive law of Hoffmann et al. 2022, section 3.3; other k the coupled one of arXiv 2608.07222.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface._cost import CostLaw


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
        """Exponent of N_opt ~ C^a by the power law of the cost: a = beta / (alpha + c·beta).

        It is equation 4 of Hoffmann et al. 2022 for c = 1.
        """
        return np.asarray(self.beta / (self.alpha + cost.n_exponent * self.beta))

    def optimum(self, budget: float | Floats, cost: CostLaw) -> tuple[Floats, Floats, Floats]:
        """Return ln N_opt, ln D_opt and L_opt at C = `budget`, one or one of each surface (surfaces,).

        1) D = X / N^c with X = C/k_C, so L = E + (A·N^-alpha + B·X^-beta·N^(c·beta))^k, lowest where the sum is
        2) dL/dN = 0 where N^(alpha + c·beta) = alpha·A / (c·beta·B) · X^beta  (equation 4 for c = 1, k = 6)

        Where the cost is a curve, D = C / f(N): from there on by Newton, `_on_curve`.
        """
        log_x, c = np.log(budget) - cost.log_k, cost.n_exponent
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            log_ratio = np.log(self.alpha) + self.log_a - np.log(c * self.beta) - self.log_b
            log_n = (log_ratio + self.beta * log_x) / (self.alpha + c * self.beta)
            log_d = log_x - c * log_n
            if cost.curve is not None:
                log_n = self._on_curve(log_n, np.log(budget), cost)
                log_d = np.log(budget) - cost.per_token(log_n)[0]
            n_term, d_term = np.exp(self.log_a - self.alpha * log_n), np.exp(self.log_b - self.beta * log_d)
            return log_n, log_d, np.asarray(np.exp(self.log_e) + (n_term + d_term) ** self.k)

    def _on_curve(self, log_n: Floats, log_c: float | Floats, cost: CostLaw) -> Floats:
        """Return ln N_opt at C for a cost f(N), from a first guess (surfaces,).

        dL/dN = 0 of A·N^-alpha + B·(C / f)^-beta, with s = dln f/dln N, where
        alpha·ln N + beta·ln f + ln s = beta·ln C + ln(alpha·A / (beta·B)).
        """
        right = self.beta * log_c + np.log(self.alpha) + self.log_a - np.log(self.beta) - self.log_b
        return cost.optimum(log_n, right, self.alpha, self.beta)

    def at(self, index: int) -> Surfaces:
        """Return one surface, as arrays (1,)."""
        return Surfaces(**{name: getattr(self, name)[index : index + 1] for name in self.__dataclass_fields__})
