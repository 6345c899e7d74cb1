"""What is handed out, and when: without Ray, against a ledger on disk."""

import itertools
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError

from flops_fit_ray.engine._crash import KILLED, crashes_noted, describe_death, is_hang
from flops_fit_ray.engine._dispatch import MAX_RETURNS, Dispatcher
from flops_fit_ray.engine._live_plan import LivePlan
from flops_fit_ray.engine.cluster import deaths_in_words
from flops_fit_ray.engine.interrupt import StopRequest
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import EXPLODED_HINT, InterruptedSweepError, StorageError
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import Plan
from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from tests.faulty import crashing
from tests.records import FAILURE, RESULT
from tests.worlds import loss_in, planner_of, run_through, world

FIND = loss_in(world(noise=0.005))


def record(ledger: Ledger, e: Experiment, status: str = "completed") -> None:
    """The outcome of an experiment, as a worker would write it."""
    if status != "completed":
        ledger.record_failure(replace(FAILURE, key=e.key, status=status))  # type: ignore[arg-type] # as tests name them
        return
    names = {f.name for f in fields(e)} & {f.name for f in fields(ExperimentResult)}
    planned = {name: getattr(e, name) for name in names - {"parent"}}  # it began from scratch
    loss = FIND(e).loss or 0.0
    ledger.record_result(replace(RESULT, **planned, tokens_seen=e.tokens, loss=loss, seed=e.recipe.seed))


def dispatcher_in(
    root: Path, slots_count: int = 1, stop: StopRequest | None = None, **changes: Any
) -> tuple[Dispatcher, Ledger, list[Plan]]:
    told: list[Plan] = []
    ledger = Ledger(SweepPaths(root))
    clock = itertools.count().__next__  # a second between any two looks
    live = LivePlan(planner_of(**changes), ledger, told.append)
    slots = Slots(resources={"cpu": 1}, count=slots_count)
    return Dispatcher(live, slots, stop or StopRequest(), clock), ledger, told


def test_a_whole_adaptive_sweep_without_ray_and_in_pieces(tmp_path: Path) -> None:
    dispatcher, ledger, told = dispatcher_in(tmp_path, 3)
    running: list[Experiment] = []
    seen: list[str] = []
    rounds = 0
    while not dispatcher.finished():
        rounds += 1
        while len(running) < 3 and (e := dispatcher.next()) is not None:
            assert ledger.planned(e.key) == e
            running.append(e)
            seen.append(e.key)
        e = running.pop(0)
        record(ledger, e)
        dispatcher.ended(e.key, died=False)
        if rounds == 10:  # the driver dies, and another takes over: what ran then is lost, what is recorded is not
            dispatcher, ledger, _ = dispatcher_in(tmp_path, 3)
            seen = [key for key in seen if ledger.result(key)]
            running = []
    plan, _ = run_through(planner_of(), FIND)
    assert {e.key for e in plan.experiments} == {e.key for e in dispatcher.plan.experiments} == set(seen)
    assert len(seen) == len(set(seen))  # nothing was handed out twice
    assert [len(p.experiments) for p in told] == sorted(len(p.experiments) for p in told)
    assert not told[0].final


def test_a_trial_that_its_node_refuses_is_no_attempt_of_the_experiment(tmp_path: Path) -> None:
    dispatcher, ledger, _ = dispatcher_in(tmp_path)
    first = dispatcher.next()
    assert first is not None
    room = [dispatcher.has_room]
    for _ in range(2 * MAX_RETURNS):
        dispatcher.leave_out("a", "other code")
        dispatcher.ended(first.key, died=False, refused=True)
        room.append(dispatcher.has_room)
        assert dispatcher.next() == first  # elsewhere, as its configuration says
    assert room == [False] + 2 * MAX_RETURNS * [True]
    assert dispatcher.left_out == {"a": "other code"}
    assert ledger.failure(first.key) is None and ledger.num_deaths(first.key) == 0
    dispatcher.take_back(["a", "unknown"])
    assert not dispatcher.left_out


