"""A recorded result is never lost or changed; a torn one is never believed; there is one writer."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from flops_fit_ray.engine._ledger_observer import LedgerObserver
from flops_fit_ray.errors import InterruptedSweepError
from flops_fit_ray.ledger import COLUMNS, Ledger, Progress, results_sha256, results_table
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from tests.parts import planned, spec_of, user_parts_of
from tests.records import FAILURE, RESULT


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(SweepPaths(tmp_path))


def test_round_trip(ledger: Ledger) -> None:
    assert ledger.result("k1") is None
    ledger.record_result(RESULT)
    assert ledger.result("k1") == RESULT


def test_the_first_result_stays(ledger: Ledger) -> None:
    ledger.record_result(RESULT)
    before = ledger.paths.result("k1").read_bytes()
    assert ledger.record_result(replace(RESULT, loss=9.0)) == RESULT
    assert ledger.paths.result("k1").read_bytes() == before


@pytest.mark.parametrize("torn", [b"", b"{", b'{"schema_version": 1}', b'{"schema_version": 99}', b"[]"])
def test_a_torn_result_is_missing_and_kept_aside(ledger: Ledger, torn: bytes) -> None:
    path = ledger.paths.result("k1")
    path.parent.mkdir(parents=True)
    local_path(path).write_bytes(torn)
    assert ledger.result("k1") is None
    ledger.record_result(RESULT)
    assert ledger.result("k1") == RESULT
    (aside,) = path.parent.glob("result.json.unreadable-*")
    assert aside.read_bytes() == torn


def test_a_result_outranks_a_failure(ledger: Ledger) -> None:
    ledger.record_failure(FAILURE)
    assert ledger.outcomes(["k1"]) == [FAILURE]
    ledger.record_result(RESULT)
    assert ledger.outcomes(["k1"]) == [RESULT]
    assert ledger.results(["k1", "k2"]) == [RESULT]


def test_attempts_are_counted(ledger: Ledger) -> None:
    assert [ledger.begin_attempt("k1") for _ in range(3)] == [1, 2, 3]
    assert (ledger.num_attempts("k1"), ledger.num_attempts("k2")) == (3, 0)


def test_progress_grows_stale(ledger: Ledger) -> None:
    alive = Progress(key="k1", tokens_seen=1, tokens=2, train_loss=None, host="h", pid=1, updated_at=time.time())
    ledger.record_progress(alive)
    assert ledger.progress("k1") == alive
    ledger.record_progress(replace(alive, updated_at=time.time() - 3600))
    assert ledger.progress("k1") is None


def test_results_hash_depends_on_bits_and_not_on_order() -> None:
    other = replace(RESULT, key="k2", loss_stderr=None)
    assert results_sha256([RESULT, other]) == results_sha256([other, replace(RESULT, seconds=9.0, attempts=5)])
    assert results_sha256([RESULT]) != results_sha256([replace(RESULT, loss=1.2500000000000002)])


def test_table_has_a_row_for_every_planned_experiment(ledger: Ledger) -> None:
    spec = spec_of()
    plan = planned(spec, user_parts_of(spec))
    first, second = plan.experiments[:2]
    ledger.record_result(replace(RESULT, key=first.key))
    ledger.record_failure(replace(FAILURE, key=second.key))
    keys = [e.key for e in plan.experiments]
    table = results_table(plan.experiments, ledger.outcomes(keys), {keys[2]: "running"})
    assert list(table.columns) == COLUMNS
    assert list(table["key"]) == keys
    assert list(table["status"]) == ["completed", "failed", "running", *["planned"] * (len(keys) - 3)]
    assert table["loss"].notna().sum() == 1
    assert table.loc[1, "error"] == "E"


def test_a_log_is_read_on_from_where_it_was_and_a_half_written_line_waits(tmp_path: Path) -> None:
    ledger = Ledger(SweepPaths(tmp_path))
    assert ledger.events_since("k", 0) == ([], 0)
    ledger.record_event("k", "one", level="warning")
    (first,), position = ledger.events_since("k", 0)
    assert (first.message, first.level) == ("one", "warning")
    assert ledger.events_since("k", position) == ([], position)
    ledger.record_event("k", "two", level="info")
    path = tmp_path / "experiments" / "k" / "events.jsonl"
    with path.open("a") as file:
        file.write('{"at": 1')
    (second,), later = ledger.events_since("k", position)
    assert second.message == "two" and later < path.stat().st_size
    assert [e.message for e in ledger.events("k")] == ["one", "two"]


def test_many_at_a_time_give_signs_of_life_less_often(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 a second in all; the wish to stop is seen at every one that is due."""
    spec, now = spec_of(), 0.0
    monkeypatch.setattr("flops_fit_ray.engine._ledger_observer.time.monotonic", lambda: now)
    experiment = planned(spec, user_parts_of(spec)).experiments[0]
    for at_a_time, seconds in ((1, [*range(30)]), (500, [0, 5, 10, 15, 20, 25]), (1_000_000, [0, 15])):
        observer, written = LedgerObserver(ledger, experiment, 1, 0, at_a_time), []
        for second in range(30):
            now = float(second)
            observer.progress(second, None)
            progress = ledger.progress(experiment.key)
            if progress is not None and progress.tokens_seen == second:
                written.append(second)
        assert written == seconds
    ledger.paths.stop.touch()
    with pytest.raises(InterruptedSweepError):
        observer.progress(30, None)
