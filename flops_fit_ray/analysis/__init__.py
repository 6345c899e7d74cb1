"""Scaling-law fits from arrays: valleys, surfaces, intervals and diagnostics. No files, no torch, no drawing."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flops_fit_ray.analysis._analysis import TARGET, Analysis, analyse, analysis_to_json
    from flops_fit_ray.analysis._axis import AxisBudget, AxisFit, AxisScale, AxisValue, fit_axis, shown_value
    from flops_fit_ray.analysis._capped import CappedPrediction
    from flops_fit_ray.analysis._comparison import Comparison, common_budget, compare
    from flops_fit_ray.analysis._law import Interval, Law
    from flops_fit_ray.analysis._limited_data import LimitedPrediction, predict_limited
    from flops_fit_ray.analysis._methods import METHODS, Method
    from flops_fit_ray.analysis._metric_laws import MetricOptions, MetricPrediction, predict_metric
    from flops_fit_ray.analysis._next_runs import expected_factors, next_runs
    from flops_fit_ray.analysis._published_answer import (
        PublishedAnswer,
        PublishedDistance,
        predict_published,
        published_distance,
    )
    from flops_fit_ray.analysis._questions import Question, answer
    from flops_fit_ray.analysis._rate_part import rate_floor, rate_part
    from flops_fit_ray.analysis._run_choice import NextRun, NextRuns
    from flops_fit_ray.analysis._run_space import Place, RunSpace
    from flops_fit_ray.analysis._sensitivity import Sensitivity, SensitivityRow, sensitivity
    from flops_fit_ray.analysis._served import ServedChoice, ServedPrediction, Serving, predict_served
    from flops_fit_ray.analysis._speedup import Speedup, SpeedupAt
    from flops_fit_ray.analysis._summary import (
        comparison_to_json,
        fit_to_json,
        interval_to_json,
        json_value,
        laws_to_json,
        metric_to_json,
        n_opt_to_json,
        prediction_to_json,
        published_to_json,
        timed_to_json,
    )
    from flops_fit_ray.analysis._sweep_fit import SweepFit, ValleyFit, fit_minima, fit_sweep
    from flops_fit_ray.analysis._valley_minima import ValleyIntervals
    from flops_fit_ray.analysis.points import Points, group_by_nearness
    from flops_fit_ray.analysis.prediction import Prediction, losses_at, predict
    from flops_fit_ray.analysis.published import PUBLISHED, PublishedLaw, published_law
    from flops_fit_ray.analysis.time_budgets import IsoTime, TimedPrediction, isotime, predict_for_time
    from flops_fit_ray.analysis.valley import Valley
    from flops_fit_ray.fit_options import FitOptions, MethodName
else:
    from flops_fit_ray.lazy_names import lazily

    __getattr__ = lazily(__name__)


__all__ = [
    "METHODS",
    "PUBLISHED",
    "TARGET",
    "Analysis",
    "AxisBudget",
    "AxisFit",
    "AxisScale",
    "AxisValue",
    "CappedPrediction",
    "Comparison",
    "FitOptions",
    "Interval",
    "IsoTime",
    "Law",
    "LimitedPrediction",
    "Method",
    "MethodName",
    "MetricOptions",
    "MetricPrediction",
    "NextRun",
    "NextRuns",
    "Place",
    "Points",
    "Prediction",
    "PublishedAnswer",
    "PublishedDistance",
    "PublishedLaw",
    "Question",
    "RunSpace",
    "Sensitivity",
    "SensitivityRow",
    "ServedChoice",
    "ServedPrediction",
    "Serving",
    "Speedup",
    "SpeedupAt",
    "SweepFit",
    "TimedPrediction",
    "Valley",
    "ValleyFit",
    "ValleyIntervals",
    "analyse",
    "analysis_to_json",
    "answer",
    "common_budget",
    "compare",
    "comparison_to_json",
    "expected_factors",
    "fit_axis",
    "fit_minima",
    "fit_sweep",
    "fit_to_json",
    "group_by_nearness",
    "interval_to_json",
    "isotime",
    "json_value",
    "laws_to_json",
    "losses_at",
    "metric_to_json",
    "n_opt_to_json",
    "next_runs",
    "predict",
    "predict_for_time",
    "predict_limited",
    "predict_metric",
    "predict_published",
    "predict_served",
    "prediction_to_json",
    "published_distance",
    "published_law",
    "published_to_json",
    "rate_floor",
    "rate_part",
    "sensitivity",
    "shown_value",
    "timed_to_json",
]
