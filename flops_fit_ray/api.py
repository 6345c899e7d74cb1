"""The Python door: `find_optimal(...) -> Result`, and `check(...)` before it."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from flops_fit_ray.analysis import Analysis, FitOptions, Prediction, SweepFit, analyse, fit_sweep, predict
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.console.select import console_for
from flops_fit_ray.errors import DirectoryError, SpecError, faults_of
from flops_fit_ray.formatting import did_you_mean
from flops_fit_ray.pipeline import RunRequest, check_output, plan_request, recorded_rates, run
from flops_fit_ray.pipeline import check as check_request
from flops_fit_ray.planning import Plan, priced
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.spec.arguments import SOURCE, describe_target, spec_from_arguments
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, storage_path
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.run_limits import RunLimits
from flops_fit_ray.waiting import to_stderr, told_to, waiting

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from flops_fit_ray.training.preflight.check import CheckReport
    from flops_fit_ray.training.user.parts import UserParts


class Result:
    """Answer, numbers and figures of a finished or partial sweep, read from the files of its directory alone."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    @property
    def output(self) -> StoragePath:
        """Return the sweep directory."""
        return self._sweep.paths.root

    @property
    def plan(self) -> Plan:
        """Return the plan with every experiment."""
        return self._sweep.plan

    @property
    def fit(self) -> SweepFit:
        """Return valleys, laws, intervals and warnings."""
        return self._sweep.fit

    @property
    def complete(self) -> bool:
        """Return True if every planned experiment has a result."""
        return self._sweep.complete

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the warnings to read before trusting the numbers."""
        return self._sweep.warnings

    @property
    def analysis(self) -> Analysis:
        """Return predictions at ten times the largest budget, their sensitivity, and hold-outs."""
        return self._sweep.analysis

    def predict(self, budget: float) -> Prediction:
        """Predict N, D and loss at C = `budget` FLOPs, with intervals and the extrapolation factor.

        Raises:
            FitError: the sweep gave no law.
        """
        return predict(self.fit, budget)

    def chinchilla_table(self, budgets: Sequence[float] | None = None) -> pd.DataFrame:
        """Return one row per budget with N, D, D/N, loss, intervals and extrapolation factor.

        Without `budgets`: those of the sweep, and 10 and 100 times the largest.

        Raises:
            FitError: the sweep gave no law.
        """
        import pandas as pd

        if budgets is None:
            own = [b.flops for b in self._sweep.spec.budgets]
            budgets = [*own, 10 * own[-1], 100 * own[-1]]
        return pd.DataFrame([_row(self.predict(budget)) for budget in budgets])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the valleys with their minima on a matplotlib Figure; save it to `path` (.svg, .png, .pdf) if given."""
        from flops_fit_ray.report.figures import draw_valleys, valley_curves

        figure = draw_valleys(valley_curves(self.fit, self._sweep.replaced_points), self._sweep.loss_name)
        if path is not None:
            figure.savefig(Path(path))
        return figure

    def _repr_html_(self) -> str:
        """Return the summary that a notebook shows."""
        from flops_fit_ray.report.page import render_short

        return render_short(self._sweep)

    def report(self) -> StoragePath:
        """Write report.html, tables and figures again, and return the path of the page."""
        from flops_fit_ray.report import write_report

        return write_report(self._sweep)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per planned experiment: plan, tokens seen, result or failure."""
        return self._sweep.to_frame()

    def __repr__(self) -> str:
        done, total = len(self._sweep.results), len(self.plan.experiments)
        return f"Result({str(self.output)!r}, {done} of {total} experiments)"


def _row(prediction: Prediction) -> dict[str, float | None]:
    row: dict[str, float | None] = {
        "budget": prediction.budget,
        "params": prediction.params,
        "tokens": prediction.tokens,
        "tokens_per_param": prediction.tokens / prediction.params,
        "loss": prediction.loss,
        "extrapolation": prediction.extrapolation,
    }
    for name in ("params", "tokens", "loss"):
        interval = getattr(prediction, f"{name}_interval")
        row[f"{name}_low"] = interval.low if interval else None
        row[f"{name}_high"] = interval.high if interval else None
    return row


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
    compute_budgets: Sequence[float | Mapping[str, Any]] | None = ...,
    train: Literal[True] = ...,
    output_dir: str | Path = ...,
    resume: bool = ...,
    **options: Any,
) -> Result: ...


@overload
def find_optimal(
    model_cls: Callable[..., Any],
    model_size_param: str | None = ...,
    model_kwargs: Mapping[str, Any] | None = ...,
    dataset: Any = ...,
    loss_fn: Any = ...,
    compute_budgets: Sequence[float | Mapping[str, Any]] | None = ...,
    *,
    train: Literal[False],
    output_dir: str | Path = ...,
    resume: bool = ...,
    **options: Any,
) -> Plan: ...


@_says_what_it_waits_for
def find_optimal(
    model_cls: Callable[..., Any],
    model_size_param: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    dataset: Any = None,
    loss_fn: Any = None,
    compute_budgets: Sequence[float | Mapping[str, Any]] | None = None,
    train: bool = True,
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
            `eval_dataset` a part of map-style data is held out.
        loss_fn: (outputs, targets) -> mean loss, or (model, batch) -> mean loss if its first argument is called
            `model`; also "cross_entropy" (the default), "mse", or "model" for a model that returns its own loss.
        compute_budgets: C in FLOPs, two at least; an item may be {"flops": C, "sizes": [...]}.
        train: False only plans: nothing is run or written.
        output_dir: the sweep directory.
        resume: False refuses a directory that holds results already.
        options: any field of the spec's sections by its name, such as sizes, batch_size, micro_batch_size, precision,
            seed, eval_fraction, tokens_per_sample, max_epochs, draws, curve, window, checkpoint,
            resources_per_trial, workers_per_trial, shard_model, max_retries, grid (a mapping);
            and eval_dataset, address, quiet, until ("ci=1.3@1e21": add budget after budget until N_opt there is
            known within that factor), at_most (FLOPs in all), slots (experiments at a time; a cluster is asked to grow
            to as many), new (True: train completed experiments of this directory anew where the arguments have
            changed). Functions are taken for optimizer (model, lr), schedule (step, steps), lr (params, size
            arguments), count_tokens (batch), flops_per_token (model), and in metrics={name: function}.

    Returns:
        The plan with `train=False`, else the result.

    Raises:
        SpecError: an argument is wrong or unknown; nothing was run.
        ResourceError, DirectoryError: the cluster or the directory cannot be used.
        InterruptedSweepError, StorageError: stopped by a signal or a full disk; the same call resumes.
    """
    root = storage_path(output_dir)
    if train:
        check_output(root)
    request, quiet = _requested(
        model_cls, model_size_param, model_kwargs, dataset, loss_fn, compute_budgets, root, options
    )
    if not train:
        _, plan = plan_request(request)
        return priced(plan, request.spec.grid.start, rates=recorded_rates(SweepPaths(root), plan.constants))
    if not resume:
        _refuse_results(root)
    silent = PlainConsole(io.StringIO())
    console = silent if quiet else console_for("", SweepPaths(root), request.spec, sys.stdout)
    sweep = run(request, console)
    console.say(f"report: {sweep.paths.report}")
    return Result(sweep)


