"""Loading of the user's model, data, loss and hooks. Errors of theirs name the key of the spec."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import NOTHING_LEARNT, LossFacts
from flops_fit_ray.spec import DataSection, SweepSpec, is_data_path
from flops_fit_ray.spec.wrong_data import data_faults
from flops_fit_ray.training.data import (
    Batch,
    Data,
    PreparedData,
    Stream,
    TokenFile,
    as_data,
    num_samples,
    open_token_files,
    split_held_out,
)
from flops_fit_ray.training.data.batch import AUTO
from flops_fit_ray.training.user._targets import load_target
from flops_fit_ray.training.user.losses import BUILT_IN_LOSSES, Objective, as_objective, cross_entropy, model_loss
from flops_fit_ray.training.user.user_code import user_code
from flops_fit_ray.training.user.wrong_parts import (
    argument_faults,
    loss_faults,
    loss_object,
    model_kind_faults,
    no_module_fault,
    unknown_loss,
)
from flops_fit_ray.waiting import waiting

HOOKS = {  # field of `UserParts` -> key of the spec
    "flops_per_token": "model.flops_per_token",
    "optimizer": "train.optimizer",
    "schedule": "train.schedule",
    "lr": "train.lr",
    "count_tokens": "data.count_tokens",
}


@dataclass(frozen=True, kw_only=True)
class UserParts:
    """The user's model, loss, data and hooks. `model(**size_kwargs)` builds a model."""

    model: Callable[..., nn.Module]
    loss: Callable[..., Any]  # (outputs, targets) or (model, batch)
    train_data: Data
    eval_data: Data | None
    eval_source: str
    eval_spread: bool = False  # evenly spaced samples where not all are evaluated; else the first
    max_epochs: float = 1.0  # for streams of unknown length
    flops_per_token: Callable[[nn.Module], float] | None = None
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer | Sequence[torch.optim.Optimizer]] | None = None
    schedule: Callable[[int, int], float] | None = None  # (step, steps) -> multiple of the peak
    lr: Callable[..., float] | None = None  # (N, size arguments), and D and the like by name -> peak
    count_tokens: Callable[[Any], int] | None = None  # batch -> D of it
    metrics: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    loss_facts: LossFacts = NOTHING_LEARNT  # as planning has learnt them

    @property
    def prepared_data(self) -> PreparedData:
        """Training and held-out data."""
        return PreparedData(train=self.train_data, held_out=self.eval_data, source=self.eval_source)

    @property
    def objective(self) -> Objective:
        """The loss as a function of (model, batch)."""
        loss, facts = self.loss, self.loss_facts
        if loss is cross_entropy and facts.classes_second:
            loss = functools.partial(cross_entropy, second=True)
        return as_objective(loss, facts.average)

    @property
    def metric_objectives(self) -> dict[str, Objective]:
        """The metrics as functions of (model, batch), by name."""
        averages = self.loss_facts.metrics
        return {name: as_objective(metric, averages.get(name, AUTO)) for name, metric in self.metrics.items()}

    def num_tokens(self, batch: Batch, tokens_per_sample: int | None) -> int:
        """Count the tokens of a batch: by the user's hook, by a number per sample, else by the default rule."""
        if self.count_tokens is not None:
            return int(self.count_tokens(batch.content))
        return batch.num_tokens() if tokens_per_sample is None else batch.num_samples * tokens_per_sample


def load_user_parts(spec: SweepSpec, base: Path, prepared: PreparedData | None = None) -> UserParts:
    """Import what the spec names, relative to the directory `base`, and create the datasets.

    Args:
        prepared: data to use in place of those that the spec names.

    Raises:
        SpecError: targets cannot be imported or called; all such faults at once.
    """
    faults: list[str] = []
    broken: set[str] = set()  # modules that raised when they were run: once is enough

    def get(key: str, target: str) -> Any:
        module = target.partition(":")[0]
        if module in broken:
            return None
        try:
            return load_target(target, base, key)
        except SpecError as e:
            faults.extend(e.faults)
            if module not in sys.modules and not isinstance(e.__cause__, ModuleNotFoundError):
                broken.add(module)
            return None

    def get_data(key: str, named: str | None) -> Any:
        if named is None or prepared is not None:
            return None
        if not is_data_path(named) and not (":" not in named and (base / named).is_dir()):
            return get(key, named)
        try:
            return open_token_files(named, base, context=spec.data.context, dtype=spec.data.dtype, key=key)
        except SpecError as e:
            faults.extend(e.faults)
            return None

    model = get("model.target", spec.model.target)
    loss: Any = None if spec.loss.partition(":")[0] in broken else load_loss(spec.loss, base, faults)
    train = get_data("data.train", spec.data.train)
    held_out = get_data("data.eval", spec.data.eval)
    faults += _shared_files(train, held_out)
    hooks = {name: get(HOOKS[name], target) for name, target in _named_hooks(spec).items()}
    metrics = {name: get(f"metrics.{name}", target) for name, target in spec.metrics.items()}
    if faults:
        raise SpecError("spec", faults)
    return make_user_parts(
        model=model,
        model_kwargs=spec.model.kwargs,
        loss=loss,
        train=_create("data.train", spec.data.train, train, spec.data.kwargs),
        held_out=_create("data.eval", spec.data.eval, held_out, spec.data.kwargs),
        data=spec.data,
        metrics=metrics,
        prepared=prepared,
        **hooks,
    )


def _shared_files(train: Any, held_out: Any) -> list[str]:
    """Return a fault where a token file is both trained on and held out."""
    if not (isinstance(train, TokenFile) and isinstance(held_out, TokenFile)):
        return []
    shared = sorted({file.path for file in train.files} & {file.path for file in held_out.files})
    return (
        [f"data.eval: {shared[0]} is in data.train too; hold other files out, or leave data.eval out"] if shared else []
    )


