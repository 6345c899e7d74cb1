"""Sweeps on a real Ray by the commands that people type: exit codes, a changed spec, an adaptive sweep, `selftest`."""

import functools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit_ray.cli import main
from flops_fit_ray.engine.loaders import Loader, SharedLoader
from flops_fit_ray.selftest import cases
from flops_fit_ray.spec import read_spec
from flops_fit_ray.storage.atomic import read_json
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.training.user.parts import load_user_parts
from tests.records import outcomes
from tests.sweeps import make_sweep

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray commands"), pytest.mark.usefixtures("no_figures")]
ROOT = Path(__file__).parent.parent

PROJECT = {
    "sweep.yaml": """
name: tiny
model: {target: "parts:Truncated", size_param: features}
data: {train: "parts:data", kwargs: {samples: 30_000}}
loss: mse
budgets: [{flops: 1e5, sizes: [10, 20, 40]}, {flops: 4e5, sizes: [20, 40, 80]}]
train: {batch_size: 4, lr: 4e-2, optimizer: sgd, grad_clip: null, warmup_tokens: 0}
resources_per_trial: {cpu: 1}
fit: {draws: 200}
""",
    "parts.py": """
import torch
from torch import nn

class Truncated(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features, self.linear = features, nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x):
        return self.linear(x[:, : self.features])

def data(samples):
    scale = torch.arange(1, 257) ** -0.5
    x = torch.randn(samples, 256, generator=torch.Generator().manual_seed(0)) * scale
    return x, x @ scale[:, None]
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in PROJECT.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_run_with_a_failed_experiment_is_exit_1(
    ray_here: None, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bug := project / "bug").touch()
    later = (
        "        w = self.linear.weight\n        if w.shape[1] == 10 and not w.is_meta and w.any():\n"  # not at once
    )
    fails = f"            if __import__('os').path.exists({str(bug)!r}):\n                raise RuntimeError('mine')\n"
    code = PROJECT["parts.py"].replace("        return self.linear", f"{later}{fails}        return self.linear")
    (project / "parts.py").write_text(code)
    root = project / "out"
    command = ["run", str(project), "--json", "--output", str(root)]

    def run() -> tuple[int | str | None, dict[str, int], str]:
        with pytest.raises(SystemExit) as caught:
            main(command)
        captured = capsys.readouterr()
        closing = json.loads(captured.out)
        assert set(closing) == {"schema_version", "output", "status", "n_opt", "report", "results_sha256"}
        return caught.value.code, {status: n for status, n in closing["status"].items() if n}, captured.err

    code_of_exit, counts, said = run()
    assert (code_of_exit, counts) == (1, {"completed": 5, "failed": 1}) and "failed: RuntimeError: mine" in said
    (failure,) = open_sweep(root).failures
    before = outcomes(root)
    bug.unlink()
    assert run()[:2] == (0, {"completed": 6})
    assert before.items() <= outcomes(root).items()
    attempts = {r.key: r.attempts for r in open_sweep(root).results}
    assert attempts == {**dict.fromkeys(before, 1), failure.key: 2}
    past = [path.name for path in (root / "experiments" / failure.key).rglob("*failure*")]
    assert past == ["0001-failure.json"]  # what went wrong stays on record


def without_torch(command: list[str]) -> str:
    """What a command says in a process of its own that has neither torch nor Ray, and its exit code."""
    code = (
        "import sys\nfor name in ('torch', 'ray', 'scipy'): sys.modules[name] = None\n"
        "from flops_fit_ray.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as e: print('exit code', e.code)"
    )
    return subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False).stdout


def test_a_changed_spec_is_shown_and_refused_unless_it_is_meant(
    ray_here: None, shared_data: list[Loader], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over data that lie once per node, though the spec names code that would load them in every worker."""
    root = project / "out"
    command = ["run", str(project), "--output", str(root)]

    def run(*more: str) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as caught:
            main([*command, *more])
        captured = capsys.readouterr()
        return caught.value.code, captured.out + captured.err

    code, first = run()
    assert code == 0 and isinstance(shared_data[0], SharedLoader)
    again = without_torch(command)
    assert again.startswith("nothing to run: all 6 experiments are completed") and again.endswith("exit code 0\n")
    answer = str((read_json(root / "finished.json") or {})["answer"])
    assert "N_opt" in answer and answer in first and answer in again
    spec = read_spec(project / "sweep.yaml")
    plain = make_sweep(project / "plain", spec, load_user_parts(spec, project))
    assert open_sweep(root).results_sha256 == plain.results_sha256
    before = outcomes(root)
    with (project / "parts.py").open("a") as parts:
        parts.write("edited = True\n")
    assert "nothing to run" not in without_torch(command)  # but a run, which needs torch
    code, said = run("--set", "train.lr=0.02")
    assert code == 2 and outcomes(root) == before, said
    assert "changed since the last run" in said and "  train.lr: 0.04 -> 0.02" in said
    assert "6 completed experiments of this directory would be trained again in another way: train.lr: 0.04" in said
    code, said = run("--set", "fit.draws=400")  # changes no result
    assert code == 0 and "fit.draws: 200 -> 400" in said and outcomes(root) == before
    code, said = run("--set", "train.lr=0.02", "--new")
    assert code == 0 and "they stay on record, and are left out" in said, said
    assert before.items() <= outcomes(root).items() and len(outcomes(root)) == 12
    assert {r.lr for r in open_sweep(root).results} == {0.02}


def test_an_adaptive_sweep_is_the_planners_is_extended_and_goes_on_until_enough(
    ray_here: None, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, on Ray: sizes are chosen, trunks begun at, only what is new is run, and the rule stops."""
    root = project / "out"
    train = "{batch_size: 4, optimizer: sgd, lr: 0.04, grad_clip: null, warmup_tokens: 0}"
    chosen = ["--set", "budgets=[1e5, 4e5]", "--set", "grid={tokens_per_param: 40, sizes: 4, first_sizes: 4, seeds: 1}"]
    own = [*chosen, "--set", "model.sizes=auto", "--set", f"train={train}"]
    with pytest.raises(SystemExit) as caught:
        main(["run", str(project), *own, "--output", str(root)])
    said = capsys.readouterr().out
    assert caught.value.code == 0, said
    sweep = open_sweep(root)
    assert sweep.complete and sweep.plan.final and sweep.base == project
    assert f"plan: {len([e for e in sweep.plan.experiments if e.budget == 1e5 and e.role == 'grid'])}" in said
    assert "around the predicted N" in said and "near the minimum" in said
    branched = [r for r in sweep.results if r.parent is not None]
    assert branched and sweep.flops_spent == pytest.approx(sweep.plan.flops, rel=1e-9)
    for r in branched:  # the tokens that the worker counted are those of the plan
        (e,) = [e for e in sweep.plan.experiments if e.key == r.key]
        assert r.tokens_executed == e.tokens // e.steps * (e.steps - r.parent_step) < r.tokens_seen
    assert {p.name for p in (root / "trunks").iterdir()} <= {r.key for r in sweep.results}

    before = outcomes(root)
    with pytest.raises(SystemExit) as caught:
        main(["extend", str(root), "--budget", "1.6e6"])
    assert caught.value.code == 0
    wider = open_sweep(root)
    assert wider.complete and [b.flops for b in wider.spec.budgets] == [1e5, 4e5, 1.6e6]
    assert before.items() <= outcomes(root).items()
    new = [r for r in wider.results if r.key not in before]
    assert {r.budget for r in new} == {1.6e6} and any(r.parent in before for r in new)
    assert wider.command.endswith(f" extend {root}")

    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:  # by the spec as it was: the directory goes on with what it has
        main(["run", str(project), *own, "--output", str(root)])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and outcomes(root).keys() == {r.key for r in wider.results}
    assert f"kept: what `extend` added in {root}: C = 1.6e6 (--new leaves it out)\nnothing to run: all " in said

    with pytest.raises(SystemExit) as caught:
        main(["extend", str(root), "--until", "ci=1.0001@1e8", "--at-most", f"{wider.flops_spent * 1.01:.3g}"])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and "raise --at-most" in said
    with pytest.raises(SystemExit) as caught:
        main(["extend", str(root), "--until", "ci=1000@1e8"])
    assert caught.value.code == 0 and "within the x/÷1000 of --until" in capsys.readouterr().out
    assert outcomes(root).keys() == {r.key for r in wider.results}


@pytest.mark.slow
def test_the_selftest_finds_its_exponent(
    ray_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harder of its two cases; the other one is that of the README."""
    monkeypatch.setattr(cases, "run_cases", functools.partial(cases.run_cases, alphas=(0.75,)))
    with pytest.raises(SystemExit) as caught:
        main(["selftest", "--json"])
    found = json.loads(capsys.readouterr().out)
    (case,) = found["cases"]
    assert caught.value.code == 0 and found["passed"] and case["truth"] == 0.4
    assert case["exponent_ci95"][0] < case["truth"] < case["exponent_ci95"][1]
    assert case["exponent"] == pytest.approx(case["truth"], abs=0.05)


def test_the_demo_is_checked_on_a_worker(ray_here: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", str(ROOT / "examples" / "bytes"), "--json"])
    content = json.loads(capsys.readouterr().out)
    assert caught.value.code == 0, content
    assert len(content["lines"]) == 10 and {line["verdict"] for line in content["lines"]} == {"PASS"}


@pytest.mark.slow
def test_the_cells_of_the_notebook_find_the_known_answer(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.py").write_text("\n\n".join(cells))
    names = runpy.run_path("cells.py", run_name="__main__")  # as a kernel runs them
    law = names["result"].fit.params_opt
    interval = law.exponent_interval(0.95)
    assert names["result"].complete and interval.low < 0.5 < interval.high
    assert names["table"].fit.params_opt.exponent == pytest.approx(law.exponent, abs=1e-4)
    assert "C = 2e7 FLOPs (95 % intervals)" in capsys.readouterr().out


def test_the_code_in_the_readme_does_what_it_says(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (own_model,) = [b for b in blocks if "class " in b]
    assert len([line for line in own_model.splitlines() if line.strip()]) <= 20
    (tmp_path / "own.py").write_text(own_model)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("own.py", run_name="__main__")
    sweep = open_sweep(tmp_path / "runs" / "sweep")
    law = sweep.fit.params_opt
    assert sweep.complete and law is not None and (interval := law.exponent_interval(0.95)) is not None
    assert interval.low < 0.5 < interval.high
    assert [flag.code for flag in sweep.fit.warnings if flag.severity != "info"] == []
