"""The projects in examples/: each is planned by its own spec, and its smallest experiment learns."""

import math
from pathlib import Path

import pytest

from benchmarks.gpu import SMALL
from flops_fit_ray.spec import read_spec
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.user.parts import load_user_parts
from tests.parts import planned

EXAMPLES = Path(__file__).parents[1] / "examples"
LSTM = ["budgets=[1e8, 2e8]", "model.sizes=[4, 6, 8]", "train.lr=0.01", "data.eval_samples=100"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes", "classes"), [("lstm", LSTM, 128), ("gpu_text", SMALL, 256)])
def test_an_example_is_planned_and_learns(name: str, changes: list[str], classes: int) -> None:
    spec = read_spec(EXAMPLES / name / "sweep.yaml", changes)
    user = load_user_parts(spec, EXAMPLES / name)
    plan = planned(spec, user)
    assert len(plan.experiments) == 6 and "token" in plan.measurements.data.token_unit
    smallest = min(plan.experiments, key=lambda e: (e.budget, e.params))
    outcome = train_experiment(smallest, user, eval_samples=100)
    assert outcome.tokens_seen == smallest.tokens and outcome.loss < math.log(classes) - 1
