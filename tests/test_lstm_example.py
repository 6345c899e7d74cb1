"""The project in examples/lstm: it is planned by its own spec, and its smallest experiment learns."""

import math
from pathlib import Path

from flops_fit_ray.spec import read_spec
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.user.parts import load_user_parts
from tests.parts import planned

EXAMPLE = Path(__file__).parents[1] / "examples" / "lstm"
SMALL = ["budgets=[1e8, 2e8]", "model.sizes=[4, 6, 8]", "train.lr=0.01", "data.eval_samples=100"]


def test_the_lstm_of_the_tutorial_is_planned_and_learns() -> None:
    spec = read_spec(EXAMPLE / "sweep.yaml", SMALL)
    user = load_user_parts(spec, EXAMPLE)
    plan = planned(spec, user)
    assert len(plan.experiments) == 6 and "token" in plan.measurements.data.token_unit
    smallest = min(plan.experiments, key=lambda e: (e.budget, e.params))
    outcome = train_experiment(smallest, user, eval_samples=100)
    assert outcome.tokens_seen == smallest.tokens and outcome.loss < math.log(128) - 1
