"""The line that resumes a command, as complete as a shell needs it; the parent process knows it as soon as we do."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from flops_fit_ray.cli import _parent

# Variables that decide what is found and where it runs. A token is a secret, and stands in no line.
VARIABLES = (
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "CUDA_VISIBLE_DEVICES",
    "RAY_TMPDIR",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
)

_SET = {name: os.environ[name] for name in VARIABLES if name in os.environ}  # before Ray sets some itself
_line = ""


def set_resume_line(line: str) -> None:
    """Set the line that resumes what this process does from now on; "": the command as it was typed."""
    global _line
    _line = line
    _parent.tell_parent("command", line)


def resume_lines(typed: Sequence[str], line: str = "") -> str:
    """Return how to go on, in two lines, the last of them for a shell.

    Args:
        typed: the command and its arguments, as they were given.
        line: that resumes, of another process.
    """
    if line or _line:
        return f"Results so far are saved. Resume with:\n{line or _line}"
    return f"Run it again with:\n{shell_line(typed)}"


def write_last_words(why: str, line: str, typed: Sequence[str]) -> None:
    """Write the last lines of a driver that has ended without a word, where its own would stand; as `resume_lines`."""
    words, fd = f"{why}\n{resume_lines(typed, line)}", 2 if "--json" in typed else 1
    if os.isatty(fd):
        words = f"\x1b[?25h\x1b[0m{words}"  # a live view has hidden the cursor
    elif "--json-lines" in typed:
        import json
        import time

        words = json.dumps({"schema_version": 1, "kind": "said", "at": time.time(), "words": words})
    with contextlib.suppress(OSError):  # a closed pipe, a full disk
        os.write(fd, f"{words}\n".encode(errors="replace"))


def entry_point() -> list[str]:
    """Return the words that call this package from a shell on this machine."""
    import shutil

    installed = shutil.which("flops-fit-ray")
    ours = installed is not None and os.path.dirname(installed) == os.path.dirname(sys.executable)  # noqa: PTH120
    return ["flops-fit-ray"] if ours else [sys.executable, "-m", "flops_fit_ray"]


def shell_line(words: Sequence[str]) -> str:
    """Return the line that gives these words to this package: quoted, below the variables that are set here."""
    import shlex

    kept = [f"{name}={shlex.quote(value)}" for name, value in _SET.items() if (name, value) != ("PYTHONHASHSEED", "0")]
    return " ".join([*kept, shlex.join([*entry_point(), *words])])
