"""Redaction of secrets: values of secret-like environment variables, and text that looks like a credential."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[redacted]"
MIN_LENGTH = 8  # of an environment value to redact

_NAMES = re.compile(r"(?i)(key|token|secret|passw|credential)")
_WORDS = (
    r"(?:api[-_]?key|access[-_]?key(?:[-_]id)?|secret(?:[-_][a-z]{1,20}){0,3}|password|passwd|"
    r"auth[-_]?token|access[-_]?token)"
)
_QUOTE = r"(?:['\"]|&#3[49];|&quot;)"  # plain or escaped for HTML
_SHAPES = [
    re.compile(r"(?<=://)[^\s/@:'\"]+:[^\s/@'\"]+(?=@)"),  # user:password in a URL
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),  # AWS
    re.compile(r"\b(?:hf|ghp|gho|ghs|glpat|xox[abp]|sk|wandb_v1)[-_][A-Za-z0-9_-]{16,}"),
    re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),  # a JSON web token
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(
        rf"(?i)(?<![A-Za-z0-9])((?:[a-z0-9]{{1,40}}[-_]){{0,4}}{_WORDS}{_QUOTE}?\s*[:=]\s*)(?!\[redacted\])"
        rf"(?:(?P<quote>{_QUOTE}).*?(?P=quote)|[^\s,'\"}}\]<&]+)"
    ),
]


def redacted(text: str) -> str:
    """Return the text with secrets replaced."""
    for value in _own(tuple(sorted(os.environ.items()))):
        if value in text:
            text = text.replace(value, HIDDEN)
    for shape in _SHAPES[:-1]:
        text = shape.sub(HIDDEN, text)
    return _SHAPES[-1].sub(rf"\g<1>{HIDDEN}", text)


def redacted_values(content: Any) -> Any:
    """Redact every string in plain values."""
    if isinstance(content, str):
        return redacted(content)
    if isinstance(content, Mapping):
        return {key: redacted_values(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redacted_values(value) for value in content]
    return content


@functools.lru_cache(maxsize=4)
def _own(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    values = {value for name, value in environment if _NAMES.search(name) and len(value) >= MIN_LENGTH}
    return tuple(sorted((v for v in values if not v.startswith("/")), key=len, reverse=True))
