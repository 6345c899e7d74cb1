"""Specs: a sweep as a typed value, and its YAML file.

Nothing here imports the user's code; the targets stay names until `training.user.parts` loads them.
"""

from flops_fit_ray.spec._axes import AxisSection, same_value
from flops_fit_ray.spec._reading import dump_spec, limit_of_budgets, make_spec, parse_yaml, read_spec, spec_from_bytes
from flops_fit_ray.spec._sections import (
    CheckpointSection,
    DataSection,
    FitSection,
    GridSection,
    MlflowSection,
    TrackersSection,
    TrainSection,
    WandbSection,
)
from flops_fit_ray.spec._sweep_spec import NO_DATA, SYNTHETIC_LOSS, SweepSpec
from flops_fit_ray.spec._values import Budget, BudgetsFor, Ladder, LrRule, LrTable, SingleRun, SizeValue, is_data_path

__all__ = [
    "NO_DATA",
    "SYNTHETIC_LOSS",
    "AxisSection",
    "Budget",
    "BudgetsFor",
    "CheckpointSection",
    "DataSection",
    "FitSection",
    "GridSection",
    "Ladder",
    "LrRule",
    "LrTable",
    "MlflowSection",
    "SingleRun",
    "SizeValue",
    "SweepSpec",
    "TrackersSection",
    "TrainSection",
    "WandbSection",
    "dump_spec",
    "is_data_path",
    "limit_of_budgets",
    "make_spec",
    "parse_yaml",
    "read_spec",
    "same_value",
    "spec_from_bytes",
]
