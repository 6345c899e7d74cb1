"""Plans, prices and simulations as text for a terminal or a log."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.repetition import PUBLISHED_TOKENS, REPEATED
from flops_fit_ray.planning import Experiment, Plan, Price, price_warnings
from flops_fit_ray.sweep.simulate import Simulation

MAX_ROWS = 400  # experiments listed; --json has all
ROLES = {"grid": "", "probe": "lr probe", "seed": "seed", "lr_check": "lr check", "rerun": "rerun"}


def plan_text(plan: Plan) -> str:
    """Return the plan as a table, and its price."""
    size, data = plan.measurements.sizes[0], plan.measurements.data
    epoch = data.tokens_per_epoch
    shown = plan.expected[:MAX_ROWS]
    decided = len(plan.experiments)
    rows = [_row(e, expected=i >= decided) for i, e in enumerate(shown)]
    head = ["C", "size", "N", "D", "D/N", "steps", "epochs", "lr", "FLOPs", "FLOPs/6ND", "executed", "", ""]
    lines = [fmt.table(head, rows), ""]
    if len(plan.expected) > MAX_ROWS:
        lines.append(f"... and {len(plan.expected) - MAX_ROWS} more (--json has all)")
    lines += [
        *_price_lines(plan, plan.price),
        f"N: {size.params_source}. FLOPs: {size.flops_source}, forward and backward. D: one token is "
        f"{data.token_unit}; the training set has {'an unknown number' if epoch is None else fmt.count(epoch)}.",
        f"held-out: {f'{data.eval_samples} samples of ' if data.eval_samples else ''}{data.eval_source}",
        *data.notes,
        f"loss: {plan.measurements.loss.average}",
        f"precision: {_precision(plan)}",
        f"disk: checkpoints take up to {fmt.size(plan.disk.per_running)} per running experiment, and "
        f"{fmt.size(plan.disk.in_the_end)} when the sweep is done",
        *([f"sizes at which the model cannot be built: {_skipped(plan)}"] if plan.measurements.skipped else []),
        *plan.notes,
        *(f"warning: {warning}" for warning in plan.warnings),
        *(f"warning: {warning}" for warning in (price_warnings(plan.price) if plan.price else ())),
    ]
    return "\n".join(lines)


def _skipped(plan: Plan) -> str:
    return fmt.listed(plan.measurements.skipped, 3, "; ")


def _row(e: Experiment, *, expected: bool) -> list[str]:
    why = ROLES[e.role] or (f"from step {e.start_step}" if e.parent else "")
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


def _price_lines(plan: Plan, price: Price | None) -> Iterator[str]:
    number, expected = len(plan.expected), len(plan.forecast)
    follow = f", {expected} of them expected (chosen from results)" if expected else ""
    evaluation = plan.evaluation_flops
    share = f", and {fmt.flops(evaluation)} ({100 * evaluation / plan.flops:.2g} %) to evaluate" if evaluation else ""
    yield f"{fmt.counted(number, 'experiment')}{follow}; {fmt.flops(plan.flops)} FLOPs to execute{share}"
    if price is None:
        return
    full_grid = f"; 7 sizes at every budget, each a run of its own, {fmt.flops(price.flops_full_grid)}"
    saved = 100 * (1 - price.flops / price.flops_separate)
    yield (
        f"price: {fmt.flops(price.flops)} FLOPs; as separate runs {fmt.flops(price.flops_separate)} ({saved:.0f} % "
        f"saved by trunks){full_grid if len({e.size for e in plan.expected}) > 1 else ''}"
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


def _precision(plan: Plan) -> str:
    precision = plan.experiments[0].recipe.precision
    return (
        "auto: fp32 or bf16, whichever a worker measures as faster when the sweep starts"
        if precision == "auto"
        else precision
    )


def simulation_text(found: Simulation) -> str:
    """Return costs and errors of simulated sweeps."""
    lines = [
        f"{found.sweeps} simulated sweep(s) on {found.surface_formula}, noise {found.noise:g} nats: "
        "planner, scheduler and fit as in a real sweep, losses from the surface",
        "the spec's learning rate is the best at every size and budget"
        if found.lr_factor == 1
        else f"the best learning rate is {found.lr_factor:g} times the spec's (auto: its general rule), everywhere",
        f"{found.experiments:.0f} experiments, {fmt.flops(found.flops)} FLOPs executed: "
        f"{found.flops / found.flops_full_grid:.2f} of the cost of 7 sizes at every budget as separate runs",
        *_simulated_repeats(found),
        *_simulated_answer(found),
        "",
        fmt.table(
            ["slots", "makespan (FLOPs)", "/ lower bound"],
            [[str(m.slots), fmt.flops(m.makespan), f"{m.over_bound:.3f}"] for m in found.makespans],
            left=0,
        ),
    ]
    return "\n".join(lines)


def _simulated_repeats(found: Simulation) -> Iterator[str]:
    if found.max_epochs > REPEATED:
        by = ", ".join(f"{name} in {number}" for name, number in found.methods.items())
        yield (
            f"data are seen up to {found.max_epochs:.3g} times, and seen again they count for less (Muennighoff et al. "
            f"2023, equation 5, R_D* = {PUBLISHED_TOKENS:g}); the true N_opt is that of new data; answered by "
            f"{by or 'none'}"
        )


def _simulated_answer(found: Simulation) -> Iterator[str]:
    truth = f"at C = {fmt.flops(found.target)} the true N_opt is {fmt.count(found.params_true)}"
    if not found.answered:
        yield f"{truth}, and no sweep gave a law of N_opt: {found.problem}"
        return
    if found.problem:
        yield f"{found.sweeps - found.answered} of the sweeps gave no law of N_opt: {found.problem}"
    intervals = found.answered - found.no_interval
    width = f"95 % intervals of x/÷{found.factor:.3g}, " if intervals else ""
    yield (f"{truth}: {width}bias {100 * math.expm1(found.bias):+.1f} %, spread {100 * math.expm1(found.spread):.1f} %")
    held = f"{100 * found.coverage:.0f} % of {intervals} intervals contain the true N_opt" if intervals else ""
    none = f"no interval in {found.no_interval} of {found.answered}" if found.no_interval else ""
    yield (
        f"{'; '.join(filter(None, (held, none)))}; the loss at the fitted N_opt is {max(found.regret, 0.0):.2g} nats "
        "above the minimum"
    )
