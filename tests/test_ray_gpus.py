"""`run` on GPUs that are made up: Ray finds them by the driver, places experiments, and torch trains on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit_ray.spec import read_spec
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.training.user.parts import load_user_parts
from tests.hangs import HANG_SECONDS
from tests.made_up_gpu import build
from tests.made_up_gpu.driver import NAME, table
from tests.nodes import real_cluster
from tests.sweeps import make_sweep
from tests.test_ray_commands import PROJECT

ROOT = Path(__file__).parent.parent


def made_up(directory: Path) -> dict[str, str]:
    """Build what makes GPUs up. Returns the environment of processes with those that the table in a directory names."""
    if build.build(directory) is None or build.build_driver(directory) is None:
        pytest.skip("no compiler: Ray's placement on GPUs was not tried")
    return {
        "PYTHONPATH": f"{ROOT / 'tests/made_up_gpu/site'}:{ROOT}",
        "MADE_UP_GPU": str(directory / f"{build.NAME}.so"),
        "MADE_UP_DRIVER": str(directory / "table"),
        "LD_LIBRARY_PATH": str(directory),
        "RAY_OVERRIDE_RESOURCES": "",
    }


@pytest.mark.ray
def test_experiments_of_one_gpu_run_on_two_at_a_time(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name, content in PROJECT.items():
        (project / name).write_text(content.replace("{cpu: 1}", "{gpu: 1}"))
    (tmp_path / "table").write_text(table("GPU-a", "GPU-b"))
    root = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "flops_fit_ray.run", str(project), "--output", str(root)],
        env={**os.environ, **made_up(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cluster: 2 experiments at a time" in done.stdout
    assert f"2 x {NAME} (141 GiB), driver 570.86.15" in done.stdout
    sweep = open_sweep(root)
    assert sweep.complete and {result.device for result in sweep.results} == {NAME}
    spec = read_spec(project / "sweep.yaml")
    on_cpu = make_sweep(tmp_path / "cpu", spec, load_user_parts(spec, project))
    assert [r.loss for r in sweep.results] == pytest.approx([r.loss for r in on_cpu.results], rel=1e-5)


PLACED = """
import json, os, sys, ray
from flops_fit_ray.engine._gpus import unusable_gpus
from flops_fit_ray.engine.resources import choose_slots, live_entries, live_nodes
from flops_fit_ray.errors import ResourceError
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)

class Trial:
    def place(self):
        return ray.get_runtime_context().get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"]

nodes = live_nodes()
slots = choose_slots({"gpu": 0.5}, nodes)
trials = [ray.remote(Trial).options(**slots.options).remote() for _ in range(slots.count)]
found = {
    "parts": slots.count,
    "whole": choose_slots({"gpu": 1}, nodes).count,
    "places": ray.get([trial.place.remote() for trial in trials]),
    "with_gpus": [name for name, node in live_entries().items() if node["Resources"].get("GPU")],
}
try:
    unusable_gpus(slots)
    found["fault"] = ""
except ResourceError as e:
    found["fault"] = str(e)
print(json.dumps(found))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_halves_of_gpus_are_had_on_the_node_that_has_them_and_what_torch_does_not_see_is_named(tmp_path: Path) -> None:
    """A node with two GPUs and one with none; then Ray counts two, and the driver knows one."""
    environment = made_up(tmp_path)
    seen = tmp_path / "table"
    seen.write_text(table("GPU-a"))
    with real_cluster("--num-cpus", "1", "--num-gpus", "0", **environment) as cluster:
        cluster.join("--num-cpus", "1", "--num-gpus", "2")
        cluster.until_joined(2)
        command = [sys.executable, "-c", PLACED, cluster.address]
        done = subprocess.run(command, env=dict(cluster.environment), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (node,) = found["with_gpus"]
    assert (found["parts"], found["whole"]) == (4, 2)
    assert sorted(found["places"]) == [[node, gpu] for gpu in ("0", "0", "1", "1")]
    assert "Ray counts 2 GPUs, and torch" in found["fault"] and "sees 1; see nvidia-smi" in found["fault"]
