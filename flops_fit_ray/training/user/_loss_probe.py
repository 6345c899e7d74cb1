"""Facts about the loss and the metrics that planning learns by trying them on a few samples."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from flops_fit_ray.errors import SpecError, first_line
from flops_fit_ray.flags import Flag, warning
from flops_fit_ray.planning import Average, LossFacts
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.data.batch import AUTO, is_integer_tensor, map_tensors
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.user._loss_average import SAMPLES, AverageProbe, can_be_split
from flops_fit_ray.training.user.losses import (
    Objective,
    classes_last,
    classes_second,
    cross_entropy,
    logits_of,
    mse,
    outputs_of,
)
from flops_fit_ray.training.user.parts import UserParts

LARGE = 2_000_000  # numbers in the outputs of a few samples
MOST = 50_000_000  # numbers that outputs are made up of
META = torch.device("meta")
POSITIONS = 32  # of each sample that are tried of such outputs: a large vocabulary makes large outputs
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def learn_loss_facts(user: UserParts, model: nn.Module | None, batch: Batch, spec: SweepSpec) -> LossFacts:
    """Learn the layout of the logits, and what the loss and each metric average over.

    Args:
        model: with real weights, which are changed. One on the meta device is too large for that: its outputs are made
            up, in their shapes. None where it may not be run.

    Raises:
        SpecError: the loss does not fit the model, or it cannot be taken over parts of a batch and the spec splits it.
    """
    samples = batch.split(SAMPLES)[0] if batch.splits else batch
    if model is not None:
        model.eval()
    second = model is not None and _is_second(user, model, samples)
    user = replace(user, loss_facts=LossFacts(classes_second=second))
    average, words = _average("loss", user.objective, model, batch)
    flags = [warning("loss_mean", words)] if words else []
    metrics = {}
    for name, metric in user.metric_objectives.items():
        metrics[name], _ = _average(f"metrics.{name}", metric, model, batch)
        if metrics[name].over == "whole":
            size = spec.train.micro_batch_size or spec.train.batch_size
            words = f"metrics.{name}: is no mean over samples; what is reported is its mean over batches of {size}"
            flags.append(warning("loss_mean", words))
    facts = LossFacts(average=average, metrics=metrics, classes_second=second)
    _refuse_split(facts, spec)
    return replace(facts, warnings=tuple(flag.text for flag in (*flags, *_batch_norm(model, spec))))


def _average(key: str, objective: Objective, model: nn.Module | None, batch: Batch) -> tuple[Average, str]:
    """Return what a loss averages over, and a warning where it could not be learnt."""
    if _function_of(objective) in (cross_entropy, mse) or not batch.splits:
        return AUTO, ""
    unknown = f"{key}: what it averages over is not known ({{}}), and is taken as {AUTO}"
    if model is None or (is_meta(model) and objective.takes_model):
        return AUTO, unknown.format("the model is not run while planning")
    for again in (False, True):
        if again and not is_meta(model):  # untrained models may give all samples the same loss
            _change_weights(model)
        try:
            found = _learnt(key, objective, model, batch, again)
        except SpecError:
            raise
        except Exception as e:  # noqa: BLE001 - the user's code may raise anything; it ran on other samples before
            if is_meta(model) and not again:  # a loss of probabilities
                continue
            return AUTO, unknown.format(f"{type(e).__name__}: {first_line(e)}")
        if found is not None:
            return found, ""
    return AUTO, unknown.format("the first samples tell nothing: their losses are equal, random or not finite")


def _function_of(objective: Objective) -> Any:
    function = objective.function
    return function.func if isinstance(function, functools.partial) and function.func is cross_entropy else function


def _change_weights(model: nn.Module) -> None:
    RandomState.seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point():
                p.add_(0.1 * torch.randn_like(p))


def _learnt(key: str, objective: Objective, model: nn.Module, batch: Batch, again: bool) -> Average | None:
    if objective.takes_model:
        return AverageProbe(objective, model, batch).learn()
    with torch.no_grad():
        outputs = _run(model, batch.split(SAMPLES)[0])
    if not can_be_split(outputs):
        if is_meta(model):
            raise TypeError(f"outputs are {type(outputs).__name__}, and the model is not run while planning")
        return AverageProbe(objective, model, batch).learn()
    outputs, batch = _shorter(outputs, batch)
    if is_meta(model):
        outputs = _made_up(outputs, shares=again)
    found = AverageProbe(objective, model, batch, outputs).learn()
    if found is not None and found.over == "whole":
        _refuse_broadcast(key, objective, outputs, batch)
    return found


def is_meta(model: nn.Module) -> bool:
    """Return True for a model without numbers."""
    return any(p.is_meta for p in model.parameters())


def _run(model: nn.Module, batch: Batch) -> Any:
    """Return the model's outputs for a batch; without numbers for a model without."""
    if not is_meta(model):
        return outputs_of(model, batch)
    with META:
        return outputs_of(model, batch.to(META))


