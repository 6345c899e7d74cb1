"""SIGKILL for drivers, workers, nodes and heads."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import EXIT_DONE, EXIT_INTERRUPTED
from flops_fit_ray.storage.atomic import read_json
from flops_fit_ray.storage.paths import SweepPaths
from tests import chaos
from tests.chaos import NUM_EXPERIMENTS, Driver, Row, Watched, children_of, finish, make_project, until_gone
from tests.hangs import HANG_SECONDS
from tests.records import recorded


def driver_kills(where: Path, sweeps: int, kills: int, sha256: str, dice: random.Random) -> Row:
    """F4: the driver is killed at random moments, and the same command started again until it is done."""
    row = Row("F4 SIGKILL of the driver")
    for i in range(sweeps):
        root = where / f"sweep{i}"
        spec, watched = make_project(where), Watched(root, row)
        for _ in range(kills):
            driver, before = Driver(spec, root), len(recorded(root))
            more = dice.choice([0, 1, 1, 2])
            driver.until(lambda n=before + more, root=root: len(recorded(root)) >= n)  # type: ignore[misc] # bound now
            driver.until(lambda: False, dice.uniform(0.0, 1.0) if more else dice.uniform(0.0, 9.0))
            if driver.ended():
                break
            driver.kill()
            code = driver.wait(HANG_SECONDS)
            row.expect(code == EXIT_INTERRUPTED, f"killed, it ended with {code}: {driver.said[-3:]}")
            row.times += 1
            watched.look()
        finish(Driver(spec, root), row, watched, sha256)
    return row


def kill_worker(driver: Driver, row: Row, spared: Collection[str] = ()) -> str | None:
    """Kill the worker of an experiment that has a checkpoint.

    Returns its key; None if the driver ended before.

    Args:
        spared: experiments whose workers are left alone.
    """
    while not driver.ended():
        for path in driver.root.glob("experiments/*/progress.json"):
            progress, key = read_json(path), path.parent.name
            if progress is None or key in spared or not SweepPaths(driver.root).checkpoints(key).finished():
                continue
            path.with_name(f".{path.name}.{progress['pid']}.tmp").touch()  # as if in the middle of a write
            path.unlink(missing_ok=True)  # so that nobody is killed for a sign of life of before
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(progress["pid"]), signal.SIGKILL)
                row.times += 1
                return key
        time.sleep(0.02)
    return None


def worker_kills(where: Path, kills: int, sha256: str, dice: random.Random) -> Row:
    """F5: a worker is killed once its experiment has a checkpoint; the same bits come out, from there on."""
    row = Row("F5 SIGKILL of a worker")
    resumed = sweep_number = 0
    while row.times < kills:
        root = where / f"workers{sweep_number}"
        sweep_number += 1
        driver, watched = Driver(make_project(where), root, pause=0.02), Watched(root, row)
        killed: Counter[str] = Counter()
        while not driver.ended() and row.times < kills:
            time.sleep(dice.uniform(0.0, 0.5))
            key = kill_worker(driver, row, {key for key, times in killed.items() if times >= 2})
            if key is not None:
                killed[key] += 1
        sweep = finish(driver, row, watched, sha256)
        if sweep is not None:
            row.expect(not sweep.failures, "a death counted as a failure")
            by_key = {r.key: r for r in sweep.results}
            # One that was over when the signal came had its result already
            counted = sum(by_key[key].deaths for key in killed)
            row.expect(counted <= killed.total(), "more deaths were counted than there were")
            resumed += sum(by_key[key].resumed_from is not None for key in killed)
            row.notes.append(f"{counted} of {killed.total()} killed in mid-experiment")
            row.expect(
                all(by_key[k].resumed_from is not None for k in killed if by_key[k].deaths), "began from scratch"
            )
    row.notes.append(f"{resumed} experiments gone on with from a checkpoint")
    return row


@contextlib.contextmanager
def small_cluster(nodes: int) -> Iterator[tuple[Any, list[Any]]]:
    """A head without CPUs and some nodes with one each, as processes of this machine.

    Raises:
        ImportError: this Ray has no `ray.cluster_utils`; it is a helper of Ray's own tests.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(nodes)]
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call] # Ray leaves it untyped


def node_kills(where: Path, kills: int, sha256: str, dice: random.Random) -> Row:
    """F6: a node dies with all that runs on it; the others finish everything, and a new one is used."""
    row = Row("F6 a node dies")
    with small_cluster(2) as (cluster, nodes):
        number = 0
        while row.times < kills:
            root = where / f"nodes{number}"
            number += 1
            driver = Driver(make_project(where), root, "--address", cluster.address, pause=0.05)
            watched = Watched(root, row)
            while not driver.ended() and row.times < kills:
                seen = len(recorded(root))
                if not driver.until(lambda n=seen + 2, root=root: len(recorded(root)) >= n, 120):  # type: ignore[misc]
                    break
                if driver.ended():
                    break
                node = nodes.pop(dice.randrange(len(nodes)))
                cluster.remove_node(node, allow_graceful=False)
                row.times += 1
                watched.look()
                nodes.append(cluster.add_node(num_cpus=1))
            sweep = finish(driver, row, watched, sha256)
            if sweep is not None:
                row.expect(not sweep.failures, "a dead node counted as a failure")
                row.notes.append(f"{sweep.num_deaths} experiments were on it")
    return row


def lose_head(driver: Driver, row: Row) -> float | None:
    """Kill the head of a driver's own cluster. Returns the seconds until it ended; None if it was done before."""
    family = children_of(driver.process.pid)
    heads = [pid for pid, name in family.items() if "gcs_server" in name.split(" ")[0]]
    if driver.ended() or not heads:
        return None
    os.kill(heads[0], signal.SIGKILL)
    started = time.monotonic()
    code = driver.wait(HANG_SECONDS)
    if code == EXIT_DONE and len(recorded(driver.root)) == NUM_EXPERIMENTS:
        return None  # it was done when the signal came
    seconds = time.monotonic() - started
    row.times += 1
    row.expect(code == EXIT_INTERRUPTED, f"the head died: ended with {code}")
    row.expect(not chaos.TIMED or seconds < 60, f"took {seconds:.0f} s")
    row.expect(driver.said[-1].endswith(f"--output {driver.root}"), f"its last line is {driver.said[-1]!r}")
    orphans = until_gone(set(family))
    row.expect(not orphans, f"orphans: {[family[pid][:60] for pid in orphans]}")
    return seconds


def head_kills(where: Path, kills: int, sha256: str, dice: random.Random) -> Row:
    """F7: the head of the driver's own cluster dies: the driver ends by itself, says how to go on, leaves no orphan."""
    row = Row("F7 the head dies")
    root, spec, slowest = where / "heads", make_project(where), 0.0
    watched = Watched(root, row)
    for _ in range(kills):
        driver, before = Driver(spec, root, pause=0.02), len(recorded(root))
        driver.until(lambda n=before + 1: len(recorded(root)) >= n)  # type: ignore[misc] # bound now
        time.sleep(dice.uniform(0.0, 0.5))
        seconds = lose_head(driver, row)
        if seconds is None:
            break
        slowest = max(slowest, seconds)
        watched.look()
    row.notes.append(f"slowest end {slowest:.1f} s")
    finish(Driver(spec, root), row, watched, sha256)
    return row
