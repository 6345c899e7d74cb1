"""For C FLOPs: how big a model, on how much data, and how sure are you?

The names below are loaded on first use, so that importing the package costs milliseconds: neither torch nor Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_ray._version import __version__

if TYPE_CHECKING:
    from flops_fit_ray.analysis import next_runs
    from flops_fit_ray.api import check, compare, compare_axis, find_optimal, fit_table
    from flops_fit_ray.errors import FitError, FlopsFitError, SpecError
    from flops_fit_ray.result import Result
    from flops_fit_ray.sweep import Experiment, SweepPlan
    from flops_fit_ray.training.data import TokenFile

__all__ = [
    "Experiment",
    "FitError",
    "FlopsFitError",
    "Result",
    "SpecError",
    "SweepPlan",
    "TokenFile",
    "__version__",
    "check",
    "compare",
    "compare_axis",
    "find_optimal",
    "fit_table",
    "next_runs",
]

_HOMES = {
    "check": "flops_fit_ray.api",
    "compare": "flops_fit_ray.api",
    "compare_axis": "flops_fit_ray.api",
    "Experiment": "flops_fit_ray.sweep",
    "SweepPlan": "flops_fit_ray.sweep",
    "find_optimal": "flops_fit_ray.api",
    "fit_table": "flops_fit_ray.api",
    "Result": "flops_fit_ray.result",
    "next_runs": "flops_fit_ray.analysis",
    "FitError": "flops_fit_ray.errors",
    "FlopsFitError": "flops_fit_ray.errors",
    "SpecError": "flops_fit_ray.errors",
    "TokenFile": "flops_fit_ray.training.data",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
