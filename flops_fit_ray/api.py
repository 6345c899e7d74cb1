"""The Python door: `find_optimal(...) -> Result`, and `check(...)` before it."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from flops_fit_ray.analysis import Analysis, FitOptions, analyse, fit_sweep
from flops_fit_ray.budgets import with_budgets_chosen, with_some_budgets
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.console.select import console_for
from flops_fit_ray.errors import (
    ArgumentError,
    BudgetsMissingError,
    DirectoryError,
    SpecError,
    faults_of_arguments,
)
from flops_fit_ray.formatting import did_you_mean
from flops_fit_ray.pipeline import RunRequest, check_output, plan_request, run
from flops_fit_ray.pipeline import check as check_request
from flops_fit_ray.planning import Plan, priced
from flops_fit_ray.result import Result
from flops_fit_ray.spec import BudgetsFor, SweepSpec, limit_of_budgets
from flops_fit_ray.spec.arguments import (
    SOURCE,
    Mode,
    describe_target,
    name_arguments,
    refuse_wrong_types,
    spec_from_arguments,
)
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, expanded, storage_path
from flops_fit_ray.sweep.recorded import recorded_constants, recorded_rates
from flops_fit_ray.sweep.run_limits import RunLimits
from flops_fit_ray.waiting import to_stderr, told_to, waiting

if TYPE_CHECKING:
    from flops_fit_ray.training.preflight.check import CheckReport
    from flops_fit_ray.training.user.parts import UserParts


_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")


def _says_what_it_waits_for(function: Callable[_Arguments, _Returned]) -> Callable[_Arguments, _Returned]:
    """Write what a slow start of a call waits for to stderr, unless the call has `quiet`."""

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
        with told_to(None if kwargs.get("quiet") else to_stderr):
            return function(*args, **kwargs)

    return call


@overload
def find_optimal(
    model_cls: Callable[..., Any],
    model_size_param: str | None = ...,
    model_kwargs: Mapping[str, Any] | None = ...,
    dataset: Any = ...,
    loss_fn: Any = ...,
    compute_budgets: Sequence[float | Mapping[str, Any]] | Literal["auto"] | None = ...,
    *,
    train: Literal[False],
    mode: Mode = ...,
    output_dir: str | Path = ...,
    resume: bool = ...,
    **options: Any,
) -> Plan: ...


@overload
def find_optimal(
    model_cls: Callable[..., Any],
    model_size_param: str | None,
    model_kwargs: Mapping[str, Any] | None,
    dataset: Any,
    loss_fn: Any,
    compute_budgets: Sequence[float | Mapping[str, Any]] | Literal["auto"] | None,
    train: Literal[False],
    mode: Mode = ...,
    output_dir: str | Path = ...,
    resume: bool = ...,
    **options: Any,
) -> Plan: ...


@overload
def find_optimal(
    model_cls: Callable[..., Any],
    model_size_param: str | None = ...,
    model_kwargs: Mapping[str, Any] | None = ...,
    dataset: Any = ...,
    loss_fn: Any = ...,
    compute_budgets: Sequence[float | Mapping[str, Any]] | Literal["auto"] | None = ...,
    train: Literal[True] = ...,
    mode: Mode = ...,
    output_dir: str | Path = ...,
    resume: bool = ...,
    **options: Any,
) -> Result: ...


@_says_what_it_waits_for
@faults_of_arguments(SOURCE, name_arguments)
def find_optimal(
    model_cls: Callable[..., Any],
    model_size_param: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    dataset: Any = None,
    loss_fn: Any = None,
    compute_budgets: Sequence[float | Mapping[str, Any]] | Literal["auto"] | None = None,
    train: bool = True,
    mode: Mode = "local",
    output_dir: str | Path = "runs/sweep",
    resume: bool = True,
    **options: Any,
) -> Result | Plan:
    """Find the compute-optimal size of a model by an IsoFLOP sweep.

    Args:
        model_cls: class or factory; called with `model_kwargs` and the size, returns an `nn.Module`.
        model_size_param: the argument that makes the model larger. Not needed where `sizes` are mappings.
        dataset: tensors or arrays (one, a tuple, a mapping), a map-style or iterable dataset, a DataLoader, a Hugging
            Face dataset, a TokenFile. Samples are (input, ..., target), or mappings with `labels`. Without
            `eval_dataset` a part of map-style data is held out. None only plans, from the model alone: C = 6·N·D.
        loss_fn: (outputs, targets) -> mean loss, or (model, batch) -> mean loss if its first argument is called
            `model`; also "cross_entropy" (the default), "mse", or "model" for a model that returns its own loss.
        compute_budgets: C in FLOPs, two at least; an item may be {"flops": C, "sizes": [...]}. "auto" (or None with one
            of the options minutes, hours and flops): the widest range of budgets that such a sweep may cost, chosen
            after a measurement on a worker, by models, data and steps. A directory keeps its budgets.
        train: False only plans: nothing is run or written.
        mode: "mock" trains nothing: D is not limited by the data, C = 6·N·D, and the losses are those of a published
            surface with noise. Such a directory never goes on as a real sweep.
        output_dir: the sweep directory.
        resume: False refuses a directory that holds results already.
        options: any field of the spec's sections by its name, such as sizes, batch_size, micro_batch_size, precision,
            seed, eval_fraction, tokens_per_sample, max_epochs, draws, curve, window, checkpoint,
            resources_per_trial, device, workers_per_trial, shard_model, max_retries, stop_diverged,
            loss_unit ("nats", "bits"), grid (a mapping);
            and minutes, hours, flops (what a sweep whose budgets are "auto" may cost, one of them), eval_dataset,
            address, quiet, until ("1.3@1e21": then add single runs, those that tell most for their FLOPs, until N_opt
            there is known within that factor), at_most (FLOPs in all), slots (experiments at a time; a cluster is
            asked to grow to as many), new (True: train completed experiments of this directory anew where the arguments
            have changed). Functions are taken for optimizer (model, lr), schedule (step, steps), lr (params, size
            arguments; also tokens, steps, batch_size, budget by name), count_tokens (batch), flops_per_token (model),
            and in metrics={name: function}.

    Returns:
        The plan with `train=False` or without a dataset, else the result.

    Raises:
        ArgumentError: an argument is wrong or unknown; nothing was run. It is a TypeError and a ValueError, and a
            NotImplementedError where nothing but the budgets is missing.
        ResourceError, DirectoryError: the cluster or the directory cannot be used.
        InterruptedSweepError, StorageError: stopped by a signal or a full disk; the same call resumes.
    """
    refuse_wrong_types(
        train=train,
        resume=resume,
        output_dir=output_dir,
        model_kwargs=model_kwargs,
        compute_budgets=compute_budgets,
        **options,
    )
    root = storage_path(output_dir)
    plans = dataset is None or not train
    if not plans:
        check_output(root)
    request, quiet = _requested(
        model_cls, model_size_param, model_kwargs, dataset, loss_fn, compute_budgets, root, mode, options, plans
    )
    say = (lambda line: None) if quiet else PlainConsole(sys.stdout).say
    request = with_budgets_chosen(request, None, say, measure_speed=not plans)
    if plans:
        _, plan = plan_request(request, recorded_constants(SweepPaths(root)))
        if train:
            say("find_optimal: no dataset is given, so this is a plan and nothing is run")
        return priced(plan, request.spec.grid.start, rates=recorded_rates(SweepPaths(root), plan.constants))
    if not resume:
        _refuse_results(root)
    silent = PlainConsole(io.StringIO())
    console = silent if quiet else console_for("", SweepPaths(root), request.spec, sys.stdout)
    sweep = run(request, console)
    console.say(f"report: {sweep.paths.report}")
    return Result(sweep)


@_says_what_it_waits_for
@faults_of_arguments(SOURCE, name_arguments)
def check(
    model_cls: Callable[..., Any],
    model_size_param: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    dataset: Any = None,
    loss_fn: Any = None,
    compute_budgets: Sequence[float | Mapping[str, Any]] | Literal["auto"] | None = None,
    output_dir: str | Path | None = None,
    **options: Any,
) -> CheckReport:
    """Try the smallest and the biggest model of a sweep on a real worker; the arguments are those of `find_optimal`.

    Args:
        output_dir: where the measured speed is kept for the plan's price; without it nothing is written.

    Returns:
        Ten answers, PASS, WARN or FAIL; `print` shows them.

    Raises:
        SpecError, ResourceError: as `find_optimal`.
    """
    refuse_wrong_types(model_kwargs=model_kwargs, compute_budgets=compute_budgets, **options)
    keep = output_dir is not None
    root = storage_path(output_dir if output_dir is not None else Path.cwd())
    if dataset is None:
        raise ArgumentError(SOURCE, ["dataset: is missing; give a dataset of (input, target)"])
    request, _ = _requested(
        model_cls, model_size_param, model_kwargs, dataset, loss_fn, compute_budgets, root, "local", options, False
    )
    return check_request(with_some_budgets(request), keep=keep)[0]


@faults_of_arguments("fit_table")
def fit_table(
    path: str | Path,
    at: Sequence[float] = (),
    *,
    columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    best_of: Sequence[str] = (),
    pool: Sequence[str] = (),
    **options: Any,
) -> Analysis:
    """Fit any table of runs, as `flops-fit-ray fit TABLE` does.

    Args:
        path: .csv, .tsv, .parquet, .jsonl or .json; a row is a run with its loss and two of N, D and C.
        at: C in FLOPs to answer at; the first is the target of the sensitivity panel.
        columns: ours to the table's, for example {"loss": "val nats"}; ours are params, tokens, flops, loss, budget,
            run, weight, seconds.
        units: what one of a column's units is worth, for example {"tokens": "B"}.
        where: only the rows whose columns have these values.
        best_of: columns with settings that were swept, of which the best row of each (N, D) is kept; by default those
            called lr, batch_size and alike; ["none"] keeps all rows.
        pool: columns whose values are one law all the same.
        options: fields of `FitOptions`, such as method, curve, window, pins, draws, seed, confidence.

    Raises:
        SpecError: the table cannot be read, its units cannot be, a column splits its rows, or an option is unknown.
        FitError: a budget or an option has no meaning.
    """
    from flops_fit_ray.tables import TableOptions, read_table

    known = {f.name for f in fields(FitOptions)}
    unknown = sorted(set(options) - known)
    if unknown:
        hint = did_you_mean(unknown[0], known) or f"known: {', '.join(sorted(known))}"
        raise SpecError("fit_table", [f"{unknown[0]}: unknown option; {hint}"])
    reading = TableOptions(
        columns=columns or {}, units=units or {}, where=tuple((where or {}).items()), best_of=best_of, pool=pool
    )
    table = read_table(Path(expanded(str(path), "path")), reading)
    fit = fit_sweep(table.points, FitOptions(**options))
    return analyse(replace(fit, warnings=(*table.flags, *fit.warnings)), at)


def _requested(
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
        from flops_fit_ray.training.preflight.model_size import measure_sizes
        from flops_fit_ray.training.user.parts import HOOKS

    extra = {
        name: options.pop(name, None)
        for name in (
            "eval_dataset",
            "address",
            "quiet",
            "until",
            "at_most",
            "slots",
            "new",
            "minutes",
            "hours",
            "flops",
        )
    }
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
    parts, measure = user, measure_alone if alone else functools.partial(measure_sizes, known={})
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
    )
    return request, bool(extra["quiet"])


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


def _refuse_results(root: StoragePath) -> None:
    count = len(SweepPaths(root).recorded_keys())
    if count:
        raise DirectoryError(
            f"{root}: resume=False, and {count} results are recorded here; choose another output_dir or move it away"
        )
