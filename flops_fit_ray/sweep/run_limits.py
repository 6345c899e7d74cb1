"""Limits of one run of a sweep: when to stop adding runs, and how many experiments train at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunLimits:
    """Options of `run` and `extend`; None means the default."""

    until: str | None = None  # FACTOR[@C]
    at_most: float | None = None  # total FLOPs that `until` may spend
    slots: int | None = None  # experiments at a time

    def options(self) -> list[str]:
        """Return the limits as command-line options."""
        given = {"--until": self.until, "--at-most": self.at_most, "--slots": self.slots}
        return [word for name, value in given.items() if value is not None for word in (name, str(value))]
