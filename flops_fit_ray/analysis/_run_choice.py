"""The choice of the next runs: places for them, the rules of what may be chosen together, and the reason of each."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._design_laws import weighed_laws
from flops_fit_ray.analysis._design_search import Set, SetSearch
from flops_fit_ray.analysis._run_space import SAME, Place, RunSpace
from flops_fit_ray.analysis._summary import json_value
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.time_budgets import seconds_of, time_law
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import MethodName
from flops_fit_ray.storage.paths import SCHEMA_VERSION

RATIO = (1.5, math.sqrt(10))  # of neighbouring budgets, within which one more is placed
ABOVE = 2  # further budgets that are tried, each by that ratio
GAP = 2.5  # ratio of neighbouring budgets from which one between them is tried
MARGIN = 1.5  # least ratio of a minimum to the ends of its valley
WIDEST = 8.0  # the same at most: a minimum that is known less well is not looked for with three sizes
SPREADS = (1.0, 1.4, 2.0, 2.8)  # of three sizes about a minimum, over the least that brackets it
LEAST_SIZES = 3  # of a valley
FARTHER = 2.0  # how far scattered runs may lie beyond the largest N and D

Kind = Literal["size", "seed", "budget", "bracket", "scattered"]


@dataclass(frozen=True, kw_only=True)
class NextRun:
    """One run to train next. `factor` is what is expected after it and all before it in the list."""

    budget: float  # C, FLOPs
    params: float
    tokens: float
    size: int | str | None  # of the model; None where only N is known
    kind: Kind
    step: int  # from 1; runs of one step tell together, and none alone
    flops: float  # that it executes
    seconds: float | None  # on one device at the measured speed; None where that is not known
    factor: float  # N_opt at the target is then expected within N_opt/factor and N_opt·factor
    factors: Mapping[MethodName, float]  # the same by each law
    reason: str


@dataclass(frozen=True, kw_only=True)
class NextRuns:
    """The runs that help most, in the order in which they narrow N_opt at C = `target` most for their FLOPs."""

    target: float
    method: MethodName  # of the answer, whose interval `factor` is
    confidence: float
    factor: float  # today
    factors: Mapping[MethodName, float]  # today, by each law that fits
    weights: Mapping[MethodName, float]  # of the laws, by how they predict; the answer has half and its own
    spent: float  # FLOPs of the runs so far
    runs: tuple[NextRun, ...]

    @property
    def flops(self) -> float:
        """FLOPs of all runs of the list."""
        return sum(run.flops for run in self.runs)

    @property
    def seconds(self) -> float | None:
        """Seconds of all runs on one device; None where the speed is not known."""
        known = [run.seconds for run in self.runs if run.seconds is not None]
        return sum(known) if len(known) == len(self.runs) else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = ("target", "method", "confidence", "factor", "factors", "weights", "spent", "flops", "seconds")
        content = {"schema_version": SCHEMA_VERSION} | {name: json_value(getattr(self, name)) for name in names}
        return content | {"runs": [json_value(vars(run)) for run in self.runs]}


class RunChoice:
    """One choice: the places, the laws that see them, and what may be chosen together."""

    def __init__(self, fit: SweepFit, target: float, space: RunSpace, at_most: float) -> None:
        self._fit, self._target, self._space, self._at_most = fit, target, space, at_most
        self._by_budget = fit.points.labelled or fit.default == "valley"
        self._minima = {v.budget: v.params_opt for v, _ in fit.optima} if self._by_budget else {}
        self._sizes: dict[float, list[float]] = {}  # N that were run, by budget
        for v in fit.valleys:
            self._sizes[v.budget] = [float(n) for n in np.unique(v.params[v.used])] if self._by_budget else []
        self._reach = max(
            [MARGIN, *(max(r, 1 / r) for v, _ in fit.optima for r in v.params[v.used] / v.params_opt)]
        )  # of N from a minimum: how the curves go on farther out, no run has told
        self._open = [v.budget for v in fit.valleys if v.status != "interior"] if self._by_budget else []
        self._new: list[float] = []
        self._places: list[Place] = self._all_places()
        self._there = len(self._places)  # from here on runs that are there, in valleys without a minimum
        self._free: dict[float, Set] = {}
        for budget in self._open:
            v = next(v for v in fit.valleys if v.budget == budget)
            first = len(self._places)
            self._places += [Place(budget=budget, params=n, tokens=d) for n, d in zip(v.params, v.tokens, strict=True)]
            self._free[budget] = tuple(range(first, len(self._places)))
        columns = (np.array([getattr(p, name) for p in self._places]) for name in ("budget", "params", "tokens"))
        self._budgets, self._params, self._tokens = columns
        self._laws = weighed_laws(fit, target, (self._budgets, self._params, self._tokens), self._there, self._unread())

    def runs(self, count: int) -> NextRuns:
        """Search, order and describe."""
        fit = self._fit
        if fit.default not in self._laws:
            raise FitError(f"N_opt at C = {fmt.flops(self._target)} is known exactly: no run can narrow it")
        search = SetSearch(
            laws=list(self._laws.values()),
            moves=self._moves(),
            allowed=self._allowed,
            price=self._price,
            spent=self._space.spent,
            at_most=self._at_most,
            free=self._made_useful,
        )
        chosen = search.best(count)
        if not chosen:
            raise FitError(self._why_none(count))
        found: list[NextRun] = []
        done: Set = ()
        for number, step in enumerate(search.in_order(chosen), 1):
            prices = self._space.prices([self._places[i] for i in (*done, *step)])[len(done) :]
            for i, price in zip(step, prices, strict=True):
                kind = self._kind(i, done)
                done = (*done, i)
                found.append(self._described(i, kind, number, price, self._factors(done)))
        return NextRuns(
            target=self._target,
            method=fit.default,
            confidence=fit.options.confidence,
            factor=math.exp(self._laws[fit.default].now),
            factors={name: math.exp(one.now) for name, one in self._laws.items()},
            weights={name: one.weight for name, one in self._laws.items()},
            spent=self._space.spent,
            runs=tuple(found),
        )

    def _why_none(self, count: int) -> str:
        """Say why no run can be chosen, and what would do."""
        most = f"no run for at most {fmt.flops(self._at_most)} FLOPs"
        cheapest = min((self._price((i,)) for i in range(self._there)), default=math.inf)
        if math.isfinite(cheapest) and cheapest > self._at_most:
            return f"{most}: the cheapest costs {fmt.flops(cheapest)}; raise --at-most"
        way_out = (
            f"ask for {LEAST_SIZES} runs" if count < LEAST_SIZES else "raise --at-most, or choose another --target"
        )
        return f"{most} leaves every budget with its minimum between its sizes; {way_out}"

    def _price(self, chosen: Set) -> float:
        return sum(self._space.prices([self._places[i] for i in chosen]))

    # Places

    def _all_places(self) -> list[Place]:
        fit = self._fit
        law = fit.params_opt
        assert law is not None
        if not self._by_budget:
            return self._scattered()
        places = [p for c, n in self._minima.items() for p in self._within(c, n, self._reach)]
        for c in self._open:
            places += self._about(c)
        known = sorted(v.budget for v in fit.valleys)
        ratio = float(np.clip(np.median([b / a for a, b in itertools.pairwise(known)]), *RATIO))
        above = [float(f"{known[-1] * ratio**k:.3g}") for k in range(1, ABOVE + 1)]
        between = [float(f"{math.sqrt(a * b):.3g}") for a, b in itertools.pairwise(known) if b / a >= GAP]
        for c in [*between, *above]:
            if c <= self._target and c not in known:
                found = self._about(c)
                if found:
                    self._new.append(c)
                    places += found
        return places

    def _within(self, budget: float, centre: float, margin: float) -> list[Place]:
        """Places about N = `centre` as far out as runs are, or as far as `margin` where that is farther."""
        reach = 1.01 * max(self._reach, margin)
        return [p for p in self._space.places(budget, centre) if 1 / reach <= p.params / centre <= reach]

    def _about(self, budget: float) -> list[Place]:
        """Places about an expected minimum, with the first on either side that bracket it though a step goes past."""
        centre, margin = self._expected(budget)
        found, all_places = self._within(budget, centre, margin), self._space.places(budget, centre)
        below = [p for p in all_places if p.params * margin <= centre]
        above = [p for p in all_places if p.params >= centre * margin]
        ends = [max(below, key=lambda p: p.params, default=None), min(above, key=lambda p: p.params, default=None)]
        return [*found, *(p for p in ends if p is not None and p not in found)]

    def _scattered(self) -> list[Place]:
        """Places all over N and C, where runs are no budgets of their own."""
        points = self._fit.points
        law = self._fit.params_opt
        assert law is not None
        low, high = float(points.flops.min()), min(float(points.flops.max()) * RATIO[1], self._target)
        found = []
        for c in np.geomspace(low, high, max(2, round(math.log(high / low) / math.log(RATIO[1])) + 1)):
            rounded = float(f"{c:.3g}")
            found += self._space.places(rounded, law.at(rounded))
        (n_low, n_high), (d_low, d_high) = ((x.min(), FARTHER * x.max()) for x in (points.params, points.tokens))
        return [p for p in found if n_low <= p.params <= n_high and d_low <= p.tokens <= d_high]

    def _unread(self) -> Floats:
        """1 for places that the valleys' fit would not read: further sizes where its window is full; else 0."""
        window, full = self._fit.options.window, np.zeros(len(self._places))
        for i, p in enumerate(self._places[: self._there]):
            sizes = self._sizes.get(p.budget, [])
            full[i] = window is not None and p.budget in self._minima and len(sizes) >= window and p.params not in sizes
        return full

    # Rules

    def _moves(self) -> list[Set]:
        if not self._by_budget:
            return [(i,) for i in range(self._there)]
        singles: list[Set] = [(i,) for i in range(self._there)]
        several: list[Set] = []
        for budget in [*self._new, *self._open]:
            centre, margin = self._expected(budget)
            if margin > WIDEST:
                continue
            here = [i for i in range(self._there) if self._budgets[i] == budget]
            for spread in SPREADS:
                move: Set = ()
                for n in (centre / margin / spread, centre, centre * margin * spread):
                    beyond = [i for i in here if self._params[i] <= n * 1.001] if n < centre else here
                    beyond = [i for i in here if self._params[i] >= n / 1.001] if n > centre else beyond
                    if beyond:
                        move = (*move, min(beyond, key=lambda i: abs(math.log(self._params[i] / n))))
                if self._sizes.get(budget):  # what is there already is not run again
                    ran = self._sizes[budget]
                    move = tuple(
                        i for i in move if all(max(self._params[i] / m, m / self._params[i]) > SAME for m in ran)
                    )
                move = tuple(dict.fromkeys(move))
                if move and self._allowed(move):
                    several.append(move)
        return [*singles, *dict.fromkeys(several)]

    @functools.cache  # noqa: B019 # lives as long as one choice
    def _expected(self, budget: float) -> tuple[float, float]:
        """Expect the minimum of a budget at this N; and the ratio to it that its sizes must reach on either side."""
        law = self._fit.params_opt
        assert law is not None
        known = law.known_within(budget, self._fit.options.confidence)
        scatter = 10 ** (0.0 if law.effects is None else law.effects.tau)
        return law.at(budget), max(MARGIN, (1.0 if known is None else known) * scatter)

    def _allowed(self, chosen: Set) -> bool:
        """Return True if every budget that the set touches has its minimum bracketed."""
        if not self._by_budget:
            return len({*chosen}) == len(chosen)  # where the law holds is not known so well that one place is enough
        for budget in {float(self._budgets[i]) for i in chosen} - self._minima.keys():
            if not self._bracketed(budget, [float(self._params[i]) for i in chosen if self._budgets[i] == budget]):
                return False
        return True

    def _bracketed(self, budget: float, more: Sequence[float]) -> bool:
        sizes = sorted({*self._sizes.get(budget, []), *more})
        centre, margin = self._expected(budget)
        near = any(max(n / centre, centre / n) <= MARGIN for n in sizes)
        return near and len(sizes) >= LEAST_SIZES and sizes[0] * margin <= 1.001 * centre <= 1.002 * sizes[-1] / margin

    def _made_useful(self, chosen: Set) -> Set:
        """Runs of valleys without a minimum that the set brackets: they tell of the law from then on."""
        touched = {float(self._budgets[i]) for i in chosen} & self._free.keys()
        return tuple(i for budget in sorted(touched) for i in self._free[budget])

    # Words

    def _factors(self, done: Set) -> dict[MethodName, float]:
        whole = done if self._allowed(done) else self._largest_allowed(done)
        index = np.array([(*whole, *self._made_useful(whole))], dtype=np.int64)
        return {name: math.exp(float(one.after(index)[0])) for name, one in self._laws.items()}

    def _largest_allowed(self, done: Set) -> Set:
        """The runs of a set whose budgets are bracketed: of a step that is not complete, nothing yet."""
        closed = {
            b
            for b in {float(self._budgets[i]) for i in done}
            if self._allowed(tuple(i for i in done if self._budgets[i] == b))
        }
        return tuple(i for i in done if float(self._budgets[i]) in closed)

    def _kind(self, i: int, done: Set) -> Kind:
        place = self._places[i]
        if not self._by_budget:
            return "scattered"
        ran = [*self._sizes.get(place.budget, []), *(self._params[j] for j in done if self._budgets[j] == place.budget)]
        if any(max(place.params / n, n / place.params) <= 1.001 for n in ran):
            return "seed"
        if place.budget in self._new:
            return "budget"
        return "bracket" if place.budget in self._open else "size"

    def _described(self, i: int, kind: Kind, step: int, price: float, factors: Mapping[MethodName, float]) -> NextRun:
        place = self._places[i]
        timed = time_law(self._fit.points)
        seconds = None
        if timed is not None:
            seconds = seconds_of(timed[0], place.params, place.tokens) * price / place.budget
        return NextRun(
            budget=place.budget,
            params=place.params,
            tokens=place.tokens,
            size=place.size,
            kind=kind,
            step=step,
            flops=price,
            seconds=seconds,
            factor=factors[self._fit.default],
            factors=factors,
            reason=self._reason(place, kind, price),
        )

    def _reason(self, place: Place, kind: Kind, price: float) -> str:
        law = self._fit.params_opt
        assert law is not None
        optimum = self._minima.get(place.budget, law.at(place.budget))
        ratio = max(place.params / optimum, optimum / place.params)
        side = "above" if place.params > optimum else "below"
        where = "at" if ratio <= SAME else f"{ratio:.2g}x {side}"
        c = fmt.flops(place.budget)
        words = {
            "seed": f"another seed at C = {c}, {where} its minimum",
            "size": f"another size at C = {c}, {where} its minimum",
            "budget": f"a new budget, {where} its expected minimum",
            "bracket": f"brackets C = {c}, {where} its expected minimum",
            "scattered": f"D/N = {place.tokens / place.params:.3g}, N is {where} N_opt for its C",
        }[kind]
        if price < 0.99 * place.budget:
            words += f"; goes on from a trunk that is there, for {100 * price / place.budget:.0f} % of C"
        return words
