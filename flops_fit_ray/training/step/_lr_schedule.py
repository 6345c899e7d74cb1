"""Learning-rate schedules over the optimizer steps of one experiment. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable

from flops_fit_ray.planning import Recipe, decay_steps


def lr_factor(step: int, steps: int, recipe: Recipe, user_schedule: Callable[[int, int], float] | None = None) -> float:
    """Return the learning rate of step `step`, 0 <= step < steps, as a multiple of the peak.

    With w warmup steps, S = steps, f = final_lr_fraction, and t = (step - w) / (S - w), 0 at the peak and 1 at D:

    1) Warmup, step < w: (step + 1) / (w + 1), linear up to the peak at step w.
    2) cosine: f + (1 - f) * (1 + cos(pi * t)) / 2.  linear: 1 - (1 - f) * t.  constant: 1.
    3) wsd: 1 until the last d steps, then 1 - (1 - f) * u with u = (step - (S - d)) / d, or sqrt(u) for 1-sqrt.

    All but `constant` would reach f at step S, the first that is not taken: each experiment decays over its own D. A
    `user_schedule` replaces all of it, warmup included.
    """
    if user_schedule is not None:
        return float(user_schedule(step, steps))
    if step < recipe.warmup_steps:
        return (step + 1) / (recipe.warmup_steps + 1)
    final = recipe.final_lr_fraction
    t = (step - recipe.warmup_steps) / (steps - recipe.warmup_steps)
    if recipe.schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * t)) / 2
    if recipe.schedule == "linear":
        return 1 - (1 - final) * t
    if recipe.schedule == "wsd":  # warmup, stable, decay (Hu et al. 2024, section 4)
        decay = decay_steps(recipe, steps)
        u = max(0, step - (steps - decay)) / decay
        # 1-sqrt: Hägele et al. 2024, section 3
        return 1 - (1 - final) * (math.sqrt(u) if recipe.decay_shape == "1-sqrt" else u)
    return 1.0
