"""One experiment: exactly D tokens, then the held-out loss. Pure torch; whoever watches passes an observer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from flops_fit_ray.errors import (
    DataEndedError,
    DivergedError,
    ExperimentError,
    InterruptedSweepError,
    MemoryExhaustedError,
    first_line,
)
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.attention import attention_kernel
from flops_fit_ray.training.care import Care, Observer, Speed
from flops_fit_ray.training.checkpoint import CheckpointStore, write_weights
from flops_fit_ray.training.data import Batch, Stream, eval_batches, make_feed
from flops_fit_ray.training.data.dataset import on_device
from flops_fit_ray.training.device import device_name, peak_flops, peak_memory_bytes, reset_peak_memory, resident_room
from flops_fit_ray.training.evaluate import Evaluation, evaluate
from flops_fit_ray.training.graph import make_stepper
from flops_fit_ray.training.group import ALONE, Group
from flops_fit_ray.training.guest import Guest
from flops_fit_ray.training.meter import Meter
from flops_fit_ray.training.outcome import Outcome
from flops_fit_ray.training.precision import check_precision
from flops_fit_ray.training.random import RandomState
from flops_fit_ray.training.step import is_out_of_memory, settings

READ_STEPS = 50  # reading the loss waits for the device, so not at every step
PROGRESS_SECONDS = 1.0


def train_experiment(
    experiment: Experiment,
    guest: Guest,
    *,
    eval_samples: int,
    device: str = "cpu",
    threads: int = 1,
    care: Care | None = None,
    observer: Observer | None = None,
    group: Group = ALONE,
) -> Outcome:
    """Train one experiment, from its newest checkpoint or its parent's trunk if there is one, and evaluate it.

    On the CPU the same experiment gives the same bits, whether it was interrupted or not.

    Args:
        eval_samples: how many held-out samples to evaluate on; 0 where there are none.
        threads: CPU threads of torch; a part of the result's last bits, hence not the machine's choice.
        group: the workers that train it together, of whom this one leads; the others `follow`.

    Raises:
        DivergedError: the loss became NaN or infinite, or exploded.
        MemoryExhaustedError: it does not fit into the device's memory.
        DataEndedError: the data ended before D.
        ExperimentError: tokens seen are not tokens planned, or the loss is no scalar.
        InterruptedSweepError: the observer ended it; a checkpoint was written where there is a store.
        StorageError: a checkpoint could not be written.
        Exception: whatever the user's model, data or loss raises.
    """
    place = torch.device(device)
    check_precision(experiment.recipe.precision, place)
    reset_peak_memory(place)
    with settings(threads), attention_kernel(experiment.recipe.precision, place) as attention:
        try:
            training = Training(experiment, guest, place, eval_samples, care or Care(), observer or Observer(), group)
            training.resume()
            training.run()
            return training.outcome(attention)
        except (RuntimeError, MemoryError) as e:
            if is_out_of_memory(e):  # where a smaller micro-batch would not help: weights, optimizer states
                raise MemoryExhaustedError(f"out of memory: {e}") from e
            raise


class Training:
    """One experiment on its way. All that changes is here or in what it holds, and `state` is the whole of it."""

    def __init__(
        self,
        experiment: Experiment,
        guest: Guest,
        device: torch.device,
        eval_samples: int,
        care: Care,
        observer: Observer,
        group: Group = ALONE,
    ) -> None:
        recipe = experiment.recipe
        RandomState.seed(recipe.seed)
        model = guest.model(**experiment.size_kwargs).to(device)
        model.train()
        if isinstance(guest.loss, torch.nn.Module):
            guest.loss.to(device)
        if recipe.compile:
            model.compile()
        self._experiment, self._guest, self._device = experiment, guest, device
        self._eval_samples, self._care, self._observer = eval_samples, care, observer
        self._model, self._group = model, group
        group.share_weights(model)
        self._stepper = make_stepper(
            model, guest, recipe, experiment.steps, device, lambda words: observer.event(words, aloud=True), group
        )
        room = resident_room(device)
        data = guest.train_data
        data = data if isinstance(data, Stream) or not room else on_device(data, device, room)
        ahead = device.type == "cuda"
        self._feed = make_feed(data, recipe.batch_size, recipe.seed, guest.max_epochs, ahead=ahead)
        self._meter = Meter(experiment.steps, device)
        self._step = 0  # optimizer steps done
        self._tokens_seen = 0
        self._resumed_from: int | None = None
        self._parent_step, self._parent_tokens, self._parent_seconds = 0, 0, 0.0
        self._best = math.inf
        self._saved: int | None = None  # step of the last checkpoint of this process

    def run(self) -> None:
        """To the last step of the plan."""
        reported = saved = time.monotonic()
        self._meter.lap(self._tokens_seen)
        while self._step < self._experiment.steps:
            before = self._tokens_seen
            self.advance(1)
            self._evaluate_on_the_way(before)
            now = time.monotonic()
            due = now - reported >= PROGRESS_SECONDS
            if due or self._step % READ_STEPS == 0 or self._step in (1, self._experiment.steps):
                train_loss = self._read()
            if due:
                self._report(train_loss)
                reported = now
            if self._step == self._experiment.trunk_step and self._care.trunk is not None:
                self._care.trunk.save(self.state(), self._step)
            if self._save_due(now - saved):
                self._save()
                saved = time.monotonic()
        if self._tokens_seen != self._experiment.tokens:
            raise ExperimentError(
                f"saw {self._tokens_seen} tokens where {self._experiment.tokens} were planned: the samples differ in "
                "length; set data.tokens_per_sample"
            )

    def _read(self) -> float | None:
        """Wait until the device has done what was asked of it, and read the losses; the wait is training too."""
        with self._meter.training():
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            train_loss = self._meter.read()
        self._observer.curve = self._meter.curve
        return train_loss

    def advance(self, steps: int | None = None) -> None:
        """So many optimizer steps, by default all that are left, and nothing else."""
        for _ in range(self._experiment.steps - self._step if steps is None else steps):
            self._advance()

    def _advance(self) -> None:
        with self._meter.training():
            self._group.seed(self._experiment.recipe.seed, self._step, shared=True)
            batch = self._next_batch()
            self._group.seed(self._experiment.recipe.seed, self._step, shared=False)
            self._tokens_seen += self._guest.num_tokens(batch, self._experiment.tokens_per_sample)
            micro_batch_size = self._stepper.micro_batch_size
            loss, norm = self._stepper.advance(batch, self._step)
            self._meter.add(loss, self._step)
            self._step += 1
        if self._stepper.micro_batch_size != micro_batch_size:
            self._observer.event(
                f"out of memory at step {self._step}: going on with {self._stepper.micro_batch_size} samples at a time "
                f"and the same {self._experiment.recipe.batch_size} per step",
                aloud=True,
            )
        if self._step % self._meter.every == 0 or self._step in (1, self._experiment.steps):
            norm = self._stepper.grad_norm() if norm is None else norm
            self._meter.mark(self._step, self._tokens_seen, self._stepper.lr, norm)

    def _next_batch(self) -> Batch:
        self._observer.fetching()
        try:
            with self._meter.waiting():
                batch = self._feed.next_batch()
                return batch.pinned() if self._device.type == "cuda" else batch
        except DataEndedError as e:
            raise DataEndedError(f"{e}: {self._tokens_seen:,} of D = {self._experiment.tokens:,} tokens") from None
        finally:
            self._observer.fetched()

    def _evaluate_on_the_way(self, tokens_before: int) -> None:
        every = self._care.eval_every_tokens
        last = self._step == self._experiment.steps
        if not every or not self._eval_samples or last or tokens_before // every == self._tokens_seen // every:
            return
        self._read()
        found = self._evaluate()
        self._meter.evaluated(self._step, self._tokens_seen, self._stepper.lr, found.loss)
        self._observer.event(f"held-out loss {found.loss:.4f} at step {self._step}")
        if self._care.keep_best and self._care.store is not None and found.loss < self._best:
            self._best = found.loss
            self._save(found.loss)

    def _evaluate(self) -> Evaluation:
        return evaluate(
            self._model,
            self._guest,
            self._experiment.recipe,
            self._held_out(),
            self._device,
        )

    def _held_out(self) -> Iterator[Batch]:
        """The held-out batches; a wait for them is a wait for data like any other."""
        assert self._guest.eval_data is not None
        batches = eval_batches(self._guest.eval_data, self._eval_samples, self._stepper.micro_batch_size)
        while True:
            self._observer.fetching()
            batch = next(batches, None)
            self._observer.fetched()
            if batch is None:
                return
            yield batch

    def _report(self, train_loss: float | None) -> None:
        try:
            self._observer.speed = self._speed() or self._observer.speed
            self._observer.progress(self._tokens_seen, train_loss)
        except InterruptedSweepError:
            if self._care.store is not None:
                self._save()
            raise

    def _speed(self) -> Speed | None:
        """Since it was asked last."""
        speed = self._meter.lap(self._tokens_seen)
        if speed is None:
            return None
        return Speed(tokens_per_second=speed, mfu=speed * self._experiment.flops_per_token / self._peak()[0])

    def _peak(self) -> tuple[float, str]:
        """FLOP/s that its devices reach together, and where the number comes from."""
        threads, precision = torch.get_num_threads(), self._experiment.recipe.precision
        peak, source = peak_flops(device_name(self._device), self._device.type, precision, threads)
        return peak * self._group.size, source

    def _save_due(self, seconds: float) -> bool:
        care = self._care
        if care.store is None or self._step in (self._saved, self._experiment.steps):
            return False
        by_steps = care.checkpoint_steps is not None and self._step % care.checkpoint_steps == 0
        return by_steps or (care.checkpoint_seconds is not None and seconds >= care.checkpoint_seconds)

    def _save(self, eval_loss: float | None = None) -> None:
        assert self._care.store is not None
        started = time.perf_counter()
        self._read()
        first = self._saved is None
        self._saved = self._step
        saved = self._care.store.save(self.state(), self._step, eval_loss)
        if first:
            self._care.store.verify(self._step)
        self._observer.event(
            f"checkpoint at step {self._step}: {saved.bytes / 1e6:.1f} MB in {time.perf_counter() - started:.2f} s"
        )

    def state(self) -> dict[str, Any]:
        """All that going on needs."""
        loss, scaler = self._guest.loss, self._stepper.scaler
        return {
            "step": self._step,
            "tokens_seen": self._tokens_seen,
            "model": self._model.state_dict(),
            "optimizer": self._stepper.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "loss": loss.state_dict() if isinstance(loss, torch.nn.Module) else None,
            "micro_batch_size": self._stepper.micro_batch_size,
            "feed": self._feed.state(),
            "meter": self._meter.state(),
            "best": self._best,
            "random": RandomState.capture(),
            "parent": (self._parent_step, self._parent_tokens, self._parent_seconds),
        }

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, else from the parent's trunk, if there is one."""
        if self._group.leads:
            self._resume()
            self._group.share_state(self.state() if self._step else None)
        elif (state := self._group.share_state(None)) is not None:
            self._load(state, "checkpoint")

    def _resume(self) -> None:
        state = None if self._care.store is None else self._newest(self._care.store)
        if state is not None:
            self._load(state, "checkpoint")
            self._meter.load_state(state["meter"])
            self._parent_step, self._parent_tokens, self._parent_seconds = state.get("parent", (0, 0, 0.0))
            self._resumed_from = state["step"]
            self._observer.event(f"going on from the checkpoint at step {self._step}", aloud=True)
        elif self._care.parent is not None:
            self._branch(self._care.parent)

    def _newest(self, store: CheckpointStore) -> dict[str, Any] | None:
        state, words = store.newest()
        for line in words:
            self._observer.event(line, aloud=True)
        return state

    def _branch(self, parent: CheckpointStore) -> None:
        """Begin where the parent's trunk ends. Without it the same result costs more."""
        state = self._newest(parent)
        if state is None or state["step"] != self._experiment.start_step:
            self._observer.event("the trunk to begin at is not there: training from scratch", aloud=True)
            return
        self._load(state, "trunk")
        self._meter.inherit(state["meter"])
        self._parent_step, self._parent_tokens = self._step, self._tokens_seen
        self._parent_seconds, self._best = self._meter.train_seconds, math.inf
        self._observer.event(f"begun at the trunk of a smaller budget, step {self._step}")

    def _load(self, state: Mapping[str, Any], what: str) -> None:
        try:
            self._load_parts(state)
        except (RuntimeError, ValueError, KeyError) as e:
            raise ExperimentError(
                f"the {what} at step {state['step']} does not fit this model: {first_line(e)}; has its "
                "code changed? Take another output, or remove the experiment's checkpoints and the sweep's trunks"
            ) from e
        self._stepper.micro_batch_size = state["micro_batch_size"]
        if isinstance(self._guest.train_data, Stream) and not self._guest.train_data.has_state:
            self._observer.event(f"reading the stream again up to step {state['step']}", aloud=True)
        self._feed.load_state(state["feed"])
        self._best = state["best"]
        self._step = state["step"]
        self._tokens_seen = state["tokens_seen"]
        RandomState.restore(state["random"])  # last, because loading may have drawn

    def _load_parts(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        self._stepper.optimizer.load_state_dict(state["optimizer"])
        if self._stepper.scaler is not None:
            self._stepper.scaler.load_state_dict(state["scaler"])
        if isinstance(self._guest.loss, torch.nn.Module):
            self._guest.loss.load_state_dict(state["loss"])

    def outcome(self, attention: str) -> Outcome:
        """Evaluate, and sum up.

        Raises:
            DivergedError: the held-out loss is not finite.
        """
        meter, experiment = self._meter, self._experiment
        self._read()
        started = time.perf_counter()
        found = self._evaluate() if self._eval_samples else None
        loss = meter.smoothed_loss() if found is None else found.loss
        if not math.isfinite(loss):
            raise DivergedError(f"the held-out loss is {loss} after {self._tokens_seen} tokens")
        if found is not None:
            meter.evaluated(self._step, self._tokens_seen, self._stepper.lr, loss)
        self._observer.curve = meter.curve
        if self._care.weights is not None:
            write_weights(self._model, self._care.weights)
        speed = self._tokens_seen / meter.train_seconds
        peak, source = self._peak()
        return Outcome(
            tokens_seen=self._tokens_seen,
            loss=loss,
            loss_kind="training, smoothed" if found is None else "held-out",
            loss_stderr=None if found is None else found.loss_stderr,
            train_loss=meter.smoothed_loss(),
            metrics={} if found is None else found.metrics,
            seconds=(seconds := meter.train_seconds + time.perf_counter() - started),
            train_seconds=meter.train_seconds,
            tokens_per_second=speed,
            flops_per_second=speed * experiment.flops_per_token,
            mfu=speed * experiment.flops_per_token / peak,
            peak_source=source,
            peak_memory_bytes=peak_memory_bytes(self._device),
            data_wait_share=meter.wait_seconds / meter.train_seconds,
            micro_batch_size=self._stepper.micro_batch_size,
            precision=experiment.recipe.precision,
            attention=attention,
            device=device_name(self._device),
            workers=self._group.size,
            resumed_from=self._resumed_from,
            parent_step=self._parent_step,
            tokens_executed=self._tokens_seen - self._parent_tokens,
            seconds_executed=seconds - self._parent_seconds,
            curve=meter.curve,
        )
