"""The workers of one experiment beside the trial itself: started in its placement group, and kept for the next one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import Store  # type: ignore[attr-defined] # torch leaves it unexported

from flops_fit_ray.engine.observer import READ_SECONDS
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import WorkerLostError
from flops_fit_ray.ledger.hardware import Machine, Readings
from flops_fit_ray.planning import Experiment
from flops_fit_ray.storage.codec import value_of
from flops_fit_ray.training.distributed.group import SINGLE_WORKER, Group, connect_store, create_store, process_group
from flops_fit_ray.training.loop.follower import run_follower
from flops_fit_ray.training.step.device import gpu_uuids
from flops_fit_ray.training.user.parts import UserParts

LONGER_SECONDS = 300.0  # than data may take: a step, or the others' start
FOREVER_SECONDS = 7 * 86400.0  # that a follower waits; the leader evaluates meanwhile, and ends it when it ends itself
TOLD_SECONDS = 10.0


class Follower:
    """One of the other workers, as an actor."""

    def __init__(self, load_user_parts: Callable[[], UserParts], device: str) -> None:
        self._load_user_parts, self._device = load_user_parts, device
        self._user: UserParts | None = None

    def get_ready(self) -> None:
        """Load the user's parts, once."""
        self._user = self._user or self._load_user_parts()

    def train(self, experiment: Experiment, eval_samples: int, group: Group, host: str, port: int) -> None:
        """Train one experiment with its leader."""
        assert self._user is not None
        store = connect_store(host, port, LONGER_SECONDS)
        with process_group(store, group, self._device, FOREVER_SECONDS), _telling(host, port, group.rank):
            run_follower(experiment, self._user, eval_samples=eval_samples, group=group, device=self._device)


@contextlib.contextmanager
def _telling(host: str, port: int, rank: int) -> Iterator[None]:
    """Put a reading of this worker's node where its leader finds it, now and then."""
    done = threading.Event()

    def tell() -> None:
        readings = Readings()
        with contextlib.suppress(RuntimeError):  # the leader is gone; whoever trains hears of it
            board = connect_store(host, port, LONGER_SECONDS)
            while True:
                board.set(_name(rank), json.dumps(readings.read(gpu_uuids()).to_json()))
                if done.wait(READ_SECONDS):
                    return

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _name(rank: int) -> str:
    return f"reading of worker {rank}"


class Team:
    """The other workers of a trial. Of one worker there are none."""

    def __init__(
        self,
        load_user_parts: Callable[[], UserParts],
        slots: Slots,
        *,
        eval_samples: int,
        sharded: bool,
        time_limit: float,
    ) -> None:
        self._load_user_parts, self._slots, self._size = load_user_parts, slots, slots.workers
        self._eval_samples, self._sharded, self._patience = eval_samples, sharded, time_limit
        self._others: list[Any] = []
        self._board: Store | None = None  # where the others leave their readings

    def readings(self) -> list[Machine]:
        """The newest of each other worker that has left one (hardware.py)."""
        board, names = self._board, [_name(rank) for rank in range(1, self._size)]
        if board is None:
            return []
        try:
            return [value_of(Machine, board.get(name)) for name in names if board.check([name])]
        except RuntimeError:  # the experiment has just ended
            return []

    @contextlib.contextmanager
    def training(self, experiment: Experiment) -> Iterator[Group]:
        """While this worker leads an experiment, the others follow.

        Raises:
            WorkerLostError: one of them died.
            Exception: what the user's parts raised in one of them; else what the block raised.
        """
        if self._size == 1:
            yield SINGLE_WORKER
            return
        tasks: list[Any] = []
        try:
            self._gather()
            host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call] # Ray leaves it untyped
            store, port = create_store(host)
            self._board = connect_store(host, port, LONGER_SECONDS)  # `store` blocks while workers sum
            leader, *groups = self._groups()
            tasks = [
                other.train.remote(experiment, self._eval_samples, group, host, port)
                for other, group in zip(self._others, groups, strict=True)
            ]
            with process_group(store, leader, self._slots.device, self._patience + LONGER_SECONDS) as group:
                yield group
            ray.get(tasks, timeout=LONGER_SECONDS)
        except BaseException as e:
            reason = _reason(e, tasks)
            self._dismiss()
            if reason is not None:
                raise reason from e
            raise
        finally:
            self._board = None

    def _groups(self) -> list[Group]:
        """Of every worker, the leader's first."""
        kind = Group
        if self._sharded:
            from flops_fit_ray.training.distributed.fsdp import (
                ShardedGroup,  # torch's part for it takes a second to import
            )

            kind = ShardedGroup
        return [kind(rank, self._size) for rank in range(self._size)]

    def _gather(self) -> None:
        """Start the others where the trial's other bundles are, unless they are there."""
        if not self._others:
            bundles = ray.util.get_current_placement_group()
            assert bundles is not None  # Tune starts every trial in one
            for number in range(1, self._size):
                there = PlacementGroupSchedulingStrategy(bundles, placement_group_bundle_index=number)
                actor = ray.remote(Follower).options(**self._slots.options, scheduling_strategy=there)
                self._others.append(actor.remote(self._load_user_parts, self._slots.device))
        ray.get([other.get_ready.remote() for other in self._others])

    def _dismiss(self) -> None:
        """End the others: they may wait in the middle of a step for somebody who does not come."""
        for other in self._others:
            ray.kill(other)
        self._others = []


def _reason(error: BaseException, tasks: Sequence[Any]) -> Exception | None:
    """What one of the others says of an error here; None where it is not theirs.

    Where another worker fails, the leader hears no more than that nobody answers.
    """
    if isinstance(error, RuntimeError) and tasks:
        ready, _ = ray.wait(list(tasks), num_returns=1, timeout=TOLD_SECONDS)
        for task in ready:
            try:
                ray.get(task)
            except Exception as e:  # noqa: BLE001 - whatever it is, it is handed on
                return _theirs(e)
    return _theirs(error)


def _theirs(error: BaseException) -> Exception | None:
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.as_instanceof_cause()  # type: ignore[no-untyped-call] # Ray leaves it untyped
        return cause if isinstance(cause, Exception) else error
    if isinstance(error, ray.exceptions.RayError):
        return WorkerLostError(f"a worker of this experiment ended: {str(error).strip().splitlines()[-1]}")
    return None
