"""Arrays in, laws out: valleys, power laws, intervals. No files, no torch, no drawing."""

from flops_fit_ray.analysis.law import PowerLaw
from flops_fit_ray.analysis.summary import fit_to_json, n_opt_to_json, prediction_to_json
from flops_fit_ray.analysis.sweep import FitOptions, Interval, Law, Points, Prediction, SweepFit, fit_sweep, predict
from flops_fit_ray.analysis.valley import Valley

__all__ = [
    "FitOptions",
    "Interval",
    "Law",
    "Points",
    "PowerLaw",
    "Prediction",
    "SweepFit",
    "Valley",
    "fit_sweep",
    "fit_to_json",
    "n_opt_to_json",
    "predict",
    "prediction_to_json",
]
