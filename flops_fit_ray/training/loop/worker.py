"""One worker of an experiment: model, optimizer, data, and the operations that all workers of a group run together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from flops_fit_ray.errors import DataEndedError, ExperimentError, first_line
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.data import Batch, Stream, eval_batches, make_feed
from flops_fit_ray.training.data.dataset import move_to_device
from flops_fit_ray.training.distributed.group import SINGLE_WORKER, Action, Group
from flops_fit_ray.training.loop._evaluate import Evaluation, evaluate
from flops_fit_ray.training.loop._hidden_state import lost_state, reset_globals
from flops_fit_ray.training.loop.meter import Meter
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.step.cuda_graph import make_stepper
from flops_fit_ray.training.step.device import resident_data_bytes
from flops_fit_ray.training.user.parts import UserParts


class Worker:
    """A worker of an experiment. On the CPU a run resumed from `state` gives the same bits as one without a break."""

    def __init__(
        self,
        experiment: Experiment,
        user: UserParts,
        device: torch.device,
        *,
        eval_samples: int = 0,
        observer: Observer | None = None,
        group: Group = SINGLE_WORKER,
    ) -> None:
        recipe, observer = experiment.recipe, observer or Observer()
        self._experiment, self._user, self._device = experiment, user, device
        self._eval_samples, self._observer, self._group = eval_samples, observer, group
        reset_globals(user)
        RandomState.seed(recipe.seed)
        model = user.model(**experiment.size_kwargs)
        model.train()
        if isinstance(user.loss, torch.nn.Module):
            user.loss.to(device)
        group.place_model(model, device)
        if recipe.compile:
            model.compile()
        self._model = model
        self.meter = Meter(experiment.steps, device)
        # FSDP's collectives run beside the computation
        self.times_all_reduces = group.is_leader and not group.is_single and not group.sharded
        self.stepper = make_stepper(
            model,
            user,
            recipe,
            experiment.steps,
            device,
            lambda message: observer.event(message, level="warning"),
            group,
            self.meter.all_reduces if self.times_all_reduces else None,
        )
        max_bytes = resident_data_bytes(device)
        data = user.train_data
        data = data if isinstance(data, Stream) or not max_bytes else move_to_device(data, device, max_bytes)
        ahead = device.type == "cuda"
        self._feed = make_feed(data, recipe.batch_size, recipe.seed, user.max_epochs, ahead=ahead)
        self._batch: Batch | None = None  # the last one
        self.step = 0  # optimizer steps done
        self.tokens_seen = 0

    def advance(self, steps: int) -> None:
        """Take `steps` optimizer steps."""
        for _ in range(steps):
            self._group.announce(Action.ADVANCE)
            self._advance()

    def _advance(self) -> None:
        experiment, stepper = self._experiment, self.stepper
        with self.meter.training():
            self._group.seed_step(experiment.recipe.seed, self.step, shared=True)
            self._batch = batch = self._next_batch()
            self._group.seed_step(experiment.recipe.seed, self.step, shared=False)
            self.tokens_seen += self._user.num_tokens(batch, experiment.tokens_per_sample)
            micro_batch_size = stepper.micro_batch_size
            loss, norm = stepper.advance(batch, self.step)
            self.meter.add(loss, self.step)
            self.step += 1
        if stepper.micro_batch_size != micro_batch_size:
            self._observer.event(
                f"out of memory at step {self.step}; continuing with micro-batches of {stepper.micro_batch_size} and "
                f"the same batch size of {experiment.recipe.batch_size}",
                level="warning",
            )
        if self.step % self.meter.every == 0 or self.step in (1, experiment.steps):
            norm = stepper.grad_norm() if norm is None else norm
            self.meter.mark(self.step, self.tokens_seen, stepper.lr, norm)

    def _next_batch(self) -> Batch:
        self._observer.fetching()
        try:
            with self.meter.waiting():
                batch = self._feed.next_batch()
                return batch.pin_memory() if self._device.type == "cuda" else batch
        except DataEndedError as e:
            raise DataEndedError(f"{e}: {self.tokens_seen:,} of D = {self._experiment.tokens:,} tokens seen") from None
        finally:
            self._observer.fetched()

    def evaluate(self) -> Evaluation:
        """Evaluate the model on the held-out samples."""
        self._group.announce(Action.EVALUATE)
        with self.stepper.evaluation_weights():
            return evaluate(self._model, self._user, self._experiment.recipe, self._held_out(), self._device)

    def _held_out(self) -> Iterator[Batch]:
        """Yield the held-out batches, and tell the observer about each wait for one."""
        assert self._user.eval_data is not None
        batches = eval_batches(
            self._user.eval_data, self._eval_samples, self.stepper.micro_batch_size, spread=self._user.eval_spread
        )
        while True:
            self._observer.fetching()
            batch = next(batches, None)
            self._observer.fetched()
            if batch is None:
                return
            yield batch

    def lost_state(self) -> str:
        """Name the state of the model that its state_dict lacks, if it changes the loss; empty where there is none."""
        if self._group.sharded or self._experiment.recipe.compile or self._batch is None:
            return ""
        part = self._batch.split(self.stepper.micro_batch_size)[0].to(self._device)
        return lost_state(self._model, self._user, self._experiment.size_kwargs, part, self._device)

    def state(self) -> dict[str, Any]:
        """Return the checkpoint state, in the layout of one worker whatever their number; complete on the leader."""
        self._group.announce(Action.STATE)
        loss, scaler = self._user.loss, self.stepper.scaler
        return {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "model": self._group.gather_model_state(self._model),
            "optimizer": self._group.gather_optimizer_state(self.stepper.optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
            "loss": loss.state_dict() if isinstance(loss, torch.nn.Module) else None,
            "micro_batch_size": self.stepper.micro_batch_size,
            "feed": self._feed.state(),
            "random": RandomState.capture(),
        }

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Return the full model state, with the weights to evaluate; complete on the leader."""
        self._group.announce(Action.WEIGHTS)
        with self.stepper.evaluation_weights():
            state = self._group.gather_model_state(self._model)
            return copy.deepcopy(state) if self.stepper.has_modes else state

    def resume(self, state: Mapping[str, Any] | None = None, what: str = "checkpoint") -> None:
        """Load the leader's state on every worker, if it has one.

        Args:
            what: the file it came from, for the error.

        Raises:
            ExperimentError: it does not fit the model.
        """
        state = self._group.distribute_state(state, self._model, self.stepper.optimizer)
        if state is None:
            return
        try:
            self._load(state)
        except (RuntimeError, ValueError, KeyError) as e:
            raise ExperimentError(
                f"the {what} at step {state['step']} does not fit this model ({first_line(e)}); if its code changed, "
                "use another output directory, or delete the experiment's checkpoints and the sweep's trunks"
            ) from e
        self.stepper.micro_batch_size = state["micro_batch_size"]
        if isinstance(self._user.train_data, Stream) and not self._user.train_data.has_state:
            self._observer.event(
                f"the stream keeps no state; reading it from the start up to step {state['step']}", level="warning"
            )
        self._feed.load_state(state["feed"])
        self.step = state["step"]
        self.stepper.set_lr(self.step - 1)  # a curve's point says it, even if no step follows
        self.tokens_seen = state["tokens_seen"]
        RandomState.restore(state["random"])  # last: loading may have drawn random numbers

    def _load(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        if self.stepper.scaler is not None:
            self.stepper.scaler.load_state_dict(state["scaler"])
        if isinstance(self._user.loss, torch.nn.Module):
            self._user.loss.load_state_dict(state["loss"])