def test_children_wait_for_their_parents_trunk(tmp_path: Path) -> None:
    dispatcher, ledger, _ = dispatcher_in(tmp_path, grid={"seeds": 0, "start": "trunk"})
    for e in iter(dispatcher.next, None):  # the first valley
        record(ledger, e)
        dispatcher.ended(e.key, died=False)
        if len(dispatcher.plan.experiments) > 7:
            break
    waiting = [e for e in dispatcher.plan.experiments if e.parent is not None and ledger.result(e.parent) is None]
    assert waiting
    out = list(iter(dispatcher.next, None))
    assert not {e.key for e in out} & {e.key for e in waiting if e.parent in {o.key for o in out}}
    child = next(e for e in waiting if e.parent in {o.key for o in out})
    trunk = SweepPaths(tmp_path).trunk(str(child.parent))
    trunk.directory.mkdir(parents=True)
    trunk.state(child.start_step).touch()
    assert dispatcher.next() is None  # not finished
    trunk.note(child.start_step).touch()
    begun = dispatcher.next()
    assert begun is not None and begun.key == child.key


def test_failures_settle_and_are_tried_again_by_the_next_run(tmp_path: Path) -> None:
    dispatcher, ledger, _ = dispatcher_in(tmp_path)
    first = dispatcher.next()
    assert first is not None
    record(ledger, first, "failed")
    dispatcher.ended(first.key, died=False)
    second = dispatcher.next()
    assert second is not None
    record(ledger, second, "diverged")
    dispatcher.ended(second.key, died=False)
    settled = {first.key, second.key}
    assert not settled & {e.key for e in iter(dispatcher.next, None)}
    again, ledger, _ = dispatcher_in(tmp_path)
    assert ledger.failure(first.key) is None and ledger.failure(second.key) is not None
    assert settled & {e.key for e in iter(again.next, None)} == {first.key}  # the other one would diverge again


def test_a_dead_worker_is_recorded_and_a_lost_trial_handed_out_again(tmp_path: Path) -> None:
    dispatcher, ledger, _ = dispatcher_in(tmp_path)
    first = dispatcher.next()
    assert first is not None
    for death in range(4):  # three retries
        assert ledger.failure(first.key) is None, death
        dispatcher.ended(first.key, died=True)
        if death < 3:
            again = dispatcher.next()
            assert again is not None and again.key == first.key
    failure = ledger.failure(first.key)
    assert failure is not None and failure.status == "infrastructure"
    words = [event.message for event in ledger.events(first.key) if event.level == "warning"]
    died = "its worker or node died ({} of 3 retries since the start): started again; " + KILLED
    assert words == [died.format(n) for n in (1, 2, 3)]
    second = dispatcher.next()
    assert second is not None and second.key != first.key
    for _ in range(MAX_RETURNS - 1):
        dispatcher.ended(second.key, died=False)
        assert ledger.failure(second.key) is None
        assert second.key in {e.key for e in iter(dispatcher.next, None)}
    dispatcher.ended(second.key, died=False)
    lost = ledger.failure(second.key)
    assert lost is not None and (lost.status, lost.deaths) == ("infrastructure", 0)
    assert second.key not in {e.key for e in iter(dispatcher.next, None)}


def test_a_death_is_named_by_pythons_stack_by_ray_or_by_what_leaves_neither(tmp_path: Path) -> None:
    paths, unknown = (
        SweepPaths(tmp_path),
        "The actor died.\nWorker unexpectedly exits with a connection error code 2. End",
    )
    paths.crash("key").parent.mkdir(parents=True)
    assert describe_death(paths, "key", "") == (KILLED, "") and describe_death(paths, "key", unknown) == (
        KILLED,
        unknown,
    )
    memory = "The actor died.\nTask was killed due to the node running low on memory."
    assert describe_death(paths, "key", memory) == (memory.splitlines()[1], memory)
    assert crashing(str(tmp_path)) == -signal.SIGABRT
    line, trace = describe_death(paths, "key", unknown)
    assert line == 'Fatal Python error: Aborted (File "<string>", line 12 in forward)'
    assert "most recent call first" in trace and trace.endswith(unknown) and not is_hang(trace)

    for rank in (0, 1):  # of another worker of the experiment, too
        assert crashing(str(tmp_path), "hang", rank=rank) == 1
        line, trace = describe_death(paths, "key", "")
        said = "no sign of life for 0:00:01, as a call holds Python's lock (the GIL)"
        assert is_hang(trace) and line == f'{said} (File "<string>", line 11 in forward)'
        local_path(paths.crash("key")).unlink(missing_ok=True)  # as its own process does, which only hears of a death
        assert [path.name for path in paths.crashes("key")] == ["crash-1.txt"] * rank
    with crashes_noted(paths, "key", 60.0):  # the next attempt forgets all of them
        assert [path.name for path in paths.crashes("key")] == ["crash.txt"]
    assert not paths.crashes("key")


