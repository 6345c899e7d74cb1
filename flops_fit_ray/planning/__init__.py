"""Planning: sizes, budgets and data become experiments with exact token counts. Same input, same plan.

Nothing here trains, measures or touches a file: `Measurements` of model and data and an `Observation` of each finished
experiment come in, a `Plan` goes out.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flops_fit_ray.planning._feasible import next_fault, unbracketed
    from flops_fit_ray.planning._first_loss import FirstLoss
    from flops_fit_ray.planning._loss_facts import NOTHING_LEARNT, Average, LossFacts, derived_metrics, perplexity
    from flops_fit_ray.planning._plan import Plan, plan_from_json, priced
    from flops_fit_ray.planning._planner import Planner, Queue, make_plan, next_experiments
    from flops_fit_ray.planning._price import Price, Rates, RecordedRates, estimate_price, price_warnings, stated_rate
    from flops_fit_ray.planning._single_runs import is_single_run, seed_of
    from flops_fit_ray.planning._sizes import (
        AUTO_WINDOW,
        TRUSTED_RATIO,
        auto_candidates,
        auto_range,
        between,
        even_sizes,
        expected_centre,
        expected_optimum,
        own_range,
        requested_sizes,
        rung_targets,
        size_kwargs,
        size_label,
    )
    from flops_fit_ray.planning._trunks import leaves_trunk, needed_trunks, trunk_numbers, trunk_of, with_parent
    from flops_fit_ray.planning.cells import steps_of, tokens_of
    from flops_fit_ray.planning.data_probe import DataProbe, SetProbe, ValueProbe
    from flops_fit_ray.planning.experiment import (
        COUNTING,
        FIRST_RULE,
        IN_FIT,
        AxisSizes,
        DataFacts,
        Experiment,
        ExperimentFacts,
        FirstCount,
        MeasuredLr,
        Measurements,
        ModelSize,
        Observation,
        Recipe,
        SweepConstants,
        decay_steps,
        read_experiment,
    )
    from flops_fit_ray.planning.grid import flops_audit
    from flops_fit_ray.planning.slots import choose_starts
    from flops_fit_ray.planning.training_metrics import TrainingMetrics
else:
    from flops_fit_ray.lazy_names import lazily

    __getattr__ = lazily(__name__)


__all__ = [
    "AUTO_WINDOW",
    "COUNTING",
    "FIRST_RULE",
    "IN_FIT",
    "NOTHING_LEARNT",
    "TRUSTED_RATIO",
    "Average",
    "AxisSizes",
    "DataFacts",
    "DataProbe",
    "Experiment",
    "ExperimentFacts",
    "FirstCount",
    "FirstLoss",
    "LossFacts",
    "MeasuredLr",
    "Measurements",
    "ModelSize",
    "Observation",
    "Plan",
    "Planner",
    "Price",
    "Queue",
    "Rates",
    "Recipe",
    "RecordedRates",
    "SetProbe",
    "SweepConstants",
    "TrainingMetrics",
    "ValueProbe",
    "auto_candidates",
    "auto_range",
    "between",
    "choose_starts",
    "decay_steps",
    "derived_metrics",
    "estimate_price",
    "even_sizes",
    "expected_centre",
    "expected_optimum",
    "flops_audit",
    "is_single_run",
    "leaves_trunk",
    "make_plan",
    "needed_trunks",
    "next_experiments",
    "next_fault",
    "own_range",
    "perplexity",
    "plan_from_json",
    "price_warnings",
    "priced",
    "read_experiment",
    "requested_sizes",
    "rung_targets",
    "seed_of",
    "size_kwargs",
    "size_label",
    "stated_rate",
    "steps_of",
    "tokens_of",
    "trunk_numbers",
    "trunk_of",
    "unbracketed",
    "with_parent",
]
