"""The parent process of a driver: it passes signals on, and has the last word where the driver cannot speak.

A driver may end without a word: killed, out of memory, crashed in native code, or ended by Ray itself, which leaves a
process that has lost its node by `_exit`. Then the parent says why, as far as it is known, how to go on, and exits
with a code of ours. Both are in one process group, so that job control and a terminal's signals are as they would be
for one process. If the parent itself is killed, the kernel asks the driver to stop (Linux).

It imports almost nothing: most of what a parent costs is the start of the interpreter.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

LINK = "FLOPS_FIT_RAY_PARENT"  # in a driver's environment: its parent's pid, and the pipes to it
PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
HEAR_SECONDS = 0.5  # in which a driver that was signalled too has noted it
SAME_SECONDS = 0.1  # in which a signal is the same one again: `timeout` signals a process, and then its group
EXIT_SECONDS = 30.0  # that a driver may take to be gone once it has ended; threads of libraries can hang
RAY_ENDS = "without a word, as Ray ends a process that has lost its node, or a library that exits by itself"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

_tells: int | None = None  # of a driver: the pipe to its parent


def is_led() -> bool:
    """Return True in a process that a parent has started as its driver."""
    return LINK in os.environ


def can_lead() -> bool:
    """Return True if this system can start a driver below this process."""
    return bool(sys.executable) and hasattr(os, "posix_spawn")


class Driver:
    """The driver's process, as its parent sees it."""

    exit_code: int | None = None  # that it has announced; None: it ended without a word
    command: str = ""  # that resumes, as far as it has said
    leaves_orphans = False  # processes that it has started, or theirs, ran still when it had ended

    def __init__(self, command: list[str]) -> None:
        self._memory_kills = _memory_kills()
        self._told, tells = os.pipe()
        self._heard, hears = os.pipe()
        self._woken, wakes = os.pipe()
        os.set_blocking(self._told, False)
        os.set_blocking(wakes, False)
        os.set_inheritable(tells, True)
        os.set_inheritable(hears, True)
        os.set_inheritable(self._heard, True)  # held open there: Python complains of a signal that nobody reads
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in [getattr(signal, name) for name in PASSED_ON]:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells ignore some, for both of us
                signal.signal(number, _noted)
        signal.signal(signal.SIGCHLD, _noted)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a driver leaves behind is found below this process
        # The order of a set of strings depends on the seed, and so may a split or a vocabulary: without one seed every
        # process, and every run that resumes, would have another. One that the user has set is kept.
        environment = {"PYTHONHASHSEED": "0", **os.environ, LINK: f"{os.getpid()} {tells} {hears} {self._heard}"}
        self._pid = os.posix_spawn(command[0], command, environment)
        os.close(tells)
        os.close(hears)
        self._buffer = b""
        self._asked: list[tuple[int, float]] = []  # signals that came here, and that it is not known to have heard
        self._seen: list[tuple[int, float]] = []  # and those that it heard, and that did not come here
        self._echoes: list[tuple[int, float]] = []  # those that were passed on, and will be heard there
        self._last: dict[int, float] = {}
        self._stopped_by = 0  # the last signal that came here
        self._until: float | None = None  # when it must be gone
        self._status = 0  # as `os.waitpid` has it

    def wait(self) -> None:
        """Wait for its end, and pass signals on until then. Adopted children are reaped, as process 1 must."""
        poller = select.poll()
        for pipe in (self._woken, self._heard, self._told):
            poller.register(pipe, select.POLLIN)
        while True:
            for pipe, event in poller.poll(self._patience()):
                if not event & select.POLLIN:  # its other end is closed
                    poller.unregister(pipe)
                elif pipe == self._told:
                    self._listen()
                else:
                    for number in os.read(pipe, 64):
                        self._came(number) if pipe == self._woken else self._hears(number)
            if self._is_gone():
                self._listen()
                self._read_signals()  # one that came to both of us may have come after `poll` had looked
                return
            self._pass_on()
            if self._until is not None and time.monotonic() > self._until:
                os.kill(self._pid, signal.SIGKILL)
                self._until = None

    def _read_signals(self) -> None:
        """Note what came here and is still in the pipe; whoever ended the driver had signalled this process before."""
        while select.select([self._woken], [], [], 0)[0]:
            for number in os.read(self._woken, 64):
                self._came(number)

    @property
    def why(self) -> str:
        """In words how it ended, though it said nothing."""
        if self._stopped_by and not os.WIFSIGNALED(self._status):  # Ray ended it, which the same signal may have ended
            return _why(self._stopped_by, memory=False)
        return _why(self._status, memory=self._memory_kills < _memory_kills())

    def _patience(self) -> float:
        """Return the milliseconds to wait at most."""
        times = [at + HEAR_SECONDS for _, at in self._asked] + ([] if self._until is None else [self._until])
        return 60e3 if not times else max(0.0, 1e3 * (min(times) - time.monotonic())) + 1

    def _is_gone(self) -> bool:
        gone = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                self.leaves_orphans = gone
                return gone
            if pid == self._pid:
                gone, self._status = True, status

    def _listen(self) -> None:
        try:
            while part := os.read(self._told, 4096):
                self._buffer += part
        except BlockingIOError:
            pass
        *whole, self._buffer = self._buffer.split(b"\0")
        for message in whole:
            name, _, text = message.partition(b" ")
            if name == b"ends":
                self.exit_code, self._until = int(text), time.monotonic() + EXIT_SECONDS
            else:
                self.command = os.fsdecode(text)

    def _came(self, number: int) -> None:
        now = time.monotonic()
        again = now - self._last.get(number, -1.0) < SAME_SECONDS
        self._last[number] = now
        if number == signal.SIGCHLD:
            return
        self._stopped_by = number
        if not again and not _take(self._seen, number):
            self._asked.append((number, now))

    def _hears(self, number: int) -> None:
        if not _take(self._echoes, number) and not _take(self._asked, number):
            self._seen.append((number, time.monotonic()))

    def _pass_on(self) -> None:
        now = time.monotonic()
        for number, _ in [(n, at) for n, at in self._asked if now - at >= HEAR_SECONDS]:
            _take(self._asked, number)
            self._echoes.append((number, now))
            os.kill(self._pid, number)  # not reaped yet, so the pid is its own
        for noted in (self._seen, self._echoes):
            noted[:] = [(n, at) for n, at in noted if now - at < HEAR_SECONDS]


