"""One experiment: exactly D tokens, then the held-out loss. Pure torch; whoever watches passes a callback."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flops_fit_ray.errors import DivergedError, ExperimentError
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.data import batch_order, fetch, num_samples
from flops_fit_ray.training.evaluate import held_out_loss
from flops_fit_ray.training.guest import Guest
from flops_fit_ray.training.losses import check_loss
from flops_fit_ray.training.optimizer import make_optimizer, set_lr
from flops_fit_ray.training.schedule import lr_at

DIVERGENCE_CHECK_STEPS = 50  # reading the loss waits for the device, so not at every step
PROGRESS_SECONDS = 1.0

OnProgress = Callable[[int, float], None]  # tokens seen, training loss of the last batch


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one experiment gave."""

    tokens_seen: int  # D, counted in the batches
    loss: float  # held-out
    loss_stderr: float | None
    train_loss: float  # last batch
    seconds: float


def train_experiment(
    experiment: Experiment,
    guest: Guest,
    *,
    eval_samples: int,
    device: str = "cpu",
    threads: int = 1,
    on_progress: OnProgress = lambda tokens_seen, train_loss: None,
) -> Outcome:
    """Train one experiment from scratch and evaluate it. On the CPU the same call gives the same bits.

    Args:
        eval_samples: how many held-out samples to evaluate on.
        threads: CPU threads of torch; a part of the result's last bits, hence not the machine's choice.
        on_progress: called about once a second.

    Raises:
        DivergedError: the loss became NaN or infinite.
        ExperimentError: tokens seen are not tokens planned, or the loss is no scalar.
        Exception: whatever the user's model, data or loss raises.
    """
    started = time.perf_counter()
    place = torch.device(device)
    with _settings(experiment.recipe.seed, threads):
        model = guest.model(**experiment.size_kwargs).to(place)
        tokens_seen, train_loss = _train(experiment, guest, model, place, on_progress)
        if tokens_seen != experiment.tokens:
            raise ExperimentError(
                f"saw {tokens_seen} tokens where {experiment.tokens} were planned: the samples differ in length; "
                "set data.tokens_per_sample"
            )
        loss, stderr = held_out_loss(
            model,
            guest,
            num_samples=eval_samples,
            batch_size=experiment.recipe.batch_size,
            tokens_per_sample=experiment.tokens_per_sample,
            device=place,
        )
    if not math.isfinite(loss):
        raise DivergedError(f"the held-out loss is {loss} after {tokens_seen} tokens")
    return Outcome(
        tokens_seen=tokens_seen,
        loss=loss,
        loss_stderr=stderr,
        train_loss=train_loss,
        seconds=time.perf_counter() - started,
    )


def _train(
    experiment: Experiment, guest: Guest, model: nn.Module, device: torch.device, on_progress: OnProgress
) -> tuple[int, float]:
    recipe = experiment.recipe
    model.train()
    optimizer = make_optimizer(model, recipe)
    order = batch_order(num_samples(guest.train_data), recipe.batch_size, experiment.steps, recipe.seed)
    tokens_seen = 0
    last_report = time.monotonic()
    loss = torch.full((), math.nan)
    for step, indices in enumerate(order):
        batch = fetch(guest.train_data, indices)
        tokens_seen += batch.num_tokens(experiment.tokens_per_sample)
        batch = batch.to(device)
        set_lr(optimizer, lr_at(step, experiment.steps, recipe))
        optimizer.zero_grad()
        loss = guest.loss(model(*batch.inputs), batch.target)
        if step == 0:
            check_loss(loss)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        if recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        report_due = time.monotonic() - last_report >= PROGRESS_SECONDS
        if report_due or step % DIVERGENCE_CHECK_STEPS == 0:
            value = _finite(loss, tokens_seen)
            if report_due:
                on_progress(tokens_seen, value)
                last_report = time.monotonic()
    return tokens_seen, _finite(loss, tokens_seen)


def _finite(loss: Tensor, tokens_seen: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise DivergedError(f"the training loss is {value} after {tokens_seen} tokens")
    return value


@contextlib.contextmanager
def _settings(seed: int, threads: int) -> Iterator[None]:
    """Everything that decides the bits of a run; a process that serves many experiments starts each one alike."""
    before = torch.get_num_threads()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
