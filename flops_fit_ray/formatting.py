"""Numbers, times and tables as text for people."""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

# Controls but for tab and end of line; marks that turn the direction of text; further ends of lines; halves of pairs
_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: str) -> str:
    r"""Return text of somebody else as it may be shown: what would steer a terminal or turn lines around as \u001b.

    JSON stays the same JSON.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def printable_value(value: Any) -> Any:
    """Return what a template shows: text as `printable` has it, still of its own type, such as markup."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def count(value: float) -> str:
    """Format a count in three significant digits: 1234567 -> 1.23M."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Format bytes: 12600000000 -> 12.6 GB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def flops(value: float) -> str:
    """Format FLOPs: 6e+10 -> 6e10."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not math.isfinite(value):
        return mantissa
    if not exponent:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def counted(number: int, noun: str) -> str:
    """Format a number of things: 1 experiment, 2,000 experiments."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def interval(low: float, high: float) -> str:
    """Format two counts in brackets: [1.2M, 3.4M]."""
    return f"[{count(low)}, {count(high)}]"


def factor(value: float) -> str:
    """Format a factor in three significant digits: 1.23456 -> x1.23; without bounds: x(infinite)."""
    return f"x{value:.3g}" if math.isfinite(value) else "x(infinite)"


def duration(seconds: float) -> str:
    """Format seconds: 75 -> 1 min 15 s."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if not math.isfinite(seconds):
        return f"{seconds} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 1e6:
        return f"{hours:.3g} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a plain-text table: columns padded to their widest cell, all but the first `left` aligned right.

    Not by rich, whose import takes 80 ms: plain text is also for logs and pipes, which no width limits.
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def listed(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Join items for a line, the first `most` of them where there are more: a, b, and 3 more."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the known word nearest to a mistyped one; empty if none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def local_time(seconds: float) -> str:
    """Format seconds since the epoch as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
