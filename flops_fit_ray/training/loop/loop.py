"""The training loop of one experiment: exactly D tokens, then the held-out loss. Imports no Ray."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from flops_fit_ray.errors import (
    DivergedError,
    ExperimentError,
    InterruptedSweepError,
)
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.distributed.group import SINGLE_WORKER, Action, Group
from flops_fit_ray.training.loop.checkpoint import CheckpointStore, write_weights
from flops_fit_ray.training.loop.observer import Observer, Speed
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.step.attention import attention_kernel
from flops_fit_ray.training.step.device import Peak, device_name, peak_flops, peak_memory_bytes, reset_peak_memory
from flops_fit_ray.training.step.precision import check_precision
from flops_fit_ray.training.step.stepper import memory_errors_named, torch_threads
from flops_fit_ray.training.user.parts import UserParts

READ_STEPS = 50  # reading the loss waits for the device, so not at every step
PROGRESS_SECONDS = 1.0


def train_experiment(
    experiment: Experiment,
    user: UserParts,
    *,
    eval_samples: int,
    device: str = "cpu",
    threads: int = 1,
    policy: SavePolicy | None = None,
    observer: Observer | None = None,
    group: Group = SINGLE_WORKER,
) -> Outcome:
    """Train one experiment from its newest checkpoint, else its parent's trunk, else from scratch, and evaluate it.

    On the CPU the same experiment gives the same bits, interrupted or not.

    Args:
        eval_samples: number of held-out samples to evaluate on; 0 without held-out data.
        threads: CPU threads of torch. They decide the order of sums, so the last bits of the result.
        group: the workers that train it together, led by this one; the others call `run_follower`.

    Raises:
        DivergedError: the loss became NaN or infinite, or exploded.
        MemoryExhaustedError: it does not fit into the device's memory.
        DataEndedError: the data ended before D.
        ExperimentError: tokens seen differ from tokens planned, or the loss is not a scalar.
        InterruptedSweepError: the observer stopped it; a checkpoint was saved if there is a store.
        StorageError: a checkpoint could not be written.
        Exception: whatever the user's model, data or loss raises.
    """
    place = torch.device(device)
    check_precision(experiment.recipe.precision, place)
    reset_peak_memory(place)
    with (
        torch_threads(threads),
        attention_kernel(experiment.recipe.precision, place) as attention,
        memory_errors_named(),
    ):
        training = Trainer(experiment, user, place, eval_samples, policy or SavePolicy(), observer or Observer(), group)
        training.resume()
        training.run()
        outcome = training.outcome(attention)
        group.announce(Action.END)
        return outcome


class Trainer:
    """The leader's loop: it steps its worker, reads the clock, evaluates, saves, and returns the outcome."""

    def __init__(
        self,
        experiment: Experiment,
        user: UserParts,
        device: torch.device,
        eval_samples: int,
        policy: SavePolicy,
        observer: Observer,
        group: Group = SINGLE_WORKER,
    ) -> None:
        self._worker = Worker(experiment, user, device, eval_samples=eval_samples, observer=observer, group=group)
        self._meter = self._worker.meter
        self._experiment, self._device, self._size = experiment, device, group.world_size
        self._eval_samples, self._policy, self._observer = eval_samples, policy, observer
        self._meter.stop_exploded = policy.stop_diverged
        self._resumed_from: int | None = None
        self._parent_step, self._parent_tokens, self._parent_seconds = 0, 0, 0.0
        self._energy_before: float | None = 0.0  # joules of the attempts before this one
        self._best = math.inf
        self._saved: int | None = None  # step of the last checkpoint of this process

    def run(self) -> None:
        """Train to the last step of the plan."""
        self._observer.energy(self._size)  # counts from here
        worker, last = self._worker, self._experiment.steps
        reported = saved = time.monotonic()
        self._meter.lap(worker.tokens_seen)
        while worker.step < last:
            before = worker.tokens_seen
            worker.advance(1)
            self._evaluate_on_the_way(before)
            now = time.monotonic()
            due = now - reported >= PROGRESS_SECONDS
            if due or worker.step % READ_STEPS == 0 or worker.step in (1, last):
                train_loss = self._read()
            if due:
                self._report(train_loss)
                reported = now
            if worker.step == self._experiment.trunk_step and self._policy.trunk is not None:
                self._save_trunk(self._policy.trunk)
            if self._save_due(now - saved):
                self._save()
                saved = time.monotonic()
        if worker.tokens_seen != self._experiment.tokens:
            raise ExperimentError(
                f"saw {worker.tokens_seen} tokens, but {self._experiment.tokens} were planned: samples differ in "
                "length; set data.tokens_per_sample"
            )

    def _read(self) -> float | None:
        """Synchronise with the device and read the losses. The wait counts as training time."""
        with self._meter.training():
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            train_loss = self._meter.read()
        self._observer.curve = self._meter.curve
        return train_loss

    def _evaluate_on_the_way(self, tokens_before: int) -> None:
        every, worker = self._policy.eval_every_tokens, self._worker
        last = worker.step == self._experiment.steps
        if not every or not self._eval_samples or last or tokens_before // every == worker.tokens_seen // every:
            return
        self._read()
        found = worker.evaluate()
        self._meter.evaluated(worker.step, worker.tokens_seen, worker.stepper.lr, found.loss)
        self._observer.event(f"held-out loss {found.loss:.4f} at step {worker.step}")
        self._keep_if_best(found.loss)

    def _keep_if_best(self, loss: float) -> None:
        if self._policy.keep_best and self._policy.store is not None and loss < self._best:
            self._best = loss
            self._save(loss)

    def _report(self, train_loss: float | None) -> None:
        try:
            self._observer.speed = self._speed() or self._observer.speed
            self._observer.progress(self._worker.tokens_seen, train_loss)
        except InterruptedSweepError:
            if self._policy.store is not None:
                self._save()
            raise

    def _speed(self) -> Speed | None:
        """Return the speed since the last call."""
        speed = self._meter.lap(self._worker.tokens_seen)
        if speed is None:
            return None
        return Speed(tokens_per_second=speed, mfu=self._mfu(speed)[0])

    def _mfu(self, tokens_per_second: float) -> Peak:
        """Return the share of the peak FLOP/s of all devices, and the source of the peak, or why there is none."""
        threads, precision = torch.get_num_threads(), self._experiment.recipe.precision
        peak, source = peak_flops(device_name(self._device), self._device.type, precision, threads)
        flops = tokens_per_second * self._experiment.flops_per_token
        return None if peak is None else flops / (peak * self._size), source

    def _save_trunk(self, trunk: CheckpointStore) -> None:
        """Save the trunk, unless the model keeps state that it would lose: others then start from scratch."""
        if lost := self._worker.lost_state():
            self._observer.event(
                f"no trunk is left: the model keeps state outside of its state_dict ({lost}), so that larger budgets "
                "train from scratch; register it as a persistent buffer to share trunks",
                level="warning",
            )
            return
        trunk.save(self._state(), self._worker.step)

    def _save_due(self, seconds: float) -> bool:
        policy, step = self._policy, self._worker.step
        if policy.store is None or step in (self._saved, self._experiment.steps):
            return False
        by_steps = policy.checkpoint_steps is not None and step % policy.checkpoint_steps == 0
        return by_steps or (policy.checkpoint_seconds is not None and seconds >= policy.checkpoint_seconds)

    def _save(self, eval_loss: float | None = None) -> None:
        assert self._policy.store is not None
        started = time.perf_counter()
        self._read()
        first = self._saved is None
        self._saved = step = self._worker.step
        saved = self._policy.store.save(self._state(), step, eval_loss)
        if first:
            self._policy.store.verify(step)
            if lost := self._worker.lost_state():
                self._observer.event(
                    f"the model keeps state outside of its state_dict ({lost}): resumed from a checkpoint it gives "
                    "other bits than without an interruption",
                    level="warning",
                )
        self._observer.event(
            f"checkpoint at step {step}: {saved.bytes / 1e6:.1f} MB in {time.perf_counter() - started:.2f} s"
        )

    def _state(self) -> dict[str, Any]:
        """Return the checkpoint state: the worker's, and the measurements so far."""
        return {
            **self._worker.state(),
            "meter": self._meter.state(),
            "best": self._best,
            "energy": self._energy(),
            "parent": (self._parent_step, self._parent_tokens, self._parent_seconds),
        }

    def resume(self) -> None:
        """Resume from the newest valid checkpoint, else start from the parent's trunk, if there is one."""
        state = None if self._policy.store is None else self._newest(self._policy.store)
        if state is not None:
            self._worker.resume(state)
            self._meter.load_state(state["meter"])
            self._parent_step, self._parent_tokens, self._parent_seconds = state.get("parent", (0, 0, 0.0))
            self._resumed_from, self._best = state["step"], state["best"]
            self._energy_before = state.get("energy")
            self._observer.event(f"resuming from the checkpoint at step {state['step']}", level="warning")
        elif (trunk := self._trunk()) is not None:
            self._worker.resume(trunk, "trunk")
            self._meter.inherit(trunk["meter"])
            self._parent_step, self._parent_tokens = trunk["step"], trunk["tokens_seen"]
            self._parent_seconds = self._meter.train_seconds
            self._observer.event(f"starting from the trunk of a smaller budget, step {trunk['step']}")
        else:
            self._worker.resume()

    def _energy(self) -> float | None:
        """Return the joules of all attempts so far; None where one of them does not say."""
        now = self._observer.energy(self._size)
        return None if now is None or self._energy_before is None else self._energy_before + now

    def _newest(self, store: CheckpointStore) -> dict[str, Any] | None:
        state, warnings = store.newest()
        for warning in warnings:
            self._observer.event(warning, level="warning")
        return state

    def _trunk(self) -> dict[str, Any] | None:
        """Return the state at the end of the parent's trunk. Without it the same result costs more compute."""
        if self._policy.parent is None:
            return None
        state = self._newest(self._policy.parent)
        if state is not None and state["step"] == self._experiment.start_step:
            return state
        self._observer.event("trunk checkpoint not found; training from scratch", level="warning")
        return None

    def outcome(self, attention: str) -> Outcome:
        """Evaluate, and return the outcome.

        Raises:
            DivergedError: the held-out loss is not finite.
        """
        meter, experiment = self._meter, self._experiment
        self._read()
        started = time.perf_counter()
        found = self._worker.evaluate() if self._eval_samples else None
        loss = meter.smoothed_loss() if found is None else found.loss
        if not math.isfinite(loss):
            raise DivergedError(f"the held-out loss is {loss} after {self._worker.tokens_seen} tokens")
        if found is not None:
            self._keep_if_best(loss)  # before the curve has it: a resume from this checkpoint evaluates again
            meter.evaluated(self._worker.step, self._worker.tokens_seen, self._worker.stepper.lr, loss)
        self._observer.curve = meter.curve
        if self._policy.weights is not None:
            write_weights(self._worker.weights(), self._policy.weights)
        speed = self._worker.tokens_seen / meter.train_seconds
        mfu, source = self._mfu(speed)
        steps_per_second, samples_per_second = experiment.rates(speed)
        return Outcome(
            tokens_seen=self._worker.tokens_seen,
            loss=loss,
            loss_kind="training, smoothed" if found is None else "held-out",
            loss_stderr=None if found is None else found.loss_stderr,
            train_loss=meter.smoothed_loss(),
            metrics={} if found is None else found.metrics,
            seconds=(seconds := meter.train_seconds + time.perf_counter() - started),
            train_seconds=meter.train_seconds,
            tokens_per_second=speed,
            flops_per_second=speed * experiment.flops_per_token,
            steps_per_second=steps_per_second,
            samples_per_second=samples_per_second,
            mfu=mfu,
            peak_source=source,
            peak_memory_bytes=peak_memory_bytes(self._device),
            data_wait_share=meter.wait_seconds / meter.train_seconds,
            all_reduce_share=meter.all_reduces.read() / meter.train_seconds if self._worker.times_all_reduces else None,
            micro_batch_size=self._worker.stepper.micro_batch_size,
            precision=experiment.recipe.precision,
            attention=attention,
            device=device_name(self._device),
            workers=self._size,
            resumed_from=self._resumed_from,
            parent_step=self._parent_step,
            tokens_executed=(executed := self._worker.tokens_seen - self._parent_tokens),
            seconds_executed=seconds - self._parent_seconds,
            energy_joules=(joules := self._energy()),
            tokens_per_joule=executed / joules if joules else None,
            curve=meter.curve,
        )
