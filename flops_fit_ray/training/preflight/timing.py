"""Step times of the smallest, a middle and the largest model of a sweep, in each precision in question."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flops_fit_ray.errors import ResourceError
from flops_fit_ray.planning import Experiment, Plan, Rates
from flops_fit_ray.training.data import Batch, make_feed
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.step.attention import attention_kernel
from flops_fit_ray.training.step.device import peak_memory_bytes, reset_peak_memory
from flops_fit_ray.training.step.precision import autocast, check_precision
from flops_fit_ray.training.step.stepper import Stepper, free_memory, torch_threads
from flops_fit_ray.training.user.losses import num_classes, outputs_of
from flops_fit_ray.training.user.parts import UserParts

TIMED_SECONDS = 3.0  # per model
FIXED_SECONDS = 0.15  # per experiment, besides its steps: model, optimizer, trunk, records
WORTH_IT = 1.05  # bf16 must be so many times as fast as fp32
COMPILE_SECONDS = 300.0  # of training per size; below it compiling (about 36 s each) costs more than it gains


@dataclass(frozen=True, kw_only=True)
class ModelTiming:
    """Measurements of one model over a few steps."""

    experiment: Experiment
    params_total: int
    loss: float
    classes: int | None  # of the logits
    unused: tuple[str, ...]  # parameters without a gradient
    tokens: int  # of one batch
    step_seconds: float
    wait_share: float
    peak_bytes: int | None
    micro_batch_size: int


def smallest_and_biggest(plan: Plan) -> list[Experiment]:
    """Return the experiments with the fewest and with the most parameters."""
    ordered = sorted(plan.expected, key=lambda e: e.params)
    return [ordered[0], ordered[-1]]


def middle_experiment(plan: Plan) -> Experiment | None:
    """Return the experiment whose FLOPs per step are nearest to the geometric mean of the extremes; None of two sizes.

    Step time is no single power law of FLOPs: small models are bound by overhead, large ones by arithmetic.
    """
    by_size = {e.size: e for e in plan.expected}.values()
    cost = {e.size: math.log(e.flops / e.steps) for e in by_size}
    middle = (min(cost.values()) + max(cost.values())) / 2
    inner = [e for e in by_size if min(cost.values()) < cost[e.size] < max(cost.values())]
    return min(inner, key=lambda e: abs(cost[e.size] - middle), default=None)


def time_training(experiment: Experiment, user: UserParts, device: torch.device) -> ModelTiming:
    """Train one model for a few seconds on real batches in the plan's recipe, and time its steps."""
    with attention_kernel(experiment.recipe.precision, device):
        return _time_training(experiment, user, device)


def _time_training(experiment: Experiment, user: UserParts, device: torch.device) -> ModelTiming:
    recipe = experiment.recipe
    reset_peak_memory(device)
    RandomState.seed(recipe.seed)
    model = user.model(**experiment.size_kwargs).to(device)
    model.train()
    feed = make_feed(user.train_data, recipe.batch_size, recipe.seed, user.max_epochs)
    stepper = Stepper(model, user, recipe, experiment.steps, device)
    batch = feed.next_batch()
    classes = _classes(model, user, batch.to(device), recipe.precision, device)
    loss, _ = stepper.advance(batch, 0)
    first = loss.item()
    unused = tuple(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
    waited, steps, started = 0.0, 0, time.perf_counter()
    while steps < 3 or (time.perf_counter() - started < TIMED_SECONDS and steps < experiment.steps - 1):
        fetching = time.perf_counter()
        batch = feed.next_batch()
        waited += time.perf_counter() - fetching
        loss, _ = stepper.advance(batch, min(steps + 1, experiment.steps - 1))
        steps += 1
    loss.item()  # synchronises with the device
    seconds = time.perf_counter() - started
    return ModelTiming(
        experiment=experiment,
        params_total=sum(p.numel() for p in model.parameters()),
        loss=first,
        classes=classes,
        unused=unused,
        tokens=user.num_tokens(batch, experiment.tokens_per_sample),
        step_seconds=seconds / steps,
        wait_share=waited / seconds,
        peak_bytes=peak_memory_bytes(device),
        micro_batch_size=stepper.micro_batch_size,
    )


@torch.no_grad()
def _classes(model: nn.Module, user: UserParts, batch: Batch, precision: str, device: torch.device) -> int | None:
    """Return the number of classes of the logits; None without integer targets or separate outputs."""
    target = batch.target
    if user.objective.takes_model or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    outside, classes = RandomState.capture(), None
    with autocast(precision, device), contextlib.suppress(TypeError, ValueError):  # a user's loss may take any outputs
        classes = num_classes(outputs_of(model, batch), target, second=user.loss_facts.classes_second)
    RandomState.restore(outside)
    return classes


def rates_of(measured: Sequence[ModelTiming], plan: Plan, *, slots: int = 1, start_seconds: float = 0.0) -> Rates:
    """Return the rates to price a plan with."""
    per_step = {str(m.experiment.size): (m.experiment.flops / m.experiment.steps, m.step_seconds) for m in measured}
    return Rates(
        step_seconds=per_step,
        slots=slots,
        fixed_seconds=FIXED_SECONDS,
        start_seconds=start_seconds,
        device=plan.experiments[0].recipe.precision,
        peak_memory_bytes=max((m.peak_bytes or 0) for m in measured) or None,
    )


def sweep_seconds(plan: Plan, measured: Sequence[ModelTiming]) -> float:
    """Return the training seconds of all experiments one after the other, without the trunks they share."""
    rates = rates_of(measured, plan)
    return sum((e.steps - e.start_step) * rates.seconds_per_step(e) for e in plan.expected)


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """Precision and compilation chosen by measurement."""

    precision: str
    compile: bool
    seconds: Mapping[str, float]  # of training the whole sweep, one experiment at a time, by precision


def with_precision(plan: Plan, precision: str) -> Plan:
    """Return the plan with another precision. Keys of its experiments are not updated."""
    decided, expected = (
        tuple(replace(e, recipe=replace(e.recipe, precision=precision)) for e in some)
        for some in (plan.experiments, plan.forecast)
    )
    return replace(plan, experiments=decided, forecast=expected)


def choose_precision(plan: Plan, user: UserParts, *, device: str, threads: int = 1) -> PrecisionChoice:
    """Choose the faster of fp32 and bf16 for the whole sweep if precision is `auto`, and if compiling pays off.

    It is measured because no rule fits: bf16 is several times as fast for wide models, and slower for narrow ones.
    """
    place = torch.device(device)
    asked = plan.experiments[0].recipe.precision
    seconds: dict[str, float] = {}
    with torch_threads(threads):
        for precision in ("fp32", "bf16") if asked == "auto" else (asked,):
            try:
                check_precision(precision, place)
            except ResourceError:
                continue
            ends = smallest_and_biggest(with_precision(plan, precision))
            measured = [time_training(e, user, place) for e in ends]
            free_memory()
            if all(math.isfinite(m.loss) for m in measured):
                seconds[precision] = sweep_seconds(plan, measured)
    best = asked
    if asked == "auto":
        best = "bf16" if seconds.get("bf16", math.inf) * WORTH_IT < seconds.get("fp32", math.inf) else "fp32"
    sizes = len({e.size for e in plan.expected})
    return PrecisionChoice(precision=best, compile=seconds.get(best, 0.0) / sizes > COMPILE_SECONDS, seconds=seconds)
