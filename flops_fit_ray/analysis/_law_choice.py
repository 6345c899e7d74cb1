"""Choice of a law by how it predicts losses that it has not seen: budgets are left out in blocks, the largest first.

Fit alone would always take the law with more parameters. The base stays unless another predicts clearly better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._lack_of_fit import HeldOutTop
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import Points, blocks_by_budget
from flops_fit_ray.analysis.surface import Surfaces, fit_surface
from flops_fit_ray.fit_options import SURFACES, FitOptions, MethodName
from flops_fit_ray.flags import Flag

HeldOut = Literal["budgets", "sizes"]
HELD_OUT = 3  # blocks that are predicted, each from those below it
LEAST_FITTED = 2  # blocks below
CLEARLY = 0.8  # ratio of the errors below which another predicts clearly better
MOSTLY = 2 / 3  # share of the blocks in which it has to be better


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Law that was chosen among laws for the same losses, and the errors of each on held-out blocks."""

    what: str  # of what it is a choice, such as "surface"
    chosen: str
    base: str  # taken unless another predicts clearly better
    errors: Mapping[str, float | None]  # rms relative error of the held-out losses; None: it could not predict them
    blocks: int  # budgets, or blocks of them, of which losses were held out
    held_out: HeldOut = "budgets"  # larger ones, or sizes of every budget

    @property
    def sentence(self) -> str:
        """The choice and its reason in one sentence."""
        if not self.blocks:
            return f"{self.what}: {self.chosen}, because there are too few {self.held_out} to hold any out"
        known = [f"{name} {100 * error:.2g} %" for name, error in self.errors.items() if error is not None]
        why = "no other predicts clearly better" if self.chosen == self.base else "it predicts clearly better"
        held = f"{fmt.counted(self.blocks, 'block')} of larger budgets"
        if self.held_out == "sizes":
            held = f"sizes that were left out of {fmt.counted(self.blocks, 'budget')}"
        return f"{self.what}: {self.chosen}, because {why} (error of the losses of {held}: {', '.join(known)})"

    @property
    def flag(self) -> Flag:
        """The choice as a note."""
        return Flag(f"{self.what}_chosen", "info", self.sentence)


def choose(
    what: str,
    errors: Mapping[str, Floats],
    base: str,
    *,
    held_out: HeldOut = "budgets",
    clearly: Mapping[str, float] | None = None,
) -> Choice:
    """Choose among candidates by their mean squared errors (blocks,) on the same held-out blocks.

    A candidate replaces the base if its rms error is below `CLEARLY` times the base's, and lower in most blocks. NaN:
    it could not predict the block; such a candidate is not chosen.

    Args:
        clearly: by name, the ratios of candidates that have one of their own.
    """
    known = {name: values for name, values in errors.items() if len(values) and np.isfinite(values).all()}
    chosen, lowest = base, float(errors[base].mean()) if base in known else np.inf
    for name, values in known.items():
        if name == base or base not in known:
            continue
        ratio = (clearly or {}).get(name, CLEARLY)
        better = values.mean() < ratio**2 * known[base].mean() and (values < known[base]).mean() >= MOSTLY
        if better and values.mean() < lowest:
            chosen, lowest = name, float(values.mean())
    rms = {name: float(np.sqrt(values.mean())) if name in known else None for name, values in errors.items()}
    return Choice(what=what, chosen=chosen, base=base, errors=rms, blocks=len(errors[base]), held_out=held_out)


def choose_surface(points: Points, options: FitOptions, largest: HeldOutTop | None) -> Choice:
    """Choose between the additive and the coupled law: fit the blocks below, predict the next, for the top blocks.

    Args:
        largest: the largest C, held out of the additive law: a block of its own where budgets are labelled.
    """
    block = blocks_by_budget(points)
    top = int(block.max()) if len(block) else 0
    candidates: tuple[MethodName, ...] = ("surface_huber", "surface_coupled")
    errors: dict[str, Floats] = {SURFACES[name][1]: np.empty(0) for name in candidates}
    for cut in range(max(LEAST_FITTED, top + 1 - HELD_OUT), top + 1):
        below, held = points.pick(block < cut), points.pick(block == cut)
        known = {"surface_huber": largest.surface} if largest and points.labelled and cut == top else {}
        row = {name: _error(known.get(name) or _surface(below, options, name), held) for name in candidates}
        if np.isnan(row["surface_huber"]):  # too few below for the base: the block says nothing
            continue
        for name in candidates:
            errors[SURFACES[name][1]] = np.append(errors[SURFACES[name][1]], row[name])
    return choose("surface", errors, "additive")


def _surface(points: Points, options: FitOptions, name: MethodName) -> Surfaces | None:
    fit = fit_surface(points, options.surface(name))
    return fit.surface if fit.usable else None


def _error(surface: Surfaces | None, held: Points) -> float:
    """Mean squared relative error of the held losses by a surface through those below; NaN without one."""
    if surface is None:
        return np.nan
    relative = surface.loss(held.params, held.tokens) / held.loss - 1
    return float(np.average(relative**2, weights=held.weights))
