"""The live view and `status --watch` go on whatever they meet: pictures that fail, plans that change, files that go."""

import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import flops_fit_ray.cli._status as commands
import flops_fit_ray.console._live as live
from flops_fit_ray.analysis import FitOptions, fit_minima
from flops_fit_ray.console._drawing import draw
from flops_fit_ray.console._live import LiveConsole
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.console.select import is_terminal
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.ledger.watch import Watcher
from flops_fit_ray.sweep._result_arrays import points_of
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from tests.records import FAILURE
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_cli import call
from tests.test_console import half, state_of, terminal, watched

__all__ = ["half"]  # the fixture


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Sweep]:
    """A directory with 2 results, to be written into."""
    spec = reference_spec()
    yield make_sweep(tmp_path / "copy", spec, reference_parts(spec), only=2)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveConsole, "every", 0.02)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_live_view_shows_what_comes_and_gives_the_terminal_back(copy: Sweep) -> None:
    console, out = terminal()
    view = LiveConsole(copy.paths, copy.spec, console)
    watcher = watched(copy, view)
    spec = reference_spec()
    with watcher.following():
        assert "\x1b[?25l" in out.getvalue()  # the cursor is hidden
        make_sweep(copy.paths.root, spec, reference_parts(spec), only=4)
    shown = out.getvalue()
    assert "[ 3/21] C 1e5" in shown and "[ 4/21] C 1e5" in shown and "[ 2/21]" not in shown
    assert "4/21 done" in shown
    assert shown.endswith("\x1b[?25h") or "\x1b[?25h" in shown[shown.rindex("4/21 done") :]  # and shown again


def test_a_picture_that_fails_is_one_line_and_the_next_one_is_tried(
    copy: Sweep, monkeypatch: pytest.MonkeyPatch, view_faults: list[Exception]
) -> None:
    console, out = terminal(width=200)
    view = LiveConsole(copy.paths, copy.spec, console)
    fails = [True]

    def sometimes(*args: object) -> object:
        if fails[0]:
            raise ZeroDivisionError("no room")
        return draw(*args)  # type: ignore[arg-type] # those of the real one

    monkeypatch.setattr(live, "draw", sometimes)
    watcher = Watcher(view, poll_seconds=0.02, say=view.say)
    watcher.take(Ledger(copy.paths))
    watcher.on_plan(copy.plan)
    spec = reference_spec()
    with watcher.following():
        make_sweep(copy.paths.root, spec, reference_parts(spec), only=3)
        until(lambda: len(view_faults) > 3)
        assert "2 of 21 experiments have ended; no picture: ZeroDivisionError: no room" in out.getvalue()
        assert "done  " not in out.getvalue()
        fails[0] = False
        until(lambda: "3/21 done" in out.getvalue())
    shown = out.getvalue()
    assert shown.count("the view met an error (ZeroDivisionError: no room); it goes on, and so does training") == 1
    assert "[ 3/21] C 1e5" in shown and "Traceback" not in shown
    assert {type(e) for e in view_faults} == {ZeroDivisionError}
    view_faults.clear()


def test_results_without_a_valley_are_no_reason_to_stop(half: Sweep) -> None:
    """Probes of the learning rate come first in an adaptive sweep, and belong to no valley."""
    no_valleys = fit_minima(points_of(()), FitOptions(draws=0))
    assert no_valleys.valleys == ()
    lines = draw(state_of(half, fit=no_valleys), 100, 30)
    assert "10/21 done" in lines[0].plain and not any("N_opt" in line.plain for line in lines)
    probes = tuple(replace(r, role="probe") for r in half.results)
    view = LiveConsole(half.paths, half.spec, terminal()[0])
    view.plan(half.plan, 0)
    sweep = replace(
        half,
        results=probes,
        plan=half.plan.with_experiments({e.key: replace(e, role="probe") for e in half.plan.experiments}),
    )
    assert view._fitting._fit(sweep) is None
    view._fitting.raise_fault()  # nothing


@pytest.mark.parametrize("width", [1, 2, 5, 12, 20, 33])
def test_any_terminal_is_large_enough(half: Sweep, width: int) -> None:
    for height in range(1, 12):
        lines = draw(state_of(half), width, height)
        assert 1 <= len(lines) <= height and all(line.cell_len <= width for line in lines)


