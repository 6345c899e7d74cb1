"""Tokens that Ray asks for: whether one is missing or wrong, said in the same words by all that connect."""

from __future__ import annotations

import os
import re
from pathlib import Path

_REFUSED = re.compile(r"InvalidAuthToken|authentication token|Authentication (?:required|failed)", re.IGNORECASE)


def token_fault(said: str, at: str) -> str | None:
    """Return in one line what is wrong with the token for a cluster; None where Ray `said` nothing of tokens.

    Args:
        at: address of the cluster.
    """
    if not _REFUSED.search(said):
        return None
    mode = os.environ.get("RAY_AUTH_MODE", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if mode not in ("", "token"):
        own = f"RAY_AUTH_MODE={mode} sends none"
    elif os.environ.get("RAY_AUTH_TOKEN"):
        own = "it does not take that of RAY_AUTH_TOKEN"
    elif path.is_file():
        own = f"it does not take that of {path}"
    else:
        own = f"none is known here (RAY_AUTH_TOKEN, {path})"
    return (
        f"the Ray cluster at {at} asks for a token, and {own}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a "
        "file with its own (on its head: ~/.ray/auth_token)"
    )