def _made_up(outputs: Any, *, shares: bool = False) -> Any:
    """Return random outputs in the shapes of those on the meta device: normal, or `shares` between 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    numbers = sum(t.numel() for t in tree_leaves(outputs) if isinstance(t, Tensor))
    if numbers > MOST:
        raise ValueError(f"the outputs of {SAMPLES} samples are {numbers:,} numbers")

    def made(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return (torch.rand if shares else torch.randn)(tensor.shape, generator=generator)

    return map_tensors(outputs, made)


def _shorter(outputs: Any, batch: Batch) -> tuple[Any, Batch]:
    """Return large outputs with the first positions of each sample, and targets to go with them."""
    target = batch.target
    if not (
        isinstance(outputs, Tensor) and outputs.ndim == 3 and outputs.numel() > LARGE and is_integer_tensor(target)
    ):
        return outputs, batch
    if target.ndim != 2 or outputs.shape[1] != target.shape[1] or outputs.shape[2] == target.shape[1]:
        return outputs, batch
    return outputs[:, :POSITIONS], Batch({"target": target[:, :POSITIONS]}, batch.num_samples)


def _refuse_broadcast(key: str, objective: Objective, outputs: Any, batch: Batch) -> None:
    """Refuse outputs (8, 1) and targets (8,), of which a loss compares every one with every other.

    Raises:
        SpecError: that is so: with targets of the outputs' shape the loss is a mean over samples.
    """
    target = batch.split(SAMPLES)[0].target
    if not (isinstance(outputs, Tensor) and isinstance(target, Tensor)) or outputs.shape == target.shape:
        return
    if outputs.numel() != target.numel():
        return
    shaped = Batch({"target": target.reshape(outputs.shape)}, len(target))
    alike = AverageProbe(objective, None, shaped, outputs).learn()
    if alike is not None and alike.over != "whole":
        raise SpecError(
            "spec",
            [
                f"{key}: outputs {_shape(outputs)} and targets {_shape(target)} are broadcast, so that "
                "every output is compared with every target; give both one shape in the loss, the model or the data"
            ],
        )


def _shape(tensor: Tensor) -> str:
    axes = ["N", *map(str, tensor.shape[1:])]
    return f"({', '.join(axes)})" if len(axes) > 1 else "(N,)"


def _refuse_split(facts: LossFacts, spec: SweepSpec) -> None:
    """Refuse to split batches of a loss that only a whole batch has.

    Raises:
        SpecError: the spec splits them.
    """
    micro_batch_size = spec.train.micro_batch_size
    splits = [
        *(["train.micro_batch_size"] if micro_batch_size not in (None, spec.train.batch_size) else []),
        *(["workers_per_trial"] if spec.workers_per_trial > 1 else []),
    ]
    if splits and facts.average.over == "whole":
        raise SpecError(
            "spec",
            [
                f"{splits[0]}: splits batches, but the loss of a batch is no mean over its samples, targets or a mask, "
                "and no sum: it compares samples with each other, or weighs them in a way of its own. Leave it out, or "
                'let the loss return {"sum": ..., "count": ...}, of which sums and counts are added up'
            ],
        )


def _batch_norm(model: nn.Module | None, spec: SweepSpec) -> Iterator[Flag]:
    size = (spec.train.micro_batch_size or spec.train.batch_size) // spec.workers_per_trial or 1
    norm = next((m for m in model.modules() if isinstance(m, _BatchNorm)), None) if model is not None else None
    if norm is not None and size < spec.train.batch_size:
        yield warning(
            "batch_norm",
            f"{type(norm).__name__} computes its statistics over {size} samples and not over "
            f"train.batch_size {spec.train.batch_size}: results depend on how batches are split",
        )


# The layout of logits


def _is_second(user: UserParts, model: nn.Module, batch: Batch) -> bool:
    """Return True if a built-in loss has to take logits as (samples, classes, positions) where shapes leave it open.

    Shapes do so where there are as many positions as classes. Shorter samples then tell the axes apart, or the module
    that made the logits.

    Raises:
        SpecError: nothing tells, or the loss takes the other layout.
    """
    objective, target = user.objective, batch.target
    if objective.takes_model or not isinstance(target, Tensor):
        return False
    built_in = user.loss is cross_entropy
    cannot_run = Exception if is_meta(model) else TypeError
    with torch.no_grad():
        try:
            logits = logits_of(_run(model, batch))
        except cannot_run:
            return False
        if not (classes_last(logits.shape, target.shape) and classes_second(logits.shape, target.shape)):
            return False
        for short in _shortened(batch, target):
            try:
                outputs = _run(model, short)
                shorter = logits_of(outputs)
            except Exception:  # noqa: BLE001, S112 - a model may take samples of one length alone
                continue
            last, second = (fits(shorter.shape, short.target.shape) for fits in (classes_last, classes_second))
            if last != second:
                if not built_in:
                    _refuse_layout(objective, model, outputs, short, second=second)
                return second and built_in
        if built_in:
            return _made_by_convolution(model, batch, logits)
    return False


def _shortened(batch: Batch, target: Tensor) -> Iterator[Batch]:
    """Yield the batch with fewer positions."""
    axes = tuple(target.shape[1:])
    for length in (axes[0] - 1, axes[0] // 2):

        def cut(tensor: Tensor, length: int = length) -> Tensor:
            starts = range(1, tensor.ndim - len(axes) + 1)
            axis = next((i for i in starts if tuple(tensor.shape[i : i + len(axes)]) == axes), None)
            return tensor if axis is None else tensor.narrow(axis, 0, length)

        if length > 0:
            yield Batch(map_tensors(batch.content, cut), batch.num_samples)


def _refuse_layout(objective: Objective, model: nn.Module, outputs: Any, batch: Batch, *, second: bool) -> None:
    """Refuse a loss that takes the other layout of logits: with as many positions as classes it does not notice."""
    if is_meta(model):
        try:
            outputs = _made_up(outputs)
        except ValueError:  # too many numbers: the warning of `_average` says so
            return
    try:
        objective.function(outputs, batch.target)
    except Exception as e:
        layout = "(samples, classes, positions)" if second else "(samples, positions, classes)"
        raise SpecError(
            "spec",
            [
                f"loss: the model's logits are {layout}, and the loss takes another: on shorter samples it raises "
                f"{type(e).__name__}: {first_line(e)}. Swap the axes, or take loss: cross_entropy"
            ],
        ) from e


def _made_by_convolution(model: nn.Module, batch: Batch, logits: Tensor) -> bool:
    made: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made.append((module, output))

    hooks = [module.register_forward_hook(note) for module in model.modules() if not list(module.children())]
    try:
        again = logits_of(_run(model, batch))
    finally:
        for hook in hooks:
            hook.remove()
    module = next((module for module, output in made if output is again), None)
    if isinstance(module, nn.Linear):
        return False
    if isinstance(module, CONVOLUTIONS):
        return True
    target = batch.target
    raise SpecError(
        "spec",
        [
            f"loss: logits {_shape(logits)} and targets {_shape(target)}: there are as many positions as "
            "classes, and which axis are the classes cannot be told. For (samples, classes, positions) take loss: "
            "torch.nn.functional:cross_entropy; for the classes last, a function of yours with "
            "cross_entropy(outputs.flatten(0, -2), targets.flatten())"
        ],
    )
