"""Questions about one sweep directory: what it holds, what changed, whether it is valid, what to run next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit_ray.planning import Experiment
    from flops_fit_ray.planning import Plan as SweepPlan

__all__ = ["Experiment", "SweepPlan"]


def __getattr__(name: str) -> Any:
    """Return a plan's classes, which flops-fit has here by these names; loaded on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flops_fit_ray import planning

    return planning.Plan if name == "SweepPlan" else planning.Experiment
