"""The parent of a driver: exit codes and last lines of drivers that end in every way, and signals passed on once.

The drivers are a few lines of Python below the real parent; `python -m tests.chaos --only F39` has real ones.
"""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flops_fit_ray.cli._parent import _why
from tests.chaos import alive
from tests.hangs import HANG_SECONDS

DRIVER = """
import os, signal, sys, time
from flops_fit_ray.cli import _parent, enter
if not _parent.is_led():
    exec(os.environ.get("PARENT", ""))
    enter(sys.argv[1:])
_parent.be_led()
exec(os.environ["DRIVER"])
"""
LISTENING = """
def hear(number, frame):
    print("heard", signal.Signals(number).name, flush=True)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, hear)
signal.signal(signal.SIGUSR2, lambda *_: (_parent.tell_parent("ends", "4"), os._exit(4)))
print("ready", os.getpid(), flush=True)
while True:
    time.sleep(0.02)
"""
LOUD = 0.9  # seconds in which a signal is heard a second time that is passed on, though it was heard


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "driver.py").write_text(DRIVER)
    return [sys.executable, str(tmp_path / "driver.py")]


def start(command: list[str], driver: str, parent: str = "", **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "DRIVER": driver, "PARENT": parent}
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return] # options of any kind
        command,
        env=environment,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True} | options,
    )


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (1 << 8, "the driver's process ended with exit code 1 without a word, as Ray ends a process that has "),
        (signal.SIGKILL, "the driver's process was killed by SIGKILL, as by `kill -9`"),
        (signal.SIGSEGV, "the driver's process crashed with SIGSEGV"),
        (signal.SIGABRT | 0x80, "the driver's process crashed with SIGABRT"),  # with a core dump
        (signal.SIGTERM, "stopped by SIGTERM"),  # before anybody handled it
        (15 << 8, "stopped by SIGTERM"),  # Ray's handler
        (143 << 8, "stopped by SIGTERM"),  # a shell's word for it
        (40, "the driver's process crashed with signal 40"),
    ],
)
def test_every_status_of_a_process_has_its_words(status: int, why: str) -> None:
    assert _why(status, memory=False).startswith(why)


def test_the_kernels_memory_killer_is_named_where_it_was_at_work() -> None:
    assert "out-of-memory killer was at work" in _why(signal.SIGKILL, memory=True)


def test_a_driver_without_last_words_is_exit_4_with_a_reason_and_a_line_that_goes_on(command: list[str]) -> None:
    words = [*command, "run", "my sweep.yaml", "--set", "name=a;b"]
    with start(words, "os.kill(os.getpid(), signal.SIGKILL)") as run:
        out, err = run.communicate(timeout=HANG_SECONDS)
    said = out.splitlines()
    assert run.returncode == 4 and len(said) == 3 and not err, err
    assert said[0].startswith("the driver's process was killed") and said[1] == "Run it again with:"
    assert said[2].endswith(" run 'my sweep.yaml' --set 'name=a;b'")
    with start(
        [*command, "run", "--json"], "_parent.tell_parent('command', 'go on --with \\'x y\\'')\nos._exit(1)"
    ) as run:
        out, err = run.communicate(timeout=HANG_SECONDS)
    assert run.returncode == 4 and not out  # --json: nothing but the answer goes to stdout
    assert err.splitlines()[1:] == ["Results so far are saved. Resume with:", "go on --with 'x y'"]


def test_the_last_words_of_json_lines_are_one(command: list[str]) -> None:
    with start([*command, "run", "--json-lines"], "_parent.tell_parent('command', 'go on')\nos._exit(1)") as run:
        line = json.loads(run.communicate(timeout=HANG_SECONDS)[0])
    assert (line["schema_version"], line["kind"]) == (1, "said") and line["words"].endswith("Resume with:\ngo on")


