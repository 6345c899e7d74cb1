"""The other workers of a trial: actors in its placement group, kept for the next experiment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import Store  # type: ignore[attr-defined] # torch leaves it unexported

from flops_fit_ray.engine._crash import crashes_noted
from flops_fit_ray.engine._ledger_observer import READ_SECONDS
from flops_fit_ray.engine._termination import WorkerTerminated, end_on_sigterm
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import ExperimentError, WorkerLostError, first_line, last_line
from flops_fit_ray.ledger.hardware import Machine, Readings
from flops_fit_ray.planning import Experiment
from flops_fit_ray.storage.codec import value_of
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.training.distributed.group import (
    SINGLE_WORKER,
    Group,
    connect_store,
    create_store,
    is_broken_connection,
    is_collective_error,
    process_group,
)
from flops_fit_ray.training.loop.follower import run_follower
from flops_fit_ray.training.step.device import gpu_uuids
from flops_fit_ray.training.user.parts import UserParts
from flops_fit_ray.training.user.user_code import describe_error, hard_exit_raises

STEP_SECONDS = 300.0  # for a step, or for workers to start, besides the time that data may take
FOLLOWER_SECONDS = 7 * 86400.0  # a follower waits while the leader evaluates; the leader ends it
ERROR_SECONDS = 10.0  # for the error of another worker to arrive, and for the leader to notice that it is alone
ALONE_EXIT_CODE = 76
_COLOURS = re.compile(r"\x1b\[\d+m")
FIRST_TO_FAIL = "first worker to fail"


class Follower:
    """A worker that is not the leader, as a Ray actor."""

    def __init__(
        self, load_user_parts: Callable[[], UserParts], device: str, paths: SweepPaths, time_limit: float
    ) -> None:
        self._load_user_parts, self._device, self._paths = load_user_parts, device, paths
        self._time_limit = time_limit
        self._user: UserParts | None = None
        end_on_sigterm()

    def get_ready(self) -> str:
        """Load the user's parts, once. Returns the node that this worker is on."""
        self._user = self._user or self._load_user_parts()
        _use_interface_of_ray()
        return str(ray.get_runtime_context().get_node_id())

    def train(self, experiment: Experiment, eval_samples: int, group: Group, host: str, port: int) -> None:
        """Train one experiment along with its leader."""
        assert self._user is not None
        store = connect_store(host, port, STEP_SECONDS)
        with (
            crashes_noted(self._paths, experiment.key, self._time_limit, group.rank),
            process_group(store, group, self._device, FOLLOWER_SECONDS),
            _readings_sent(host, port, group.rank),
        ):
            try:
                with hard_exit_raises():
                    run_follower(experiment, self._user, eval_samples=eval_samples, group=group, device=self._device)
            except WorkerTerminated:
                raise
            except BaseException as e:
                with contextlib.suppress(RuntimeError):  # the leader is gone
                    _note_failure(connect_store(host, port, ERROR_SECONDS), group.rank)
                if isinstance(e, SystemExit):  # it would end this process, as if its node had died
                    raise ExperimentError(describe_error(e)) from e
                raise


def _note_failure(board: Store, rank: int) -> None:
    """Note which worker failed first, before its group is left and the collectives of all others break."""
    board.compare_set(FIRST_TO_FAIL, "", str(rank))


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
        paths: SweepPaths,
        *,
        eval_samples: int,
        sharded: bool,
        time_limit: float,
    ) -> None:
        self._load_user_parts, self._slots, self._size = load_user_parts, slots, slots.workers
        self._paths = paths
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
    def training(self, experiment: Experiment, failed: Callable[[BaseException], object]) -> Iterator[Group]:
        """Run the other workers while this one leads an experiment in the block.

        Args:
            failed: records the failure of the experiment, if this process has to end for it.

        Raises:
            WorkerLostError: one of them died.
            Exception: of the user's code in one of them; else of the block.
        """
        if self._size == 1:
            yield SINGLE_WORKER
            return
        watch: _Watch | None = None
        try:
            self._gather()
            host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call] # Ray leaves it untyped
            store, port = create_store(host)
            self._board = board = connect_store(host, port, STEP_SECONDS)  # `store` blocks while workers sum
            leader, *groups = self._groups()
            tasks = [
                other.train.remote(experiment, self._eval_samples, group, host, port)
                for other, group in zip(self._others, groups, strict=True)
            ]
            watch = _Watch(tasks, board, self._dismiss, failed, 0.0 if self._slots.uses_gpu else ERROR_SECONDS)
            with process_group(store, leader, self._slots.device, self._patience + STEP_SECONDS) as group:
                try:
                    yield group
                except BaseException:
                    _note_failure(board, leader.rank)
                    raise
            ray.get(tasks, timeout=STEP_SECONDS)
        except BaseException as e:
            reason = _worker_error(e) if watch is None else watch.reason(e)
            self._dismiss()
            if reason is not None:
                raise reason from e
            raise
        finally:
            if watch is not None:
                watch.end()
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
                given = (self._load_user_parts, self._slots.device, self._paths, self._patience)
                self._others.append(actor.remote(*given))
            _use_interface_of_ray()
        nodes = ray.get([other.get_ready.remote() for other in self._others])
        own = str(ray.get_runtime_context().get_node_id())
        self._others = [self._others[i] for i in by_node(own, nodes)]

    def _dismiss(self) -> None:
        """Kill the other workers: they may be blocked in a collective that never completes."""
        for other in self._others:
            ray.kill(other)
        self._others = []


