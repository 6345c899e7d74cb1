"""A name in an object store for one process at a time, because pyarrow writes nothing on a condition (If-None-Match).

Whoever wants the name first writes a claim under a name of its own, then lists the claims, and goes on only if its own
is there alone: of two that claim at the same time, the later one to list sees both. What is left is a process that is
held up for longer than `SILENT_SECONDS` between two requests and then goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator

from flops_fit_ray.storage.object_store import ObjectPath

SILENT_SECONDS = 30.0  # after which a claim is taken for that of a dead process
RETRY_SECONDS = 1.0  # between looks at the claims of others
_MARK = ".claim-"

Send = Callable[[Callable[[], object]], object]


@contextlib.contextmanager
def claimed(path: ObjectPath, send: Send, look: Callable[[], object] = bool) -> Iterator[None]:
    """Hold a claim to a name while the block runs, as the only process that does.

    Of several, the one of the lowest token stays and the others withdraw until it is done. A claim that is there for
    too long is that of a dead process, and is removed.

    Args:
        send: sends a request, again where it fails.
        look: called after each look at the claims: one that is gone may have left something. It may raise.

    Raises:
        OSError: the store does not answer.
    """
    claim = path.with_name(f"{path.name}{_MARK}{secrets.token_hex(8)}")
    seen: dict[ObjectPath, float] = {}  # when each claim of others was noticed
    try:
        send(lambda: claim.write_bytes(b"{}"))
        while True:
            claims = list(_claims_of(path, send))
            look()
            if claims == [claim]:
                break
            others = [other for other in claims if other != claim]
            for other in others:
                if time.monotonic() - seen.setdefault(other, time.monotonic()) > SILENT_SECONDS:
                    other.unlink(missing_ok=True)
            if others and min(others) < claim:
                claim.unlink(missing_ok=True)
            elif claim not in claims:
                send(lambda: claim.write_bytes(b"{}"))
            time.sleep(RETRY_SECONDS)
        yield
    finally:
        with contextlib.suppress(OSError):
            claim.unlink(missing_ok=True)


def _claims_of(path: ObjectPath, send: Send) -> set[ObjectPath]:
    found: set[ObjectPath] = set()  # a listing that is sent again adds none twice
    send(lambda: found.update(path.parent.glob(f"{path.name}{_MARK}*")))
    return found


def remove_dead_claims(root: ObjectPath, lease: ObjectPath) -> None:
    """Remove the claims that processes which were killed have left below `root`, to whatever name.

    Args:
        lease: what its owner writes again and again: the store's clock tells how old a claim is beside it.

    Raises:
        OSError: the store does not answer.
    """
    found = dict(root.below())
    now = found.get(lease)
    for path, written_at in found.items():
        if now is not None and _MARK in path.name and now - written_at > SILENT_SECONDS:
            path.unlink(missing_ok=True)
