"""A cluster as its owner starts it, `ray start` and all: jobs, several nodes, and storage that is not shared."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flops_fit_ray.sweep.directory import open_sweep
from tests.chaos import Driver, make_project, plain_sweep, uninterrupted
from tests.hangs import HANG_SECONDS
from tests.nodes import RealCluster, free_port, real_cluster
from tests.records import recorded
from tests.serving import ServiceProcess

pytestmark = pytest.mark.ray
shared = pytest.mark.xdist_group("cluster")  # tests of the cluster that all of them share


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    pytest.importorskip("aiohttp", reason="jobs need ray[default]")
    with real_cluster("--num-cpus", "1") as started:
        yield started


def call(cluster: RealCluster, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """`flops-fit-ray`, as somebody would who may use the cluster."""
    command = [sys.executable, "-m", "flops_fit_ray", *map(str, words)]
    return subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


def ray_job(cluster: RealCluster, *words: str) -> str:
    command = [str(Path(sys.executable).parent / "ray"), "job", words[0], "--address", cluster.dashboard, *words[1:]]
    done = subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    return done.stdout


@shared
def test_a_job_is_submitted_stopped_and_gone_on_with(cluster: RealCluster, tmp_path: Path) -> None:
    pace = tmp_path / "pace"
    pace.write_text("0")
    spec, root = make_project(tmp_path / "project", pace), tmp_path / "out"
    begun = call(cluster, "submit", spec, "--address", cluster.dashboard, "--output", root)
    assert begun.returncode == 0, begun.stderr
    said = dict(line.split(": ", 1) for line in begun.stdout.splitlines() if ": " in line)
    job_id = said["stop"].split()[-1]
    cluster.until(lambda: len(recorded(root)) >= 3)
    pace.write_text("1")  # so that the stop comes in time on a busy machine
    ray_job(cluster, "stop", job_id)  # which waits until it has ended
    before = recorded(root)
    assert 3 <= len(before) < 12
    log = ray_job(cluster, "logs", job_id).rstrip().splitlines()
    assert log[-1] == said["resume"].strip() == open_sweep(root).command
    assert "flops-fit-ray submit" in log[-1] or "-m flops_fit_ray submit" in log[-1]
    pace.write_text("0")
    again = call(cluster, "submit", spec, "--address", cluster.dashboard, "--output", root, "--follow")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{len(before)} of 12 experiments are completed already and will not run again" in again.stdout
    sweep = open_sweep(root)
    assert sweep.complete and sweep.results_sha256 == uninterrupted(tmp_path / "plain")
    assert {key: recorded(root)[key] for key in before} == before
    assert all(sweep.paths.num_attempts(key) == 1 for key in before)


@pytest.mark.slow
@shared
def test_a_service_starts_stops_and_extends_jobs(cluster: RealCluster, tmp_path: Path) -> None:
    pace = tmp_path / "pace"
    pace.write_text("0")
    spec, root = make_project(tmp_path / "project", pace), tmp_path / "shared"
    words = ("--address", cluster.dashboard)
    service = ServiceProcess(root, spec.parent, *words, environment=cluster.environment)
    try:
        assert service.client.ask("GET", "/server")["runs_on"] == f"jobs of the Ray cluster at {cluster.dashboard}"
        name = service.client.start(spec.read_text(), key="job")
        cluster.until(lambda: len(recorded(root / name)) >= 2)
        pace.write_text("1")  # so that the stop comes in time on a busy machine
        service.kill()
        service = ServiceProcess(root, spec.parent, *words, environment=cluster.environment)
        client = service.client
        assert client.start(spec.read_text(), key="job") == name and client.sweep(name)["state"] == "running"
        client.act(name, "stop")
        stopped = client.wait(name, 90)
        before = recorded(root / name)
        assert stopped["state"] == "stopped" and 2 <= len(before) < 12, stopped
        pace.write_text("0")
        client.act(name, "extend", budgets=[8e4], sizes=[10, 14, 20])
        done = client.wait(name, 120)
        assert done["state"] == "completed" and done["exit_code"] == 0 and done["total"] == 15, done
        losses = {r.key: r.loss for r in open_sweep(root / name).results}
        assert {r.key: r.loss for r in plain_sweep(tmp_path / "plain").results}.items() <= losses.items()
        assert {key: recorded(root / name)[key] for key in before} == before
        with client.request("GET", f"/sweeps/{name}/log") as log:
            assert f"{len(before)} of 15 experiments are completed already" in log.read().decode()
    finally:
        service.end()


@shared
def test_a_job_without_a_place_for_its_results_says_so(cluster: RealCluster, tmp_path: Path) -> None:
    working_dir = make_project(tmp_path / "project").parent
    entry = ["python", "-m", "flops_fit_ray.run"]
    with pytest.raises(subprocess.CalledProcessError) as failed:
        ray_job(cluster, "submit", "--working-dir", str(working_dir), "--", *entry)
    assert "lies in the job's temporary directory, and would be lost with it" in failed.value.stdout


@shared
def test_a_job_that_cannot_even_begin_is_exit_1(cluster: RealCluster, tmp_path: Path) -> None:
    spec = make_project(tmp_path / "project")
    (tmp_path / "project" / "parts.py").write_text("import not_installed_here\n")
    out = tmp_path / "out"
    done = call(cluster, "submit", spec, "--address", cluster.dashboard, "--output", out, "--follow")
    assert done.returncode == 2 and "needs the module 'not_installed_here'" in done.stdout


@shared
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root may mount")
def test_f6_nodes_come_and_go_and_those_that_cannot_run_the_sweep_get_nothing(
    cluster: RealCluster, tmp_path: Path
) -> None:
    pace, apart = tmp_path / "pace", tmp_path / "apart"
    spec, root = make_project(tmp_path / "project", pace), apart / "out"
    pace.write_text("0")
    apart.mkdir()
    unseen, place = f'mount -t tmpfs none {apart} && exec "$@"', shlex.quote(str(spec.parent))
    bad = cluster.join("--num-cpus", "1", before=["unshare", "-m", "sh", "-c", unseen, "-"])
    cluster.until_joined(2)
    driver = Driver(spec, root, "--address", cluster.address, environment=cluster.environment)
    assert driver.until(lambda: len(recorded(root)) >= 2), driver.said
    (line,) = (line for line in driver.said if "left out" in line)  # before anything ran
    assert line.startswith("cluster: 1 experiment at a time;") and f"does not see {root}: give --output a path" in line
    pace.write_text("1")
    edited = f'mount -t tmpfs none {place} && echo "data = None" > {place}/parts.py && exec "$@"'
    late = cluster.join("--num-cpus", "1", before=["unshare", "-m", "sh", "-c", edited, "-"])
    other = "has other code than the plan (parts.py is another one): put it on shared storage"
    assert driver.until(lambda: other in "".join(driver.said)), driver.said

    good = cluster.join("--num-cpus", "1")
    assert driver.until(lambda: any(line.startswith("cluster: 2 exp") for line in driver.said)), driver.said
    assert driver.until(lambda: len(list(root.glob("experiments/*/progress.json"))) == 2), driver.said
    cluster.kill(good)  # F6: the others finish everything
    pace.write_text("0")
    assert driver.wait(HANG_SECONDS) == 0, driver.said
    checked = call(cluster, "check", spec, "--address", cluster.address, "--output", root)
    fails = [line for line in checked.stdout.splitlines() if line.startswith("FAIL  nodes")]
    assert checked.returncode == 1 and len(fails) == 2, checked.stdout + checked.stderr
    assert all(f"{words}" in "".join(fails) for words in (f"does not see {root}", other, "`run` leaves it out"))
    for node in (bad, late):
        cluster.kill(node)
    sweep = open_sweep(root)
    assert sweep.complete and not sweep.failures and sweep.num_deaths == 1
    assert sweep.results_sha256 == uninterrupted(tmp_path / "plain")


@pytest.mark.slow
def test_what_waits_makes_a_cluster_grow(tmp_path: Path) -> None:
    """Ray's own autoscaler, over a provider whose nodes are processes: none at first, two when they are asked for."""
    port, config = free_port(), tmp_path / "autoscaling.json"
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    head = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # as the provider wants it
    empty: dict[str, object] = {"auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    empty |= {f"{name}_commands": [] for name in commands}
    empty |= {name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
    provider = {"type": "fake_multinode", "head_node_id": head, "gcs_address": f"127.0.0.1:{port}"}
    numbers = {"cluster_name": "grows", "max_workers": 2, "upscaling_speed": 20, "idle_timeout_minutes": 0.1}
    whole = {**empty, **numbers, "provider": provider, "head_node_type": "ray.head.default"}
    config.write_text(json.dumps({**whole, "available_node_types": kinds}))
    grows = ["--port", str(port), "--num-cpus", "0", "--autoscaling-config", str(config)]
    with real_cluster(*grows, RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1") as cluster:
        cluster.until_joined(1)  # the head alone, which runs nothing
        spec, root = make_project(tmp_path / "project"), tmp_path / "out"
        done = call(cluster, "run", spec, "--address", cluster.address, "--output", root, "--slots", "2")
        assert done.returncode == 0 and open_sweep(root).complete, done.stdout + done.stderr
        assert "cluster: 2 experiments at a time" in done.stdout
