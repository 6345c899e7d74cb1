"""The part of the interval of N_opt that comes from learning rates which were probed and are not known exactly."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.fit_options import MethodName
from flops_fit_ray.flags import Flag, Severity


@dataclass(frozen=True, kw_only=True)
class RatePart:
    """Half widths of the interval of N_opt at C = `budget`, as factors, and what is known of the best rates."""

    budget: float
    factor: float  # infinite where what is open of the rates leaves no interval
    factor_with_sure_rates: float  # if the sweep's rates were known to be the best
    best_rates: str  # their law, in words
    tried: int  # (N, D) that three rates or more were tried at
    params: float  # N_opt of the losses as they are
    params_interval: tuple[float, float] | None

    @property
    def outside(self) -> bool:
        """True if the rates are known to be off by so much that N_opt lies outside of its interval."""
        within = self.params_interval
        return within is not None and not within[0] <= self.params <= within[1]

    @property
    def words(self) -> str:
        """The part in one sentence."""
        at, sure = f"N_opt at C = {fmt.flops(self.budget)}", f"x/÷{self.factor_with_sure_rates:.3g}"
        if math.isinf(self.factor):
            words = f"they leave {at} without an interval, which would be {sure} if all rates were the best"
        elif self.factor < self.factor_with_sure_rates:  # what they cost is known, and is not noise then
            words = f"the interval of {at} is x/÷{self.factor:.3g}, and {sure} if all rates are taken for the best"
        else:
            words = f"of the interval x/÷{self.factor:.3g} of {at}, {sure} is left if all rates were the best"
        if self.outside and self.params_interval is not None:
            words += (
                f"; N_opt of these losses, {fmt.count(self.params)}, lies outside of it, as the rates are off: with "
                f"the best ones it would be about {fmt.count(math.sqrt(math.prod(self.params_interval)))}"
            )
        return f"{words} ({self.best_rates}, from {self.tried} (N, D) with three rates or more)"

    @property
    def flag(self) -> Flag:
        """The part as a note."""
        severity: Severity = "warning" if self.outside or math.isinf(self.factor) else "info"
        return Flag("learning_rates", severity, f"learning rates: {self.words}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"params_interval": None if self.params_interval is None else list(self.params_interval)}


def rate_part(fit: SweepFit, target: float) -> RatePart | None:
    """Return the part at C = `target`; None where rates are taken for the best ones, or there is no interval anyway."""
    sure = fit.with_sure_rates
    if sure is None or fit.rates is None:
        return None
    laws = fit.params_opt, sure.methods[fit.default].params_opt
    within = [None if law is None else law.interval(target, fit.options.confidence) for law in laws]
    if within[1] is None or laws[0] is None:
        return None
    tried = 0 if fit.points.tried is None else len(fit.points.tried.params)
    whole, left = (math.inf if one is None else math.sqrt(one.factor) for one in within)
    return RatePart(
        budget=target,
        factor=whole,
        factor_with_sure_rates=left,
        best_rates=fit.rates.words,
        tried=tried,
        params=laws[0].at(target),
        params_interval=None if within[0] is None else (within[0].low, within[0].high),
    )


def rate_floor(fit: SweepFit, target: float, method: MethodName | None = None) -> float:
    """Return half the interval of ln N_opt at C = `target` that no further run at the sweep's own rates would narrow.

    Args:
        method: None: the default one.
    """
    sure, name = fit.with_sure_rates, method or fit.default
    if sure is None:
        return 0.0
    both = [
        None if law is None else law.known_within(target, fit.options.confidence)
        for law in (fit.methods[name].params_opt, sure.methods[name].params_opt)
    ]
    if both[0] is None or both[1] is None:
        return 0.0
    return math.sqrt(max(math.log(both[0]) ** 2 - math.log(both[1]) ** 2, 0.0))
