"""Simulated sweeps as text for a terminal or a log."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.repetition import PUBLISHED_TOKENS, REPEATED
from flops_fit_ray.sweep.simulate import Simulation


def simulation_text(found: Simulation) -> str:
    """Return costs and errors of simulated sweeps."""
    lines = [
        f"{fmt.counted(found.sweeps, 'simulated sweep')} on {found.surface_formula}, noise {found.noise:g} nats: "
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
