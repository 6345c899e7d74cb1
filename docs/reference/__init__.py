"""Reference pages made from the code: `python -m docs.reference` writes them, and a test compares them.

Nothing in them is written by hand: the spec's keys come from the pydantic models, commands from click, Python from
signatures and docstrings, JSON from records and from what the code says of a sweep directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from docs.reference import _commands, _json, _python, _spec

FOLDER = Path(__file__).parent
PAGES: Mapping[str, Callable[[], str]] = {
    "spec.md": _spec.render,
    "commands.md": _commands.render,
    "python.md": _python.render,
    "json.md": _json.render,
}
