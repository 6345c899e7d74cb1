"""Which console suits whom."""

from __future__ import annotations

import os
from typing import Literal, TextIO

from flops_fit_ray.console.lines import JsonConsole, QuietConsole
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths

Wish = Literal["", "plain", "quiet", "json"]


def console_for(wish: Wish, paths: SweepPaths, spec: SweepSpec, out: TextIO) -> PlainConsole:
    """What was asked for; else the live view on a terminal, and plain lines everywhere else."""
    if wish == "quiet":
        return QuietConsole(out)
    if wish == "json":
        return JsonConsole(out)
    if wish == "plain" or not is_terminal(out):
        return PlainConsole(out)
    from rich.console import Console

    from flops_fit_ray.console.live import LiveConsole

    return LiveConsole(paths, spec, Console(file=out, highlight=False))


def is_terminal(out: TextIO) -> bool:
    """Whether lines can be drawn anew there."""
    try:
        return out.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except ValueError:  # it is closed
        return False
