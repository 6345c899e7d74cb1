"""Learning-rate schedules over the optimizer steps of one experiment, as pure functions."""

from __future__ import annotations

import math

from flops_fit_ray.planning import Recipe


def lr_at(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate of optimizer step `step`, 0 <= step < steps.

    Warmup rises linearly and reaches the peak at step `warmup_steps`. Every schedule but `constant` ends at the
    experiment's own D: it would reach `final_lr_fraction` at step `steps`, the first one that is not taken.
    """
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / (recipe.warmup_steps + 1)
    return recipe.lr * _factor(step, steps, recipe)


def _factor(step: int, steps: int, recipe: Recipe) -> float:
    final = recipe.final_lr_fraction
    after_warmup = (step - recipe.warmup_steps) / (steps - recipe.warmup_steps)  # 0 at the peak, 1 at D
    if recipe.schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * after_warmup)) / 2
    if recipe.schedule == "linear":
        return 1 - (1 - final) * after_warmup
    if recipe.schedule == "wsd":  # warmup, stable, decay (Hu et al. 2024, section 4)
        decay_steps = max(1, round(recipe.decay_fraction * steps))
        done = step - (steps - decay_steps)
        return 1 - (1 - final) * max(0, done) / decay_steps
    return 1.0
