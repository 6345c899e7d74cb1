"""What to know before trusting a number: a code for programs, a severity, and words for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "severe"]


@dataclass(frozen=True)
class Flag:
    """One thing to know. `code` is stable; the words may change."""

    code: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return {"code": self.code, "severity": self.severity, "message": self.message}
