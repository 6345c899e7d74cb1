"""Units by plausibility: N, D and C that no training has are refused, with the unit that would mend them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flops_fit_ray.analysis.arrays import Floats

FLOPS_PER_TOKEN_AND_PARAM = 6  # C = 6·N·D (Kaplan et al. 2020, section 2.1): used where one of the three is missing
LETTERS = {"params": "N", "tokens": "D", "flops": "C"}
MOST = {"params": 1e14, "tokens": 1e16, "flops": 1e30}  # of any model that can be trained
MIN_FLOPS = 1e4
TOY_FLOPS, TOY_RATIO = 1e9, 5.0  # C below it, with a D/N below it: N in millions and D in billions look like that
RATIO = (1e-4, 1e6)  # D/N, from few images for a large model to many samples for a regression
NEAR = 2.2  # factor about 1,000, 1e6, ... within which C against 6·N·D is a matter of units
WILD = 1e4  # factor of C against 6·N·D, beyond which one of the three is not what its name says
ONE_BUDGET = 10.0  # largest over smallest C of the runs of one budget
STEADY = 30.0  # largest over smallest C/6ND, within which all rows may have the same wrong unit
USUAL = 20.0  # D/N, about which the units are looked for
PARAM_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}
TOKEN_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
FLOP_UNITS = {"": 1.0, "GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15, "EFLOP": 1e18, "PF-days": 8.64e19, "ZFLOP": 1e21}
_RARE = {"": 0.0, "k": 1.0}  # cost of a unit in the search; others 0.5
RISES = 0.5  # share of the variance of losses that a plane rising with both N and D explains, from which it is no loss


def unit_faults(
    values: Mapping[str, Floats], derived: Sequence[str], said: Sequence[str], names: Mapping[str, str]
) -> Iterator[str]:
    """Yield the fault of units that cannot be.

    Args:
        values: params, tokens and flops (rows,).
        derived: those that were computed from the other two.
        said: those whose unit the user gave with --unit: they are right.
        names: the column of each, for the message.
    """
    free = [name for name in ("params", "tokens", "flops") if name not in derived and name not in said]
    ratio = values["flops"] / (FLOPS_PER_TOKEN_AND_PARAM * values["params"] * values["tokens"])
    steady = float(np.quantile(ratio, 0.9) / np.quantile(ratio, 0.1)) < STEADY
    wrong = [] if not free else list(_wrong(values, derived, ratio, steady))
    if not wrong:
        return
    taken = ", ".join(f"{letter} = {names[name]!r}" for name, letter in LETTERS.items() if name in names)
    width = not derived and _grows(ratio, values["params"])
    found = _units(values, free, derived) if (derived or steady) and not width else None
    if found:
        way = f"{' '.join(f'--unit {name}={unit}' for name, unit in found)} would mend it"
    elif width:
        way = f"{names.get('params', 'N')!r} may be a width or a depth: name that of the count, --column params=..."
    else:
        way = "no unit mends it: name the right columns with --column, or leave C out with --column flops=none"
    keep = " ".join(f"--unit {name}=1" for name in free)
    yield f"{'; '.join(wrong)} ({taken}): {way}; if all is right as it is, {keep} says so"


def _wrong(values: Mapping[str, Floats], derived: Sequence[str], ratio: Floats, steady: bool) -> Iterator[str]:
    """Yield in words what no training has."""
    middle, low, high = float(np.median(ratio)), float(ratio.min()), float(ratio.max())
    if not derived and ((steady and _is_power_of_1000(middle)) or not 1 / WILD < middle < WILD):
        yield f"C is {middle:.3g} times 6·N·D" if high < 1.5 * low else f"C is {low:.3g} to {high:.3g} times 6·N·D"
    typical = {name: float(np.median(values[name])) for name in LETTERS}
    per_param = float(np.median(values["tokens"] / values["params"]))
    if not RATIO[0] < per_param < RATIO[1]:
        yield f"D/N is {per_param:.3g}"
    for name in ("params", "tokens"):
        if name not in derived and _is_fraction(values[name]):
            yield (f"{LETTERS[name]} is no whole number ({float(values[name].min()):.4g} to "
                   f"{float(values[name].max()):.4g})")  # fmt: skip
    for name, limit in MOST.items():
        if typical[name] > limit:
            yield f"{LETTERS[name]} is about {typical[name]:.3g}"
    if typical["flops"] < MIN_FLOPS or (typical["flops"] < TOY_FLOPS and per_param < TOY_RATIO):
        yield f"C is about {typical['flops']:.3g} FLOPs"


def _is_power_of_1000(ratio: float) -> bool:
    steps = round(np.log10(ratio) / 3)
    return bool(steps != 0 and 1 / NEAR < ratio / 1000.0**steps < NEAR)


def _is_fraction(values: Floats) -> bool:
    """Return True for counts below 1,000 that are not whole: 28.47."""
    fractions = float(np.mean(np.abs(values - np.round(values)) > 1e-6))
    return float(np.median(values)) < 1000 and fractions > 0.5


def _grows(ratio: Floats, params: Floats) -> bool:
    """Return True if C/6ND grows with N, as it does where N is a width: C is proportional to width²."""
    x, y = np.log(params), np.log(ratio)
    return float(np.std(x)) > 0 and float(np.polyfit(x, y, 1)[0]) > 0.5


def _units(values: Mapping[str, Floats], free: Sequence[str], derived: Sequence[str]) -> list[tuple[str, str]] | None:
    """Find the fewest units with which C is near 6·N·D and D/N is usual; None if there are none."""
    choices = [units if name in free else {"": 1.0} for name, units in
               (("params", PARAM_UNITS), ("tokens", TOKEN_UNITS), ("flops", FLOP_UNITS))]  # fmt: skip
    n, d, c = (float(np.median(values[name])) for name in ("params", "tokens", "flops"))
    ratio, best, least = float(np.median(values["flops"] / (6 * values["params"] * values["tokens"]))), None, np.inf
    for units in itertools.product(*(choice.items() for choice in choices)):
        by_n, by_d, by_c = (value for _, value in units)
        if "params" in derived:
            by_n = by_c / by_d
        elif "tokens" in derived:
            by_d = by_c / by_n
        elif "flops" in derived:
            by_c = by_n * by_d
        scaled_n, scaled_d = n * by_n, d * by_d
        off = abs(np.log10(ratio * by_c / (by_n * by_d)))
        if (
            off > np.log10(30)
            or not 1e5 < scaled_n < MOST["params"]
            or scaled_d > MOST["tokens"]
            or c * by_c > MOST["flops"]
        ):
            continue
        score = abs(np.log10(scaled_d / scaled_n / USUAL)) + off + sum(_RARE.get(unit, 0.5) for unit, _ in units)
        if score < least and abs(np.log10(scaled_d / scaled_n / USUAL)) < 3.5:
            best, least = units, score
    if best is None:
        return None
    return [(name, unit) for name, (unit, _) in zip(("params", "tokens", "flops"), best, strict=True) if unit]


def score_faults(loss: Floats, params: Floats, tokens: Floats, name: str) -> Iterator[str]:
    """Yield the fault of losses that rise with both N and D: they are accuracies, or negative losses."""
    if len(loss) < 6:
        return
    design = np.stack([np.ones(len(loss)), np.log(params), np.log(tokens)], axis=1)
    slopes, _, rank, _ = np.linalg.lstsq(design, loss, rcond=1e-9)
    total = float(np.sum((loss - loss.mean()) ** 2))
    if rank < 3 or total == 0 or not (slopes[1] > 0 and slopes[2] > 0):
        return
    if 1 - float(np.sum((loss - design @ slopes) ** 2)) / total < RISES:
        return
    what = (
        f"an accuracy? use an error, such as 1 - {name}"
        if loss.max() <= 1
        else f"an accuracy in percent? use an error, such as 100 - {name}"
        if 20 < loss.max() <= 100
        else "a score?"
    )
    yield (
        f"{name!r} ({loss.min():.4g} to {loss.max():.4g}) rises with both N and D, and a loss falls: is it {what}; "
        "name the column of the loss with --column loss=..."
    )


def budget_faults(budget: Floats, flops: Floats, name: str) -> Iterator[str]:
    """Yield the fault of a label of budgets that holds runs of very different C."""
    label, which = np.unique(budget, return_inverse=True)
    which = which.reshape(-1)
    low, high = np.full(len(label), np.inf), np.zeros(len(label))
    np.minimum.at(low, which, flops)
    np.maximum.at(high, which, flops)
    wide = int(np.argmax(high / low))
    if high[wide] > ONE_BUDGET * low[wide]:
        yield (
            f"{name!r} labels runs of C from {low[wide]:.3g} to {high[wide]:.3g} as one budget, {label[wide]:.3g}: it "
            "is no label of budgets; --column budget=none groups the runs by C"
        )


def budget_note(ratio: Floats, name: str) -> str:
    """Return a sentence where the labels of budgets, in FLOPs, are not the C that was computed; else empty."""
    middle = float(np.median(ratio))
    if not 0.1 < middle < 10 or 0.95 < middle < 1.05:
        return ""
    return f"{name!r} is about {middle:.3g} times that C: --column flops={name} --column budget=none takes it as C"


def flops_note(ratio: Floats, name: str) -> str:
    """Return a sentence where C is the same multiple of 6·N·D in every row, other than 1; empty where it is not."""
    middle = float(np.median(ratio))
    same = bool(np.all(np.abs(ratio / middle - 1) < 0.01))
    if not same or 0.9 < middle < 1.1:
        return ""
    forward = ", as of forward passes alone" if abs(3 * middle - 1) < 0.02 else ""
    return f"C ({name!r}) is {middle:.3g} times 6·N·D in every row{forward}: laws are in that C"
