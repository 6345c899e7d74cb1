"""Arrays in, laws out: valleys, surfaces, intervals, and what they are worth. No files, no torch, no drawing."""

from flops_fit_ray.analysis.flags import Flag
from flops_fit_ray.analysis.law import Interval, Law
from flops_fit_ray.analysis.methods import METHODS, WORDS, Method, MethodName
from flops_fit_ray.analysis.points import Points, group_by_nearness
from flops_fit_ray.analysis.summary import fit_to_json, n_opt_to_json, pair, plain, prediction_to_json
from flops_fit_ray.analysis.sweep import FitOptions, Prediction, SweepFit, fit_sweep, predict
from flops_fit_ray.analysis.valley import Valley

__all__ = [
    "METHODS",
    "WORDS",
    "FitOptions",
    "Flag",
    "Interval",
    "Law",
    "Method",
    "MethodName",
    "Points",
    "Prediction",
    "SweepFit",
    "Valley",
    "fit_sweep",
    "fit_to_json",
    "group_by_nearness",
    "n_opt_to_json",
    "pair",
    "plain",
    "predict",
    "prediction_to_json",
]
