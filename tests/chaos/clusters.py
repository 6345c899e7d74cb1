"""One cluster of nodes of every kind, and what each of them got."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from flops_fit_ray.engine.processes import descendants
from flops_fit_ray.errors import EXIT_DONE, EXIT_INPUT
from flops_fit_ray.storage.atomic import read_json
from tests.chaos import Driver, Row, Watched, finish, make_project
from tests.nodes import real_cluster

GPU = ("--num-cpus", "1", "--num-gpus", "1")  # which this machine does not have


def mixed_cluster(where: Path, sha256: str) -> Row:
    """F41: one node there, one late, one late with other code, one late without the storage; all with made-up GPUs.

    Whoever asks for those GPUs is refused. A sweep on their CPUs runs on the two good ones, and names the others.
    """
    row = Row("F41 a cluster of four kinds of node")
    if os.geteuid() != 0 or not shutil.which("unshare"):
        row.notes.append("only root may mount: not tried")
        return row
    where.mkdir()
    pace, apart = where / "pace", where / "apart"
    pace.write_text("0.3")
    spec, root = make_project(where / "project", pace), apart / "out"
    other = where / "other.py"
    other.write_text((spec.parent / "parts.py").read_text() + "\nEDITED = True\n")
    apart.mkdir()
    hides = f"mount -t tmpfs none {shlex.quote(str(apart))}"
    edits = f"mount --bind {shlex.quote(str(other))} {shlex.quote(str(spec.parent / 'parts.py'))}"
    with real_cluster(*GPU) as cluster:
        asked = _run(spec, cluster.environment, "--address", cluster.address, "--output", str(where / "gpus"))
        row.expect(asked.returncode == EXIT_INPUT, f"made-up GPUs: exit code {asked.returncode}: {asked.stderr[-300:]}")
        row.notes.append(f"asked for its GPUs: {asked.stderr.strip().splitlines()[-1]}")
        driver = Driver(spec, root, "--address", cluster.address, "--device", "cpu", environment=cluster.environment)
        watched = Watched(root, row)
        row.expect(driver.until(lambda: any(root.glob("experiments/*/progress.json"))), f"{driver.said[-3:]}")
        nodes = {"at the start": cluster.nodes[0].pid}
        late = {"late": "true", "late, other code": edits, "late, no storage": hides}
        for name, first in late.items():
            nodes[name] = cluster.join(*GPU, before=["unshare", "-m", "sh", "-c", f'{first} && exec "$@"', "-"]).pid
            cluster.until_joined(len(nodes))  # two that start at one moment may choose the same port
        row.times = len(nodes)
        got: dict[str, set[str]] = {name: set() for name in nodes}
        until = time.monotonic() + 400
        while not driver.ended() and time.monotonic() < until:
            families = {name: descendants(pid) for name, pid in nodes.items()}
            for path in root.glob("experiments/*/progress.json"):
                with contextlib.suppress(OSError, TypeError):
                    pid = (read_json(path) or {}).get("pid")
                    for name, family in families.items():
                        got[name] |= {path.parent.name} if pid in family else set()
            if got["late"] and _named(driver) == 2:
                pace.write_text("0")
            time.sleep(0.1)
        finish(driver, row, watched, sha256)
        row.expect(bool(got["at the start"] and got["late"]), f"a good node got nothing: {got}")
        row.expect(not (got["late, other code"] | got["late, no storage"]), f"a bad node got an experiment: {got}")
        said = "\n".join(driver.said)
        row.expect("has other code than the plan (parts.py is another one)" in said, "other code is not named")
        row.expect(f"does not see {root}" in said, "missing storage is not named")
        row.expect("cluster: 2 experiments at a time" in said, "the late node's slot is not used")
        row.expect(driver.wait(1) == EXIT_DONE, f"{driver.said[-3:]}")
    row.notes.append("; ".join(f"{name}: {len(keys)}" for name, keys in got.items()))
    return row


def _named(driver: Driver) -> int:
    said = "\n".join(driver.said)
    return ("has other code than the plan" in said) + ("does not see" in said)


def _run(spec: Path, environment: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flops_fit_ray", "run", str(spec), "--set", "resources_per_trial={gpu: 1}"]
    return subprocess.run([*command, *options], env=dict(environment), capture_output=True, text=True, check=False)
