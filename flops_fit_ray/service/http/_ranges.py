"""Ranges of bytes that a request asks for (RFC 9110, 14): one of them; of several the whole is sent."""

from __future__ import annotations

import re

_ONE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", flags=re.IGNORECASE)
_DIGITS = 18  # of a number of bytes; more are as many as there are


def asked_range(header: str | None, length: int) -> range | None:
    """Return the bytes that a Range header asks for, empty if there are none of them; None for the whole.

    A header that cannot be read, or asks for several ranges, asks for the whole.
    """
    match = None if header is None else _ONE.fullmatch(header)
    if match is None or length == 0:
        return None
    first, last = (int(digits.lstrip("0")[:_DIGITS] or 0) if digits else None for digits in match.groups())
    if first is None:
        return None if last is None else range(max(0, length - last), length)
    if last is not None and last < first:
        return None
    return range(first, length if last is None else min(last + 1, length))