def by_node(own: str, nodes: Sequence[str]) -> list[int]:
    """Order workers by the node that each is on: those on the leader's `own` first, then node after node.

    Ranks that follow one another are neighbours in a ring of NCCL, and in `shard_model`: each ring then crosses to
    another node as seldom as it can, wherever Ray has put the bundles.
    """
    order = {node: i for i, node in enumerate(dict.fromkeys([own, *nodes]))}
    return sorted(range(len(nodes)), key=lambda i: order[nodes[i]])


def use_interface(address: str) -> None:
    """Let NCCL and gloo talk through the network interface with this address of the node; what the user sets stays.

    Left to themselves they may take a bridge of containers, which no other node can reach.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses):
            for library in ("NCCL", "GLOO"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", name)


def _use_interface_of_ray() -> None:
    use_interface(str(ray.util.get_node_ip_address()))  # type: ignore[no-untyped-call] # Ray leaves it untyped


class _Watch:
    """A thread that ends the leader's wait when another worker has failed: a collective would wait for its time limit.

    It kills the other workers, which closes their connections. If that does not bring the leader to its senses (NCCL, a
    rendezvous), the failure is recorded here, and the leader's process ends.

    Args:
        tasks: of the other workers, by rank from 1 on.
        patience: seconds for the leader to leave after the others were killed.
    """

    def __init__(
        self,
        tasks: Sequence[Any],
        board: Store,
        dismiss: Callable[[], None],
        failed: Callable[[BaseException], object],
        patience: float,
    ) -> None:
        self._tasks, self._board, self._dismiss = tasks, board, dismiss
        self._failed, self._patience = failed, patience
        self._over, self._lock = threading.Event(), threading.Lock()
        self._found: Exception | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """Watch no more."""
        self._over.set()

    def reason(self, error: BaseException) -> Exception | None:
        """Return the error of another worker that ended the leader with `error`; None if that is the leader's own."""
        self._over.set()
        with self._lock:
            return self._found or _first_error(self._tasks, self._board, error)

    def _watch(self) -> None:
        left = list(self._tasks)
        while left and not self._over.is_set():
            ready, left = ray.wait(left, num_returns=1, timeout=1.0)
            if not any(_error_of(task) for task in ready):
                continue
            with self._lock:
                if self._over.is_set():  # the leader knows
                    return
                self._found = reason = _first_error(self._tasks, self._board, None)
                if reason is None:
                    return
                self._dismiss()
            if not self._over.wait(self._patience):
                if not isinstance(reason, WorkerLostError):
                    with contextlib.suppress(Exception):  # then it counts as a death, and is tried again
                        self._failed(reason)
                os._exit(ALONE_EXIT_CODE)
            return


def _first_error(tasks: Sequence[Any], board: Store, error: BaseException | None) -> Exception | None:
    """Return the error of the worker that made all others fail; None if that is the leader.

    Where one worker dies or fails, the others only see a collective that breaks, and note that they failed as well. So
    a death comes first, and then whoever was the first to note a failure.

    Args:
        error: the leader's, if it has failed.
    """
    if isinstance(error, ray.exceptions.RayError):
        return _worker_error(error)
    first = int(board.get(FIRST_TO_FAIL)) if board.check([FIRST_TO_FAIL]) else 0
    others = _error_of(tasks[first - 1], ERROR_SECONDS) if first else None
    found = others or error
    if found is not None and not is_collective_error(found):
        return others
    if death := _death(tasks):
        return death
    if found is not None and is_broken_connection(found):
        return WorkerLostError(f"the connection to another worker of this experiment broke: {first_line(found)}")
    return others


def _death(tasks: Sequence[Any]) -> WorkerLostError | None:
    """Wait until one of the other workers is found dead, or all have ended, for at most ERROR_SECONDS."""
    left, until = list(tasks), time.monotonic() + ERROR_SECONDS
    while left and (seconds := until - time.monotonic()) > 0:
        ready, left = ray.wait(left, num_returns=1, timeout=seconds)
        for task in ready:
            if isinstance(death := _error_of(task), WorkerLostError):
                return death
    return None


def _error_of(task: Any, seconds: float = 0.0) -> Exception | None:
    """Return the error that a worker's task ended with within `seconds`; None where there is none."""
    try:
        ray.get(task, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        return None
    except Exception as e:  # noqa: BLE001 - raised again by the caller
        return _worker_error(e)
    return None


def _worker_error(error: BaseException) -> Exception | None:
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        if not isinstance(cause, Exception):  # it could not be pickled
            return error
        trace = _COLOURS.sub("", str(error))
        cause.add_note(f"in another worker of this experiment:\n{trace}")
        return cause
    if isinstance(error, ray.exceptions.RayError):
        return WorkerLostError(f"a worker of this experiment died: {last_line(error)}")
    return None
