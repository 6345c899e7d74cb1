"""Settings of a fit: defaults, choices and limits, each once, for the spec, the command line and the fit itself.

And the outcomes that a fit may have.

Imports nothing heavy, so that the command line can show them at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

from flops_fit_ray.errors import FitError

MethodName = Literal["valley", "surface_huber", "surface_squared", "surface_coupled", "envelope"]
MethodChoice = Literal["auto", MethodName]
CurveName = Literal["parabola", "skewed", "cubic", "akima"]  # skewed: parabolas, and one skew for all budgets
CurveChoice = Literal["auto", CurveName]
LawWeights = Literal["equal", "precision"]
SurfaceLoss = Literal["huber", "squared"]
SurfaceForm = Literal["additive", "coupled"]
PinName = Literal["E", "alpha", "beta"]
ValleyStatus = Literal["interior", "edge", "concave", "too_few"]
SurfaceStatus = Literal[
    "converged", "at_bound", "same_as_additive", "did_not_move", "not_converged", "ill_conditioned", "unidentified"
]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "method": get_args(MethodChoice),
    "curve": get_args(CurveChoice),
    "law_weights": get_args(LawWeights),
}
PINS: tuple[str, ...] = get_args(PinName)
# Methods that fit a surface: the loss function, and the form of the law
SURFACES: Mapping[MethodName, tuple[SurfaceLoss, SurfaceForm]] = {
    "surface_huber": ("huber", "additive"),
    "surface_squared": ("squared", "additive"),
    "surface_coupled": ("huber", "coupled"),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Range of a finite number: greater or equal, greater than, less or equal, less than."""

    whole: bool = False
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: object) -> bool:
        if type(value) is bool or not isinstance(value, Real) or not math.isfinite(value):
            return False
        number = float(value)
        return (
            not (self.whole and number != int(number))
            and (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    def __str__(self) -> str:
        bounds = [("at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt)]
        words = " and ".join(f"{word} {bound:,}" for word, bound in bounds if bound is not None)
        return f"a {'whole ' if self.whole else ''}number {words}"


LIMITS: Mapping[str, Limits] = {
    "draws": Limits(whole=True, ge=0, le=1_000_000),
    "confidence": Limits(gt=0.5, lt=1),  # refuses 0.05 where 0.95 is meant
    "seed": Limits(whole=True, ge=0),
    "window": Limits(whole=True, ge=3),  # sizes, as many as a parabola needs
    "reach": Limits(gt=1),  # a ratio of sizes
    "delta": Limits(gt=0),
    "undertuned": Limits(gt=0, le=1),
}
PIN_LIMITS = Limits(gt=0)


def check_pins(pins: Mapping[str, float]) -> None:
    """Check the parameters of the surface that are held fixed.

    Raises:
        FitError: a name is none of E, alpha and beta, or a value is not positive and finite.
    """
    for name, value in pins.items():
        if name not in PINS:
            raise FitError(f"only {', '.join(PINS[:-1])} and {PINS[-1]} can be pinned, not {name}")
        if value not in PIN_LIMITS:
            raise FitError(f"a pinned value must be {PIN_LIMITS} (got {name} = {value!r})")


@dataclass(frozen=True, kw_only=True)
class SurfaceOptions:
    """Settings of the fit of one surface.

    Raises:
        FitError: as `check_pins`.
    """

    loss: SurfaceLoss = "huber"
    form: SurfaceForm = "additive"  # coupled: Huber only
    delta: float = 1e-3  # of the Huber loss of ln L
    undertuned: float = 1.0  # weight of losses above the surface; Huber only
    pins: Mapping[str, float] = field(default_factory=dict)  # E, alpha, beta held fixed

    def __post_init__(self) -> None:
        check_pins(self.pins)

    @property
    def parameters(self) -> int:
        """Number of parameters that are fitted."""
        return (6 if self.form == "coupled" else 5) - len(self.pins)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Settings of a fit.

    Raises:
        FitError: a setting is none of its choices, or outside its limits.
    """

    draws: int = 2000  # of the bootstrap; 0: no intervals
    confidence: float = 0.95
    seed: int = 0
    method: MethodChoice = "auto"  # the default method of the fit
    curve: CurveChoice = "parabola"  # auto: chosen by how it predicts sizes that are left out
    window: int | None = None  # sizes nearest to the lowest loss; None: all
    reach: float | None = None  # sizes within this factor of the minimum, three at least; None: all
    law_weights: LawWeights = "precision"  # of the minima: 1 / (variance + scatter between budgets), or equal
    delta: float = SurfaceOptions.delta
    undertuned: float = SurfaceOptions.undertuned
    pins: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise FitError(f"{name} must be one of {', '.join(choices)} (got {getattr(self, name)!r})")
        for name, limits in LIMITS.items():
            value = getattr(self, name)
            if value not in limits and not (value is None and getattr(FitOptions, name) is None):
                raise FitError(f"{name} must be {limits} (got {value!r})")
        if self.window is not None and self.reach is not None:
            raise FitError(f"window = {self.window} and reach = {self.reach:g} both choose sizes: give one of them")
        check_pins(self.pins)

    def surface(self, method: MethodName) -> SurfaceOptions:
        """Return the settings of the fit of a surface; `method` is one of `SURFACES`."""
        loss, form = SURFACES[method]
        return SurfaceOptions(loss=loss, form=form, delta=self.delta, undertuned=self.undertuned, pins=self.pins)


FIT_DEFAULTS = FitOptions()
