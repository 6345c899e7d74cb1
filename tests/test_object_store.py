"""A sweep directory on s3://: the same promises, against a real server, and through a proxy that misbehaves."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flops_fit_ray.cli import main
from flops_fit_ray.engine._crash import KILLED, crashes_noted, describe_death, is_hang, upload_stacks
from flops_fit_ray.engine._ledger_observer import LedgerObserver
from flops_fit_ray.errors import DirectoryError, InterruptedSweepError, SpecError, StorageError
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.pipeline import check_output
from flops_fit_ray.report import write_report
from flops_fit_ray.storage._lease import LeaseHeldError, leased
from flops_fit_ray.storage.atomic import read_json, write_bytes, write_json
from flops_fit_ray.storage.lock import exclusive, hostname
from flops_fit_ray.storage.object_store import ObjectPath
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import (
    StoragePath,
    local_path,
    names_in,
    pyarrow_location,
    remove_tree,
    storage_path,
)
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.sweep.recorded import recorded_constants
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from tests.faulty import crashing
from tests.hangs import HANG_SECONDS
from tests.killing import one_run, run_here
from tests.object_store import Proxy, s3_server, uri
from tests.parts import planned, user_parts_of
from tests.records import FAILURE, RESULT
from tests.test_cli import call


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr("flops_fit_ray.storage.atomic.RETRY_SECONDS", (0.1, 0.2))
    proxy = Proxy(port)
    yield proxy
    proxy.close()


@pytest.fixture
def root(port: int, request: pytest.FixtureRequest) -> StoragePath:
    return storage_path(uri(port, f"{request.node.name}/sweep"))


def through_proxy(path: StoragePath, proxy: Proxy) -> StoragePath:
    """Return the same place as the proxy sees it."""
    bucket_and_key = pyarrow_location(path)[1]
    return storage_path(uri(proxy.port, bucket_and_key.partition("/")[2]))


def test_places() -> None:
    place = storage_path("s3://bucket/a/b/?endpoint_override=localhost:9000&scheme=http")
    assert str(place) == "s3://bucket/a/b?endpoint_override=localhost:9000&scheme=http"
    assert str(place / "c.json") == "s3://bucket/a/b/c.json?endpoint_override=localhost:9000&scheme=http"
    child = place / "c/d.json"
    assert (child.name, child.stem, child.suffix, child.parent.name) == ("d.json", "d", ".json", "c")
    assert child.with_name("e").parent == child.parent and place.absolute() is place
    assert storage_path("a/b") == Path.cwd() / "a/b" and storage_path(Path("/x")) == Path("/x")
    for bad in ("s3://", "s3://bucket", "http://x/y", "s3:///key"):
        with pytest.raises(SpecError, match="no path and not of the form s3://bucket/name"):
            storage_path(bad)


def test_what_needs_a_file_refuses_an_object_store() -> None:
    assert local_path(Path("/x")) == Path("/x")
    with pytest.raises(DirectoryError, match="s3://bucket/a: lies in an object store, and this needs a file"):
        local_path(storage_path("s3://bucket/a"))


def test_the_ledger_keeps_its_promises(root: StoragePath) -> None:
    ledger = Ledger(SweepPaths(root))
    assert ledger.result("k1") is None and ledger.outcomes(["k1"]) == []
    assert ledger.begin_attempt("k1") == 1 and ledger.begin_attempt("k1") == 2
    ledger.record_death("k1")
    assert (ledger.num_attempts("k1"), ledger.num_deaths("k1")) == (2, 1)
    ledger.record_failure(FAILURE)
    assert ledger.outcomes(["k1"]) == [FAILURE]
    ledger.retry("k1")
    assert ledger.failure("k1") is None
    assert sorted(names_in(ledger.paths.attempts("k1"))) == [
        "0001.json",
        "0002-died.json",
        "0002-failure.json",
        "0002.json",
    ]
    assert ledger.record_result(RESULT) == RESULT
    assert ledger.record_result(replace(RESULT, loss=9.0)) == RESULT  # the first stays
    assert ledger.outcomes(["k1"]) == [RESULT] and ledger.paths.recorded_keys() == {"k1"}
    for words in ("one", "two"):
        ledger.record_event("k1", words, level="warning")
    (first, second), position = ledger.events_since("k1", 0)
    assert (first.message, second.message) == ("one", "two") and ledger.events_since("k1", position) == ([], position)

    path = ledger.paths.result("k1")
    write_bytes(path, b'{"torn')
    assert ledger.result("k1") is None
    assert ledger.record_result(RESULT) == RESULT
    assert len([name for name in names_in(path.parent) if name.startswith("result.json.unreadable-")]) == 1
    remove_tree(root)
    assert names_in(root) == []


def test_checkpoints(root: StoragePath) -> None:
    store = CheckpointStore(root / "checkpoints", key="k", keep=2)
    state = {"step": 1, "weights": torch.arange(200_000.0)}
    for step in (1, 2, 3):
        store.save({**state, "step": step}, step)
    assert store.steps() == [2, 3]
    newest, words = store.newest()
    assert newest is not None and newest["step"] == 3 and newest["weights"].equal(state["weights"]) and not words
    write_bytes(root / "checkpoints" / "0000000003.pt", b"cut off")
    newest, words = store.newest()
    assert newest is not None and newest["step"] == 2
    assert words == ["checkpoint of step 3 is damaged (its sha256 differs); skipped, using the previous checkpoint"]
    store.clear()
    assert names_in(root / "checkpoints") == []


def test_a_sweep_there_has_the_bits_of_one_here(
    root: StoragePath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = run_here(tmp_path), run_here(root)
    assert there.complete and there.results_sha256 == here.results_sha256
    (key,) = there.paths.recorded_keys()
    before = there.paths.result(key).read_bytes()
    assert run_here(root).complete and there.paths.result(key).read_bytes() == before
    assert Ledger(there.paths).num_attempts(key) == 1
    write_report(open_sweep(root))
    assert {"report.html", "results.parquet", "analysis.json"} <= set(names_in(root))
    for command in (["status", str(root)], ["report", str(root)], ["plan", "--output", str(root)]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
    assert "1 completed of 1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["status", str(root / "nothing")])
    assert ended.value.code == 2 and "no such directory" in capsys.readouterr().err
    assert one_run().is_one_run


def test_an_outcome_that_is_gone_there_is_missed(root: StoragePath) -> None:
    sweep = run_here(root)
    (key,) = sweep.paths.recorded_keys()
    sweep.paths.result(key).unlink()
    now = open_sweep(root)
    assert (now.counts["damaged"], now.counts["planned"]) == (1, 0) and "gone: C 3e4, size 4" in now.damage[0].message
    assert run_here(root).complete and Ledger(sweep.paths).num_attempts(key) == 2
    ledger = Ledger(sweep.paths)
    ledger.note_ends({"a" * 16: "failed", "b" * 16: "completed"})
    ledger.note_ends({"a" * 16: None})
    assert Ledger(sweep.paths).noted_ends == {key: "completed", "b" * 16: "completed"}


HOLD = (
    "import sys, time\nfrom flops_fit_ray.storage.paths import SweepPaths\n"
    "from flops_fit_ray.storage.storage_path import storage_path\n"
    "from flops_fit_ray.storage.lock import exclusive\n"
    "with exclusive(SweepPaths(storage_path(sys.argv[1]))):\n    print('in', flush=True)\n    time.sleep(60)"
)


def test_one_writer_there(root: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    named = f"process {other.pid} on {hostname()}, since .* is writing here"
    with pytest.raises(DirectoryError, match=named), exclusive(SweepPaths(root)):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with monkeypatch.context() as patch:
        patch.setattr("flops_fit_ray.storage._lease._is_renewed", lambda *_: pytest.fail("it is watched"))
        with exclusive(SweepPaths(root)) as dead:  # a dead process of this machine is recognised at once
            assert str(dead).startswith(f"process {other.pid} on")

    monkeypatch.setattr("flops_fit_ray.storage._lease.SILENT_SECONDS", 0.1)
    note = {"token": "t", "host": "elsewhere", "pid": 1, "started_at": 1e9, "beat": 7}
    write_json(SweepPaths(root).lock_owner, note)
    with exclusive(SweepPaths(root)) as dead:  # one of another machine after a while of silence
        assert str(dead).startswith("process 1 on elsewhere, since 2001")
    assert read_json(SweepPaths(root).lock_owner) is None
    write_json(SweepPaths(root).lock_owner, {**note, "pid": "abc"})
    with exclusive(SweepPaths(root)) as dead:  # what cannot be read is nobody's
        assert dead is None


def test_of_many_that_start_at_once_one_writes(root: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a thread of its own; a dead process has left the first claim of all."""
    monkeypatch.setattr("flops_fit_ray.storage._claims.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("flops_fit_ray.storage._claims.SILENT_SECONDS", 3.0)
    path = SweepPaths(root).lock_owner
    assert isinstance(path, ObjectPath)
    for n in range(2):
        if n == 1:
            write_json(path.with_name(f"{path.name}.claim-0"), {})
        inside: list[int] = []
        refused: list[int] = []
        done = threading.Event()

        def hold(inside: list[int] = inside, refused: list[int] = refused, done: threading.Event = done) -> None:
            try:
                with leased(path, hostname()):
                    inside.append(1)
                    done.wait(HANG_SECONDS)
            except LeaseHeldError:
                refused.append(1)

        threads = [threading.Thread(target=hold) for _ in range(6)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 120
        while len(inside) + len(refused) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (len(inside), len(refused)) == (1, 5)
        done.set()
        for thread in threads:
            thread.join()
        assert names_in(root) == []  # neither a lease nor a claim is left


def test_of_many_that_record_a_result_at_once_the_first_stays(
    root: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers of one experiment, as where one was taken for dead: whoever has read the result has read the last."""
    monkeypatch.setattr("flops_fit_ray.storage._claims.RETRY_SECONDS", 0.05)
    ledger, gate, read = Ledger(SweepPaths(root)), threading.Barrier(5), dict[float, ExperimentResult]()

    def record(loss: float) -> None:
        gate.wait()
        read[loss] = ledger.record_result(replace(RESULT, loss=loss))

    threads = [threading.Thread(target=record, args=(1.0 + n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(read) == 5 and set(map(str, read.values())) == {str(ledger.result("k1"))}
    assert names_in(root / "experiments" / "k1") == ["result.json"]


def test_claims_of_the_dead_are_removed_by_the_next_writer(root: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(root)
    (key,) = SweepPaths(root).begun_keys()
    claims = [f"{path}.claim-0" for path in ("sweep.lock.json", f"experiments/{key}/result.json")]
    with exclusive(SweepPaths(root)):
        for name in claims:
            write_bytes(root / name, b"{}")
        SweepPaths(root).remove_strays()
        assert all((root / name).exists() for name in claims)  # they may be those of workers
        monkeypatch.setattr("flops_fit_ray.storage._claims.SILENT_SECONDS", -60.0)
        SweepPaths(root).remove_strays()
        assert not any((root / name).exists() for name in claims)
    assert open_sweep(root).complete


def test_an_owner_that_was_superseded_stops(root: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    monkeypatch.setattr("flops_fit_ray.storage._lease.BEAT_SECONDS", 0.2)
    monkeypatch.setattr("flops_fit_ray.storage._lease.os.kill", lambda pid, number: told.set())
    with exclusive(SweepPaths(root)):
        note = read_json(SweepPaths(root).lock_owner)
        for _ in range(100):  # a renewal at the same moment may overwrite it
            write_json(SweepPaths(root).lock_owner, {**(note or {}), "token": "another"})
            if told.wait(0.5):
                break
    assert told.is_set()
    assert read_json(SweepPaths(root).lock_owner) is not None  # and leaves the other's note alone


@pytest.mark.parametrize("mode", ["refuse", "cut"])
def test_a_store_that_fails_for_a_moment_is_asked_again(mode: str, proxy: Proxy, port: int, root: StoragePath) -> None:
    path = storage_path(uri(proxy.port, f"{mode}/big.bin"))
    content = os.urandom(300_000)
    proxy.mode = mode

    def recover() -> None:
        time.sleep(0.5)
        proxy.mode = "ok"

    threading.Thread(target=recover).start()
    monkey = pytest.MonkeyPatch()
    monkey.setattr("flops_fit_ray.storage.atomic.RETRY_SECONDS", (0.5, 1.0, 1.0))
    write_bytes(path, content)
    monkey.undo()
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", ["refuse", "cut", "hang"])
def test_a_store_that_fails_loses_nothing_and_is_never_taken_for_empty(
    mode: str, proxy: Proxy, port: int, root: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flops_fit_ray.storage.atomic.RETRY_SECONDS", ())
    direct, through = Ledger(SweepPaths(root)), Ledger(SweepPaths(through_proxy(root, proxy)))
    direct.record_result(RESULT)
    store = CheckpointStore(through.paths.root / "checkpoints", key="k")
    store.save({"step": 1, "weights": torch.zeros(100_000)}, 1)
    proxy.mode = mode
    with monkeypatch.context() as short:  # what does answer may take its time
        short.setattr("flops_fit_ray.storage.object_store.REQUEST_SECONDS", 2.0)
        with pytest.raises(StorageError, match="cannot be written: "):
            store.save({"step": 2, "weights": torch.ones(100_000)}, 2)
        if mode != "cut":  # small requests pass before the cut
            with pytest.raises(StorageError, match="result.json.*: cannot be read: "):
                through.result("k1")  # that it is missing would mean to train it again
    proxy.mode = "ok"
    assert through.result("k1") == RESULT
    assert store.steps() == [1]  # no half of the second one can be seen
    newest, words = store.newest()
    assert newest is not None and newest["step"] == 1 and words == []


def test_content_that_is_damaged_there_is_noticed(root: StoragePath) -> None:
    ledger = Ledger(SweepPaths(root))
    ledger.record_result(RESULT)
    place = ledger.paths.result("k1")
    good = place.read_bytes()
    for damaged in (good[: len(good) // 2], good.replace(b"1.25", b"1.35"), b""):
        write_bytes(ledger.paths.result("k1"), damaged)
        assert ledger.result("k1") is None
    write_bytes(ledger.paths.result("k1"), good)
    assert ledger.result("k1") == RESULT
    assert json.loads(place.read_bytes())["loss"] == 1.25
    assert pyarrow_location(place)[1].startswith("sweeps/test_content")


def test_no_request_holds_up_the_training_and_a_stop_is_seen(
    root: StoragePath, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flops_fit_ray.engine._ledger_observer.REMOTE_POLL_SECONDS", 0.2)
    monkeypatch.setattr("flops_fit_ray.storage.atomic.RETRY_SECONDS", ())
    spec = one_run()
    (experiment,) = planned(spec, user_parts_of(spec)).experiments
    through = Ledger(SweepPaths(through_proxy(root, proxy)))
    observer = LedgerObserver(through, experiment, 1, 0)
    with observer.watched(timeout=60.0):
        observer.progress(0, None)
        assert Ledger(SweepPaths(root)).progress(experiment.key) is not None
        proxy.mode = "hang"
        assert proxy.held.wait(HANG_SECONDS)  # the request of the watching thread
        for tokens in range(1, 1000):
            observer.progress(tokens, 1.0)  # a request of this thread would end in a StorageError
        proxy.mode = "ok"
        SweepPaths(root).stop.touch()
        deadline = time.monotonic() + 120
        with pytest.raises(InterruptedSweepError):
            while time.monotonic() < deadline:
                observer.progress(1000, 1.0)
                time.sleep(0.05)


def test_a_hang_is_known_there_too(root: StoragePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stack lies on the machine of the process: a driver there reads it, one elsewhere has it uploaded.

    As has the next attempt on that machine; the first that ends well, wherever it is, forgets it.
    """
    paths, driver, there = SweepPaths(root), tmp_path / "driver", tmp_path / "there"
    driver.mkdir()
    there.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(driver))
    assert crashing(str(root), "hang", TMPDIR=str(there)) == 1 and describe_death(paths, "key", "") == (KILLED, "")
    monkeypatch.setattr(tempfile, "tempdir", str(there))  # a driver on that machine
    assert is_hang(describe_death(paths, "key", "")[1])
    with crashes_noted(paths, "key", 60.0):  # the next attempt
        monkeypatch.setattr(tempfile, "tempdir", str(driver))
        line, trace = describe_death(paths, "key", "")
        assert is_hang(trace) and "line 11 in forward" in line
    assert describe_death(paths, "key", "") == (KILLED, "")  # it ended well
    assert crashing(str(root), "hang", TMPDIR=str(there)) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(there))
    upload_stacks(paths, "key")  # as its node is asked to
    monkeypatch.setattr(tempfile, "tempdir", str(driver))
    assert is_hang(describe_death(paths, "key", "")[1])
    with crashes_noted(paths, "key", 60.0):  # the next attempt, on a third machine
        assert is_hang(describe_death(paths, "key", "")[1])
    assert describe_death(paths, "key", "") == (KILLED, "")
    assert [path.read_bytes() for path in there.rglob("crash.txt")] == [b""]


@pytest.mark.parametrize("error", [StorageError("a full disk"), OSError("an error of the sweep")])
def test_what_goes_wrong_while_a_directory_is_held_is_no_fault_of_the_lock(root: StoragePath, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), exclusive(SweepPaths(root)):
        raise error


def test_a_store_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = storage_path(uri(1, "sweep") + "&region=here")
    for command in ("status", "fit"):
        assert call(command, nobody) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {nobody}: cannot be reached: ") and "look at the name of the bucket" in line
    for look in (check_output, lambda root: recorded_constants(SweepPaths(root))):
        with pytest.raises(DirectoryError, match="cannot be reached: .* look at the name of the bucket"):
            look(nobody)
