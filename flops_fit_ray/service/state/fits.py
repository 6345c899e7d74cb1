"""Fits, figures and reports, made in worker processes of low priority, so that other requests do not wait.

There are two of them: what takes long waits for what takes long, and for nothing else.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context

from flops_fit_ray.errors import ResourceError
from flops_fit_ray.service.state._fit_answers import answer_question, begin
from flops_fit_ray.service.state.snapshot import Snapshot
from flops_fit_ray.storage.storage_path import StoragePath

MAX_ANSWERS = 500  # cached in the service
REFRESH_SHARE = 0.1  # of a core, for fits that no request waits for
LONG_WORK = 3e6  # results times draws of a fit, from which on it takes seconds

_At = tuple[str, ...]  # question, root, version, and what belongs to the question


@dataclass(eq=False)
class _Lane:
    """One worker process, which answers one question after the other."""

    pool: ProcessPoolExecutor | None = None
    asked: OrderedDict[_At, Future[bytes]] = field(default_factory=OrderedDict)

    @property
    def waiting(self) -> list[_At]:
        """Questions that are not answered yet, the oldest first."""
        return [at for at, future in self.asked.items() if not future.done()]

    def submit(self, at: _At) -> Future[bytes]:
        """Let the worker answer a question, after those that wait."""
        question, root, version, *more = at
        try:
            return self._started().submit(answer_question, question, root, version, tuple(more))
        except BrokenProcessPool:  # the worker was killed, for example by the out-of-memory killer
            self.pool = None
            return self._started().submit(answer_question, question, root, version, tuple(more))

    def end(self) -> None:
        """End the worker process; whoever waits for an answer hears that it was lost, and asks again."""
        pool, self.pool = self.pool, None
        self.asked = OrderedDict((at, future) for at, future in self.asked.items() if future.done())
        if pool is not None:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False)
            for process in processes:
                process.terminate()

    def _started(self) -> ProcessPoolExecutor:
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin)
        return self.pool


class FitWorker:
    """Client of the worker processes. Equal questions share one answer, and answers are cached.

    Args:
        is_overdue: tells of a sweep directory whether it does not answer; such a one is asked nothing.
    """

    def __init__(self, is_overdue: Callable[[str], bool] = lambda root: False) -> None:
        self._lock = threading.Lock()
        self._short, self._long = _Lane(), _Lane()
        self._is_overdue = is_overdue
        self._newest: dict[_At, tuple[str, bytes]] = {}  # version and answer, by the question without its version
        self._rest: dict[_At, float] = {}  # time.monotonic() of the next refresh, at the earliest

    def ask(self, question: str, of: Snapshot, *more: str, beside: Snapshot | None = None) -> Future[bytes]:
        """Return a future of the answer on a sweep.

        The future raises what the question raises: FitError if there is no law.

        Args:
            beside: another sweep, of questions on two.

        Raises:
            ResourceError: its directory does not answer.
        """
        both = [of] if beside is None else [of, beside]
        for one in both:
            if self._is_overdue(str(one.sweep.paths.root)):
                raise ResourceError(
                    f"{one.sweep.paths.root.name}: its directory does not answer; ask again when it does"
                )
        at = _at(question, of, more, beside)
        with self._lock:
            lane = self._long if any(map(_takes_long, both)) else self._short
            if any(self._is_overdue(waits[1]) for waits in lane.waiting):  # it will never answer, nor what waits for it
                lane.end()
            known = lane.asked.get(at)
            if known is not None and not _was_lost(known):
                lane.asked.move_to_end(at)
                return known
            began = time.monotonic()
            future = lane.asked[at] = lane.submit(at)
            while len(lane.asked) > MAX_ANSWERS:
                lane.asked.popitem(last=False)
        future.add_done_callback(lambda done: self._keep(at, done, time.monotonic() - began))
        return future

    async def answer(
        self, seconds: float, question: str, of: Snapshot, *more: str, beside: Snapshot | None = None
    ) -> bytes:
        """Wait for the answer.

        Raises:
            TimeoutError: it takes longer than `seconds`; the worker keeps working on it.
            FitError: there is no answer.
            ResourceError: the worker was killed twice, or the directory does not answer.
        """
        for _ in range(2):
            try:
                asked = asyncio.wrap_future(self.ask(question, of, *more, beside=beside))
                asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may be gone
                return await asyncio.wait_for(asyncio.shield(asked), seconds)
            except BrokenProcessPool:
                continue
        raise ResourceError(
            "the worker that fits was killed twice, perhaps for lack of memory; free some and try again"
        )

    def newest(self, question: str, of: Snapshot) -> tuple[str, bytes] | None:
        """Return the last answer and its version, and start a refresh if it is old and `REFRESH_SHARE` allows."""
        key = _without_version(_at(question, of))
        known = self._newest.get(key)
        if (known is None or known[0] != of.version) and time.monotonic() >= self._rest.get(key, 0.0):
            with self._lock:
                waiting = {_without_version(at) for at in (*self._short.waiting, *self._long.waiting)}
            if key not in waiting and not self._is_overdue(key[1]):
                self.ask(question, of)
        return self._newest.get(key)

    def newest_if_idle(self, question: str, of: Snapshot) -> tuple[str, bytes] | None:
        """Return the last answer and its version. Ask for a newer one only while nobody waits for another."""
        with self._lock:
            busy = bool(self._short.waiting or self._long.waiting)
        return self._newest.get(_without_version(_at(question, of))) if busy else self.newest(question, of)

    def forget(self, root: StoragePath) -> None:
        """Forget the answers on a directory, which is another one from now on."""
        with self._lock:
            self._newest = {key: known for key, known in self._newest.items() if key[1] != str(root)}
            for lane in (self._short, self._long):
                lane.asked = OrderedDict((at, future) for at, future in lane.asked.items() if at[1] != str(root))

    def close(self) -> None:
        """End the worker processes."""
        self._short.end()
        self._long.end()

    def _keep(self, at: _At, done: Future[bytes], took: float) -> None:
        key = _without_version(at)
        self._rest[key] = time.monotonic() + took / REFRESH_SHARE
        if not done.cancelled() and done.exception() is None:
            self._newest[key] = (at[2], done.result())
            while len(self._newest) > MAX_ANSWERS:
                self._newest.pop(next(iter(self._newest)))


def _at(question: str, of: Snapshot, more: tuple[str, ...] = (), beside: Snapshot | None = None) -> _At:
    other = () if beside is None else (str(beside.sweep.paths.root), beside.version)
    return (question, str(of.sweep.paths.root), of.version, *other, *more)


def _takes_long(of: Snapshot) -> bool:
    return len(of.sweep.results) * of.sweep.spec.fit.draws > LONG_WORK


def _without_version(at: _At) -> _At:
    return (*at[:2], *at[3:])


def _was_lost(asked: Future[bytes]) -> bool:
    """Return True if the worker died on it; any other failure would be the same again."""
    return asked.done() and (asked.cancelled() or isinstance(asked.exception(), BrokenProcessPool))
