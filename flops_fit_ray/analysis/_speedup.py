"""Effective speedup of one recipe over another: by how much more compute, or data, the first reaches the second's loss.

s(C) is where L_A(s·C) = L_B(C). Where both have run the same budgets it is measured there, as what their valleys have
in common leaves the difference (`_matched_budgets`); else it follows from the two laws of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._inversion import log_compute_for, log_tokens_for, one_draw
from flops_fit_ray.analysis._law import MIN_DRAWS, Interval, Law, LawDraws
from flops_fit_ray.analysis._matched_budgets import MatchedBudgets, matched_budgets
from flops_fit_ray.analysis._speedup_run import DecidingRun, deciding_run
from flops_fit_ray.analysis._straight import Straight, weighted_line
from flops_fit_ray.analysis._sweep_fit import SweepFit, ValleyFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface import Surfaces
from flops_fit_ray.flags import Flag

CURVE_POINTS = 21
STEP = 1e-4  # nats, of a derivative
SHARED = 0.7  # of the variance of unrelated runs: pairs whose differences have more are not said to share noise
MOST = math.log(1e6)  # ln s of a draw beyond which a budget's own answer is not followed

Verdict = Literal["better", "worse", "not_told_apart", "crosses", "incomparable", "no_interval"]
Basis = Literal["matched_budgets", "laws"]


@dataclass(frozen=True, kw_only=True)
class SpeedupAt:
    """The speedup at one C; infinite where no compute brings the first to the second's loss."""

    budget: float
    factor: float
    interval: Interval | None

    @property
    def told(self) -> int | None:
        """1 if the interval lies above 1, -1 if below, 0 if it holds 1; None without an interval."""
        if self.interval is None:
            return None
        return int(self.interval.low > 1) - int(self.interval.high < 1)


