"""What to run: sizes, budgets and data become experiments with exact token counts. Same input, same plan.

Nothing here trains, measures or touches a file; what was measured arrives as a `Survey`.
"""

from flops_fit_ray.planning.experiment import DataFacts, Experiment, ModelSize, Plan, Recipe, Survey, plan_from_json
from flops_fit_ray.planning.grid import make_plan, next_experiments
from flops_fit_ray.planning.sizes import (
    AUTO_WINDOW,
    auto_candidates,
    auto_range,
    requested_sizes,
    size_kwargs,
    size_label,
)

__all__ = [
    "AUTO_WINDOW",
    "DataFacts",
    "Experiment",
    "ModelSize",
    "Plan",
    "Recipe",
    "Survey",
    "auto_candidates",
    "auto_range",
    "make_plan",
    "next_experiments",
    "plan_from_json",
    "requested_sizes",
    "size_kwargs",
    "size_label",
]