@_says_what_it_waits_for
def check(
    model_cls: Callable[..., Any],
    model_size_param: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    dataset: Any = None,
    loss_fn: Any = None,
    compute_budgets: Sequence[float | Mapping[str, Any]] | None = None,
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
    keep = output_dir is not None
    root = storage_path(output_dir if output_dir is not None else Path.cwd())
    request, _ = _requested(model_cls, model_size_param, model_kwargs, dataset, loss_fn, compute_budgets, root, options)
    return check_request(request, keep=keep)[0]


def fit_table(
    path: str | Path,
    at: Sequence[float] = (),
    *,
    columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
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
        options: fields of `FitOptions`, such as method, curve, window, pins, draws, seed, confidence.

    Raises:
        SpecError: the table cannot be read, or an option is unknown.
        FitError: a budget or an option has no meaning.
    """
    from flops_fit_ray.tables import TableOptions, read_table

    known = {f.name for f in fields(FitOptions)}
    unknown = sorted(set(options) - known)
    if unknown:
        hint = did_you_mean(unknown[0], known) or f"known: {', '.join(sorted(known))}"
        raise SpecError("fit_table", [f"{unknown[0]}: unknown option; {hint}"])
    reading = TableOptions(columns=columns or {}, units=units or {}, where=tuple((where or {}).items()))
    return analyse(fit_sweep(read_table(Path(path), reading).points, FitOptions(**options)), at)


def _requested(
    model_cls: Callable[..., Any],
    model_size_param: str | None,
    model_kwargs: Mapping[str, Any] | None,
    dataset: Any,
    loss_fn: Any,
    compute_budgets: Sequence[float | Mapping[str, Any]] | None,
    root: StoragePath,
    options: dict[str, Any],
) -> tuple[RunRequest, bool]:
    """Return the request that the arguments amount to, and True where nothing is to be printed."""
    with waiting("importing torch"):
        from flops_fit_ray.engine.loaders import ObjectLoader
        from flops_fit_ray.training.preflight.model_size import measure_sizes
        from flops_fit_ray.training.user.parts import HOOKS

    extra = {
        name: options.pop(name, None)
        for name in ("eval_dataset", "address", "quiet", "until", "at_most", "slots", "new")
    }
    metrics = options.pop("metrics", {})
    if not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
        raise SpecError(SOURCE, ["metrics: must be functions by name, for example {'accuracy': accuracy}"])
    hooks = {name: options.pop(name) for name in HOOKS if callable(options.get(name))}
    loss_fn = "cross_entropy" if loss_fn is None else loss_fn
    options |= {"metrics": {name: describe_target(metric) for name, metric in metrics.items()}}
    spec = spec_from_arguments(
        model_cls, model_size_param, model_kwargs or {}, dataset, loss_fn, compute_budgets, extra, options, hooks
    )
    with faults_of(SOURCE):
        user = _user_parts_from_arguments(
            model_cls, model_kwargs or {}, dataset, loss_fn, extra, spec, {**hooks, "metrics": metrics}
        )
    request = RunRequest(
        spec=spec,
        source=SOURCE,
        root=root,
        measure=lambda wider: measure_sizes(wider, user),
        load_user_parts=ObjectLoader(user),
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
    from flops_fit_ray.training.user.parts import load_loss, make_user_parts

    faults: list[str] = []
    loss = load_loss(loss_fn, Path.cwd(), faults) if isinstance(loss_fn, str) else loss_fn
    if faults:
        raise SpecError(SOURCE, faults)
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