def test_strings_hash_alike_in_every_process_of_a_command(command: list[str]) -> None:
    hashed = "print(hash('the same'))\n_parent.tell_parent('ends', '0')\nsys.stdout.flush()\nos._exit(0)"

    def said(seed: str) -> str:
        set_seed = [shutil.which("env") or "env", *([f"PYTHONHASHSEED={seed}"] if seed else ["-u", "PYTHONHASHSEED"])]
        with start([*set_seed, *command, "plan"], hashed) as run:
            return run.communicate(timeout=HANG_SECONDS)[0]

    assert said("") == said("0") != said("1")


@pytest.mark.parametrize("code", [0, 1, 2, 4])
def test_an_exit_code_that_was_announced_is_passed_on_whatever_happens_then(code: int, command: list[str]) -> None:
    hangs = f"_parent.tell_parent('ends', '{code}')\n" + ("time.sleep(60)" if code else "os._exit(7)")
    with start([*command, "extend"], hangs, "_parent.EXIT_SECONDS = 0.1") as run:
        assert run.communicate(timeout=HANG_SECONDS) == ("", "") and run.returncode == code


def ready(run: subprocess.Popen[str]) -> int:
    """The pid of a listening driver, once it listens."""
    assert run.stdout is not None
    word, pid = run.stdout.readline().split()
    assert word == "ready"
    return int(pid)


def hears(run: subprocess.Popen[str]) -> str:
    """The next signal that a listening driver hears; waits for it."""
    assert run.stdout is not None
    return run.stdout.readline().removeprefix("heard ").rstrip()


def more_heard_by(run: subprocess.Popen[str], pid: int) -> str:
    """What else it has heard until now; it ends well then."""
    os.kill(pid, signal.SIGUSR2)
    assert run.stdout is not None
    said = run.stdout.read()
    assert run.wait(HANG_SECONDS) == 4
    return said


def test_a_signal_is_heard_once_by_whatever_way_it_comes(command: list[str]) -> None:
    runs = [start([*command, "run"], LISTENING) for _ in range(5)]
    with contextlib.ExitStack() as ends:
        pids = [ready(ends.enter_context(run)) for run in runs]
        runs[0].send_signal(signal.SIGTERM)  # docker stop, kill
        os.killpg(runs[1].pid, signal.SIGUSR1)  # Slurm, a terminal
        runs[2].send_signal(signal.SIGTERM)  # timeout: the process, and then its group
        os.killpg(runs[2].pid, signal.SIGTERM)
        runs[3].send_signal(signal.SIGINT)
        os.kill(pids[4], signal.SIGTERM)
        assert [hears(run) for run in runs] == ["SIGTERM", "SIGUSR1", "SIGTERM", "SIGINT", "SIGTERM"]
        runs[3].send_signal(signal.SIGINT)  # a second one is passed on, too
        assert hears(runs[3]) == "SIGINT"
        time.sleep(LOUD)
        assert [more_heard_by(run, pid) for run, pid in zip(runs, pids, strict=True)] == [""] * 5


