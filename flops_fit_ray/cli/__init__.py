"""Doors of the command line. Commands that run the user's code or Ray do so below a parent process (`_parent`).

Heavy imports happen inside: the parent imports almost nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from flops_fit_ray.cli import _parent

LED = {"plan", "check", "run", "extend", "selftest"}


def enter(args: Sequence[str] | None = None, prog_name: str = "flops-fit-ray") -> NoReturn:
    """Run a command, below a parent process if it runs the user's code or Ray, and exit with its exit code."""
    given = list(sys.argv[1:] if args is None else args)
    if _parent.is_led():
        _drive(given, prog_name)
    if given[:1] and given[0] in LED and _parent.can_lead():
        _leave(_lead(given))
    main(given, prog_name)


def _leave(code: int) -> NoReturn:
    """End this process at once: while the interpreter is torn down, a signal would decide how it ends."""
    import contextlib

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    os._exit(code)


def _lead(typed: Sequence[str]) -> int:
    """Run this very command line again as the driver, and return the exit code of the command."""
    driver = _parent.Driver([sys.executable, *sys.orig_argv[1:]])
    driver.wait()
    if driver.exit_code == 0:
        return 0
    from flops_fit_ray.errors import EXIT_INTERRUPTED

    if driver.exit_code is None:
        from flops_fit_ray.cli._resume import write_last_words

        write_last_words(driver.why, driver.command, typed)
    elif driver.exit_code != EXIT_INTERRUPTED or not driver.leaves_orphans:
        return driver.exit_code
    from flops_fit_ray.engine.processes import end_all, ray_descendants

    # Some of Ray's processes look for their parent once in a while; and a worker that is just being started has not
    # heard of its raylet yet when that is killed
    end_all(ray_descendants())
    return EXIT_INTERRUPTED


def enter_run(args: Sequence[str]) -> NoReturn:
    """Enter the command `run`. A command in the place of its spec is refused: `run` is the command already."""
    prog_name = "python -m flops_fit_ray"
    if args and not os.path.exists(args[0]):  # noqa: PTH110 - pathlib costs more than the rest of the parent
        _refuse_command(args, prog_name)
    enter(["run", *args], prog_name=prog_name)


def _refuse_command(args: Sequence[str], prog_name: str) -> None:
    from flops_fit_ray.cli._commands import HOMES
    from flops_fit_ray.errors import EXIT_INPUT

    if args[0] in HOMES:
        meant = " ".join([prog_name, *args])
        sys.stderr.write(f"error: {args[0]!r} is a command, and {prog_name}.run runs a sweep; write {meant}\n")
        sys.exit(EXIT_INPUT)


def main(args: Sequence[str] | None = None, prog_name: str = "flops-fit-ray") -> NoReturn:
    """Run a command in this process, and exit with its exit code."""
    from flops_fit_ray.cli._commands import run_command

    sys.exit(run_command(args, prog_name))


def _drive(args: Sequence[str], prog_name: str) -> NoReturn:
    """Run a command as the driver below its parent, and end the process at once, without the interpreter's teardown.

    Tearing down torch and Ray takes 1 to 2 s, in which a thread left behind by Tune could start Ray again; so it could
    where Ray has died, and RAY_ENABLE_AUTO_CONNECT forbids it.
    """
    import atexit
    import contextlib
    import traceback

    _parent.be_led()
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    from flops_fit_ray.cli._commands import run_command
    from flops_fit_ray.cli._resume import resume_lines
    from flops_fit_ray.errors import EXIT_FAILED

    try:
        code = run_command(args, prog_name)
    except Exception:  # noqa: BLE001 - a fault of ours, which is shown whole
        code = EXIT_FAILED
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{traceback.format_exc()}{resume_lines(args)}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    _parent.tell_parent("ends", str(code))  # what is registered for the exit may never end
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    _leave(code)
