"""Requests that touch the files of a sweep, counted: of one that does not answer only a few may hold a thread each."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from fastapi import Request

from flops_fit_ray.service.http.request_error import busy

SLOW_SECONDS = 5.0  # after which a request may be one that nothing answers
MAX_SLOW = 4  # of one sweep at a time; more are refused, until one of them is answered
STREAMS = "/events"  # what such paths end with waits for events, and holds no thread


@dataclass(eq=False)
class Visit:
    """One request, from when it may wait for files."""

    since: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Wait for something else than the files of the sweep, in no thread, such as for a fit."""
        self.since = math.inf
        try:
            yield
        finally:
            self.since = time.monotonic()


class Visits:
    """Requests that are being answered, by sweep."""

    def __init__(self) -> None:
        self._of: dict[str, set[Visit]] = {}

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[Visit]:
        """Count a request, until the block ends.

        Raises:
            RequestError: too many of this sweep have waited for too long.
        """
        others = self._of.setdefault(name, set())
        slow = sum(time.monotonic() - one.since > SLOW_SECONDS for one in others)
        if slow >= MAX_SLOW:
            raise busy(f"{name}: its directory does not answer: {slow} requests wait for it; ask again when it does")
        visit = Visit()
        others.add(visit)
        try:
            yield visit
        finally:
            others.discard(visit)
            if not others:
                self._of.pop(name, None)


async def visiting(request: Request) -> AsyncIterator[None]:
    """Count a request of a sweep, as a dependency of every route."""
    name = request.path_params.get("name")
    if name is None or request.url.path.endswith(STREAMS):
        yield
        return
    visits: Visits = request.app.state.visits
    with visits.at(str(name)) as request.state.visit:
        yield


def waiting_elsewhere(request: Request) -> contextlib.AbstractContextManager[None]:
    """Return a block in which a request waits for something else than files."""
    visit: Visit | None = getattr(request.state, "visit", None)
    return contextlib.nullcontext() if visit is None else visit.elsewhere()
