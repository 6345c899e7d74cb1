"""Calls of the user's code: whatever ends one is a fault of the key that names it, and never the end of the process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NoReturn

from flops_fit_ray.errors import SpecError

# Stands for the command line while the user's modules are imported: a parser of theirs would take our options for its
# own in this process, and those of Ray's workers in another. It is refused by any parser.
NO_ARGUMENTS = "--imported-by-flops-fit-ray"
_PARSERS = {"argparse", "optparse", "click", "absl", "fire", "docopt"}


@contextlib.contextmanager
def user_code(words: str, *, but: type[Exception] = SpecError) -> Iterator[None]:
    """Run the user's code in the block; `words` begin with the key of the spec that names it.

    `exit()` is an error like any other: it would end this process with exit code 0. Requests to stop are let through.

    Args:
        but: errors to let through, besides those that name a key already.

    Raises:
        SpecError: the code raised anything.
    """
    try:
        with hard_exit_raises():
            yield
    except (SpecError, but):
        raise
    except KeyboardInterrupt as e:
        if not _is_raised_by_code(e):
            raise
        raise SpecError("spec", [f"{words} {describe_error(e)}"]) from e
    except BaseException as e:  # the user's code may raise anything
        raise SpecError("spec", [f"{words} {describe_error(e)}"]) from e


@contextlib.contextmanager
def hard_exit_raises() -> Iterator[None]:
    """Make `os._exit` of this thread raise SystemExit in the block: nobody could say a word after it.

    Forked children, which end by it, and other threads keep theirs.
    """
    hard_exit, here = os._exit, (os.getpid(), threading.get_ident())

    def leave(status: int) -> NoReturn:
        if (os.getpid(), threading.get_ident()) == here:
            raise SystemExit(status)
        hard_exit(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = hard_exit


def _is_raised_by_code(error: KeyboardInterrupt) -> bool:
    """Return True unless a signal raised it: our handlers raise a class of their own, and Python's this very one."""
    return type(error) is KeyboardInterrupt and signal.getsignal(signal.SIGINT) is not signal.default_int_handler


def describe_error(error: BaseException) -> str:
    """Describe an error of the user's code in one line: its class, its message, and the way out where one is known."""
    said = str(error)
    if isinstance(error, SystemExit):
        if any(name.partition(".")[0] in _PARSERS for name in _modules_of(error)):
            way_out = (
                "the code parses a command line, and has none of its own here; parse it under "
                '`if __name__ == "__main__":` and give the values in the spec (model.kwargs, data.kwargs)'
            )
        else:
            way_out = (
                'the code calls exit(); put what only a script does under `if __name__ == "__main__":`, and raise an '
                "error where something is wrong"
            )
        return f"SystemExit: {said}; {way_out}" if isinstance(error.code, str) else f"SystemExit: {way_out}"
    if isinstance(error, KeyError) and list(_modules_of(error))[-1:] == ["os"]:
        said += "; that environment variable is not set in the process that runs the code"
    return f"{type(error).__name__}: {said}"


def _modules_of(error: BaseException) -> Iterator[str]:
    """Yield the names of the modules that an error came through."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield str(frame.f_globals.get("__name__", ""))


@contextlib.contextmanager
def command_line_of(program: str) -> Iterator[None]:
    """Hide the arguments of this process from the user's code in the block; `program` is the name it sees itself by."""
    before = sys.argv
    sys.argv = [program, NO_ARGUMENTS]
    try:
        yield
    finally:
        sys.argv = before