def test_a_worker_that_hangs_twice_without_getting_further_is_stalled(tmp_path: Path) -> None:
    dispatcher, ledger, _ = dispatcher_in(tmp_path)
    e = dispatcher.next()
    assert e is not None
    crash = local_path(SweepPaths(tmp_path).crash(e.key))
    crash.parent.mkdir(parents=True, exist_ok=True)
    crash.write_text('Timeout (0:05:00)!\nThread 0x1 (most recent call first):\n  File "mine.py", line 3 in forward\n')
    ledger.begin_attempt(e.key)
    dispatcher.ended(e.key, died=True)  # a suspended machine looks the same, once
    assert ledger.failure(e.key) is None and dispatcher.next() == e
    ledger.begin_attempt(e.key)
    dispatcher.ended(e.key, died=True)
    failure = ledger.failure(e.key)
    assert failure is not None and failure.status == "stalled" and (failure.attempts, failure.deaths) == (2, 2)
    assert failure.error.startswith("its worker ended 2 times without an outcome: no sign of life for 0:05:00")


def test_rays_page_about_a_death_becomes_one_line(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    memory = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 11) was"
        " 22.50GB used / 23.54GB limit (0.956)\nOOM kill reason: Memory usage exceeded threshold\nRefer to the docs"
    )
    line, whole = describe_death(paths, "key", memory)
    assert line.startswith("Ray's memory monitor killed it: 22.50GB of 23.54GB were in use on its node 10.0.0.7; let ")
    assert whole == memory
    node = "The actor died unexpectedly.\n\tpid: 1\nThe actor died because its node has died. Node Id: 5af\n\tmore"
    line = describe_death(paths, "key", node)[0]
    assert line == "its node was lost: The actor died because its node has died. Node Id: 5af"
    broken = (
        "The actor 23 is unavailable: The actor is temporarily unavailable: RpcError: RPC error: reset rpc_code: 14."
    )
    assert describe_death(paths, "key", broken)[0].startswith(
        "the connection to its process broke: its node was lost, or"
    )


def test_a_loss_that_a_driver_waited_for_is_an_interruption_in_words() -> None:
    page = "Memory on the node (IP: 10.0.0.7, ID: 11) was 22.50GB used / 23.54GB limit (0.956)"
    words = r"^Ray lost .*: Ray's memory monitor killed it: 22\.50GB of 23"
    with pytest.raises(InterruptedSweepError, match=words), deaths_in_words():
        raise OutOfMemoryError(page)  # type: ignore[no-untyped-call] # Ray leaves it untyped
    with pytest.raises(RayTaskError), deaths_in_words():  # what a worker raised
        raise RayTaskError("f", "traceback", ValueError("mine"))  # type: ignore[no-untyped-call] # as above


def test_deaths_before_the_first_attempt_are_counted_and_no_note_is_written_over(tmp_path: Path) -> None:
    dispatcher, ledger, _ = dispatcher_in(tmp_path)
    e = dispatcher.next()
    assert e is not None
    dispatcher.ended(e.key, died=True, said="low on memory")
    dispatcher.ended(e.key, died=True, said="low on memory")
    ledger.begin_attempt(e.key)
    for _ in range(2):  # its own death, and one more that came before the second attempt could begin
        dispatcher.ended(e.key, died=True, said="low on memory")
    failure = ledger.failure(e.key)
    assert failure is not None and (failure.attempts, failure.deaths) == (1, 4)
    assert failure.error == "its worker ended 4 times without an outcome, 3 of them before it began: low on memory"
    notes = sorted(path.name for path in SweepPaths(tmp_path).attempts(e.key).glob("*-died.json"))
    assert notes == ["0000-1-died.json", "0000-died.json", "0001-1-died.json", "0001-died.json"]
    for _ in range(2):
        ledger.retry(e.key)
        ledger.record_failure(failure)
    kept = sorted(path.name for path in SweepPaths(tmp_path).attempts(e.key).glob("*-failure.json"))
    assert kept == ["0001-1-failure.json", "0001-failure.json"]