def test_a_plan_that_loses_experiments_takes_their_results_out_of_the_view(copy: Sweep) -> None:
    console, out = terminal()
    view = LiveConsole(copy.paths, copy.spec, console)
    watcher = Watcher(view, poll_seconds=0.02, say=view.say)
    watcher.take(Ledger(copy.paths))
    watcher.on_plan(copy.plan)
    fewer = replace(copy.plan, experiments=copy.plan.experiments[1:])
    with watcher.following():
        until(lambda: "2/21 done" in out.getvalue())
        watcher.on_plan(fewer)
        until(lambda: "1/20 done" in out.getvalue())
        assert len(view._sweep().points.loss) == 1  # of the results of this plan
        watcher.on_plan(copy.plan)
        until(lambda: out.getvalue().rindex("2/21 done") > out.getvalue().rindex("1/20 done"))
    assert not watcher.all_told


def test_an_experiment_that_is_tried_again_is_open_again(copy: Sweep) -> None:
    ledger, (e, other) = Ledger(copy.paths), copy.plan.experiments[2:4]
    ledger.begin_attempt(e.key)
    ledger.record_failure(replace(FAILURE, key=e.key, error=""))
    console, out = terminal()
    view = LiveConsole(copy.paths, copy.spec, console)
    watcher = Watcher(view, poll_seconds=0.02, say=view.say)
    watcher.take(ledger)
    watcher.on_plan(copy.plan)
    with watcher.following():
        until(lambda: "1 failed" in out.getvalue())
        ledger.retry(e.key)
        until(lambda: e.key not in watcher._told)
        before = len(out.getvalue())
        until(lambda: "2/21 done" in out.getvalue()[before:])
        assert "1 failed" not in out.getvalue()[before:]
        ledger.begin_attempt(other.key)
        ledger.record_failure(replace(FAILURE, key=other.key, error=""))
        until(lambda: "failed: " in out.getvalue())
    assert watcher._told.keys() == {*(r.key for r in copy.results), other.key}


def test_a_log_that_was_made_anew_is_read_from_its_start(copy: Sweep) -> None:
    ledger, key = Ledger(copy.paths), copy.plan.experiments[3].key
    ledger.begin_attempt(key)
    for number in range(3):
        ledger.record_event(key, f"old {number}", level="warning")
    _, position = ledger.events_since(key, 0)
    shutil.rmtree(copy.paths.events(key).parent)  # type: ignore[arg-type] # a local path
    ledger.begin_attempt(key)
    ledger.record_event(key, "new", level="warning")
    assert [event.message for event in ledger.events_since(key, position)[0]] == ["new"]


def test_status_watch_follows_a_directory_that_is_removed_and_made_again_to_its_end(
    copy: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(PlainConsole, "every", 0.05)
    spec, shown, root = reference_spec(), list[str](), copy.paths.root

    def happen() -> None:
        def said(words: str) -> bool:
            shown.append(capsys.readouterr().out)
            return words in "".join(shown)

        until(lambda: said("running: nothing yet"))
        shutil.move(str(root), tmp_path / "gone")
        until(lambda: said("looking again every 0.05 s until it is there (Ctrl-C ends)"))
        make_sweep(root, spec, reference_parts(spec), only=2)  # a copy
        make_sweep(root, spec, reference_parts(spec))

    work = threading.Thread(target=happen)
    work.start()
    assert call("status", root, "--watch") == 0
    work.join()
    text = "".join([*shown, capsys.readouterr().out])
    assert "Traceback" not in text and "are completed already and will not run again" in text and "[21/21]" in text
    assert text.splitlines()[-1] == "experiments: 21 completed of 21"
    assert open_sweep(root).complete


def test_a_terminal_of_other_characters_gets_lines_without_them() -> None:
    class Latin(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    out = Latin(raw := io.BytesIO(), encoding="ascii")
    assert not is_terminal(out)
    PlainConsole(out).say("0.5000 ± 0.0100")
    assert raw.getvalue() == b"0.5000 ? 0.0100\n"
