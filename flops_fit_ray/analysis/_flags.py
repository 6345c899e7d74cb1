"""Warnings about a number: a code for programs, a severity, and a message for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "severe"]


@dataclass(frozen=True)
class Flag:
    """One warning. `code` is stable; the message may change."""

    code: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, str]:
        """Return the flag as a JSON object."""
        return {"code": self.code, "severity": self.severity, "message": self.message}
