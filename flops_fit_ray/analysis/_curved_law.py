"""Laws where the cost is no power of N: curved; of a surface they are given by the optimum itself at every C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._law import Law, LawDraws
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface import CostLaw, SurfaceFit, Surfaces

Quantity = Literal["params", "tokens", "loss"]
QUANTITIES: tuple[Quantity, Quantity, Quantity] = ("params", "tokens", "loss")


@dataclass(frozen=True, kw_only=True, eq=False)
class CurvedDraws(LawDraws):
    """Curved laws of many surfaces; exponent and coefficient are those of the chord over the runs' C."""

    surfaces: Surfaces
    cost: CostLaw
    quantity: Quantity

    def at(self, budget: float | Floats) -> Floats:
        """Return the values at C = `budget`, of all draws or of each (draws,)."""
        with np.errstate(over="ignore", under="ignore"):
            log_n, log_d, loss = self.surfaces.optimum(budget, self.cost)
            if self.quantity == "loss":
                return loss
            log = log_n if self.quantity == "params" else log_d
            return np.asarray(np.exp(log + np.log(10) * self._bent(budget)))


@dataclass(frozen=True, kw_only=True, eq=False)
class CurvedLaw(Law):
    """A curved law; exponent and coefficient are those of a power law near it over `flops_range`.

    It is the chord through its ends for surfaces, the line through the minima for valleys.
    """

    curve: LawDraws  # of one draw
    flops_range: tuple[float, float]

    @property
    def formula(self) -> str:
        """The power law as text, and that it is none."""
        low, high = (fmt.flops(c) for c in self.flops_range)
        return f"{super().formula} from {low} to {high}, curved as FLOPs per token are no power of N"

    def at(self, budget: float) -> float:
        """y at C = `budget` FLOPs, on the curve."""
        return float(self.curve.at(budget)[0])


def curved_laws(fit: SurfaceFit) -> tuple[Law, Law, Law]:
    """Return the laws of N_opt, D_opt and L_opt of a surface and its draws, each as the curve that it is."""
    assert fit.surface is not None and fit.cost is not None
    laws = []
    for quantity in QUANTITIES:
        one = _chord(fit.surface, fit.cost, fit.flops_range, quantity)
        drawn = None if fit.draws is None else _chord(fit.draws, fit.cost, fit.flops_range, quantity)
        laws.append(CurvedLaw.first_of(one, draws=drawn, curve=one, flops_range=fit.flops_range))
    return laws[0], laws[1], laws[2]


def _chord(surfaces: Surfaces, cost: CostLaw, flops: tuple[float, float], quantity: Quantity) -> CurvedDraws:
    """Fit y - E = 10^c·C^a through the optima at both ends of the runs' C."""
    ends = []
    offset: Floats | float = np.exp(surfaces.log_e) if quantity == "loss" else 0.0
    for budget in flops:
        log_n, log_d, loss = surfaces.optimum(budget, cost)
        with np.errstate(invalid="ignore", divide="ignore"):
            ends.append({"params": log_n, "tokens": log_d, "loss": np.log(loss - offset)}[quantity] / np.log(10))
    low, high = np.log10(flops)
    exponent = (ends[1] - ends[0]) / (high - low) if high > low else np.full_like(ends[0], np.nan)
    return CurvedDraws(exponent=exponent, log10_coefficient=ends[0] - exponent * low, offset=offset,
                       surfaces=surfaces, cost=cost, quantity=quantity)  # fmt: skip
