"""Loss surfaces L(N, D) whose optimum is known, for simulated sweeps: built-in ones, five numbers, or a function.

The additive ones are the law that is fitted. The others are not of that form, as the world is not: they show what a
fit does where its law is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.published import PUBLISHED, PublishedLaw
from flops_fit_ray.errors import SpecError

Numbers: TypeAlias = float | Floats
LossFunction: TypeAlias = Callable[[Numbers, Numbers], Numbers]  # (N, D) -> loss in nats, of their shape
Constants: TypeAlias = tuple[float, float, float, float, float]  # E, A, B, alpha, beta; nats, parameters, tokens

GRID = 801  # sizes at which a minimum is looked for
ROUNDS = 3  # each narrows it by a factor of 200: to ln N within 1e-7, which is as much as doubles tell
WIDER, MOST_WIDER = 3.0, 6  # ln N by which the search is widened while the minimum lies at its end, and how often


@dataclass(frozen=True, kw_only=True)
class LossSurface:
    """A loss as a function of N and D, without noise."""

    name: str
    formula: str  # for people
    loss: LossFunction
    constants: Constants | None = None  # of an additive one

    def optimum(
        self,
        budget: float,
        flops_per_token: Callable[[Floats], Floats] = lambda params: 6 * params,
        between: tuple[float, float] = (1e5, 1e12),
    ) -> tuple[float, float, float]:
        """Return N, D and L at the minimum of L(N, C / f(N)) at C = `budget`.

        Args:
            flops_per_token: f(N), by default 6·N.
            between: N where the search begins; it is widened where the minimum lies at an end.

        Raises:
            SpecError: there is no minimum.
        """

        def along(low: float, high: float) -> tuple[Floats, Floats, Floats, int]:
            params = np.exp(np.linspace(low, high, GRID))
            tokens = budget / flops_per_token(params)
            losses = np.asarray(self.loss(params, tokens))
            return params, tokens, losses, int(np.argmin(losses))

        low, high = (math.log(n) for n in between)
        params, tokens, losses, i = along(low, high)
        for _ in range(MOST_WIDER):
            if 0 < i < GRID - 1:
                break
            low, high = (low - WIDER, high) if i == 0 else (low, high + WIDER)
            params, tokens, losses, i = along(low, high)
        else:
            raise SpecError("--surface", [
                f"{self.name!r} has no minimum at C = {fmt.flops(budget)}: the loss is lowest where the search ends, "
                f"N = {params[i]:.3g}, D = {tokens[i]:.3g}; it must rise towards small N and towards small D"
            ])  # fmt: skip
        for _ in range(ROUNDS):
            params, tokens, losses, i = along(math.log(params[max(i - 2, 0)]), math.log(params[min(i + 2, GRID - 1)]))
        return float(params[i]), float(tokens[i]), float(losses[i])


def additive(name: str, constants: Constants) -> LossSurface:
    """Return L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, equation 2)."""
    e, a, b, alpha, beta = constants

    def loss(params: Numbers, tokens: Numbers) -> Numbers:
        return e + a / params**alpha + b / tokens**beta

    formula = f"L = {e:g} + {a:g}/N^{alpha:g} + {b:g}/D^{beta:g}"
    return LossSurface(name=name, formula=formula, loss=loss, constants=constants)


def surface_of_law(name: str, law: PublishedLaw) -> LossSurface:
    """Return the surface of a published law under a name; of repeated data, that of new data."""
    c = law.constants
    if law.form == "additive":
        return additive(name, (c["E"], c["A"], c["B"], c["alpha"], c["beta"]))
    inner = f"({c['N_c']:g}/N)^({c['alpha_N']}/{c['alpha_D']}) + {c['D_c']:g}/D"
    return LossSurface(name=name, formula=f"L = ({inner})^{c['alpha_D']}", loss=_kaplan(c))


def _kaplan(c: Mapping[str, float]) -> LossFunction:
    """Return the loss of Kaplan et al. 2020, equation 1.5: no floor, one power over both terms."""

    def loss(params: Numbers, tokens: Numbers) -> Numbers:
        inner = (c["N_c"] / params) ** (c["alpha_N"] / c["alpha_D"]) + c["D_c"] / tokens
        return inner ** c["alpha_D"]

    return loss


def _cross(params: Numbers, tokens: Numbers) -> Numbers:
    """Besiroglu's surface with a term of N·D, which is the same at all sizes of a budget."""
    return BESIROGLU.loss(params, tokens) + 3e4 * (params * tokens) ** -0.27