@dataclass(frozen=True, kw_only=True)
class TokensFactor:
    """The factor of D at which the first reaches the second's loss at the same N, by the surfaces of both."""

    params: float  # N_opt of the second at the compared C
    tokens: float  # D of the second
    factor: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """By how much more compute the first recipe reaches the loss of the second: above 1 the second is better."""

    at: SpeedupAt  # the compared C
    verdict: Verdict  # on the second, at the compared C; crosses: better at one end of the curve, worse at the other
    basis: Basis
    matched: int  # budgets that both have; 0 where the answer is by the laws
    paired: bool  # most runs have one of the same N and D in the other sweep
    alike: bool  # and about the same optima: the interval need not hold the surfaces' answer, too
    pair_ratio: float  # variance of the differences of pairs over that of runs that share nothing; 1 if not paired
    curve: tuple[SpeedupAt, ...]  # over the range of both, and the compared C
    crosses_at: float | None  # C at which the curve passes 1 between two ends that are told apart
    tokens: TokensFactor | None
    deciding: DecidingRun | None  # None where the verdict is clear, or nothing can be planned
    notes: tuple[Flag, ...]

    @property
    def words(self) -> str:
        """The answer in one sentence."""
        within = self.at.interval
        bounds = "" if within is None else f" [{fmt.factor(within.low)}, {fmt.factor(within.high)}]"
        factor = f"{fmt.factor(self.at.factor)}{bounds}"
        where = f"at C = {fmt.flops(self.at.budget)}"
        if self.verdict == "incomparable":
            return (
                f"incomparable {where}: the second's loss lies below what the first reaches with any compute; are both "
                "losses of the same data, tokenizer and unit?"
            )
        needs = f"the first needs {factor} of the compute to reach the loss of the second {where}"
        said = {
            "better": "the second is better",
            "worse": "the second is worse",
            "not_told_apart": "not told apart",
            "no_interval": "no interval",
            "crosses": f"they cross at C = {fmt.flops(self.crosses_at or math.nan)}",
        }[self.verdict]
        return f"{said}: {needs}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; infinite factors are left to `json_value`."""
        tokens, run = self.tokens, self.deciding
        return {
            "factor": self.at.factor,
            "interval": _bounds(self.at.interval),
            "verdict": self.verdict,
            "message": self.words,
            "basis": self.basis,
            "matched_budgets": self.matched,
            "paired": self.paired,
            "alike": self.alike,
            "pair_ratio": self.pair_ratio,
            "crosses_at": self.crosses_at,
            "curve": [
                {"budget": one.budget, "factor": one.factor, "interval": _bounds(one.interval)} for one in self.curve
            ],
            "tokens": None
            if tokens is None
            else {
                "params": tokens.params,
                "tokens": tokens.tokens,
                "factor": tokens.factor,
                "interval": _bounds(tokens.interval),
            },
            "deciding_run": None if run is None else {**asdict(run), "message": run.words},
        }

    @property
    def basis_words(self) -> str:
        """The basis of the answer in a few words."""
        if self.basis == "laws":
            return "from the two laws of the loss, each with the noise of its own sweep"
        if not self.paired:
            spread = "most runs have no partner of the same N and D"
        elif self.pair_ratio < SHARED:
            spread = f"pairs of runs of the same N and D share noise: {self.pair_ratio:.2g} of its variance is left"
        else:
            spread = "runs are pairs of the same N and D, which share no noise"
        other = "; beyond them the interval holds the surfaces' answer, too"
        if not self.alike:
            other = "; their valleys are not alike, so the interval holds the surfaces' answer, too"
        return f"measured at the {self.matched} budgets that both ran; {spread}{other}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """One side: its law of the loss, the range it was fitted to, and the rest where there is one."""

    loss: Law
    params: Law
    tokens: Law
    span: tuple[float, float] | None  # C
    fit: SweepFit | ValleyFit | None  # with valleys; None: by another method, or a published law
    surface: Surfaces | None
    surface_draws: Surfaces | None
    others: tuple[Law, ...] = ()  # laws of the loss by the other methods of the sweep


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def speedup(a: Compared, b: Compared, budget: float, confidence: float, points: int = CURVE_POINTS) -> Speedup:
    """Return by how much more compute `a` reaches the loss of `b` at C = `budget`, and over the range of both.

    Args:
        confidence: of the intervals.
        points: budgets of the curve, 2 at least.
    """
    matched = None if a.fit is None or b.fit is None else matched_budgets(a.fit, b.fit)
    by_budgets = None if matched is None else _ByBudgets.made(matched, a.loss)
    notes: list[Flag] = []

    def doubtful(c: float) -> bool:
        # Valleys of other windows, or with other optima, miss their curves by something else, which stays in the
        # difference; and beyond the budgets ln s need not go on along a line
        return matched is not None and not (matched.alike and matched.reach(c))

    def at(c: float) -> SpeedupAt:
        by_laws = _by_laws(a.loss, b.loss, c, confidence)
        found = by_laws if by_budgets is None else by_budgets.at(c, confidence)
        others = [_by_laws(x, y, c, confidence) for x, y in zip(a.others, b.others, strict=False)]
        return _widened(found, [by_laws, *others], others if doubtful(c) else ())

    asked, curve = at(budget), tuple(at(c) for c in _grid(a, b, budget, points))
    plain = asked if by_budgets is None or doubtful(budget) else by_budgets.at(budget, confidence)
    if asked.interval != plain.interval:
        notes.append(Flag("methods_disagree", "warning", "valleys, surfaces and laws disagree on the speedup at C = "
                          f"{fmt.flops(budget)}: its interval holds the answers of all"))  # fmt: skip
    crossing = _crossing(curve)
    told = asked.told
    verdict: Verdict = "not_told_apart"
    if math.isinf(asked.factor):
        verdict = "incomparable"
    elif told is None:
        verdict = "no_interval"
    elif crossing is not None:
        verdict = "crosses"
    elif told:
        verdict = "better" if told > 0 else "worse"
    deciding = None
    if verdict == "not_told_apart" and by_budgets is not None and matched is not None:
        line, power, centre = by_budgets.lines[0]
        x = float(_place(np.array([budget]), power, centre)[0])
        slopes = by_budgets.slope, float(_slopes(one_draw(a.loss), np.array([budget]), np.zeros(1))[0])
        deciding = deciding_run(matched, line, (budget, x), math.log(asked.factor), slopes, confidence)
    return Speedup(
        at=asked,
        verdict=verdict,
        basis="laws" if by_budgets is None else "matched_budgets",
        matched=0 if matched is None or by_budgets is None else len(matched.variance),
        paired=matched is not None and by_budgets is not None and matched.paired,
        alike=matched is not None and by_budgets is not None and matched.alike,
        pair_ratio=1.0 if matched is None else matched.ratio,
        curve=curve,
        crosses_at=crossing,
        tokens=_tokens_factor(a, b, budget, confidence),
        deciding=deciding,
        notes=tuple(notes),
    )


def _grid(a: Compared, b: Compared, budget: float, points: int) -> Iterator[float]:
    """Yield the budgets of the curve: the range that both were fitted to, and on to the compared C."""
    spans = [one.span for one in (a, b) if one.span is not None] or [(budget / 10, budget)]
    low, high = max(span[0] for span in spans), min(span[1] for span in spans)
    if low > high:  # no common range
        low, high = min(low, high), max(low, high)
    yield from np.geomspace(min(low, budget), max(high, budget), points).tolist()


def _crossing(curve: Sequence[SpeedupAt]) -> float | None:
    """Return C where the factor passes 1 between two ends that are told apart in opposite ways; else None."""
    ends = curve[0].told, curve[-1].told
    if ends not in ((1, -1), (-1, 1)):
        return None
    logs = np.array([math.log(one.factor) for one in curve])
    i = int(np.flatnonzero(np.sign(logs[1:]) != np.sign(logs[:-1]))[0])
    share = logs[i] / (logs[i] - logs[i + 1])
    return float(curve[i].budget * (curve[i + 1].budget / curve[i].budget) ** share)


def _by_laws(a: Law, b: Law, budget: float, confidence: float) -> SpeedupAt:
    """Invert the law of the first at the loss of the second, in every pair of draws.

    Both may have been drawn with the same seed, so the second's draws are permuted: the sweeps are independent.
    """
    log_c = math.log(budget)
    point = float(log_compute_for(one_draw(a), np.array([b.at(budget)]))[0] - log_c)
    sizes = [len(law.draws.exponent) for law in (a, b) if law.draws is not None]
    if not sizes:
        return SpeedupAt(budget=budget, factor=_exp(point), interval=None)
    count = min(sizes)
    losses = np.full(count, b.at(budget))
    if b.draws is not None:
        losses = np.random.default_rng(count).permutation(b.draws.at(budget))[:count]
    draws = one_draw(a) if a.draws is None else a.draws
    log_s = log_compute_for(draws, losses if a.draws is None else _padded(losses, len(draws.exponent))) - log_c
    return SpeedupAt(budget=budget, factor=_exp(point), interval=_interval(log_s[:count], confidence))


def _padded(values: Floats, size: int) -> Floats:
    """Return the values, NaN behind them up to a size."""
    return np.concatenate([values, np.full(size - len(values), np.nan)])


def _exp(log_s: float) -> float:
    return math.inf if log_s > 700 else math.exp(log_s)


def _interval(log_s: Floats, confidence: float) -> Interval | None:
    """Return central quantiles of exp(log_s), which may be infinite; None where fewer than half of the draws count."""
    kept = log_s[~np.isnan(log_s)]
    if len(kept) < max(MIN_DRAWS * len(log_s), 1):
        return None
    low = float(np.quantile(kept, (1 - confidence) / 2, method="lower"))
    high = float(np.quantile(kept, (1 + confidence) / 2, method="higher"))
    return Interval(_exp(low), _exp(high))


def _widened(found: SpeedupAt, others: Sequence[SpeedupAt], always: Sequence[SpeedupAt]) -> SpeedupAt:
    """Widen an interval by other answers that lie apart from it, as neither is known to be right then, and by some."""
    own = found.interval
    if own is None:
        return found
    apart = [one.interval for one in others if one.interval is not None and not own.overlaps(one.interval)]
    every = [own, *apart, *(one.interval for one in always if one.interval is not None)]
    within = Interval(min(i.low for i in every), max(i.high for i in every))
    return SpeedupAt(budget=found.budget, factor=found.factor, interval=within)


@dataclass(frozen=True, kw_only=True, eq=False)
class _ByBudgets:
    """Speedups measured at budgets that both have, and the lines through them.

    1) d = (L_B - law_A(C_B)) - (L_A - law_A(C_A)) at the minima: what the second differs by, about the first's law
    2) ln s = ln C_A(law_A(C_B) + d) - ln C_B, by every draw of the first's law, whose slope is not known exactly
    3) a line of ln s over ln C, and one over C^gamma, along which ln s goes where only the floors E differ; where they
       disagree, beyond the budgets, the interval holds both
    """

    lines: tuple[tuple[Straight, float, float], ...]  # a line, the power of C that is its x (0: ln C), and its centre
    log_s: Floats  # (budgets,)
    drawn: Floats | None  # (draws, budgets); None without draws
    slope: Floats  # d ln C / d L of the first's law at each budget, (budgets,), below 0

    @classmethod
    def made(cls, matched: MatchedBudgets, law: Law) -> _ByBudgets | None:
        """Return the lines; None where the first's law does not reach the second's losses."""
        own, c = one_draw(law), matched.flops
        d = (matched.loss[1] - _along(own, c[1])[0]) - (matched.loss[0] - _along(own, c[0])[0])
        # d is about the first's own law, so a C that is not quite the same in both does no harm
        log_s = _speedups(own, c[1], d)[0]
        if not np.isfinite(log_s).all():
            return None
        slope = _slopes(own, c[1], d)
        variance = np.maximum(matched.variance * slope**2, 1e-18)
        drawn = None
        if law.draws is not None:
            with np.errstate(invalid="ignore"):
                drawn = np.clip(_speedups(law.draws, c[1], d), -MOST, MOST)
            drawn = drawn[~np.isnan(drawn).any(axis=1)]
        lines = []
        for power in (0.0, max(-law.exponent, 1e-3)):
            centre = float(np.log(c[1]).mean())
            lines.append((weighted_line(_place(c[1], power, centre), log_s, variance, matched.df), power, centre))
        return cls(lines=tuple(lines), log_s=log_s, drawn=drawn, slope=slope)

    def at(self, budget: float, confidence: float) -> SpeedupAt:
        """Return the speedup at one C, by both lines."""
        points, bounds = [], []
        for line, power, centre in self.lines:
            weights, sd, df = line.at(float(_place(np.array([budget]), power, centre)[0]))
            points.append(float(weights @ self.log_s))
            if self.drawn is None:
                continue
            rng = np.random.default_rng(len(self.drawn))
            noise = sd * rng.standard_t(df, len(self.drawn)) if math.isfinite(sd) else np.nan
            bounds.append(_interval(self.drawn @ weights + noise, confidence))
        known = [one for one in bounds if one is not None]
        within = None
        if known and len(known) == len(bounds):
            within = Interval(min(i.low for i in known), max(i.high for i in known))
        return SpeedupAt(budget=budget, factor=_exp(float(np.mean(points))), interval=within)


def _place(flops: Floats, power: float, centre: float) -> Floats:
    """Return x of a line: ln C about its centre, or C^power about it, as (z^power - 1) / power."""
    z = np.log(flops) - centre
    return z if power == 0 else np.expm1(power * z) / power


def _along(law: LawDraws, flops: Floats) -> Floats:
    """Return the losses of every draw of a law at each C (draws, budgets)."""
    return np.stack([law.at(float(c)) for c in flops], axis=1)


def _speedups(law: LawDraws, flops: Floats, difference: Floats) -> Floats:
    """Return ln s of every draw at each C (draws, budgets), where the law reaches its own loss plus a difference."""
    return np.stack(
        [log_compute_for(law, law.at(float(c)) + d) - math.log(c) for c, d in zip(flops, difference, strict=True)],
        axis=1,
    )


def _slopes(law: LawDraws, flops: Floats, difference: Floats) -> Floats:
    """Return d ln s / d L of one law at each C (budgets,), below 0."""
    ends = [_speedups(law, flops, difference + step)[0] for step in (-STEP, STEP)]
    return np.asarray((ends[1] - ends[0]) / (2 * STEP))


def _tokens_factor(a: Compared, b: Compared, budget: float, confidence: float) -> TokensFactor | None:
    """Return the factor of D at B's optimum, where both have a surface."""
    if a.surface is None or b.surface is None:
        return None
    n, d = b.params.at(budget), b.tokens.at(budget)

    def log_factor(first: Surfaces, second: Surfaces, order: Sequence[int] | slice) -> Floats:
        losses = second.loss(np.array(n), np.array(d))[order]
        return log_tokens_for(first, losses, math.log(n)) - math.log(d)

    point = _exp(float(log_factor(a.surface, b.surface, slice(None))[0]))
    first, second = a.surface_draws or a.surface, b.surface_draws or b.surface
    sizes = [len(one.surface_draws.alpha) for one in (a, b) if one.surface_draws is not None]
    if not sizes:
        return TokensFactor(params=n, tokens=d, factor=point, interval=None)
    count = min(sizes)
    order = np.random.default_rng(count).permutation(len(second.alpha))[:count]
    if len(first.alpha) > 1:
        first = _first(first, count)
    return TokensFactor(params=n, tokens=d, factor=point,
                        interval=_interval(log_factor(first, second, order.tolist()), confidence))  # fmt: skip


def _first(surfaces: Surfaces, count: int) -> Surfaces:
    return Surfaces(**{name: getattr(surfaces, name)[:count] for name in surfaces.__dataclass_fields__})