def test_a_death_after_progress_is_not_held_against_an_experiment(tmp_path: Path) -> None:
    dispatcher, ledger, _ = dispatcher_in(tmp_path, max_retries=1)
    e = dispatcher.next()
    assert e is not None
    checkpoints = SweepPaths(tmp_path).checkpoints(e.key)
    checkpoints.directory.mkdir(parents=True)
    for step in (10, 20, 30, 40, 50):  # pre-empted again and again, and further each time
        checkpoints.state(step).touch()
        checkpoints.note(step).touch()
        dispatcher.ended(e.key, died=True)
        assert ledger.failure(e.key) is None
        assert dispatcher.next() == e
    dispatcher.ended(e.key, died=True)
    assert ledger.failure(e.key) is not None


def test_a_sweep_that_was_left_hears_nothing_any_more(tmp_path: Path) -> None:
    stop = StopRequest()
    dispatcher, ledger, _ = dispatcher_in(tmp_path, stop=stop, max_retries=0)
    e = dispatcher.next()
    assert e is not None
    stop.set(InterruptedSweepError("the sweep was left"))
    dispatcher.ended(e.key, died=True)  # because its cluster was shut down
    assert ledger.failure(e.key) is None and dispatcher.next() is None and dispatcher.finished()


def test_adopted_trials_are_not_handed_out_and_come_back_where_they_did_not_go_on(tmp_path: Path) -> None:
    before, ledger, _ = dispatcher_in(tmp_path)
    out = list(iter(before.next, None))
    record(ledger, out[0])
    dispatcher, ledger, _ = dispatcher_in(tmp_path)
    dispatcher.adopt([e.key for e in out[:3]])
    handed = {e.key for e in iter(dispatcher.next, None)}
    assert handed == {e.key for e in out[3:]}
    dispatcher.ended(out[1].key, died=True)
    dispatcher.forget_adopted()
    assert {e.key for e in iter(dispatcher.next, None)} >= {out[1].key, out[2].key}
    assert dispatcher.can_go_on(out[0].key) and not dispatcher.can_go_on("unknown")


def test_nothing_is_handed_out_while_stopping_or_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    dispatcher, _, _ = dispatcher_in(tmp_path / "a", stop=stop)
    stop.set(InterruptedSweepError("stopped by SIGTERM"))
    assert dispatcher.next() is None and dispatcher.finished()

    stop = StopRequest()
    dispatcher, ledger, _ = dispatcher_in(tmp_path / "b", stop=stop)

    def full(*_: Any) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(ledger, "record_planned", full)
    assert dispatcher.next() is None and dispatcher.finished() and isinstance(stop.error, StorageError)


@pytest.mark.parametrize("stops", [True, False])
def test_a_divergence_of_finite_losses_is_tried_again_where_the_spec_goes_on_with_such(
    stops: bool, tmp_path: Path
) -> None:
    plan, ledger = planner_of().plan(), Ledger(SweepPaths(tmp_path))
    errors = (
        f"the training loss is 1e+04 after 176 tokens ({EXPLODED_HINT})",
        "the training loss is nan after 8 tokens",
    )
    for e, error in zip(plan.experiments, errors, strict=False):
        ledger.record_failure(replace(FAILURE, key=e.key, status="diverged", error=error))
    exploded, broken = (e.key for e in plan.experiments[:2])
    dispatcher, _, _ = dispatcher_in(tmp_path, stop_diverged=stops)
    assert {o.key for o in ledger.outcomes([exploded, broken])} == ({exploded, broken} if stops else {broken})
    started = []
    while (begun := dispatcher.next()) is not None:
        started.append(begun.key)
        record(ledger, begun, "diverged")
        dispatcher.ended(begun.key, died=False)
    assert (exploded in started) is not stops and broken not in started
