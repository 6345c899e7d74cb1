"""Fits of the loss surface L(N, D) by the Huber loss or by squared error, many problems at once."""

from flops_fit_ray.analysis.surface._block_effects import BlockEffects, block_effects
from flops_fit_ray.analysis.surface._cost import CostLaw, fit_cost_law, fit_token_cost
from flops_fit_ray.analysis.surface._estimate import (
    CASE_RUNS,
    SurfaceFit,
    bootstrap_cases,
    bootstrap_surface,
    fit_surface,
    refit_surfaces,
)
from flops_fit_ray.analysis.surface._linear import (
    MIN_BLOCKS,
    STEP,
    block_columns,
    left_over,
    linearised,
    moved_surfaces,
    robust_reach,
    root_weights,
)
from flops_fit_ray.analysis.surface._serving import balance, lowest_loss, lowest_total, tokens_for
from flops_fit_ray.analysis.surface._value import Surfaces
from flops_fit_ray.fit_options import SurfaceLoss, SurfaceOptions

__all__ = [
    "CASE_RUNS",
    "MIN_BLOCKS",
    "STEP",
    "BlockEffects",
    "CostLaw",
    "SurfaceFit",
    "SurfaceLoss",
    "SurfaceOptions",
    "Surfaces",
    "balance",
    "block_columns",
    "block_effects",
    "bootstrap_cases",
    "bootstrap_surface",
    "fit_cost_law",
    "fit_surface",
    "fit_token_cost",
    "left_over",
    "linearised",
    "lowest_loss",
    "lowest_total",
    "moved_surfaces",
    "refit_surfaces",
    "robust_reach",
    "root_weights",
    "tokens_for",
]
