"""The Python door: `find_optimal(...) -> Result`, and `check(...)` before it."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from flops_fit_ray.api._request import requested
from flops_fit_ray.budgets import with_budgets_chosen, with_some_budgets
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.console.select import console_for
from flops_fit_ray.console.status_text import finished_lines
from flops_fit_ray.errors import ArgumentError, DirectoryError, faults_of_arguments
from flops_fit_ray.pipeline import RunRequest, check_output, plan_request, run
from flops_fit_ray.pipeline import check as check_request
from flops_fit_ray.planning import Plan, priced
from flops_fit_ray.result import Result
from flops_fit_ray.spec.arguments import SOURCE, Mode, name_arguments, refuse_wrong_types
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, storage_path
from flops_fit_ray.sweep.finished import FinishedSweep, finished_sweep
from flops_fit_ray.sweep.recorded import recorded_constants, recorded_rates
from flops_fit_ray.waiting import to_stderr, told_to

if TYPE_CHECKING:
    from flops_fit_ray.planning.code_facts import CodeFacts
    from flops_fit_ray.sweep.directory import Sweep
    from flops_fit_ray.training.preflight.check import CheckReport


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
        options: any field of the spec's sections by its name, such as sizes, axes, batch_size, micro_batch_size,
            precision, seed, eval_fraction, tokens_per_sample, max_epochs, draws, curve, window, checkpoint,
            resources_per_trial, device, workers_per_trial, shard_model, max_retries, stop_diverged,
            loss_unit ("nats", "bits"), grid (a mapping);
            and minutes, hours, flops (what a sweep whose budgets are "auto" may cost, one of them), eval_dataset,
            address, quiet, until ("1.3@1e21": then add single runs, those that tell most for their FLOPs, until N_opt
            there is known within that factor), at_most (FLOPs in all), slots (experiments at a time; a cluster is
            asked to grow to as many), new (True: train completed experiments of this directory anew where the arguments
            have changed), from_checkpoint ("KEY@STEP": that this experiment goes on from, instead of its newest one).
            Functions are taken for optimizer (model, lr), schedule (step, steps), lr (params, size
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
    request, quiet = requested(
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
    began = time.monotonic()
    found = _finished(request)
    if found is not None:
        what = "arguments, code, data and version are those of before"
        console.say("\n".join(finished_lines(found, what, time.monotonic() - began)))
        return Result(found.sweep)
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
    request, _ = requested(
        model_cls, model_size_param, model_kwargs, dataset, loss_fn, compute_budgets, root, "local", options, False
    )
    return check_request(with_some_budgets(request), keep=keep)[0]


def _finished(request: RunRequest) -> FinishedSweep | None:
    """Return the sweep that the arguments have completed; None where a run may have something to do, or to say."""
    from flops_fit_ray.engine.loaders import ObjectLoader
    from flops_fit_ray.training.data import fingerprint
    from flops_fit_ray.training.time_limit import time_limit
    from flops_fit_ray.training.user.source_code import code_of_objects

    loader, paths = request.load_user_parts, SweepPaths(request.root)
    asks = request.new or request.from_checkpoint is not None or request.limits.until is not None
    if asks or not isinstance(loader, ObjectLoader):
        return None

    def is_same(sweep: Sweep, code: CodeFacts) -> bool:
        if code_of_objects(loader.user).digest != code.digest:
            return False
        with contextlib.suppress(Exception), time_limit(request.spec.data.timeout_seconds, "no samples"):
            now = fingerprint(loader.user.train_data, loader.user.eval_data)
            return now == sweep.plan.measurements.data.fingerprint
        return False  # whoever runs the sweep says what is wrong

    return finished_sweep(paths, request.spec, None, is_same)


def _refuse_results(root: StoragePath) -> None:
    count = len(SweepPaths(root).recorded_keys())
    if count:
        raise DirectoryError(
            f"{root}: resume=False, and {count} results are recorded here; choose another output_dir or move it away"
        )
