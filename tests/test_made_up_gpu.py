"""The GPU path on a device that does not exist, in a process of its own: hooks for it come before torch."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import EXAMPLE, SMALL
from flops_fit_ray.spec import read_spec
from flops_fit_ray.training.user.parts import load_user_parts
from tests.hangs import HANG_SECONDS
from tests.made_up_gpu import build
from tests.sweeps import make_sweep

ROOT = Path(__file__).parent.parent
# Of the tests for a real GPU not these: one reads a driver, one talks by NCCL, and eager steps are in the cases
RUN = [
    "tests/made_up_gpu/cases.py",
    "tests/test_gpu.py",
    "--deselect=tests/test_gpu.py::test_the_driver_reports_the_gpu_that_this_process_computes_on",
    "--deselect=tests/test_gpu.py::test_a_group_of_one_trains_by_nccl_as_nobody_does",
    "-k",
    "not eager",
]


def test_what_needs_a_gpu_runs_on_one_that_is_made_up(tmp_path: Path) -> None:
    library = build.build(tmp_path)
    if library is None:
        pytest.skip("no C++ compiler: the GPU path was not tried")
    options = ["-p", "tests.made_up_gpu.plugin", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *RUN],
        cwd=ROOT,
        env={**os.environ, "MADE_UP_GPU": str(library)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    summary = done.stdout.splitlines()[-1]
    assert done.returncode == 0 and " passed" in summary and "skipped" not in summary, done.stdout[-20_000:]


def test_the_text_example_learns_on_a_cpu_when_it_is_made_small(tmp_path: Path) -> None:
    spec = read_spec(EXAMPLE / "sweep.yaml", SMALL)
    sweep = make_sweep(tmp_path, spec, load_user_parts(spec, EXAMPLE))
    assert sweep.complete and len(sweep.results) == 6
    assert all(2 < r.loss < 4.5 for r in sweep.results), [r.loss for r in sweep.results]  # ln 256 = 5.55 untrained
    small, large = ([r for r in sweep.results if r.budget == c] for c in (2e9, 4e9))
    assert all(b.loss < a.loss for a, b in zip(small, large, strict=True))


def test_the_text_example_asks_for_a_part_of_a_gpu_and_has_the_text_for_its_largest_budget() -> None:
    spec = read_spec(EXAMPLE / "sweep.yaml")
    assert max(b.flops for b in spec.budgets) == 1e16 and spec.resources_per_trial == {"gpu": 0.25}
    text = runpy.run_path(str(EXAMPLE / "text.py"))
    bytes_there = sum(path.stat().st_size for _, path in text["_sources"]())
    # C = 6·N·D at D/N = 30
    assert spec.data.max_epochs * bytes_there > math.sqrt(1e16 * spec.grid.tokens_per_param / 6)


@pytest.mark.slow
def test_the_command_that_measures_a_gpu_works(tmp_path: Path) -> None:
    """`make gpu`, small; its compiled peers and what it runs through Ray are left out."""
    library = build.build(tmp_path)
    if library is None:
        pytest.skip("no C++ compiler: the benchmark was not tried")
    figures = tmp_path / "gpu.json"
    command = ["-m", "benchmarks.gpu", "--quick", "--output", str(figures), "--parts", "killed", "precisions", "memory"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "MADE_UP_GPU": str(library), "PYTHONPATH": f"{ROOT / 'tests/made_up_gpu/site'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(figures.read_text())
    assert content["versions"]["torch"] and content["device"] == "NVIDIA H200"
    killed, precisions = content["parts"]["killed"], content["parts"]["precisions"]
    assert killed["resumed_from"] and killed["same_bits"]
    assert precisions["bf16"]["loss"] == pytest.approx(precisions["fp32"]["loss"], rel=0.02)
