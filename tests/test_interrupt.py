"""F8 without Ray: what a signal does, and when."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flops_fit_ray.engine.interrupt import SIGNALS, interruptible, keeping_handlers
from flops_fit_ray.errors import InterruptedSweepError
from tests.bad_values import Case, prepare
from tests.hangs import HANG_SECONDS


@pytest.fixture(autouse=True)
def closed_terminals_are_heard_of() -> Iterator[None]:
    """Whether or not the suite itself runs under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_closed_terminal_is_nobodys_concern() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_set
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_only_noted_where_it_is_waited_for(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with interruptible() as stop:
        with stop.deferred():
            os.kill(os.getpid(), number)
            assert stop.is_set and str(stop.error) == f"stopped by {number.name}"
            with pytest.raises(KeyboardInterrupt, match=number.name):
                os.kill(os.getpid(), number)  # the second one does not wait
        with pytest.raises(InterruptedSweepError), stop.deferred():
            raise AssertionError("nothing new is begun")
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_elsewhere_it_ends_what_is_going_on() -> None:
    with pytest.raises(InterruptedSweepError, match="stopped by SIGUSR1"), interruptible():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(10)


def test_a_library_that_takes_a_signal_gives_it_back() -> None:
    with interruptible() as stop, stop.deferred():
        with keeping_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set


def test_other_threads_hear_nothing() -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    seen: list[bool] = []

    def work() -> None:
        with interruptible() as stop, keeping_handlers():
            seen.append(stop.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False] and [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_it_plans_is_exit_4_too(number: signal.Signals, tmp_path: Path) -> None:
    project = tmp_path / "p"
    arguments = prepare(Case(words=()), project)
    parts = (project / "parts.py").read_text()
    (project / "parts.py").write_text(f"{parts}\n\nprint('importing', flush=True)\n__import__('time').sleep(60)\n")
    command = [sys.executable, "-m", "flops_fit_ray", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "importing\n"
        run.send_signal(number)
        said = run.stdout.read().splitlines()
        assert run.wait(HANG_SECONDS) == 4, run.stderr.read()
    assert said[0] == f"stopped by {number.name}"
    assert said[-1].endswith(f"--output {project}/runs/tiny")
    assert not (project / "runs").exists()


@pytest.mark.parametrize("library", ["torch", "ray"])
def test_a_signal_while_it_imports_is_exit_4_too(library: str, tmp_path: Path) -> None:
    arguments = prepare(Case(words=()), tmp_path / "p")
    (tmp_path / "stopped.py").write_text(f"""
import os, signal, sys
class Stop:
    def find_spec(self, name, path, target=None):
        if name == {library!r}:
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Stop())
from flops_fit_ray.cli import main
main({arguments!r})
""")
    command = [sys.executable, "stopped.py"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_SECONDS, cwd=tmp_path)
    assert run.returncode == 4, run.stderr
    assert "stopped by SIGTERM" in run.stdout.splitlines()
    assert run.stdout.splitlines()[-1].endswith(f"--output {tmp_path}/p/runs/tiny")


def test_a_signal_inside_an_exec_is_exit_4_and_no_end_by_sigint(tmp_path: Path) -> None:
    """As dataclasses are made, at any import: `python -m` remembers a KeyboardInterrupt there, and ends by SIGINT."""
    (tmp_path / "stopped.py").write_text("""
import os, signal, sys
from flops_fit_ray.engine.interrupt import interruptible
from flops_fit_ray.errors import InterruptedSweepError
try:
    with interruptible():
        exec("os.kill(os.getpid(), signal.SIGUSR1)\\nwhile True: pass")
except InterruptedSweepError:
    sys.exit(4)
""")
    command = [sys.executable, "-m", "stopped"]
    assert subprocess.run(command, check=False, timeout=HANG_SECONDS, cwd=tmp_path).returncode == 4
