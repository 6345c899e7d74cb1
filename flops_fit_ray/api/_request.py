"""The arguments of `find_optimal` and `check` as a request to run a sweep."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flops_fit_ray.errors import ArgumentError, BudgetsMissingError, SpecError
from flops_fit_ray.pipeline import RunRequest
from flops_fit_ray.spec import BudgetsFor, SweepSpec, limit_of_budgets
from flops_fit_ray.spec.arguments import CALL_OPTIONS, SOURCE, describe_target, spec_from_arguments
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.from_checkpoint import CheckpointName, named_checkpoint
from flops_fit_ray.sweep.run_limits import RunLimits
from flops_fit_ray.waiting import waiting

if TYPE_CHECKING:
    from flops_fit_ray.training.user.parts import UserParts


def requested(
    model_cls: Callable[..., Any],
    model_size_param: str | None,
    model_kwargs: Mapping[str, Any] | None,
    dataset: Any,
    loss_fn: Any,
    compute_budgets: Sequence[float | Mapping[str, Any]] | Literal["auto"] | None,
    root: StoragePath,
    mode: str,
    options: dict[str, Any],
    plans: bool,
) -> tuple[RunRequest, bool]:
    """Return the request that the arguments amount to, and True where nothing is to be printed.

    Args:
        plans: nothing will be run, so that one budget is enough.

    Raises:
        SpecError: something is wrong; what can be told of model, data, loss and options at once.
    """
    with waiting("importing torch"):
        from flops_fit_ray.engine.loaders import ObjectLoader
        from flops_fit_ray.training.preflight.model_alone import measure_alone, model_faults
        from flops_fit_ray.training.preflight.model_size import Known, measure_sizes
        from flops_fit_ray.training.user.parts import HOOKS

    extra = {name: options.pop(name, None) for name in CALL_OPTIONS}
    limit = BudgetsFor.of(*(extra.pop(name) for name in ("minutes", "hours", "flops")), source=SOURCE)
    if compute_budgets is None and limit is not None:
        compute_budgets = "auto"
    metrics = options.pop("metrics", None) or {}
    if not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
        raise SpecError(SOURCE, ["metrics: must be functions by name, for example {'accuracy': accuracy}"])
    hooks = {name: options.pop(name) for name in HOOKS if callable(options.get(name))}
    given = model_kwargs or {}
    loss_fn = "cross_entropy" if loss_fn is None else loss_fn
    options |= {"metrics": {name: describe_target(metric) for name, metric in metrics.items()}}
    faults: list[str] = []
    user: UserParts | None = None
    spec: SweepSpec | None = None
    try:
        spec = spec_from_arguments(
            model_cls, model_size_param, given, dataset, loss_fn, compute_budgets, mode, extra, options, hooks, plans
        )
        user = _user_parts_from_arguments(
            model_cls, given, dataset, loss_fn, extra, spec, {**hooks, "metrics": metrics}
        )
    except SpecError as e:
        faults += e.faults
    if spec is None or user is None or compute_budgets is None:
        if not any(fault.startswith("model.") for fault in faults):  # what is wrong is told once
            faults = [*model_faults(model_cls, model_size_param, given), *faults]
        missing = "compute_budgets: is missing; give FLOPs, for example [1e15, 3e15, 1e16], or minutes=30"
        if compute_budgets is None and not faults:
            raise BudgetsMissingError(SOURCE, [f"{missing} (model validation passed)"])
        raise ArgumentError(SOURCE, faults if compute_budgets is not None else [*faults, missing])

    if spec.budgets:
        limit = limit_of_budgets(spec, limit, SOURCE, "")
    spec = spec.model_copy(update={"budgets_for": limit})
    alone = dataset is None or mode == "mock"
    parts, measure = user, measure_alone if alone else functools.partial(measure_sizes, known=Known())
    request = RunRequest(
        spec=spec,
        source=SOURCE,
        root=root,
        measure=lambda wider, counting: measure(wider, parts, counting),
        load_user_parts=ObjectLoader(parts),
        command=f"find_optimal(..., output_dir={str(root)!r})",
        address=extra["address"],
        limits=RunLimits(until=extra["until"], at_most=extra["at_most"], slots=extra["slots"]),
        new=bool(extra["new"]),
        from_checkpoint=None if extra["from_checkpoint"] is None else _checkpoint(root, extra["from_checkpoint"]),
    )
    return request, bool(extra["quiet"])


def _checkpoint(root: StoragePath, text: str) -> CheckpointName:
    try:
        return named_checkpoint(root, text)
    except SpecError as e:
        raise SpecError(SOURCE, [f"from_checkpoint: {fault}" for fault in e.faults]) from e


def _user_parts_from_arguments(
    model_cls: Any,
    model_kwargs: Mapping[str, Any],
    dataset: Any,
    loss_fn: Any,
    extra: Mapping[str, Any],
    spec: SweepSpec,
    hooks: Mapping[str, Any],
) -> UserParts:
    from flops_fit_ray.training.user.parts import load_loss, make_user_parts, parts_without_data

    faults: list[str] = []
    loss = load_loss(loss_fn, Path.cwd(), faults) if isinstance(loss_fn, str) else loss_fn
    if faults:
        raise SpecError(SOURCE, faults)
    if dataset is None:
        return parts_without_data(model_cls, model_kwargs, loss, **hooks)
    return make_user_parts(
        model=model_cls,
        model_kwargs=model_kwargs,
        loss=loss,
        train=dataset,
        held_out=extra["eval_dataset"],
        data=spec.data,
        **hooks,
    )