def _named_hooks(spec: SweepSpec) -> dict[str, str]:
    """Return the hooks that the spec names as `module:attribute`, by field of `UserParts`."""
    values = {
        "flops_per_token": spec.model.flops_per_token,
        "optimizer": spec.train.optimizer,
        "schedule": spec.train.schedule,
        "lr": spec.train.lr,
        "count_tokens": spec.data.count_tokens,
    }
    return {name: value for name, value in values.items() if isinstance(value, str) and ":" in value}


def make_user_parts(
    *,
    model: Callable[..., nn.Module],
    model_kwargs: Mapping[str, Any],
    loss: Callable[..., Any],
    train: Any,
    held_out: Any,
    data: DataSection,
    prepared: PreparedData | None = None,
    **hooks: Any,
) -> UserParts:
    """Create user parts from objects. `hooks` are their optional fields; `prepared` replaces `train` and `held_out`.

    Without `held_out`, a fixed fraction of map-style training data is held out. A stream cannot be split: then, and if
    `eval_fraction` is 0, the smoothed training loss takes the place of the held-out one.

    Raises:
        SpecError: model, loss or a dataset cannot be used.
    """
    faults = [*model_kind_faults(model), *loss_faults(loss)]
    if prepared is None and callable(loss):
        whole = loss is model_loss or as_objective(loss).takes_model
        for key, dataset in (("data.train", train), ("data.eval", held_out)):
            faults += data_faults(key, dataset, of_any_kind=whole)
    if faults:
        raise SpecError("spec", faults)
    prepared = prepared or _prepare_data(train, held_out, data.eval_fraction)
    return UserParts(
        model=functools.partial(model, **model_kwargs),
        loss=loss,
        train_data=prepared.train,
        eval_data=prepared.held_out,
        eval_source=prepared.source,
        eval_spread=data.eval_samples is None,
        max_epochs=data.max_epochs,
        **hooks,
    )


def parts_without_data(
    model: Callable[..., nn.Module], model_kwargs: Mapping[str, Any], loss: Callable[..., Any], **hooks: Any
) -> UserParts:
    """Create user parts to plan with, and not to train with.

    Raises:
        SpecError: the model or the loss cannot be used.
    """
    if faults := [*model_kind_faults(model), *loss_faults(loss)]:
        raise SpecError("spec", faults)
    nothing: Any = None
    return UserParts(
        model=functools.partial(model, **model_kwargs),
        loss=loss,
        train_data=nothing,
        eval_data=None,
        eval_source="none",
        **hooks,
    )


def _prepare_data(train: Any, held_out: Any, eval_fraction: float) -> PreparedData:
    with user_code("data.train: raised"):  # for example its __len__
        train_data = as_data(train, "data.train")
    if held_out is not None:
        return PreparedData(train=train_data, held_out=as_data(held_out, "data.eval"), source="data.eval")
    if isinstance(train_data, Stream) or not eval_fraction:
        return PreparedData(train=train_data, held_out=None, source="none: the training loss, smoothed")
    if num_samples(train_data) < 2:
        raise SpecError("spec", ["data.train: has 1 sample, so none can be held out; set data.eval"])
    kept, taken = split_held_out(train_data, eval_fraction)
    return PreparedData(train=kept, held_out=taken, source=f"{eval_fraction:.0%} of data.train, held out")


def build(user: UserParts, kwargs: Mapping[str, Any]) -> nn.Module:
    """Build the user's model of one size on torch's default device.

    Raises:
        SpecError: the constructor raised, or returned no nn.Module.
    """
    # NotImplementedError: not supported on the meta device; the caller falls back to the CPU
    with user_code(f"model.sizes: {format_kwargs(kwargs)} raised", but=NotImplementedError):
        model = user.model(**kwargs)
    if not isinstance(model, nn.Module):
        raise SpecError("spec", [no_module_fault(user.model, model, format_kwargs(kwargs))])
    return model


def format_kwargs(kwargs: Mapping[str, Any]) -> str:
    """Format a size as arguments: `d_model=64, n_layer=2`."""
    return ", ".join(f"{k}={v}" for k, v in kwargs.items())


def load_loss(name: str, base: Path, faults: list[str]) -> Any:
    """Load a built-in loss by name, or the user's by `module:attribute`. Appends to `faults` what is wrong."""
    if ":" not in name:
        if name not in BUILT_IN_LOSSES:
            faults.append(unknown_loss(name))
        return BUILT_IN_LOSSES.get(name)
    try:
        loss = load_target(name, base, "loss")
    except SpecError as e:
        faults.extend(e.faults)
        return None
    if not isinstance(loss, type):
        return loss
    try:
        with user_code(f"loss: {name} raised"):
            return loss_object(name, loss, faults)
    except SpecError as e:
        faults.extend(e.faults)
        return None


def _create(key: str, named: str | None, value: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return a dataset itself, or the result of its factory."""
    is_data = hasattr(value, "__getitem__") or hasattr(value, "__iter__")
    if value is None or isinstance(value, nn.Module) or (is_data and not isinstance(value, type)):
        return value
    with waiting(f"reading {named} ({key})"):
        try:
            with user_code(f"{key}: {_name(value)} raised"):
                return value(**kwargs)
        except SpecError as e:
            wrong = isinstance(e.__cause__, TypeError) and argument_faults(
                value, [("data.kwargs", name) for name in kwargs], "data.kwargs"
            )
            if wrong:
                raise SpecError("spec", wrong) from e.__cause__
            raise


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__name__)
