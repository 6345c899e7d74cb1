"""Markdown of the reference pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MADE = "<!-- Made by `python -m docs.reference` from the code; edit that. -->"


def page(title: str, *parts: str) -> str:
    """Return a page of parts, with a blank line between two."""
    return "\n\n".join([f"# {title}", MADE, *(part.strip() for part in parts if part.strip())]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; empty without rows."""
    body = [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *body]) if body else ""


def cell(text: str) -> str:
    """Return text in one line that neither ends a cell nor begins a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def code(text: object) -> str:
    """Return text as code, in which a cell may not be ended either."""
    return f"`{text}`"
