"""Learning-rate schedules over the optimizer steps of one experiment, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable

from flops_fit_ray.planning import Recipe, decay_steps


def lr_factor(step: int, steps: int, recipe: Recipe, user_schedule: Callable[[int, int], float] | None = None) -> float:
    """The learning rate of optimizer step `step`, 0 <= step < steps, as a multiple of the peak.

    Warmup rises linearly and reaches the peak at step `warmup_steps`. Every schedule but `constant` ends at the
    experiment's own D: it would reach `final_lr_fraction` at step `steps`, the first one that is not taken. A schedule
    of the user's (`user_schedule`) does everything itself.
    """
    if user_schedule is not None:
        return float(user_schedule(step, steps))
    if step < recipe.warmup_steps:
        return (step + 1) / (recipe.warmup_steps + 1)
    final = recipe.final_lr_fraction
    after_warmup = (step - recipe.warmup_steps) / (steps - recipe.warmup_steps)  # 0 at the peak, 1 at D
    if recipe.schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * after_warmup)) / 2
    if recipe.schedule == "linear":
        return 1 - (1 - final) * after_warmup
    if recipe.schedule == "wsd":  # warmup, stable, decay (Hu et al. 2024, section 4)
        decaying = decay_steps(recipe, steps)
        done = max(0, step - (steps - decaying)) / decaying
        # 1-sqrt: Hägele et al. 2024, section 3
        return 1 - (1 - final) * (math.sqrt(done) if recipe.decay_shape == "1-sqrt" else done)
    return 1.0
