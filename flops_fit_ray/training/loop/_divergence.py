"""Detection of a training loss that is out of hand: it stays far above every level that it has been at.

The loss of one batch says little, and heavy tails make single ones large; the first of all may be small by chance. So
windows of WINDOW readings of the curve are compared, and nothing is said of the unit or the sign of the loss:

1) The level of a window is its second highest reading, so that one spike is none. Of the windows that do not overlap
   the last one, h is the highest level and l the lowest.
2) r is the second lowest of the last WINDOW readings: all but one are as high.
3) The loss has exploded where r > h + EXPLODED * s with s = max(|h|, |l|, h - l).
4) A run that jumps within its first readings has no level of before but its first reading f: where r > JUMPED * |f|.
5) Either has to hold at IN_A_ROW readings, one after the other.
6) Losses that begin at 0 have no scale yet: neither is judged where s or |f| is below NOTHING times the
   highest of the last readings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

WINDOW = 9  # readings; a curve has about 250
EXPLODED = 10.0
JUMPED = 1000.0
NOTHING = 1e-6
IN_A_ROW = 3


class LossLevels:
    """The levels of a training loss, reading by reading."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses: list[float] = []
        self._levels: list[float] = []  # of the window that ends at each reading from the first whole one on
        self._highest, self._lowest = -math.inf, math.inf
        self._in_a_row = 0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        """Take the next reading."""
        self._losses.append(loss)
        if len(self._losses) < WINDOW:
            return
        self._levels.append(sorted(self._losses[-WINDOW:])[-2])
        if len(self._levels) > WINDOW:  # the newest window that the last one does not overlap
            level = self._levels[-1 - WINDOW]
            self._highest, self._lowest = max(self._highest, level), min(self._lowest, level)
            self._in_a_row = self._in_a_row + 1 if self._judged() else 0

    def exploded(self) -> str:
        """Return in words what makes the last readings a divergence; empty where they are none."""
        return self._judged() if self._in_a_row >= IN_A_ROW else ""

    def _judged(self) -> str:
        last, first = sorted(self._losses[-WINDOW:]), abs(self._losses[0])
        reached, nothing = last[1], NOTHING * last[-1]
        scale = max(abs(self._highest), abs(self._lowest), self._highest - self._lowest)
        limit = self._highest + EXPLODED * scale
        if reached > limit and scale >= nothing:
            return f"{WINDOW - 1} of the last {WINDOW} readings are {reached:.4g} or more, after {self._highest:.4g}"
        if reached > JUMPED * first >= JUMPED * nothing:
            return f"{WINDOW - 1} of the last {WINDOW} readings are {reached:.4g} or more; it began at {first:.4g}"
        return ""
