"""Scaling-law fits from arrays: valleys, surfaces, intervals and diagnostics. No files, no torch, no drawing."""

from flops_fit_ray.analysis.analysis import Analysis, analyse, analysis_to_json
from flops_fit_ray.analysis.compare import Comparison, compare
from flops_fit_ray.analysis.flags import Flag
from flops_fit_ray.analysis.isotime import IsoTime, TimedAnswer, answer_in, isotime
from flops_fit_ray.analysis.law import Interval, Law
from flops_fit_ray.analysis.methods import METHODS, WORDS, Method, MethodName, ValleyIntervals
from flops_fit_ray.analysis.points import Points, group_by_nearness
from flops_fit_ray.analysis.prediction import Prediction, predict
from flops_fit_ray.analysis.sensitivity import Row, Sensitivity, sensitivity
from flops_fit_ray.analysis.summary import (
    comparison_to_json,
    fit_to_json,
    laws_to_json,
    n_opt_to_json,
    pair,
    plain,
    prediction_to_json,
    timed_to_json,
)
from flops_fit_ray.analysis.sweep_fit import FitOptions, SweepFit, ValleyFit, fit_minima, fit_sweep
from flops_fit_ray.analysis.valley import Valley

__all__ = [
    "METHODS",
    "WORDS",
    "Analysis",
    "Comparison",
    "FitOptions",
    "Flag",
    "Interval",
    "IsoTime",
    "Law",
    "Method",
    "MethodName",
    "Points",
    "Prediction",
    "Row",
    "Sensitivity",
    "SweepFit",
    "TimedAnswer",
    "Valley",
    "ValleyFit",
    "ValleyIntervals",
    "analyse",
    "analysis_to_json",
    "answer_in",
    "compare",
    "comparison_to_json",
    "fit_minima",
    "fit_sweep",
    "fit_to_json",
    "group_by_nearness",
    "isotime",
    "laws_to_json",
    "n_opt_to_json",
    "pair",
    "plain",
    "predict",
    "prediction_to_json",
    "sensitivity",
    "timed_to_json",
]
