"""The projects in examples/: each is planned by its own spec, and its smallest experiment learns."""

from __future__ import annotations

import json
import math
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flops_fit_ray import find_optimal, fit_table
from flops_fit_ray.planning import Plan
from flops_fit_ray.spec import read_spec
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.user.parts import load_user_parts
from tests.doc_blocks import python_faults
from tests.parts import planned

EXAMPLES = Path(__file__).parents[1] / "examples"
OWN = ("data", "model", "models", "metrics", "prepare")


@pytest.fixture(autouse=True)
def one_project_at_a_time() -> Iterator[None]:
    """Forget the modules of a project: another one has modules of the same names."""
    yield
    for name in OWN:
        sys.modules.pop(name, None)


def smallest(spec_file: str, *changes: str, base: Path | None = None) -> tuple[Plan, Outcome]:
    """Plan a small sweep of an example, and train its cheapest experiment."""
    path = EXAMPLES / spec_file
    spec = read_spec(path, ["data.eval_samples=100", *changes])
    user = load_user_parts(spec, base or path.parent)
    plan = planned(spec, user)
    chosen = min(plan.experiments, key=lambda e: (e.budget, e.params))
    outcome = train_experiment(chosen, user, eval_samples=100)
    assert outcome.tokens_seen == chosen.tokens
    return plan, outcome


def budgets(*flops: float, sizes: Sequence[int]) -> list[str]:
    return [f"budgets={list(flops)}", f"model.sizes={list(sizes)}"]


def test_the_lstm_of_the_tutorial_is_planned_and_learns() -> None:
    plan, outcome = smallest("lstm/sweep.yaml", *budgets(1e8, 2e8, sizes=[4, 6, 8]), "train.lr=0.01")
    assert len(plan.experiments) == 6 and "token" in plan.measurements.data.token_unit
    assert outcome.loss < math.log(128) - 1


def test_mixtures_of_experts_are_counted_by_what_a_token_meets() -> None:
    plan, outcome = smallest("moe/sweep.yaml", *budgets(3e8, 6e8, sizes=[8, 12, 16]))
    for size in plan.measurements.sizes:
        expert, width = 8 * int(size.size) ** 2, int(size.size)
        assert size.params_total - size.params == 2 * 3 * expert + (256 + 64) * width  # two layers, three idle experts
        # 6 FLOPs for each active parameter that multiplies, and attention over 64 tokens: 12 · 64 · width of a layer
        assert 6 * size.params < size.flops_per_token < 6 * size.params + 2 * 12 * 64 * width * 1.2
    assert outcome.loss < math.log(256) - 1


def test_a_diffusion_model_learns_by_a_loss_of_model_and_batch() -> None:
    plan, outcome = smallest(
        "diffusion/sweep.yaml", *budgets(3e7, 6e7, sizes=[16, 24, 32]), "data.kwargs.samples=20000"
    )
    assert "sample" in plan.measurements.data.token_unit
    assert 0.2 < outcome.loss < 0.47  # 0.5 for layers that say nothing, as the noisy picture is passed on


def test_token_files_of_a_script_feed_a_nanogpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(EXAMPLES / "nanogpt" / "prepare.py"))
    text = b"".join(path.read_bytes() for path in sorted(EXAMPLES.glob("*/*.py"))) * 20
    script["prepare"](text, tmp_path, held_out=7_000)
    assert "bytes_per_token: " in capsys.readouterr().out
    (tmp_path / "model.py").write_text((EXAMPLES / "nanogpt" / "model.py").read_text())
    plan, outcome = smallest("nanogpt/sweep.yaml", *budgets(3e8, 6e8, sizes=[4, 6, 8]), base=tmp_path)
    data = plan.measurements.data
    assert data.tokens_per_epoch and any("uint16 (as meta.pkl says" in note for note in data.notes)
    assert data.tokens_per_epoch % 64 == 0 and outcome.loss < math.log(1_256) - 1


def test_a_llama_made_of_its_configuration_learns() -> None:
    pytest.importorskip("transformers", reason="examples/huggingface needs transformers")
    plan, outcome = smallest("huggingface/sweep.yaml", *budgets(5e8, 1e9, sizes=[8, 12, 16]))
    assert outcome.loss < math.log(256) - 0.5 and "token" in plan.measurements.data.token_unit


@pytest.mark.parametrize(
    ("spec", "flops", "sizes", "accuracy"),
    [("digits/cnn.yaml", 2e8, [3, 4, 6], 0.3), ("digits/vit.yaml", 3e9, [8, 12, 16], 0.25)],
)
def test_digits_are_told_by_a_cnn_and_a_vit(spec: str, flops: float, sizes: list[int], accuracy: float) -> None:
    pytest.importorskip("sklearn", reason="examples/digits needs scikit-learn")
    plan, outcome = smallest(spec, *budgets(flops, 2 * flops, sizes=sizes), "train.lr=0.012")
    assert "sample" in plan.measurements.data.token_unit
    assert outcome.metrics["accuracy"] > accuracy and outcome.loss < math.log(10) - 0.1  # an untrained one: 0.1


@pytest.mark.parametrize(("model", "small", "large"), [("CNN", 4, 8), ("ViT", 8, 16)])
def test_the_models_of_digits_grow_with_their_size(model: str, small: int, large: int) -> None:
    import torch

    made = runpy.run_path(str(EXAMPLES / "digits" / "models.py"))[model]
    numbers = [sum(p.numel() for p in made(size).parameters()) for size in (small, large)]
    assert made(small)(torch.zeros(3, 1, 8, 8)).shape == (3, 10) and numbers[1] > 1.8 * numbers[0]


def test_runs_of_ones_own_give_a_law() -> None:
    found = fit_table(EXAMPLES / "own_runs" / "runs.csv", at=[1e13], draws=200)
    law = found.fit.params_opt
    assert law is not None and 0.55 < law.exponent < 0.75 and len(found.fit.valleys) == 4
    assert found.predictions[0].params == pytest.approx(469e3, rel=0.01)


def test_the_notebooks_cells_call_what_there_is() -> None:
    """They are run, as README's code is, in test_ray_commands.py."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 3 and list(python_faults("\n".join(cells))) == []


def test_python_alone_plans_what_it_says() -> None:
    """The script calls what there is; it is planned, and not run: README's code is (test_ray_commands.py)."""
    path = EXAMPLES / "python_api.py"
    assert list(python_faults(path.read_text())) == []
    script = runpy.run_path(str(path))
    plan = find_optimal(**script["WHAT"], compute_budgets=script["BUDGETS"], train=False, quiet=True)
    assert isinstance(plan, Plan) and len(plan.compute_budgets) == 4 and not plan.warnings
    assert str(plan).splitlines()[0].split()[:4] == ["C", "size", "N", "D"]
    x, y = script["lessons"](20, seed=3)
    assert script["deviation"](y, y) == 0 and script["Student"](4)(x).shape == y.shape
