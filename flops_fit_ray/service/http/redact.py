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
    r"(?:api[-_]?key|access[-_]?key(?:[-_]id)?|account[-_]?key|shared[-_]?access[-_]?key|"
    r"secret(?:[-_][a-z]{1,20}){0,3}|client[-_]?secret|private[-_]?key|(?:pg)?password|passwd|pwd|passphrase|"
    r"auth[-_]?token|access[-_]?token|refresh[-_]?token|id[-_]?token|session[-_]?token|bot[-_]?token|"
    r"x-amz-(?:signature|credential|security-token)|x-goog-signature|"
    r"set-cookie|cookie|session[-_]?id|sessionid|csrftoken)"
)
_QUOTE = r"(?:['\"]|&#3[49];|&quot;)"  # plain or escaped for HTML
_SHAPES = [
    re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----[^-]{0,20000}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----)?"),
    re.compile(r"(?<=://)[^\s/@:'\"]*:[^\s/@'\"]+(?=@)"),  # user:password in a URL; redis has no user
    re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA|AIDA|AROA)[0-9A-Z]{16}\b"),  # AWS
    re.compile(r"\bAIza[A-Za-z0-9_-]{30,}"),  # Google
    re.compile(r"\bya29\.[A-Za-z0-9._-]{16,}"),
    re.compile(r"\bGOCSPX-[A-Za-z0-9_-]{16,}"),
    re.compile(  # GitHub, GitLab, npm, PyPI, Docker, Hugging Face, Slack, OpenAI, Anthropic, Stripe, Weights & Biases
        r"\b(?:hf|gh[pousr]|github_pat|glpat|gl[a-z]{2,6}t|npm|pypi|dckr_pat|xox[abeoprs]|xapp|sk|[rp]k_live|nvapi|r8|dop_v1|"
        r"wandb_v1|shpat|lin_api|tskey)[-_][A-Za-z0-9_-]{16,}"
    ),
    re.compile(r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),  # SendGrid
    re.compile(r"(?<=hooks\.slack\.com/services/)[A-Za-z0-9/]{20,}"),
    re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),  # a JSON web token
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)(?<=basic )[A-Za-z0-9+/]{8,}={0,2}(?![A-Za-z0-9 ])"),
    re.compile(r"(?i)(?<=authorization: )(?!\[redacted\]|bearer |basic )[^\r\n'\"<]{1,2000}"),
    re.compile(r"(?i)(?<=authorization['\"]: ['\"])(?!\[redacted\]|bearer |basic )[^'\"]{1,2000}"),
    re.compile(r"(?<=[?&]sig=)[^\s&'\"<]+"),  # a shared access signature of Azure
    re.compile(r"(?:(?<=--password )|(?<=--token )|(?<=--api-key )|(?<=--secret ))[^\s'\"<]{6,}"),
    re.compile(r"(?i)(?<=authorization: token )[^\s'\"<]{8,}"),
    re.compile(r"(?i)(?<=cookie: )[^\r\n'\"<]{1,4000}"),
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
