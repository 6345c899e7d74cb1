"""Runs that are asked for over HTTP: one per key, a queue with an end, states from files, keepers that outlive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from flops_fit_ray.errors import EXIT_INTERRUPTED, DirectoryError
from flops_fit_ray.ledger import Failure, Ledger
from flops_fit_ray.service.client import ServiceError
from flops_fit_ray.service.http.guard import token_of
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.private import Seal
from flops_fit_ray.service.runs._supervisor import start_ticks
from flops_fit_ray.service.runs.asked import Additions, QueuedRun
from flops_fit_ray.service.runs.launch import SAME_START_TICKS, LocalLauncher, ProcessState, tail
from flops_fit_ray.service.runs.queue import Runs
from flops_fit_ray.service.runs.specs import Specs
from flops_fit_ray.service.state.cache import SweepCaches
from flops_fit_ray.service.state.views import state_of, sweep_view
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.run_limits import RunLimits
from flops_fit_ray.training.fence import Fence
from tests.chaos import make_project
from tests.hangs import HANG_SECONDS
from tests.records import recorded
from tests.serving import ServiceProcess, serving
from tests.sweeps import make_sweep, reference_parts, reference_spec

GOES, HOLDS = "0.01", "1"  # seconds that a step takes
NAPPING = """
import sys, time, signal
signal.signal(15, lambda *_: sys.exit(4))
print("napping", flush=True)
time.sleep(60)
"""


@pytest.fixture
def runs(tmp_path: Path, code: Path) -> Iterator[Runs]:
    """All of it but the server; nothing is handed over by itself."""
    paths = ServicePaths(tmp_path / "runs")
    launcher = LocalLauncher(paths, Fence((code,)))
    yield Runs(paths, Specs(paths, [code]), launcher, at_once=1, max_queued=3)
    for supervisor in launcher._supervisors:
        supervisor.wait(HANG_SECONDS)


def ask(runs: Runs, code: Path, name: str, key: str | None = None) -> str:
    spec, _ = runs._specs.create((code / "sweep.yaml").read_text(), None)
    return runs.start(spec, name, RunLimits(), key)[0].sweep


def until(condition: Callable[[], bool], seconds: float = HANG_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def naps(runs: Runs, name: str) -> None:
    """What would train, naps instead: a real process that ends as training does when it is asked to."""
    module = runs.paths.root.parent / "code" / "napping.py"
    module.write_text(NAPPING)
    asked = runs.paths.start(name, 1).asked
    content = read_json(asked)
    assert content is not None
    write_json(asked, runs._seal.sealed({**content, "words": ["napping"]}, runs.paths.resolved(name)))


def test_twenty_starts_at_once_with_one_key_are_one_run(tmp_path: Path, code: Path) -> None:
    with serving(tmp_path / "runs", (code,), at_once=0) as served:
        text, gate = (code / "sweep.yaml").read_text(), threading.Barrier(20)

        def start(_: int) -> str:
            client = served.client
            gate.wait()
            return client.start(text, key="the same")

        with ThreadPoolExecutor(20) as pool:
            assert set(pool.map(start, range(20))) == {"chaos"}
        assert served.state.runs.paths.num_starts("chaos") == 1
        assert [s["name"] for s in served.client.pages("/sweeps")] == ["chaos"]
        assert served.client.sweep("chaos")["state"] == "queued"
        with pytest.raises(ServiceError, match="was used for another request"):
            served.client.start(text, key="the same", name="another")
        with pytest.raises(ServiceError, match="chaos exists already"):
            served.client.start(text, key="a new one")
    with serving(tmp_path / "runs", (code,), at_once=0) as served:  # a service that was started again knows as much
        assert served.client.start(text, key="the same") == "chaos"
        assert served.state.runs.paths.num_starts("chaos") == 1


def test_budgets_are_chosen_by_what_a_sweep_may_cost(tmp_path: Path, code: Path) -> None:
    listed = (code / "sweep.yaml").read_text()
    lines = [line for line in listed.splitlines() if not line.startswith(("budgets:", "- "))]
    opened = "\n".join([*lines, "budgets: auto", ""])
    with serving(tmp_path / "runs", (code,), at_once=0) as served:
        refused: list[tuple[str, dict[str, Any], str]] = [
            (opened, {}, "what the sweep may cost, in minutes, hours or flops: give minutes"),
            (opened, {"minutes": 3, "hours": 1}, "hours says what minutes says"),
            (opened, {"minutes": 0}, "greater than 0"),
            (listed, {"flops": 1e9}, "are listed, so a limit of 1e9 FLOPs chooses none"),
        ]
        for text, limit, words in refused:
            with pytest.raises(ServiceError, match=words) as caught:
                served.client.start(text, name="no", **limit)
            assert caught.value.status == 422
        assert served.state.runs.known() == []
        assert served.client.start(opened, key="one", minutes=3) == "chaos"
        said = served.client.start(opened.replace("auto", "{hours: 2}"), name="other")
        asked = [served.state.runs.last(name) for name in ("chaos", said)]
        given = [run.run.words for run in asked if run is not None]
        assert given[0][-2:] == ["--minutes", "3"] and "--minutes" not in given[1] and len(given) == 2
        with pytest.raises(ServiceError, match="was used for another request"):
            served.client.start(opened, key="one", minutes=4)


def test_a_key_whose_service_died_in_between_is_gone_on_with(runs: Runs, code: Path) -> None:
    ask(runs, code, "one", "key")
    runs.paths.start("one", 1).asked.unlink()  # the last thing that is written
    assert ask(runs, code, "one", "key") == "one" and runs.paths.num_starts("one") == 1


def test_the_queue_has_an_end_and_an_order(runs: Runs, code: Path) -> None:
    for name in ("b", "a", "c"):
        ask(runs, code, name)
        naps(runs, name)
    with pytest.raises(RequestError, match=r"the queue is full \(3 runs\)"):
        ask(runs, code, "d")
    assert [s.run.sweep for s in runs.open()] == ["b", "a", "c"]
    runs.start_waiting()
    runs.start_waiting()
    phases = {s.run.sweep: s.phase for s in runs.open()}
    assert phases == {"b": "running", "a": "queued", "c": "queued"}  # one at a time
    runs.stop("a")
    gone = runs.last("a")
    assert gone is not None and gone.phase == "ended" and gone.message == "it was stopped while queued"
    assert state_of(gone, None, None) == "stopped"
    until(lambda: runs.log("b") == b"napping\n")
    assert runs.stop("b").phase in ("stopping", "ended")
    until(lambda: getattr(runs.last("b"), "phase", "") == "ended")
    assert getattr(runs.last("b"), "exit_code", None) == EXIT_INTERRUPTED
    with pytest.raises(RequestError, match="is not running"):
        runs.stop("b")
    runs.start_waiting()
    assert [(s.run.sweep, s.phase) for s in runs.open()] == [("c", "running")]
    runs.stop("c")  # before it can be there to hear it
    until(lambda: getattr(runs.last("c"), "phase", "") == "ended")
    assert state_of(runs.last("c"), None, None) == "stopped"


def test_a_run_outlives_its_service_and_its_end_is_known(runs: Runs, code: Path) -> None:
    ask(runs, code, "one")
    naps(runs, "one")
    runs.start_waiting()
    place = runs.paths.start("one", 1)
    until(place.process.exists)
    again = Runs(runs.paths, Specs(runs.paths, [code]), LocalLauncher(runs.paths, Fence((code,))))  # after a restart
    assert getattr(again.last("one"), "phase", "") == "running"
    process = read_json(place.process)
    assert process is not None
    os.kill(int(process["pid"]), signal.SIGKILL)
    until(place.ended.exists)
    ended = again.last("one")
    assert ended is not None and ended.phase == "ended" and ended.exit_code == -signal.SIGKILL
    assert state_of(ended, None, None) == "failed"


def test_another_process_of_the_same_number_is_not_taken_for_a_run(tmp_path: Path) -> None:
    launcher, paths = LocalLauncher(ServicePaths(tmp_path), Fence(())), ServicePaths(tmp_path).start("one", 1)
    mine, long_ago = os.getpid(), 1
    began = start_ticks(mine)
    assert began is not None and abs(began - long_ago) > SAME_START_TICKS
    write_json(paths.begun, {"at": time.time()})
    write_json(paths.process, {"pid": mine, "born": long_ago, "keeper": mine, "keeper_born": long_ago})
    assert launcher.poll(paths) == ProcessState(runs=False, message="its process was killed; resume it")
    launcher.stop(paths)  # which would have ended this test
    write_json(paths.begun, {"at": time.time() - 3600})
    paths.process.unlink()
    assert launcher.poll(paths) == ProcessState(runs=False, message="its process did not start; resume it")


def test_a_sweep_of_somebody_else_is_shown_and_not_touched(runs: Runs, tmp_path: Path) -> None:
    spec = reference_spec()
    make_sweep(runs.paths.root / "mine", spec, reference_parts(spec), only=2)
    assert runs.last("mine") is None
    with pytest.raises(RequestError, match="is not running"):
        runs.stop("mine")
    with Ledger(runs.paths.sweep("mine")).writer():
        with pytest.raises(RequestError, match="it was not started here, so stop it there"):
            runs.stop("mine")
        with pytest.raises(RequestError, match="it was not started here, so wait until it ends there"):
            runs.resume("mine", Additions(), RunLimits())
    with pytest.raises(RequestError, match="was run from Python"):
        runs.resume("mine", Additions(), RunLimits())
    with pytest.raises(RequestError, match="no such sweep"):
        runs.resume("nothing", Additions(), RunLimits())


def test_code_that_is_not_allowed_any_more_is_not_gone_on_with(runs: Runs, tmp_path: Path) -> None:
    root = runs.paths.root / "mine"
    spec = reference_spec()
    sweep = make_sweep(root, spec, reference_parts(spec), only=2)
    content = read_json(sweep.paths.plan)
    assert content is not None
    write_json(sweep.paths.plan, {**content, "base": str(tmp_path)})
    with serving(runs.paths.root, (tmp_path / "code",), at_once=0) as served:
        with pytest.raises(ServiceError, match="is not in the --code directories of this service") as caught:
            served.client.act("mine", "resume")
        assert caught.value.status == 422
        with pytest.raises(ServiceError, match="is not in the --code directories"):
            served.client.act("mine", "extend", budgets=[1e8])


def test_the_end_of_a_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(1000)))
    assert tail(log, 30).decode().splitlines() == ["line 997", "line 998", "line 999"]
    assert tail(tmp_path / "none") == b""


def test_serve_refuses_what_cannot_be(tmp_path: Path, code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_cli import call

    service = ServiceProcess(tmp_path / "runs", code)
    try:
        assert call("serve", "--root", tmp_path / "runs", "--port", str(service.port)) == 2
        assert "another service serves it" in capsys.readouterr().err
        assert call("serve", "--root", tmp_path / "other", "--port", str(service.port)) == 2
        assert "give another --host or --port" in capsys.readouterr().err
        assert call("serve", "--root", tmp_path / "third", "--address", "http://127.0.0.1:9") == 2
        assert "nobody answers" in capsys.readouterr().err
        (tmp_path / "file").touch()
        assert call("serve", "--root", tmp_path / "file" / "below") == 2
        assert call("serve", "--code", tmp_path / "nothing") == 2
    finally:
        assert service.end() == 0
    assert service.log.read_text().splitlines()[-1] == "server ended; sweeps keep running"


@pytest.mark.ray
def test_the_whole_story_with_a_service_that_is_killed_in_the_middle(tmp_path: Path, code: Path) -> None:
    """Validated, started, followed, service killed, started again, stopped, resumed: nothing missed."""
    root, pace = tmp_path / "runs", tmp_path / "pace"
    pace.write_text(GOES)
    text = make_project(code, pace).read_text().replace("chaos", "story")
    service = ServiceProcess(root, code)
    try:
        price = service.client.validate(text)
        assert price["valid"] and price["experiments"] == 12 and price["flops"] == 263888
        assert service.client.validate(text.replace("features", "feature"))["faults"]
        name = service.client.start(text, key="story")
        heard: dict[str, str] = {}
        last = None
        for kind, event_id, content in service.client.events(name):
            if kind == "outcome":
                heard[content["key"]], last = content["status"], event_id
            if len(heard) >= 2:
                break
        service.kill()  # the sweep goes on
        until(lambda: len(recorded(root / name)) >= len(heard) + 2)
        pace.write_text(HOLDS)
        service = ServiceProcess(root, code)
        client = service.client
        assert client.sweep(name)["state"] == "running"
        assert client.start(text, key="story") == name
        pace.write_text(GOES)
        for kind, _, content in client.events(name, since=last):
            if kind == "outcome":
                heard[content["key"]] = content["status"]
            if len(heard) >= 5:
                break
        pace.write_text(HOLDS)
        assert client.act(name, "stop")["state"] in ("stopping", "stopped")
        stopped = client.wait(name, 60)
        assert stopped["state"] == "stopped" and stopped["exit_code"] == EXIT_INTERRUPTED
        done = recorded(root / name)
        assert len(heard) <= len(done) < 12
        pace.write_text("0")
        saved = [one for one in client.pages(f"/sweeps/{name}/checkpoints") if one["kind"] == "checkpoint"][-1]
        no_step = saved["step"] + 10**6  # whatever it had saved when it was stopped
        no_such = f"no checkpoint {saved['key']}@{no_step}; there are {saved['key']}@"
        with pytest.raises(ServiceError, match=no_such) as caught:
            client.act(name, "resume", checkpoint=f"{saved['key']}-c{no_step}")
        assert caught.value.status == 422
        client.act(name, "resume", checkpoint=saved["id"])
        ended = client.wait(name, 120)
        assert ended["state"] == "completed" and ended["counts"] == {"completed": 12}
        assert {key: content for key, content in recorded(root / name).items() if key in done} == done
        report = client.request("GET", f"/sweeps/{name}/report").read().decode()
        assert ended["results_sha256"] in report
        log = client.request("GET", f"/sweeps/{name}/log").read().decode()
        assert f"{saved['key']} (C " in log and f"goes on from its checkpoint at step {saved['step']} of " in log
        assert "experiments: 12 completed" in log
    finally:
        service.end()


def test_the_keeper_is_light() -> None:
    heavy = "{'torch', 'ray', 'numpy', 'fastapi'}"
    code = f"import sys, flops_fit_ray.service.runs._supervisor; print(*{heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code]).split() == []


def test_a_request_that_the_service_did_not_write_starts_nothing(runs: Runs, code: Path, tmp_path: Path) -> None:
    """Planted, changed, copied to another sweep, with another spec, under a token of its own."""
    mark = tmp_path / "executed"
    (code / "napping.py").write_text(f"open({str(mark)!r}, 'w')")
    ask(runs, code, "mine")
    asked = read_json(runs.paths.start("mine", 1).asked)
    assert asked is not None
    planted = {name: value for name, value in asked.items() if name != "seal"} | {"words": ["napping"], "sweep": "a"}
    other = Seal("0" * 32)
    for name, content in (
        ("a", planted),
        ("b", {**asked, "words": ["napping"]}),
        ("c", asked),
        ("d", other.sealed({**planted, "sweep": "d"}, runs.paths.resolved("d"))),
    ):
        write_json(runs.paths.start(name, 1).asked, content)
    runs.paths.resolved("mine").write_text((code / "sweep.yaml").read_text() + "\nmetrics: {}\n")
    for _ in range(3):
        runs.start_waiting()
    assert not mark.exists() and not list(runs.paths.started.glob("*/*/begun.json"))
    for name in ("a", "b", "c", "d", "mine"):
        status = runs.last(name)
        assert status is not None and status.phase == "ended" and "was not written by this service" in status.message
        with pytest.raises(RequestError, match="it starts nothing; start its spec again"):
            runs.resume(name, Additions(), RunLimits())


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
@pytest.mark.parametrize("below", [".", ".service", ".service/sweeps", ".service/token"])
def test_places_that_others_can_write_are_refused(below: str, mode: int, tmp_path: Path) -> None:
    paths = ServicePaths(tmp_path / "runs")
    token_of(paths)
    paths.started.mkdir()
    (paths.root / below).chmod(mode)
    with pytest.raises(DirectoryError, match=rf"(chmod go-w {paths.root}|delete)"):
        token_of(paths)


@pytest.mark.parametrize("below", [".service", ".service/sweeps", ".service/token"])
def test_links_in_the_place_of_its_own_are_refused(below: str, tmp_path: Path) -> None:
    paths = ServicePaths(tmp_path / "runs")
    token_of(paths)
    paths.started.mkdir()
    (paths.root / below).rename(tmp_path / "away")
    (paths.root / below).symlink_to(tmp_path / "away")
    with pytest.raises(DirectoryError, match="link|no file or directory of this user"):
        token_of(paths)


def test_all_it_makes_is_the_owners_whatever_the_umask(tmp_path: Path, code: Path) -> None:
    before = os.umask(0)
    try:
        service = ServiceProcess(tmp_path / "runs", code)
    finally:
        os.umask(before)
    try:
        service.client.ask("POST", "/specs", {"text": (code / "sweep.yaml").read_text()})
    finally:
        assert service.end() == 0
    made = [service.root, *service.root.rglob("*")]
    assert len(made) == 6  # root, .service, token, lock, specs, one spec
    for place in made:
        assert place.stat().st_mode & 0o077 == 0, place


def test_a_supervisor_that_starts_late_is_found(runs: Runs, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took longer than a start may take, and it is alive. Where it is not, one that comes later starts nothing."""
    ask(runs, code, "slow")
    start = runs.paths.start("slow", 1)
    monkeypatch.setattr("flops_fit_ray.service.runs.launch.LAUNCH_SECONDS", -1.0)
    keeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = {"at": 0.0, "how": "local", "keeper": keeper.pid, "keeper_born": start_ticks(keeper.pid)}
    write_json(start.begun, began)
    status = runs.last("slow")
    assert status is not None and status.phase == "running"
    keeper.communicate()
    status = runs.last("slow")
    assert status is not None and (status.phase, status.message) == ("ended", "its process did not start; resume it")
    (code / "napping.py").write_text("open('started', 'w')")
    command = [sys.executable, "-m", "flops_fit_ray.service.runs._supervisor", str(start.directory), "log", "napping"]
    assert subprocess.run(command, cwd=code, check=False).returncode == 0 and not (code / "started").exists()


def test_why_a_run_failed_is_its_own_reason(runs: Runs, code: Path) -> None:
    """Of a sweep that is complete the extension's; of failed experiments their errors; never that of an earlier run."""
    spec = reference_spec()
    sweep = make_sweep(runs.paths.root / "mine", spec, reference_parts(spec))
    caches = SweepCaches(runs.paths)

    def ended(number: int, log: str, exit_code: int) -> None:
        start, whole = runs.paths.start("mine", number), runs.paths.log("mine")
        whole.parent.mkdir(parents=True, exist_ok=True)
        begins = whole.stat().st_size if whole.exists() else 0
        with whole.open("a") as out:
            out.write(log)
        run = QueuedRun(sweep="mine", number=number, kind="extend", words=["x"], code=str(code), asked_at=1.0)
        write_json(start.asked, {"schema_version": 1, **asdict(run)})
        write_json(start.begun, {"at": 0.0})
        write_json(start.process, {"log_begins": begins})
        write_json(start.ended, {"exit_code": exit_code, "at": 1.0})

    ended(1, "planning\nerror: grid: 3 sizes are too few\n", 2)
    view = sweep_view(runs, caches, "mine")
    assert (view["state"], view["words"]) == ("completed", "error: grid: 3 sizes are too few")
    ended(2, "one\ntwo\nthree\n", 1)
    assert sweep_view(runs, caches, "mine")["words"] == "one\ntwo\nthree"
    key = sweep.plan.experiments[-1].key
    local_path(sweep.paths.result(key)).unlink()
    failure = Failure(key=key, status="failed", error="ValueError: the width is odd", traceback="", tokens_seen=0,
                      seconds=1, attempts=1, host="h", finished_at=1.0)  # fmt: skip
    Ledger(sweep.paths).record_failure(failure)
    view = sweep_view(runs, SweepCaches(runs.paths), "mine")
    assert view["state"] == "failed" and view["words"] == f"experiment {key} (failed): ValueError: the width is odd"
