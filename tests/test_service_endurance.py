"""What a service does not wait for, follow or unpack: links, odd files, slow directories, slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from flops_fit_ray.errors import DirectoryError, FitError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.service.client import ServiceError
from flops_fit_ray.service.http import connections, visits
from flops_fit_ray.service.rest.feeds import Feeds
from flops_fit_ray.service.runs._supervisor import start_ticks
from flops_fit_ray.service.state import _fit_answers, cache, fits, pricing
from flops_fit_ray.service.state.cache import SweepCache, SweepCaches
from flops_fit_ray.service.state.snapshot import Snapshot
from flops_fit_ray.storage.opening import follow_no_links_in
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import open_sweep
from tests.hangs import HANG_SECONDS
from tests.serving import Served, serving
from tests.sweeps import make_sweep, reference_parts, reference_spec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "known"
    spec = reference_spec()
    make_sweep(root, spec, reference_parts(spec), only=14)
    return root


@pytest.fixture
def served(made: Path, tmp_path: Path) -> Iterator[Served]:
    shutil.copytree(made, tmp_path / "runs/known")
    with serving(tmp_path / "runs", at_once=0) as found:
        yield found


def test_files_behind_links_are_not_read(served: Served, tmp_path: Path) -> None:
    """A result behind a link is none for the service; for a command of the owner it is the file."""
    root = served.state.runs.paths.root / "known"
    paths, key = SweepPaths(root), sorted(SweepPaths(root).recorded_keys())[0]
    assert served.client.sweep("known")["counts"]["completed"] == 14
    result, directory = local_path(paths.result(key)), local_path(paths.result(key)).parent
    for moved in (result, directory):
        moved.rename(tmp_path / "moved")
        moved.symlink_to(tmp_path / "moved")
        with_links = SweepPaths(tmp_path / "links" / moved.name)
        shutil.copytree(root, local_path(with_links.root), symlinks=True)
        assert Ledger(with_links).result(key) is not None
        assert SweepCache(paths).now().counts["completed"] == 13
        assert SweepCache(paths).now().by_key[key]["loss"] is None
        moved.unlink()
        (tmp_path / "moved").rename(moved)
    plan = local_path(paths.plan)
    plan.rename(tmp_path / "plan.json")
    plan.symlink_to(tmp_path / "plan.json")
    with pytest.raises(DirectoryError):
        SweepCache(paths).now()


def test_odd_files_hold_nobody_up(served: Served) -> None:
    """Pipes, devices, directories and 8 GB without content, where files of a sweep are."""
    root = served.state.runs.paths.root

    def endless(path: Path) -> None:
        path.symlink_to("/dev/zero")

    def huge(path: Path) -> None:
        path.touch()
        os.truncate(path, 8 << 30)

    for make in (os.mkfifo, endless, huge, Path.mkdir):
        name = getattr(make, "__name__", "odd")
        shutil.copytree(root / "known", root / name)
        paths = SweepPaths(root / name)
        keys = sorted(paths.recorded_keys())
        odd = [
            paths.result(keys[0]),
            paths.curve(keys[1]),
            paths.progress(keys[2]),
            paths.events(keys[2]),
            paths.failure(keys[3]),
        ]
        odd += [paths.cluster, paths.lock_owner, paths.lock, paths.stop, paths.finished, paths.completed, paths.ends]
        for place in map(local_path, odd):
            place.unlink(missing_ok=True)
            make(place)
        assert served.client.sweep(name)["counts"]["completed"] == 13, name
        for key in keys[:4]:
            for last in ("", "/metrics", "/history", "/log", "/checkpoints"):
                served.client.ask("GET", f"/sweeps/{name}/experiments/{key}{last}")
        assert served.client.ask("GET", f"/sweeps/{name}/experiments/{keys[1]}/history")["items"] == []


def test_a_curve_that_unpacks_to_a_bomb_is_none(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "sweep")
    paths = SweepPaths(tmp_path / "sweep")
    ledger, key = Ledger(paths), sorted(paths.recorded_keys())[0]
    assert len(ledger.curve_rows(key)) > 1
    zeros = pyarrow.nulls(1_100_000, pyarrow.int64()).fill_null(0)
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["x" * 100_000])
    for table in (
        pyarrow.table({"tokens": zeros, "train_loss": zeros}),
        pyarrow.table({"tokens": text, "train_loss": text}),
        pyarrow.table({"tokens": [[0] * 1000] * 100, "train_loss": [1.0] * 100}),
        pyarrow.table({f"c{i}": [1] for i in range(100)}),
    ):
        parquet.write_table(table, local_path(paths.curve(key)))
        assert local_path(paths.curve(key)).stat().st_size < 500_000
        assert ledger.curve_rows(key) == [] and len(ledger.curve(key)[0]) == 0


def test_a_directory_that_does_not_answer_holds_up_no_other(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    root, gate = served.state.runs.paths.root, threading.Event()
    shutil.copytree(root / "known", root / "stuck")
    read = SweepCache._read

    def slow(self: SweepCache) -> Snapshot:
        if self._paths.root.name == "stuck":
            gate.wait(HANG_SECONDS)
        return read(self)

    monkeypatch.setattr(SweepCache, "_read", slow)
    monkeypatch.setattr(cache, "MAX_WAIT_SECONDS", 0.3)
    before = threading.active_count()
    try:
        for _ in range(5):
            with pytest.raises(ServiceError, match="stuck"):
                served.client.ask("GET", "/sweeps/stuck/experiments")
            assert served.client.sweep("known")["state"] == "stopped"
            assert "known" in [sweep["name"] for sweep in served.client.pages("/sweeps")]
        assert threading.active_count() < before + 10
    finally:
        gate.set()
    until = time.monotonic() + 20
    while time.monotonic() < until and served.client.sweep("stuck")["state"] != "stopped":
        time.sleep(0.05)
    assert served.client.sweep("stuck")["counts"]["completed"] == 14


@contextlib.contextmanager
def hanging(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every call of the operating system on a directory wait, as on a mount whose server is gone."""
    gate = threading.Event()

    def waits(function: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(path: Any = ".", *more: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and f"{os.fspath(path)}/".startswith(f"{directory}/"):
                gate.wait(60)
            return function(path, *more, **options)

        return waiting

    with monkeypatch.context() as patched:
        for function in (os.stat, os.lstat, os.open, os.listdir, os.scandir):
            patched.setattr(os, function.__name__, waits(function))
        try:
            yield
        finally:
            gate.set()


def test_a_mount_that_hangs_takes_a_few_threads_and_no_other_sweep(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked of it, as often as people ask again; then it is back, and all is as before."""
    root, client = served.state.runs.paths.root, served.client
    shutil.copytree(root / "known", root / "stuck")
    key = sorted(SweepPaths(root / "stuck").recorded_keys())[0]
    for name in ("known", "stuck"):  # both are known before a look may take no longer than 0.2 s
        assert client.sweep(name)["counts"]["completed"] == 14
    monkeypatch.setattr(cache, "MAX_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(visits, "SLOW_SECONDS", 0.2)
    paths = (
        "",
        f"/experiments/{key}",
        f"/experiments/{key}/history",
        "/notes",
        "/checkpoints",
        "/curves/figure",
        "/fit",
    )
    before, refused = threading.active_count(), Counter[int]()

    def ask(method: str, path: str) -> None:
        try:
            client.ask(method, path)
        except ServiceError as e:
            refused[e.status] += 1

    asked = [(method, f"/sweeps/stuck{path}") for path in paths for method in ("GET",) * 6]
    asked += [("POST", "/sweeps/stuck/stop"), ("POST", "/sweeps/stuck/resume"), ("DELETE", "/sweeps/stuck")] * 3
    with hanging(root / "stuck", monkeypatch):
        time.sleep(cache.FRESH_SECONDS)
        people = [threading.Thread(target=ask, args=one, daemon=True) for one in asked]
        for one in people:
            one.start()
            time.sleep(0.02)
        held = threading.active_count() - before - sum(one.is_alive() for one in people)
        assert held <= visits.MAX_SLOW + 16  # and those that came before four of them were slow
        assert client.sweep("known")["state"] == "stopped"
        assert {sweep["name"] for sweep in client.pages("/sweeps")} == {"known", "stuck"}
        (seen,) = [sweep for sweep in client.pages("/sweeps") if sweep["name"] == "stuck"]
        assert seen["counts"]["completed"] == 14  # as it was seen last
        assert refused[503] > len(asked) / 2 and set(refused) == {503}
    for one in people:
        one.join(30)
    assert not any(one.is_alive() for one in people)
    assert client.ask("GET", f"/sweeps/stuck/experiments/{key}")["status"] == "completed"


def test_fits_that_take_long_hold_up_one_another_alone(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of the long ones is stopped in the middle of a question; the short ones are answered meanwhile."""
    snapshot, worker = SweepCache(SweepPaths(made)).now(), fits.FitWorker()
    work = len(snapshot.sweep.results) * snapshot.sweep.spec.fit.draws
    try:
        monkeypatch.setattr(fits, "LONG_WORK", work - 1)
        long = worker.ask("csv", snapshot)
        assert worker._long.pool is not None and worker._short.pool is None
        (held,) = worker._long.pool._processes
        os.kill(held, signal.SIGSTOP)
        monkeypatch.setattr(fits, "LONG_WORK", work)
        assert worker.ask("csv", snapshot).result(100).count(b"completed") == 14
        assert not long.done() and worker.ask("csv", snapshot).done()
        os.kill(held, signal.SIGCONT)
        assert long.result(100).count(b"completed") == 14
    finally:
        worker.close()


def test_any_number_of_watchers_costs_one_look_a_second(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Counter[str]()

    def counted(self: SweepCaches, name: str) -> Snapshot | None:
        looks[name] += 1
        return now(self, name)

    now, feeds = SweepCaches.now, Feeds(served.state)
    monkeypatch.setattr(SweepCaches, "now", counted)
    monkeypatch.setattr("flops_fit_ray.service.rest.feeds.POLL_SECONDS", 0.2)

    async def first_status() -> str:
        async for event in feeds.of_sweep("known", None):
            if event.event == "status":
                return str(event.raw_data)
        raise AssertionError("no status")

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(first_status() for _ in range(200)))

    found = asyncio.run(all_of_them())
    assert len(found) == 200 and set(map(id, found)) == {id(found[0])}  # one text for all of them
    assert json.loads(found[0])["counts"]["completed"] == 14
    assert looks["known"] <= 2 and not feeds._open


def test_outside_of_a_service_links_are_followed(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "sweep")
    paths = SweepPaths(tmp_path / "sweep")
    result = local_path(paths.result(sorted(paths.recorded_keys())[0]))
    result.rename(tmp_path / "annexed")
    result.symlink_to(tmp_path / "annexed")
    assert len(open_sweep(paths.root).results) == 14
    follow_no_links_in(local_path(paths.root))
    assert len(open_sweep(paths.root).results) == 13


def test_half_a_request_holds_nobody_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 connections without a token that send nothing, half a head, half a body or bytes now and then."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    head = f"Host: {host}:{port}\r\n"
    halves = ["", "GET /api/v1/hea", f"GET / HTTP/1.1\r\n{head}", f"GET /login HTTP/1.1\r\n{head}\r\nGET / HT"]
    halves += [f"POST /login HTTP/1.1\r\n{head}Origin: {served.url}\r\nContent-Length: 100\r\n\r\ntoken="]
    monkeypatch.setattr(connections, "GRACE_SECONDS", 0.0)
    with contextlib.ExitStack() as until:
        slow = [until.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(300)]
        for number, connection in enumerate(slow):
            with contextlib.suppress(ConnectionError):  # closed by now
                connection.sendall(halves[number % len(halves)].encode())
        assert served.client.sweep("known")["state"] == "stopped"
        assert len(connections.LimitedProtocol._waiting["127.0.0.1"]) <= connections.MAX_WAITING
        assert served.client.sweep("known")["state"] == "stopped"
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    with socket.create_connection((host, int(port)), timeout=20) as slow_one:
        ended = b"?"
        while ended:
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                slow_one.sendall(b"G")
                slow_one.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    ended = slow_one.recv(100)
                continue
            break


def test_a_burst_of_requests_of_one_address_is_answered(served: Served) -> None:
    """As many people behind one proxy: all have connected and asked before the service reads the first of them."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    asked, pause = f"GET /api/v1/health HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode(), threading.Event()
    with contextlib.ExitStack() as until:
        until.enter_context(socket.create_connection((host, int(port)), timeout=20))
        while not (waiting := connections.LimitedProtocol._waiting.get(host)):
            time.sleep(0.01)
        next(iter(waiting)).loop.call_soon_threadsafe(pause.wait, 20)
        number = connections.MAX_WAITING + 30
        crowd = [until.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(number)]
        for connection in crowd:
            connection.sendall(asked)
        pause.set()
        assert all(b" 200 OK" in connection.recv(100) for connection in crowd)


PRICED = """
import subprocess, sys, time
from pathlib import Path
from flops_fit_ray.service.state import pricing
def work():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(sys.argv[1]).write_text(str(child.pid))
    {work}
    return 0
{before}
sys.exit(pricing.watched(work))
"""


def priced(tmp_path: Path, work: str, before: str = "") -> tuple[subprocess.Popen[bytes], int]:
    """A process that is watched as pricing is, and another one that its code has started."""
    note = tmp_path / "pid"
    process = subprocess.Popen(
        [sys.executable, "-c", PRICED.format(work=work, before=before), str(note)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    until = time.monotonic() + 30
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    return process, int(note.read_text())


def test_pricing_ends_with_its_service_and_all_that_it_started(tmp_path: Path) -> None:
    """Though the code holds Python's lock: the regular expression never lets it go."""
    process, below = priced(tmp_path, "import re; re.match('(a*)*$', 'a' * 40 + 'b')")
    with process:
        assert process.stdin is not None
        process.stdin.close()  # as the death of the service does
        assert process.wait(HANG_SECONDS) == -signal.SIGKILL
    until = time.monotonic() + 20
    while start_ticks(below) is not None:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_pricing_ends_where_it_takes_too_much_memory(tmp_path: Path) -> None:
    process, below = priced(
        tmp_path, "held = bytearray(200_000_000); time.sleep(60)", "pricing._max_memory = lambda: 10**8"
    )
    with process:
        assert process.wait(HANG_SECONDS) == pricing.OUT_OF_MEMORY
    os.kill(below, signal.SIGKILL)  # `_run` ends the group, when it sees this


def test_a_fit_of_too_many_draws_is_refused_and_the_rest_answered(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fit_answers, "MAX_DRAWS", open_sweep(made).spec.fit.draws - 1)
    most = _fit_answers.MAX_DRAWS
    words = f"fit.draws: {most + 1} would hold up .*a service draws {most} at most; run .* {made}"
    for question, more in (("fit", ()), ("predict", ("budget=1e9",)), ("report", ()), ("valleys", ())):
        with pytest.raises(FitError, match=words):
            _fit_answers.answer_question(question, str(made), "1", more)
    shown = json.loads(_fit_answers.answer_question("short", str(made), "1", ()))
    assert re.match(words, shown["problem"]) and shown["results"] == 14 and shown["valleys"] == []
    assert _fit_answers.answer_question("csv", str(made), "1", ()).count(b"completed") == 14


def test_a_directory_that_loses_its_spec_is_no_fault_of_the_request(made: Path, tmp_path: Path) -> None:
    """As between two moves of a deletion: it was answered with 422, as if the request had been wrong."""
    shutil.copytree(made, tmp_path / "moved")
    (tmp_path / "moved" / "sweep.yaml").unlink()
    (tmp_path / "moved" / "sweep.yaml").mkdir()
    with pytest.raises(DirectoryError, match="sweep.yaml: cannot be read"):
        _fit_answers.answer_question("csv", str(tmp_path / "moved"), "1", ())
