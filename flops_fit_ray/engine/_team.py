"""The other workers of a trial: actors in its placement group, kept for the next experiment."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import Store  # type: ignore[attr-defined] # torch leaves it unexported

from flops_fit_ray.engine._ledger_observer import READ_SECONDS
from flops_fit_ray.engine._termination import WorkerTerminated, end_on_sigterm
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import DataDiffersError, ExperimentError, WorkerLostError
from flops_fit_ray.ledger.hardware import Machine, Readings
from flops_fit_ray.planning import Experiment
from flops_fit_ray.storage.codec import value_of
from flops_fit_ray.training.distributed.group import SINGLE_WORKER, Group, connect_store, create_store, process_group
from flops_fit_ray.training.loop.follower import run_follower
from flops_fit_ray.training.step.device import gpu_uuids
from flops_fit_ray.training.user.parts import UserParts
from flops_fit_ray.training.user.user_code import describe_error

STEP_SECONDS = 300.0  # for a step, or for workers to start, besides the time that data may take
FOLLOWER_SECONDS = 7 * 86400.0  # a follower waits while the leader evaluates; the leader ends it
ERROR_SECONDS = 10.0  # for the error of another worker to arrive


class Follower:
    """A worker that is not the leader, as a Ray actor."""

    def __init__(self, load_user_parts: Callable[[], UserParts], device: str) -> None:
        self._load_user_parts, self._device = load_user_parts, device
        self._user: UserParts | None = None
        end_on_sigterm()

    def get_ready(self) -> None:
        """Load the user's parts, once."""
        self._user = self._user or self._load_user_parts()

    def train(self, experiment: Experiment, eval_samples: int, group: Group, host: str, port: int) -> None:
        """Train one experiment along with its leader."""
        assert self._user is not None
        store = connect_store(host, port, STEP_SECONDS)
        try:
            with process_group(store, group, self._device, FOLLOWER_SECONDS), _readings_sent(host, port, group.rank):
                run_follower(experiment, self._user, eval_samples=eval_samples, group=group, device=self._device)
        except WorkerTerminated:
            raise
        except SystemExit as e:  # of the user's code: it would end this process, as if its node had died
            raise ExperimentError(describe_error(e)) from e


@contextlib.contextmanager
def _readings_sent(host: str, port: int, rank: int) -> Iterator[None]:
    """Put readings of this worker's node into the leader's store, every READ_SECONDS."""
    done = threading.Event()

    def send() -> None:
        readings = Readings()
        with contextlib.suppress(RuntimeError):  # the leader is gone: training fails as well
            board = connect_store(host, port, STEP_SECONDS)
            while True:
                board.set(_name(rank), json.dumps(readings.read(gpu_uuids()).to_json()))
                if done.wait(READ_SECONDS):
                    return

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _name(rank: int) -> str:
    return f"reading of worker {rank}"


class Team:
    """The other workers of a trial; none with one worker per trial."""

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
        self._board: Store | None = None  # holds the readings of the others

    def readings(self) -> list[Machine]:
        """Return the newest reading of each other worker (ledger/hardware.py)."""
        board, names = self._board, [_name(rank) for rank in range(1, self._size)]
        if board is None:
            return []
        try:
            return [value_of(Machine, board.get(name)) for name in names if board.check([name])]
        except RuntimeError:  # the experiment has just ended
            return []

    @contextlib.contextmanager
    def training(self, experiment: Experiment) -> Iterator[Group]:
        """Run the other workers while this one leads an experiment in the block.

        Raises:
            WorkerLostError: one of them died.
            Exception: of the user's code in one of them; else of the block.
        """
        if self._size == 1:
            yield SINGLE_WORKER
            return
        tasks: list[Any] = []
        try:
            self._gather()
            host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call] # Ray leaves it untyped
            store, port = create_store(host)
            self._board = connect_store(host, port, STEP_SECONDS)  # `store` blocks while workers sum
            leader, *groups = self._groups()
            tasks = [
                other.train.remote(experiment, self._eval_samples, group, host, port)
                for other, group in zip(self._others, groups, strict=True)
            ]
            with process_group(store, leader, self._slots.device, self._patience + STEP_SECONDS) as group:
                yield group
            ray.get(tasks, timeout=STEP_SECONDS)
        except BaseException as e:
            reason = _reason(e, tasks)
            self._dismiss()
            if reason is not None:
                raise reason from e
            raise
        finally:
            self._board = None

    def _groups(self) -> list[Group]:
        """Return the group of every worker, the leader's first."""
        kind = Group
        if self._sharded:
            # torch's FSDP takes a second to import
            from flops_fit_ray.training.distributed.fsdp import ShardedGroup

            kind = ShardedGroup
        return [kind(rank, self._size) for rank in range(self._size)]

    def _gather(self) -> None:
        """Start the other workers in the trial's other bundles, unless they run."""
        if not self._others:
            bundles = ray.util.get_current_placement_group()
            assert bundles is not None  # Tune starts every trial in a placement group
            for number in range(1, self._size):
                there = PlacementGroupSchedulingStrategy(bundles, placement_group_bundle_index=number)
                actor = ray.remote(Follower).options(**self._slots.options, scheduling_strategy=there)
                self._others.append(actor.remote(self._load_user_parts, self._slots.device))
        ray.get([other.get_ready.remote() for other in self._others])

    def _dismiss(self) -> None:
        """Kill the other workers: they may be blocked in a collective that never completes."""
        for other in self._others:
            ray.kill(other)
        self._others = []


def _reason(error: BaseException, tasks: Sequence[Any]) -> Exception | None:
    """Return the error of another worker that caused `error` here; None if there is none.

    If another worker fails, the leader only sees a collective that breaks or times out.
    """
    if isinstance(error, RuntimeError) and tasks:
        ready, _ = ray.wait(list(tasks), num_returns=1, timeout=ERROR_SECONDS)
        for task in ready:
            try:
                ray.get(task)
            except Exception as e:  # noqa: BLE001 - raised again by the caller
                return _worker_error(e)
    return _worker_error(error)


def _worker_error(error: BaseException) -> Exception | None:
    if isinstance(error, ray.exceptions.RayTaskError):
        if isinstance(error.cause, DataDiffersError):
            return error.cause
        cause = error.as_instanceof_cause()  # type: ignore[no-untyped-call] # Ray leaves it untyped
        return cause if isinstance(cause, Exception) else error
    if isinstance(error, ray.exceptions.RayError):
        return WorkerLostError(f"a worker of this experiment died: {str(error).strip().splitlines()[-1]}")
    return None