def _take(noted: list[tuple[int, float]], number: int) -> bool:
    """Remove the first note of a signal; False if there is none."""
    for i, (one, _) in enumerate(noted):
        if one == number:
            del noted[i]
            return True
    return False


def _noted(number: int, frame: object) -> None:
    """Do nothing: the wakeup pipe has the number."""


def _memory_kills() -> int:
    """Count the processes that the kernel has ended on this machine for want of memory; 0 where it does not say."""
    try:
        with open("/proc/vmstat", "rb") as file:  # noqa: PTH123 - pathlib costs more than all that is imported here
            return next((int(line.split()[1]) for line in file if line.startswith(b"oom_kill ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _why(status: int, *, memory: bool) -> str:
    """Return in words how a driver ended that said nothing. `memory`: the kernel ended processes for want of it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
    else:  # some turn a signal into an exit code of theirs
        code = os.waitstatus_to_exitcode(status)
        number = next((n for n in (signal.SIGTERM, signal.SIGINT) if code in (n, 128 + n)), 0)
        if not number:
            return f"the driver's process ended with exit code {code} {RAY_ENDS}"
    name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    if name in PASSED_ON:
        return f"stopped by {name}"
    if number == signal.SIGKILL:
        if memory:
            return "the driver's process was killed: the kernel's out-of-memory killer was at work (see dmesg)"
        return "the driver's process was killed by SIGKILL, as by `kill -9`, a limit of a container, or a scheduler"
    return f"the driver's process crashed with {name}"


def be_led() -> None:
    """Become the driver of the parent that has started this process: it hears what is signalled, and of the end."""
    global _tells
    parent, tells, hears, held = map(int, os.environ.pop(LINK).split())
    for fd in (tells, hears, held):
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
    _tells = tells
    signal.set_wakeup_fd(hears, warn_on_full_buffer=False)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    """Ask the kernel for something of this process, on Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value)


def tell_parent(name: str, text: str) -> None:
    """Tell the parent, if there is one: the `command` that resumes, or the exit code that this process `ends` with."""
    if _tells is not None:
        try:
            os.write(_tells, os.fsencode(f"{name} {text}") + b"\0")
        except OSError:  # it is gone
            return
