"""The cost of a sweep in advance: FLOPs, and with a known rate also hours, money and the time of the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.flags import Flagged, warning
from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.planning.slots import Seconds, StartOption, choose_starts, lower_bound, own_flops
from flops_fit_ray.storage.codec import NON_EMPTY, Amount, Count, PositiveFloat, PositiveInt, Record

FULL_GRID = 7  # sizes of each budget in a typical published sweep
LONGEST_CORNER = 1.1  # times the lower bound, above which the longest experiments delay the end


@dataclass(frozen=True, kw_only=True)
class Rates(Record):
    """Speed of experiments: a stated rate, or the measurements of `check`."""

    # By size: FLOPs of one step, and its seconds
    step_seconds: Annotated[Mapping[str, tuple[PositiveFloat, PositiveFloat]], NON_EMPTY]
    slots: PositiveInt = 1
    fixed_seconds: Amount = 0.0  # of every experiment besides its steps, for building and saving
    start_seconds: Amount = 0.0  # of the cluster and the workers, once per sweep
    device: str = ""
    peak_memory_bytes: Count | None = None
    source: str = "check"

    def seconds(self, e: Experiment, evaluation_flops: float) -> float:
        """Seconds of the steps that an experiment takes itself, and of its evaluations at the same FLOPs per second."""
        steps = (e.flops_executed + evaluation_flops) * e.steps / e.flops
        return self.fixed_seconds + steps * self.seconds_per_step(e)

    def seconds_per_step(self, e: Experiment) -> float:
        """Interpolate ln seconds over ln FLOPs of a step between the measured sizes; extrapolate from the outer two."""
        per_step = e.flops / e.steps
        known = sorted(self.step_seconds.values())
        if len(known) == 1:
            return known[0][1] * per_step / known[0][0]
        import numpy as np

        x, y = np.log([k[0] for k in known]), np.log([k[1] for k in known])
        at = math.log(per_step)
        i = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
        slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i]) if x[i + 1] > x[i] else 0.0
        return math.exp(y[i] + slope * (at - x[i]))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RecordedRates(Record):
    """The rates that `check` measured, and the identity of the sweep."""

    identity: str  # as `SweepConstants.identity`
    rates: Rates


def stated_rate(flops_per_second: float, slots: int) -> Rates:
    """Rates of a device with one speed for every experiment."""
    return Rates(step_seconds={"any": (flops_per_second, 1.0)}, slots=slots, source="stated")


@dataclass(frozen=True, kw_only=True)
class Price(Record):
    """The price of a set of experiments. Seconds are None without a rate."""

    experiments: Count
    forecast: Count  # of them not decided yet
    flops: Amount  # executed
    flops_separate: Amount  # the same experiments, all from scratch
    flops_full_grid: Amount  # every budget with `FULL_GRID` sizes, all from scratch
    starts: tuple[StartOption, ...] = ()
    start: str = "trunk"
    slots: PositiveInt | None = None
    device_seconds: Amount | None = None
    wall_seconds: Amount | None = None
    bound_seconds: Amount | None = None
    money: Amount | None = None
    peak_memory_bytes: Count | None = None
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def estimate_price(
    experiments: Sequence[Experiment],
    evaluation_cost: Callable[[Experiment], float],
    *,
    forecast: int = 0,
    rates: Rates | None = None,
    slots: int | None = None,
    start_mode: str = "auto",
    money_per_hour: float | None = None,
) -> Price:
    """Estimate the price of experiments, of which `forecast` are only expected.

    Args:
        evaluation_cost: FLOPs of an experiment's evaluations, which take time and are not among its own.
        rates: measured or stated speed; None leaves seconds out.
        slots: experiments that run at a time; None takes those of `rates`.
        start_mode: `grid.start`.
        money_per_hour: of one slot.
    """
    budgets = {e.budget for e in experiments if e.role == "grid"}
    slots = slots or (rates.slots if rates is not None else None)
    seconds: Seconds = own_flops if rates is None else lambda e: rates.seconds(e, evaluation_cost(e))
    starts: tuple[StartOption, ...] = ()
    chosen, start = tuple(experiments), "trunk"
    if slots is not None and experiments:
        chosen, starts, start = choose_starts(experiments, slots, seconds, start_mode)
    price = Price(
        experiments=len(experiments),
        forecast=forecast,
        flops=sum(e.flops_executed for e in chosen),
        flops_separate=sum(e.flops for e in experiments),
        flops_full_grid=FULL_GRID * sum(budgets),
        starts=starts,
        start=start,
        slots=slots,
    )
    if rates is None or slots is None:
        return price
    makespan = next((s.makespan for s in starts if s.name == start), 0.0)
    wall = makespan + rates.start_seconds
    return replace(
        price,
        device_seconds=sum(map(seconds, chosen)),
        wall_seconds=wall,
        bound_seconds=lower_bound(chosen, slots, seconds) + rates.start_seconds,
        money=None if money_per_hour is None else money_per_hour * slots * wall / 3600,
        peak_memory_bytes=rates.peak_memory_bytes,
        source=rates.source,
    )


def price_warnings(price: Price) -> list[Flagged]:
    """Return warnings about the schedule."""
    if price.wall_seconds is None or price.bound_seconds is None or price.slots is None:
        return []
    if price.wall_seconds > LONGEST_CORNER * price.bound_seconds:
        longer = 100 * (price.wall_seconds / price.bound_seconds - 1)
        message = (
            f"on {fmt.counted(price.slots, 'slot')} the sweep takes {longer:.0f} % longer than its lower bound: one "
            "more long experiment than slots; add a slot"
        )
        return [warning("one_long_experiment", message).text]
    return []
