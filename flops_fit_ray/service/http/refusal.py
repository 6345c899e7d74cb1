"""What a request is refused with."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus


class Refusal(Exception):  # noqa: N818 - it is one, and no fault of ours
    """`status` is HTTP's; `faults` has one line per fault where there are several."""

    def __init__(self, status: HTTPStatus, words: str, faults: Sequence[str] = ()) -> None:
        super().__init__(words)
        self.status, self.words, self.faults = status, words, tuple(faults)


def not_found(what: str) -> Refusal:
    """404."""
    return Refusal(HTTPStatus.NOT_FOUND, f"no such {what}")


def conflict(words: str) -> Refusal:
    """409: as things stand, that cannot be done."""
    return Refusal(HTTPStatus.CONFLICT, words)