def test_a_terminals_ctrl_c_is_heard_once_and_the_cursor_comes_back(command: list[str]) -> None:
    ours, theirs = pty.openpty()
    driver = LISTENING.replace("while True:", "os.system('stty -echo')\nwhile True:")
    code = "import fcntl, os, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\nos.execv(sys.argv[1], sys.argv[1:])"
    with start(
        [sys.executable, "-c", code, *command, "run"], driver, stdin=theirs, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        said = b""
        while b"ready" not in said or not said.endswith(b"\n"):
            said += os.read(ours, 1024)
        os.write(ours, b"\x03")
        pid, said = int(said.split()[-1]), b""
        while b"heard SIGINT" not in said:
            said += os.read(ours, 1024)
        time.sleep(LOUD)
        os.kill(pid, signal.SIGKILL)
        assert run.wait(HANG_SECONDS) == 4
        said += os.read(ours, 4096)
    assert said.count(b"heard SIGINT") == 1 and b"\x1b[?25hthe driver's" not in said and b"\x1b[?25h" in said
    os.close(ours)


def test_a_driver_whose_parent_is_killed_is_asked_to_stop(command: list[str]) -> None:
    with start([*command, "run"], LISTENING) as run:
        pid = ready(run)
        run.kill()
        assert run.stdout is not None and run.stdout.readline() == "heard SIGTERM\n"
        os.kill(pid, signal.SIGUSR2)
        assert run.stdout.read() == "" and run.stderr is not None and run.stderr.read() == ""


def test_orphans_are_reaped_as_process_1_must(command: list[str]) -> None:
    orphan = """
if os.fork() == 0:
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "0.1"])
    os._exit(0)
os.wait()
children = f"/proc/{os.getppid()}/task/{os.getppid()}/children"
known = len(open(children).read().split())
for _ in range(500):
    if open(children).read().split() == [str(os.getpid())]:
        break
    time.sleep(0.02)
print(known, open(children).read().split() == [str(os.getpid())], flush=True)
_parent.tell_parent("ends", "0")
os._exit(0)
"""
    with start([*command, "run"], orphan) as run:
        assert run.communicate(timeout=HANG_SECONDS) == ("2 True\n", "") and run.returncode == 0


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("print('lost its raylet', flush=True)\n_parent.tell_parent('ends', '4')\nos._exit(4)", "lost its raylet"),
    ],
    ids=["killed", "interrupted"],
)
def test_rays_processes_end_with_a_driver_that_was_interrupted(command: list[str], end: str, why: str) -> None:
    """Those have sessions of their own, and some look for their parent only once in a while."""
    leaves = """
import subprocess
words = ["bash", "-c", "exec -a ray::Agent sleep 300"]
left = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL)
while "ray::Agent" not in open(f"/proc/{left.pid}/cmdline").read().split("\\0")[0]:
    time.sleep(0.02)
print(left.pid, flush=True)
"""
    with start([*command, "run"], leaves + end) as run:
        pid, said, *_ = run.communicate(timeout=HANG_SECONDS)[0].splitlines()
    assert run.returncode == 4 and why in said and not alive([int(pid)])


LATE = """
import select
class Late:
    def __init__(self):
        self._poll, self._signals = POLL(), None
    def register(self, pipe, mask):
        self._signals = self._signals or pipe
        self._poll.register(pipe, mask)
    def unregister(self, pipe):
        self._poll.unregister(pipe)
    def poll(self, patience):
        return [(pipe, event) for pipe, event in self._poll.poll(patience) if pipe != self._signals]
POLL, select.poll = select.poll, Late
"""  # it never sees a signal: as where each comes after it has looked


@pytest.mark.parametrize("parent", ["", LATE], ids=["at once", "after poll had looked"])
def test_a_signal_to_everything_is_the_reason_whoever_ended_the_driver(command: list[str], parent: str) -> None:
    with start([*command, "run"], LISTENING.replace('print("heard"', 'os._exit(1) or print("heard"'), parent) as run:
        ready(run)
        os.killpg(run.pid, signal.SIGTERM)
        assert run.stdout is not None and run.stdout.readline() == "stopped by SIGTERM\n"
    assert run.returncode == 4


def test_a_hangup_that_is_ignored_stays_ignored(command: list[str]) -> None:
    driver = "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)\n" + LISTENING
    nohup = shutil.which("nohup")
    assert nohup is not None
    with start([nohup, *command, "run"], driver) as run:
        assert run.stdout is not None and run.stdout.readline() == "True\n"
        pid = ready(run)
        run.send_signal(signal.SIGHUP)
        time.sleep(LOUD)
        assert more_heard_by(run, pid) == ""


def test_the_parent_imports_almost_nothing() -> None:
    heavy = "{'click', 'json', 'pathlib', 'shutil', 'subprocess', 'asyncio', 'dataclasses', 'flops_fit_ray.errors'}"
    code = f"import sys\nfrom flops_fit_ray import run\nprint(*{heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []
