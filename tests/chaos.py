"""`python -m tests.chaos [--minutes N] [--only NAME]...`: everything that can be killed, killed again and again.

Every scenario is a function that takes how often, and returns a `Row`: how often it was done, and every promise that
did not hold. The suite calls them with small numbers; this command with large ones, and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flops_fit_ray.engine._processes import descendants
from flops_fit_ray.engine._rounds import FINISHED
from flops_fit_ray.errors import EXIT_DONE, EXIT_INTERRUPTED
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.storage.atomic import read_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from tests.records import recorded

SIZES = [5, 7, 10, 14, 20, 28]
SPEC = f"""
name: chaos
model: {{target: "parts:Slow", size_param: features}}
data: {{train: "parts:data"}}
loss: mse
budgets: {[{"flops": c, "sizes": SIZES} for c in (2e4, 4e4)]}
train: {{batch_size: 4, lr: 4e-2, optimizer: sgd, grad_clip: null, warmup_tokens: 0}}
checkpoint: {{steps: 20}}
resources_per_trial: {{cpu: 1}}
fit: {{draws: 200}}
"""
PAUSE_OF_ENVIRONMENT = 'os.environ.get("CHAOS_PAUSE", "0.01")'
PARTS = f"""
import os
import time
import torch
from torch import nn


def pause():
    return float({PAUSE_OF_ENVIRONMENT})


class Slow(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features, self.linear = features, nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x):
        if self.training and not x.is_meta:
            time.sleep(pause())
        return self.linear(x[:, : self.features])


def data():
    scale = torch.arange(1, 65) ** -0.5
    x = torch.randn(9_000, 64, generator=torch.Generator().manual_seed(0)) * scale
    return x, x @ scale[:, None]
"""
NUM_EXPERIMENTS = 2 * len(SIZES)
TIMED = False  # whether promises of seconds are judged: by `main`, and not in the suite, whose machine may be busy


@dataclass
class Row:
    """What became of one promise."""

    name: str
    times: int = 0
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def expect(self, holds: bool, words: str) -> None:
        """A promise, and what to say where it does not hold."""
        if not holds:
            self.violations.append(words)


def make_project(where: Path, pace: Path | None = None) -> Path:
    """A spec and its parts; returns the spec.

    Args:
        pace: a file with the pause of a step in seconds, read before each, so that a test can hold a sweep up while
            it looks, and let it go on.
    """
    where.mkdir(parents=True, exist_ok=True)
    parts = PARTS if pace is None else PARTS.replace(PAUSE_OF_ENVIRONMENT, f"open({str(pace)!r}).read() or 0")
    (where / "parts.py").write_text(parts)
    (where / "sweep.yaml").write_text(SPEC)
    return where / "sweep.yaml"


class Driver:
    """`python -m flops_fit_ray.run` in a process of its own."""

    def __init__(
        self, spec: Path, root: Path, *extra: str, pause: float = 0.01, environment: Mapping[str, str] | None = None
    ) -> None:
        self.root, self.log = root, root.parent / f"{root.name}.log"
        command = [sys.executable, "-m", "flops_fit_ray.run", str(spec), "--output", str(root), *extra]
        environ = {**os.environ, "CHAOS_PAUSE": str(pause), "PYTHONUNBUFFERED": "1", **(environment or {})}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=Path(__file__).parent.parent,
                start_new_session=True,  # a process group of its own, as shells and `timeout` make it
            )

    def ended(self) -> bool:
        """Whether it has."""
        return self.process.poll() is not None

    def wait(self, seconds: float) -> int:
        """Its exit code; a driver that does not end is killed, and -100."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -100

    @property
    def said(self) -> list[str]:
        """Its lines so far."""
        return self.log.read_text(errors="replace").splitlines()

    def until(self, condition: Callable[[], bool], seconds: float = 300.0) -> bool:
        """Wait for something, as long as the driver lives. Whether it came."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.ended() or time.monotonic() > deadline:
                return condition()
            time.sleep(0.02)
        return True


class Watched:
    """What is recorded in a directory, so that the next look finds whatever was lost, changed or run twice."""

    def __init__(self, root: Path, row: Row) -> None:
        self._root, self._row = root, row
        self._results: dict[str, bytes] = {}
        self._attempts: dict[str, int] = {}

    def look(self) -> int:
        """Compare with the look before. Returns how many results there are."""
        now, paths = recorded(self._root), SweepPaths(self._root)
        for key, content in self._results.items():
            self._row.expect(key in now, f"{key}: its result is lost")
            self._row.expect(now.get(key, content) == content, f"{key}: its result was changed")
            self._row.expect(paths.num_attempts(key) == self._attempts[key], f"{key}: was started again")
        self._results, self._attempts = now, {key: paths.num_attempts(key) for key in now}
        for key in now:
            self._row.expect(
                isinstance(Ledger(paths).result(key), ExperimentResult), f"{key}: its result cannot be read"
            )
        return len(now)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, and what it said of the one before."""

    pid: int
    said: str


def finish(driver: Driver, row: Row, watched: Watched, sha256: str) -> Sweep | None:
    """Let a driver come to its end, and check all that must hold then."""
    code = driver.wait(240)
    row.expect(code == EXIT_DONE, f"the last run ended with {code}: {driver.said[-3:]}")
    watched.look()
    if code != EXIT_DONE:
        return None
    sweep = open_sweep(driver.root)
    row.expect(len(sweep.results) == NUM_EXPERIMENTS, f"{len(sweep.results)} of {NUM_EXPERIMENTS} experiments")
    row.expect(sweep.results_sha256 == sha256, "the results are not those of an uninterrupted run")
    row.expect(not list(driver.root.rglob(".*.tmp")), "a half-written file is left")
    return sweep


def plain_sweep(where: Path) -> Sweep:
    """The same sweep without Ray and without anything that goes wrong."""
    from flops_fit_ray.spec import read_spec
    from flops_fit_ray.training.user.parts import load_user_parts
    from tests.sweeps import make_sweep

    os.environ["CHAOS_PAUSE"] = "0"
    spec = make_project(where)
    resolved = read_spec(spec)
    return make_sweep(where / "plain", resolved, load_user_parts(resolved, spec.parent))


def uninterrupted(where: Path) -> str:
    """The fingerprint of its results."""
    return plain_sweep(where).results_sha256


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
            driver.process.kill()
            driver.wait(10)
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


def children_of(pid: int) -> dict[int, str]:
    """The processes that descend from one, with their command lines."""
    found = {}
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def alive(pids: Iterator[int] | list[int] | set[int]) -> list[int]:
    """Those that still run, zombies not counted."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def until_gone(pids: set[int], seconds: float = 20.0) -> list[int]:
    """Wait until processes have ended. Returns those that run even so."""
    deadline = time.monotonic() + seconds
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def lose_head(driver: Driver, row: Row) -> float | None:
    """Kill the head of a driver's own cluster. Returns the seconds until it ended; None if it was done before."""
    family = children_of(driver.process.pid)
    heads = [pid for pid, name in family.items() if "gcs_server" in name.split(" ")[0]]
    if driver.ended() or not heads:
        return None
    os.kill(heads[0], signal.SIGKILL)
    started = time.monotonic()
    code = driver.wait(240)
    if code == EXIT_DONE and len(recorded(driver.root)) == NUM_EXPERIMENTS:
        return None  # it was done when the signal came
    seconds = time.monotonic() - started
    row.times += 1
    row.expect(code == EXIT_INTERRUPTED, f"the head died: ended with {code}")
    row.expect(not TIMED or seconds < 60, f"took {seconds:.0f} s")
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


STOPS = (
    "SIGINT",
    "SIGTERM",
    "SIGUSR1",
    "SIGTERM, then SIGKILL after 3 s",
    "SIGINT twice",
    "SIGTERM to the group",  # as `timeout` and terminals signal
    "SIGUSR1 to the group",
    "SIGTERM to everything",  # as systemd and scancel: Ray's processes too
)


def moved_ray(where: Path) -> dict[str, str]:
    """An environment with a directory that is too long for Ray's sockets: they are moved, and that is said."""
    return {"RAY_TMPDIR": str(where / ("long" * 20))}


def stop_by(driver: Driver, name: str, row: Row) -> float:
    """Stop a driver in the environment of `moved_ray` in one of the ways of `STOPS`. Returns the seconds it took."""
    started, number = time.monotonic(), getattr(signal, name.split(" ")[0].rstrip(","))
    rays = descendants(driver.process.pid)
    if "group" in name:
        os.killpg(driver.process.pid, number)
    else:
        driver.process.send_signal(number)
    for pid in rays if "everything" in name else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if "KILL" in name and not driver.until(driver.ended, 3.0):
        driver.process.kill()
    if "twice" in name:
        time.sleep(0.2)
        driver.process.send_signal(signal.SIGINT)
    code = driver.wait(240)
    seconds = time.monotonic() - started
    row.times += 1
    killed = "SIGKILL" in name and code == -signal.SIGKILL
    row.expect(code == EXIT_INTERRUPTED or killed, f"{name}: ended with {code}")
    row.expect(not TIMED or seconds < 30, f"{name}: took {seconds:.0f} s")
    if code == EXIT_INTERRUPTED:
        last = driver.said[-1]
        row.expect(last.endswith(f"--output {driver.root}"), f"{name}: its last line is {last!r}")
        row.expect(not any("Traceback" in line for line in driver.said), f"{name}: a traceback")
        row.expect(f"stopped by {number.name}" in driver.said, f"{name}: another reason: {driver.said[-3:]}")
        moved = any("Ray's temporary files go to /tmp" in line for line in driver.said)
        row.expect(moved, f"{name}: nobody said where Ray's files are")
    left = until_gone(rays)
    row.expect(not left, f"{name}: {len(left)} processes outlive it")
    return seconds


def signals(where: Path, times: int, sha256: str, dice: random.Random) -> Row:
    """F8: every signal that asks for an end: saved, exit 4 within 30 s, the last line is the command that goes on."""
    row = Row("F8 SIGINT, SIGTERM, SIGUSR1, job stop")
    slowest = dict.fromkeys(STOPS, 0.0)
    for i in range(times):
        root, spec = where / f"signals{i}", make_project(where)
        watched = Watched(root, row)
        for name in STOPS:
            driver, before = Driver(spec, root, pause=0.03, environment=moved_ray(where)), len(recorded(root))
            came = driver.until(lambda n=before + 1, root=root: len(recorded(root)) >= n)  # type: ignore[misc]
            time.sleep(dice.uniform(0.0, 1.0))
            if driver.ended() or not came:
                driver.wait(0)
                break
            slowest[name] = max(slowest[name], stop_by(driver, name, row))
            watched.look()
        finish(Driver(spec, root), row, watched, sha256)
        failures = [f.error for f in open_sweep(root).failures]
        row.expect(not failures, f"signals counted as failures of the user's: {failures}")
    row.notes += [f"{name} {seconds:.1f} s" for name, seconds in slowest.items()]
    return row


def kill_with_tune_state(start: Callable[[], Driver], row: Row) -> Path:
    """Kill a driver that has written a whole state of Tune with open trials, and wait for its end."""
    for _ in range(3):  # a kill may come while Tune writes, or between two trials: then there is nothing to restore
        driver = start()
        driver.until(lambda root=driver.root: _open_trials(root) > 0)  # type: ignore[misc] # bound now
        family = set(children_of(driver.process.pid))
        driver.process.kill()
        driver.wait(10)
        until_gone(family)  # its workers see that it is gone
        row.times += 1
        if _open_trials(driver.root):
            break
    row.expect(_open_trials(driver.root) > 0, "no kill left a whole state of Tune with open trials")
    return driver.root


def num_rounds(root: Path) -> int:
    """How often Tune was started anew."""
    return len(list((root / "tune").glob("round-*")))


def broken_tune_states(where: Path, sha256: str) -> Row:
    """F16: Tune's state whole, half, empty, of the future or gone: restored where it is whole, and never missed."""
    row = Row("F16 corrupt Tune state")
    root, spec = where / "tune", make_project(where)

    def started() -> Driver:
        shutil.rmtree(root, ignore_errors=True)
        driver = Driver(spec, root, pause=0.04, environment=OFTEN)
        driver.until(lambda: len(recorded(root)) >= 3)
        return driver

    kill_with_tune_state(started, row)
    for name, damage in TUNE_DAMAGE.items():
        copy = where / f"tune-{name}"
        shutil.copytree(root, copy, symlinks=True)
        if name == "whole":  # Tune's trials remember where they were
            shutil.rmtree(copy)
            shutil.copytree(root, where / "kept")
            copy = root
        (newest,) = (copy / "tune").glob("round-*")
        damage(newest)
        watched = Watched(copy, row)
        watched.look()
        finish(Driver(spec, copy), row, watched, sha256)
        rounds = num_rounds(copy)
        row.expect(rounds == (1 if name == "whole" else 2), f"{name}: {rounds} rounds of Tune")
        row.times += 1
        if name == "whole":
            shutil.rmtree(root)
            (where / "kept").rename(root)
    return row


OFTEN = {"TUNE_GLOBAL_CHECKPOINT_S": "0.5"}  # that Tune writes its state


def _open_trials(root: Path) -> int:
    """By Tune's state; 0 where it is torn."""
    try:
        newest = max((root / "tune").glob("round-*"))
        trials = json.loads(max(newest.glob("experiment_state-*.json")).read_bytes())["trial_data"]
        return sum(json.loads(trial)["status"] not in FINISHED for trial, _ in trials)
    except (OSError, ValueError):
        return 0


def _halve(directory: Path) -> None:
    state = max(directory.glob("experiment_state-*.json"))
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])


def _empty(directory: Path) -> None:
    (directory / "tuner.pkl").write_bytes(b"")


def _postdate(directory: Path) -> None:
    later = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(time.time() + 3600))
    max(directory.glob("experiment_state-*.json")).rename(directory / f"experiment_state-{later}.json")


def _forget(directory: Path) -> None:
    for path in directory.glob("*state-*"):
        path.unlink()


TUNE_DAMAGE: dict[str, Callable[[Path], None]] = {
    "whole": lambda directory: None,
    "half": _halve,
    "empty": _empty,
    "future": _postdate,
    "gone": _forget,
}


@contextlib.contextmanager
def holding(root: Path) -> Iterator[Holder]:
    """A process that holds the lock of a sweep directory and is killed in the end."""
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom flops_fit_ray.storage.paths import SweepPaths\n"
        "from flops_fit_ray.ledger import Ledger\n"
        "with Ledger(SweepPaths(Path(sys.argv[1]))).writer() as dead:\n    print(dead, flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(root)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            yield Holder(owner.pid, owner.stdout.readline())
        finally:
            owner.kill()


def contention(where: Path, times: int) -> Row:
    """F17: a second driver is refused in under 5 s with host and pid, also through a symlink; not by a dead one."""
    row = Row("F17 two drivers, stale lock")
    root, spec, slowest = where / "locked", make_project(where), 0.0
    root.mkdir()
    link = where / "link"
    link.symlink_to(root)
    before: int | None = None
    for i in range(times):
        with holding(root) as owner:
            row.expect(
                before is None or f"process {before} on" in owner.said,
                f"the dead owner was not recognised: {owner.said!r}",
            )
            started = time.monotonic()
            second = Driver(spec, link if i % 2 else root)
            code = second.wait(240)
            slowest = max(slowest, time.monotonic() - started)
            row.times += 1
            text = "\n".join(second.said)
            row.expect(code == 2 and f"process {owner.pid} on" in text, f"the second one: {code}, {text[-200:]!r}")
        before = owner.pid
    row.expect(not TIMED or slowest < 5, f"took {slowest:.1f} s")
    row.notes.append(f"slowest refusal {slowest:.1f} s")
    return row


def _apart(module: str, *arguments: object) -> dict[str, Any]:
    """What a module of the tests finds in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def file_kills(where: Path, times: int) -> Row:
    """F1: killed before each of its operations on files."""
    found = _apart("tests.killing", where / "killing", times)
    return Row(
        "F1 SIGKILL between durable writes",
        times=found["points"] * found["times"],
        violations=found["violations"],
        notes=[f"{found['points']} points"],
    )


def writer_kills(where: Path, times: int) -> Row:
    """F3: a process that does nothing but write into the ledger, killed at random moments."""
    found = _apart("tests.writing", where / "writing", times)
    return Row(
        "F3 SIGKILL of a ledger writer",
        times=found["kills"],
        violations=found["violations"],
        notes=[f"{found['results']} results written meanwhile"],
    )


def soak(where: Path, experiments: int) -> Row:
    """F26: many short experiments: memory, files and processes do not pile up."""
    row = Row("F26 soak")
    root = where / "soak"
    sizes = list(range(1, 17))
    budgets = [{"flops": 2e4 * 1.02**i, "sizes": sizes} for i in range(experiments // len(sizes) + 1)]
    spec = make_project(where)
    driver = Driver(spec, root, "--set", f"budgets={json.dumps(budgets)}", "--set", "grid.trunk=false", pause=0.0)
    readings: list[tuple[int, int]] = []
    for share in (0.25, 0.95):
        driver.until(lambda n=share * experiments: len(recorded(root)) >= n, 600)  # type: ignore[misc] # bound now
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{driver.process.pid}/status").read_text()
            rss = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024
            readings.append((rss, len(list(Path(f"/proc/{driver.process.pid}/fd").iterdir()))))
        if share > 0.9:
            zombies = [
                pid for pid in children_of(driver.process.pid) if Path(f"/proc/{pid}").exists() and not alive([pid])
            ]
            row.expect(not zombies, f"{len(zombies)} zombies")
    code = driver.wait(300)
    row.times = len(recorded(root))
    row.expect(code in (0, 1) and row.times == len(budgets) * len(sizes), f"ended with {code} after {row.times}")
    row.expect(len(readings) == 2, "the driver ended too soon to be read")
    if len(readings) == 2:
        (rss_0, files_0), (rss_1, files_1) = readings
        row.expect(rss_1 - rss_0 < 50 and files_1 - files_0 < 10, "memory or files grow")
        row.notes.append(f"driver {rss_0} -> {rss_1} MB, {files_0} -> {files_1} open files")
    return row


def scenarios(where: Path, dice: random.Random) -> dict[str, Callable[[], Row]]:
    """The long run of each, by the number of its fault."""
    sha256 = uninterrupted(where / "plain")
    return {
        "F3": lambda: writer_kills(where, 5000),
        "F17": lambda: contention(where, 50),
        "F16": lambda: broken_tune_states(where, sha256),
        "F7": lambda: head_kills(where, 5, sha256, dice),
        "F6": lambda: node_kills(where, 10, sha256, dice),
        "F5": lambda: worker_kills(where, 50, sha256, dice),
        "F26": lambda: soak(where, 200),
        "F4": lambda: driver_kills(where, 20, 5, sha256, dice),
        "F8": lambda: signals(where, 10, sha256, dice),
        "F1": lambda: file_kills(where, 20),
    }


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = ["| fault | times | violations | minutes | notes |", "|---|---|---|---|---|"]
    for row in rows:
        notes = "; ".join([*row.violations[:3], *row.notes[-3:]])
        lines.append(f"| {row.name} | {row.times} | {len(row.violations)} | {row.seconds / 60:.1f} | {notes} |")
    return "\n".join(lines)


def main() -> int:
    """Run scenarios until they are done or the time is over, and print the table after each."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=90.0, help="begin nothing new after so long")
    parser.add_argument("--only", action="append", help="F1, F3, F4, ...; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table here")
    asked = parser.parse_args()
    global TIMED
    TIMED = True
    rows: list[Row] = []
    deadline = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory(prefix="chaos") as where:
        for name, run in scenarios(Path(where), random.Random(asked.seed)).items():
            if (asked.only and name not in asked.only) or time.monotonic() > deadline:
                continue
            started = time.monotonic()
            row = run()
            row.seconds = time.monotonic() - started
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)  # noqa: T201 - its output
            if asked.out:
                asked.out.write_text(table(rows) + "\n")
    return 1 if any(row.violations for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