def _bend(params: Numbers, tokens: Numbers) -> Numbers:
    """Besiroglu's surface with alpha falling by .024 for each factor e in N; the same at N = 1e8."""
    e, a, b, alpha, beta = BESIROGLU_CONSTANTS
    z = np.log(params / 1e8)
    return e + a / 1e8**alpha * np.exp(-alpha * z + 0.012 * z**2) + b / tokens**beta  # type: ignore[no-any-return]


def _small(params: Numbers, tokens: Numbers) -> Numbers:
    """Besiroglu's surface where models of few parameters are worse than its law: twice A/N^alpha at N = 2e7."""
    e, a, b, alpha, beta = BESIROGLU_CONSTANTS
    return e + a / params**alpha * (1 + 2e7 / params) + b / tokens**beta


def _odd(params: Numbers, tokens: Numbers) -> Numbers:
    """Besiroglu's surface with a penalty away from 20 tokens per parameter, as of settings tuned there alone."""
    return BESIROGLU.loss(params, tokens) + 0.004 * np.log(tokens / params / 20) ** 2


BESIROGLU = surface_of_law("besiroglu", PUBLISHED["besiroglu2024"])
assert BESIROGLU.constants is not None
BESIROGLU_CONSTANTS: Constants = BESIROGLU.constants
KAPLAN = surface_of_law("kaplan", PUBLISHED["kaplan2020-surface"])
ADDITIVE: Mapping[str, LossSurface] = {
    "hoffmann": surface_of_law("hoffmann", PUBLISHED["hoffmann2022-printed"]),
    "besiroglu": BESIROGLU,
    "lopsided": additive("lopsided", (1.69, 120.0, 3000.0, 0.25, 0.40)),  # steep towards less data, flat towards larger
}
OTHERS: Mapping[str, tuple[LossFunction, str]] = {
    "kaplan": (KAPLAN.loss, KAPLAN.formula),
    "cross": (_cross, f"{BESIROGLU.formula} + 30000/(N·D)^0.27"),
    "bend": (_bend, "L = 1.8172 + 0.7955·exp(-0.3478·z + 0.012·z²) + 2085.43/D^0.3658, z = ln(N/1e8)"),
    "small": (_small, "L = 1.8172 + 482.01/N^0.3478·(1 + 2e7/N) + 2085.43/D^0.3658"),
    "odd": (_odd, f"{BESIROGLU.formula} + 0.004·ln(D/(20·N))²"),
}
SURFACES: Mapping[str, LossSurface] = {
    **ADDITIVE,
    **{name: LossSurface(name=name, formula=formula, loss=loss) for name, (loss, formula) in OTHERS.items()},
}


def stated_surface(text: str) -> LossSurface:
    """Return the surface of a name, of a published law, or of five numbers `E,A,B,alpha,beta`.

    Raises:
        SpecError: it is none of them, or the law has no surface.
    """
    if text in SURFACES:
        return SURFACES[text]
    if text in PUBLISHED:
        if PUBLISHED[text].surface is None:
            laws = ", ".join(name for name, law in PUBLISHED.items() if law.surface is not None)
            raise SpecError("--surface", [f"{text} is a law of optima, without losses at other sizes; take {laws}"])
        return surface_of_law(text, PUBLISHED[text])
    fault = (
        f"{text!r} is neither {', '.join(SURFACES)} nor a published law (`flops-fit-ray laws`) nor five positive "
        "numbers E,A,B,alpha,beta nor a function module:function of (params, tokens)"
    )
    try:
        e, a, b, alpha, beta = (float(x) for x in text.split(","))
    except ValueError as error:
        raise SpecError("--surface", [fault]) from error
    if not all(x > 0 and math.isfinite(x) for x in (e, a, b, alpha, beta)):
        raise SpecError("--surface", [fault])
    return additive(text, (e, a, b, alpha, beta))
