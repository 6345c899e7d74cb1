"""Tokens that Ray asks for: one where its home cannot be written, and the same words of all that connect without."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

_REFUSED = re.compile(r"InvalidAuthToken|authentication token|Authentication (?:required|failed)", re.IGNORECASE)


def ensure_token() -> str:
    """Give a Ray that is started here a token, where it could write none, and return what was done; "" otherwise.

    Ray keeps it in the home directory, and starts nothing where that cannot be written, as in many containers.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return ""
    path = _token_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or os.access(path.parent, os.W_OK):
            return ""
    except OSError:  # it cannot be made
        pass
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return f"{path.parent} cannot be written: the token of this Ray is kept in the environment of its processes"


def _token_file() -> Path:
    home = os.path.expanduser("~")  # noqa: PTH111 - Path raises where there is none
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or f"{home}/.ray/auth_token")


def token_fault(said: str, at: str) -> str | None:
    """Return in one line what is wrong with the token for a cluster; None where Ray `said` nothing of tokens.

    Args:
        at: address of the cluster.
    """
    if not _REFUSED.search(said):
        return None
    mode = os.environ.get("RAY_AUTH_MODE", "")
    path = _token_file()
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
