"""Choice of a console by what the user asked for and whether the output is a terminal."""

from __future__ import annotations

import os
from typing import Literal, TextIO

from flops_fit_ray.console.json_lines import JsonConsole
from flops_fit_ray.console.plain import PlainConsole, QuietConsole
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths

OutputStyle = Literal["", "plain", "quiet", "json"]


def console_for(style: OutputStyle, paths: SweepPaths, spec: SweepSpec, out: TextIO) -> PlainConsole:
    """Return the console of a style; without one, the live view on a terminal and plain lines everywhere else."""
    if style == "quiet":
        return QuietConsole(out)
    if style == "json":
        return JsonConsole(out)
    if style == "plain" or not is_terminal(out):
        return PlainConsole(out)
    from rich.console import Console

    from flops_fit_ray.console._live import LiveConsole

    return LiveConsole(paths, spec, Console(file=out, highlight=False))


def is_terminal(out: TextIO) -> bool:
    """Return True if the output can be redrawn in place, and knows the characters of the picture."""
    try:
        "█▁│└·◆…".encode(getattr(out, "encoding", None) or "utf-8")
        return out.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except ValueError:  # the file is closed, or its characters are others
        return False
