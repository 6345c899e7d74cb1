"""`run` on GPUs that are made up: Ray finds them by the driver, places experiments, and torch trains on them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit_ray.spec import read_spec
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.training.user.parts import load_user_parts
from tests.made_up_gpu import build
from tests.made_up_gpu.driver import NAME, table
from tests.sweeps import make_sweep
from tests.test_ray_commands import PROJECT

ROOT = Path(__file__).parent.parent


@pytest.mark.ray
@pytest.mark.slow
def test_experiments_of_one_gpu_run_on_two_at_a_time(tmp_path: Path) -> None:
    hooks, driver = build.build(tmp_path), build.build_driver(tmp_path)
    if hooks is None or driver is None:
        pytest.skip("no compiler: Ray's placement on GPUs was not tried")
    project = tmp_path / "project"
    project.mkdir()
    for name, content in PROJECT.items():
        (project / name).write_text(content.replace("{cpu: 1}", "{gpu: 1}"))
    (tmp_path / "table").write_text(table("GPU-a", "GPU-b"))
    root = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "flops_fit_ray.run", str(project), "--output", str(root)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'tests/made_up_gpu/site'}:{ROOT}",
            "MADE_UP_GPU": str(hooks),
            "MADE_UP_DRIVER": str(tmp_path / "table"),
            "LD_LIBRARY_PATH": str(tmp_path),
            "RAY_OVERRIDE_RESOURCES": "",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cluster: 2 experiments at a time" in done.stdout
    assert f"2 x {NAME} (141 GiB), driver 570.86.15" in done.stdout
    sweep = open_sweep(root)
    assert sweep.complete and {result.device for result in sweep.results} == {NAME}
    spec = read_spec(project / "sweep.yaml")
    on_cpu = make_sweep(tmp_path / "cpu", spec, load_user_parts(spec, project))
    assert [r.loss for r in sweep.results] == pytest.approx([r.loss for r in on_cpu.results], rel=1e-5)
