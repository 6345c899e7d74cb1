"""How far a run of a sweep goes, and how many experiments at a time: what `run` and `extend` have options for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunLimits:
    """What is None is left to the defaults."""

    until: str | None = None  # ci=FACTOR@C
    at_most: float | None = None  # FLOPs in all that `until` may spend
    slots: int | None = None

    def words(self) -> list[str]:
        """The same as options of a command."""
        given = {"--until": self.until, "--at-most": self.at_most, "--slots": self.slots}
        return [word for name, value in given.items() if value is not None for word in (name, str(value))]
