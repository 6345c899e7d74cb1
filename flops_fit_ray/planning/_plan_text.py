"""Experiments and their price as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.flags import Flagged
from flops_fit_ray.planning._price import Price, price_warnings
from flops_fit_ray.planning.experiment import Experiment, ModelSize

MOST = 0.5  # share of the parameters
MAX_ROWS = 400  # experiments listed; --json has all
ROLES = {"grid": "", "probe": "lr probe", "seed": "seed", "lr_check": "lr check", "batch_check": "batch check",
         "rerun": "rerun", "axis": "axis"}  # fmt: skip


def experiments_text(experiments: Sequence[Experiment], decided: int) -> str:
    """Return a table of experiments, of which the first `decided` are, and the others expected."""
    rows = [_row(e, expected=i >= decided) for i, e in enumerate(experiments[:MAX_ROWS])]
    head = ["C", "size", "N", "D", "D/N", "steps", "epochs", "lr", "FLOPs", "FLOPs/6ND", "executed", "", ""]
    more = len(experiments) - MAX_ROWS
    return fmt.table(head, rows) + (f"\n\n... and {more} more (--json has all)" if more > 0 else "\n")


def _row(e: Experiment, *, expected: bool) -> list[str]:
    start = f"from step {e.start_step}" if e.parent else ""
    why = ", ".join(word for word in (ROLES[e.role], start if e.role in ("grid", "axis") else "") if word)
    return [
        fmt.flops(e.budget),
        str(e.size),
        fmt.count(e.params),
        fmt.count(e.tokens),
        f"{e.tokens / e.params:.3g}",
        str(e.steps),
        "?" if e.epochs is None else f"{e.epochs:.2f}",
        f"{e.recipe.lr:.2e}",
        f"{e.flops:.3e}",
        f"{e.flops_per_token / (6 * e.params):.2f}",
        f"{100 * e.flops_executed / e.flops:.0f} %",
        why,
        "expected" if expected else "",
    ]


def price_lines(price: Price, *, several_sizes: bool) -> Iterator[str]:
    """Yield FLOPs, time, money and memory of a whole sweep."""
    full_grid = f"; 7 sizes at every budget, each a run of its own, {fmt.flops(price.flops_full_grid)}"
    saved = 100 * (1 - price.flops / price.flops_separate)
    yield (
        f"price: {fmt.flops(price.flops)} FLOPs; as separate runs {fmt.flops(price.flops_separate)} ({saved:.0f} % "
        f"saved by trunks){full_grid if several_sizes else ''}"
    )
    slots = fmt.counted(price.slots or 1, "slot")  # starts, and times, are of a number of slots
    for start in price.starts:
        taken = " (chosen)" if start.name == price.start else ""
        known = price.wall_seconds is not None
        span = fmt.duration(start.makespan) if known else f"{fmt.flops(start.makespan)} FLOPs"
        yield f"  start from {start.name}: {fmt.flops(start.flops)} FLOPs, {span} on {slots}{taken}"
    if price.wall_seconds is None or price.device_seconds is None:
        yield "hours and money: not known; run `flops-fit-ray check` first, or give --rate FLOP/s"
        return
    source = "as measured by check" if price.source == "check" else "at the rate of --rate"
    cost = "" if price.money is None else f", {price.money:,.2f} at --price"
    yield (
        f"time: {fmt.duration(price.device_seconds)} of one slot, {fmt.duration(price.wall_seconds)} on "
        f"{slots}{cost} ({source})"
    )
    if price.peak_memory_bytes:
        yield f"memory: at most {fmt.size(price.peak_memory_bytes)} per experiment, as measured by check"


def tables_words(sizes: Sequence[ModelSize]) -> str:
    """Return what lookup tables outside of N hold, where that is most of every model: a recommender, say.

    Args:
        sizes: of the plan, by increasing N.
    """
    shares = [1 - (s.params + s.params_frozen) / s.params_total for s in sizes if s.tables]
    if len(shares) < len(sizes) or min(shares, default=0.0) <= MOST:
        return ""
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return (
        f", which hold {low if low == high else f'{low} to {high}'} % of them; num_params() of the model may count them"
    )


def warning_lines(warnings: Sequence[Flagged], price: Price | None) -> list[str]:
    """Return the warnings of a plan and of its price."""
    return [f"warning: {warning}" for warning in (*warnings, *(price_warnings(price) if price else ()))]
