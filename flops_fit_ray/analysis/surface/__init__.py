"""The loss surface L(N, D): fitted by a robust loss or by squared error, thousands of times a second."""

from flops_fit_ray.analysis.surface.estimate import (
    SurfaceFit,
    SurfaceLoss,
    SurfaceOptions,
    SurfaceStatus,
    bootstrap_surface,
    fit_surface,
    refit_surfaces,
)
from flops_fit_ray.analysis.surface.value import CostLaw, Surfaces, fit_cost_law

__all__ = [
    "CostLaw",
    "SurfaceFit",
    "SurfaceLoss",
    "SurfaceOptions",
    "SurfaceStatus",
    "Surfaces",
    "bootstrap_surface",
    "fit_cost_law",
    "fit_surface",
    "refit_surfaces",
]
