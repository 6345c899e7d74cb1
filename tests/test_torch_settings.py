"""Settings of torch that a program makes hold in workers, are said, and a dtype of its own gives keys of its own."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from flops_fit_ray.console.header import header_lines
from flops_fit_ray.engine._torch_settings import DEFAULTS, apply_settings, changed_words, torch_settings
from flops_fit_ray.planning import plan_from_json
from flops_fit_ray.sweep.changes import _plan_lines
from flops_fit_ray.training.loop.loop import train_experiment
from tests.parts import planned, regression, spec_of, user_parts_of


@pytest.fixture
def settings() -> Iterator[None]:
    """Settings of this process, that are put back."""
    before = torch_settings()
    yield
    apply_settings(before)
    assert torch_settings() == before


def test_what_a_program_sets_is_taken_over_and_said(settings: None) -> None:
    assert torch_settings() == DEFAULTS and changed_words(DEFAULTS) == ""
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_dtype(torch.float64)
    torch.backends.cudnn.benchmark = True
    changed = torch_settings()
    said = "float32_matmul_precision = high, backends.cudnn.benchmark = True, deterministic_algorithms = warn"
    assert changed_words(changed) == said  # the dtype stands beside the precision
    apply_settings(DEFAULTS)
    assert torch_settings() == DEFAULTS and torch.get_default_dtype() == torch.float32
    apply_settings(changed)
    assert torch.is_deterministic_algorithms_warn_only_enabled() and torch.backends.cudnn.benchmark
    assert torch.get_default_dtype() == torch.float64 and torch.backends.cuda.matmul.allow_tf32


NEWER = """
import torch
from flops_fit_ray.engine._torch_settings import apply_settings, changed_words, torch_settings
torch.backends.cuda.matmul.fp32_precision = "tf32"
found = torch_settings()
assert found["backends.cuda.matmul.fp32_precision"] == "tf32" and "float32_matmul_precision" not in found, found
torch.backends.cuda.matmul.fp32_precision = "ieee"
apply_settings(found)
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
print(changed_words(found))
"""


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has had these names since 2.9")
def test_the_newer_names_of_precisions_are_taken_over_too() -> None:
    """In a process of its own: who has used one of them can no longer read the older ones."""
    done = subprocess.run([sys.executable, "-c", NEWER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backends.cuda.matmul.fp32_precision = tf32" in done.stdout


def test_another_default_dtype_is_another_experiment(settings: None) -> None:
    spec = spec_of(budgets=[2e4, 4e4], train={"batch_size": 8, "lr": 1e-2})
    user = user_parts_of(spec, train=regression(20_000))
    usual = planned(spec, user)
    torch.set_default_dtype(torch.float64)
    double = user_parts_of(spec, train=regression(20_000))
    plan = planned(spec, double)
    assert plan.measurements.default_dtype == "float64"
    assert not {e.key for e in plan.experiments} & {e.key for e in usual.experiments}
    assert ", parameters float64 unless the model says otherwise" in header_lines(spec, plan)[2]
    assert plan_from_json(plan.to_json()).measurements.default_dtype == "float64"
    assert "torch.set_default_dtype: float32 -> float64" in _plan_lines(usual, plan)
    loss = train_experiment(plan.experiments[0], double, eval_samples=9).loss
    assert loss is not None and loss != torch.tensor(loss, dtype=torch.float32).item()  # more digits than fp32 has
