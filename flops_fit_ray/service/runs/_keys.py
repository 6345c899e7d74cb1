"""Idempotency keys, with request and answer of each, so that it is carried out once, however often it comes.

Only what was carried out is recorded: a request that was refused may succeed when it comes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.storage_path import names_in

KEPT_SECONDS = 7 * 86400.0  # from its first request on
MAX_KEYS = 10_000  # the oldest are dropped first
IN_USE_SECONDS = 10.0  # that a request waits for another one with its key
RETRY_SECONDS = 2

Json = dict[str, Any]


def digest(content: Any) -> str:
    """Return the hash of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Keys:
    """All keys of a service, one file each."""

    def __init__(self, paths: ServicePaths) -> None:
        self._paths, self._lock = paths, threading.Lock()
        self._in_use: dict[str, threading.Lock] = {}

    def once(self, key: str | None, asked: Mapping[str, Any], act: Callable[[], Json]) -> tuple[Json, bool]:
        """Carry a request out and return its answer; of a key that came before, the recorded answer and True.

        Args:
            asked: the request: what is to be done to what, and how.
            act: carries it out; is to recognise by itself what an earlier service did and could not record any more.

        Raises:
            RequestError: the key came with another request, or its first request is still being carried out.
        """
        if key is None:
            return act(), False
        with self._held(key):
            known = self.read(key, asked) or {}
            if isinstance(known.get("answer"), dict):
                return known["answer"], True
            answer = act()
            self.write(key, asked, {**known, "answer": answer})
        return answer, False

    def read(self, key: str, asked: Mapping[str, Any]) -> Json | None:
        """Return what is known of the request that came with a key; None if none did.

        Raises:
            RequestError: it was another request.
        """
        place = self._paths.key(digest(key))
        note = read_json(place)
        if note is None:
            return None
        if time.time() - self._begun(key, note) > KEPT_SECONDS:
            place.unlink(missing_ok=True)
            return None
        if note.get("asked") != digest(asked):
            message = "this idempotency key was used for another request; use a new one"
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, message, kind="key_reused")
        return note

    def write(self, key: str, asked: Mapping[str, Any], note: Mapping[str, Any]) -> None:
        """Write what is known of the request that came with a key."""
        self._drop_oldest()
        write_json(self._paths.key(digest(key)), {"at": time.time(), **note, "asked": digest(asked)})

    def _begun(self, key: str, note: Mapping[str, Any]) -> float:
        at = note.get("at")
        if isinstance(at, int | float):
            return float(at)
        return self._paths.key(digest(key)).stat().st_mtime  # of an earlier version

    @contextlib.contextmanager
    def _held(self, key: str) -> Iterator[None]:
        with self._lock:
            if len(self._in_use) > MAX_KEYS:
                self._in_use = {one: lock for one, lock in self._in_use.items() if lock.locked()}
            mine = self._in_use.setdefault(key, threading.Lock())
        if not mine.acquire(timeout=IN_USE_SECONDS):
            message = "the first request with this idempotency key is still being carried out; ask again"
            raise RequestError(HTTPStatus.CONFLICT, message, kind="key_in_use", retry_after=RETRY_SECONDS)
        try:
            yield
        finally:
            mine.release()

    def _drop_oldest(self) -> None:
        directory = self._paths.keys
        known = names_in(directory)
        if len(known) < MAX_KEYS:
            return
        oldest = sorted(known, key=lambda name: (directory / name).stat().st_mtime)
        for name in oldest[: len(known) // 10 + 1]:
            (directory / name).unlink(missing_ok=True)
