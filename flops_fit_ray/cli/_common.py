"""Shared parts of the commands: options, the default spec and directory, and the command that resumes a sweep."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

from flops_fit_ray.cli._put import put_text
from flops_fit_ray.cli._resume import resume_lines, set_resume_line
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, SpecError
from flops_fit_ray.storage.object_store import ObjectPath
from flops_fit_ray.storage.storage_path import StoragePath, expanded, storage_path
from flops_fit_ray.sweep.run_limits import RunLimits
from flops_fit_ray.waiting import to_stderr, told_to, waiting

if TYPE_CHECKING:
    from flops_fit_ray.console.plain import PlainConsole
    from flops_fit_ray.console.select import OutputStyle
    from flops_fit_ray.pipeline import RunRequest
    from flops_fit_ray.spec import SweepSpec
    from flops_fit_ray.sweep.directory import Sweep
    from flops_fit_ray.training.preflight.model_size import SpecMeasurer

_Function = TypeVar("_Function", bound=Callable[..., Any])

SPEC_NAME = "sweep.yaml"
DEMO_FILES = (SPEC_NAME, "model.py", "data.py")


class LocalPath(click.Path):
    """A path of this machine. Shells leave the `~` of `--code=~/code` to us."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, with `~`, variables and `file://` resolved."""
        try:
            return super().convert(expanded(str(value), "path"), param, ctx)
        except SpecError as e:
            self.fail(e.faults[0], param, ctx)


class FiniteRange(click.FloatRange):
    """A range of numbers that holds neither NaN, which no comparison refuses, nor an infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"must be a finite number (got {number:g})", param, ctx)
        return number


POSITIVE = FiniteRange(min=0, min_open=True)

spec_argument = click.argument("spec", required=False, type=LocalPath())


class StoragePathType(click.ParamType[StoragePath]):
    """A local directory, or one in an object store."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> StoragePath:
        """Return the directory, absolute."""
        if isinstance(value, Path | ObjectPath):
            return value
        try:
            return storage_path(str(value))
        except SpecError as e:
            self.fail(e.faults[0], param, ctx)


directory_argument = click.argument("directory", required=False, type=StoragePathType(), metavar="[DIRECTORY]")


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Device of the experiments, `device` of the spec [default: auto, a GPU where there is one].",
)


def set_option(function: _Function) -> _Function:
    """Add the options that override keys of the spec; `overrides` has them all."""

    @functools.wraps(function)
    def call(*args: Any, overrides: tuple[str, ...], device: str | None, **kwargs: Any) -> Any:
        return function(*args, overrides=overrides if device is None else (*overrides, f"device={device}"), **kwargs)

    wrapped = device_option(cast(_Function, call))
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the spec, e.g. train.batch_size=16; may be repeated.",
    )(wrapped)


code_option = click.option(
    "--code",
    type=LocalPath(file_okay=False, exists=True),
    help="Directory of the Python code and data that SPEC names [default: that of SPEC].",
)
address_option = click.option(
    "--address", help="Address of an existing Ray cluster, e.g. auto [default: RAY_ADDRESS, else a local one]."
)
output_option = click.option(
    "--output", type=StoragePathType(), help="Sweep directory [default: runs/NAME beside SPEC]."
)
new_option = click.option(
    "--new", is_flag=True, help="If the spec has changed, train completed experiments again; old results are kept."
)
from_checkpoint_option = click.option(
    "--from-checkpoint",
    metavar="KEY@STEP",
    help="Let experiment KEY go on from its checkpoint after STEP optimizer steps, not from its newest one. Newer ones "
    "are kept. Of a completed experiment: its trunk, where a larger budget begins.",
)
_STDOUT = "flops_fit_ray.stdout"  # in a command's context: the stream of its one JSON object


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[TextIO]:
    """Send what anybody prints to stderr, C libraries and the user's code included. Yields the stream to stdout."""
    ours, kept, shared = sys.stdout, sys.stdout, False
    ours.flush()
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        shared = os.path.sameopenfile(ours.fileno(), 1)
    if shared:
        kept = os.fdopen(os.dup(1), "w", encoding=ours.encoding)
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield kept
    finally:
        sys.stdout = ours
        if shared:
            kept.flush()
            os.dup2(kept.fileno(), 1)
            kept.close()


def _reserve_stdout(context: click.Context, _: click.Parameter, as_json: bool) -> bool:
    if as_json:
        context.meta[_STDOUT] = context.with_resource(_stdout_to_stderr())
    return as_json


def echo(text: str) -> None:
    """Print the answer of a command to stdout; with --json, nothing else goes there."""
    put_text(text, file=click.get_current_context().meta.get(_STDOUT))


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_reserve_stdout,
    help="Print one JSON object to stdout, everything else to stderr.",
)


def limit_options(function: _Function) -> _Function:
    """Add the options of `RunLimits`."""
    function = click.option(
        "--slots", type=click.IntRange(min=1),
        help="Experiments to train at a time; an autoscaling cluster is asked to grow to as many [default: as many as "
        "fit now].",
    )(function)  # fmt: skip
    function = click.option(
        "--at-most", type=POSITIVE,
        help="Total FLOPs that --until may spend [default: 10 times the cost of the grid].",
    )(function)  # fmt: skip
    return click.option(
        "--until", metavar="FACTOR[@C]",
        help="Then add single runs, those that tell most for their FLOPs, until N_opt at C is known within x/÷FACTOR, "
        "e.g. 1.3@1e21 [default of C: grid.target, or 10 times the largest budget].",
    )(function)  # fmt: skip


def cost_options(function: _Function) -> _Function:
    """Add the options of a limit that `budgets: auto` are chosen by; `limit` has the one that is given."""

    @functools.wraps(function)
    def call(*args: Any, minutes: float | None, hours: float | None, flops: float | None, **kwargs: Any) -> Any:
        from flops_fit_ray.spec import BudgetsFor

        return function(*args, limit=BudgetsFor.of(minutes, hours, flops, source="options", flag="--"), **kwargs)

    wrapped = cast(_Function, call)
    for flag, what in (
        ("--flops", "FLOPs in all"),
        ("--hours", "hours of wall time"),
        ("--minutes", "minutes of wall time"),
    ):
        wrapped = click.option(
            flag, type=POSITIVE,
            help=f"With budgets: auto in SPEC: choose the widest range of budgets that takes this many {what}.",
        )(wrapped)  # fmt: skip
    return wrapped


def output_options(function: _Function) -> _Function:
    """Add the options of the console."""
    flags = {
        "json": ("--json-lines", "Print progress as one JSON object per line."),
        "quiet": ("--quiet", "Print failures and the final result only."),
        "plain": ("--plain", "Print plain lines, without the live view [default: when the output is no terminal]."),
    }
    for value, (flag, help_text) in flags.items():
        function = click.option(flag, "style", flag_value=value, help=help_text)(function)
    return function


def demo_directory() -> Path:
    """Return the directory of the built-in demo: inside an installed package, or in examples/ of a checkout."""
    installed = Path(__file__).parent.parent / "demo"
    return installed if installed.is_dir() else Path(__file__).parent.parent.parent / "examples" / "bytes"


def resolve_spec(spec: Path | None, *, quiet: bool) -> Path:
    """Return the path of the spec; without one, sweep.yaml of this directory, else the demo's, and print which."""
    if spec is not None:
        return (spec / SPEC_NAME if spec.is_dir() else spec).absolute()
    here = Path.cwd() / SPEC_NAME
    chosen = here if here.exists() else demo_directory() / SPEC_NAME
    what = f"{SPEC_NAME} of this directory" if chosen == here else "the built-in demo"
    put_text(f"no SPEC given: using {what} ({chosen})", err=quiet)
    return chosen.absolute()


def read_resolved(path: Path, overrides: Sequence[str]) -> SweepSpec:
    """Return the spec of a file, with overrides; without budgets where they are `auto`."""
    from flops_fit_ray.spec import read_spec

    return read_spec(path, overrides, open_budgets=True)


def base_of(path: Path, code: Path | None) -> Path:
    """Return the directory of a spec's code and data."""
    return path.parent if code is None else code.absolute()


def resolve_output(path: Path, spec: SweepSpec, output: StoragePath | None) -> StoragePath:
    """Return the sweep directory.

    `--output` is relative to the working directory; `output` of the spec and the default are relative to the spec, so
    that the same command resumes the sweep from anywhere.
    """
    if output is not None:
        return output
    base = Path.cwd() if path.parent == demo_directory().absolute() else path.parent
    try:
        return storage_path(spec.output or f"runs/{spec.name}", base)
    except SpecError as e:
        raise SpecError(str(path), [f"output: {e.faults[0]}"]) from e


def request_for(
    spec: SweepSpec,
    base: Path,
    root: StoragePath,
    *,
    source: str,
    command: str = "",
    address: str | None = None,
    limits: RunLimits | None = None,
    new: bool = False,
    from_checkpoint: str | None = None,
) -> RunRequest:
    """Return the request to run a spec whose targets lie in `base`.

    Args:
        source: name of the spec in faults.
        command: shell command that resumes the sweep.
        from_checkpoint: name of the checkpoint that its experiment goes on from.

    Raises:
        SpecError: that is no name of a checkpoint, or the directory has no such checkpoint.
    """
    from flops_fit_ray.engine.loaders import code_loader
    from flops_fit_ray.pipeline import RunRequest
    from flops_fit_ray.sweep.from_checkpoint import named_checkpoint

    @functools.cache
    def measurer() -> SpecMeasurer:
        with waiting("importing torch"):
            from flops_fit_ray.training.preflight.model_size import SpecMeasurer

        return SpecMeasurer(base)

    return RunRequest(
        spec=spec,
        source=source,
        root=root,
        measure=lambda wider, counting: measurer().measure(wider, counting),
        load_user_parts=code_loader(spec, base),
        command=command,
        on_recorded=lambda: set_resume_line(command),
        address=address,
        base=base,
        limits=limits or RunLimits(),
        new=new,
        from_checkpoint=None if from_checkpoint is None else named_checkpoint(root, from_checkpoint),
    )


def run_request(request: RunRequest, *, as_json: bool, style: OutputStyle = "") -> int:
    """Run a request, print its outcome, and return the exit code.

    Args:
        style: of the output; by default the live view on a terminal, else plain lines.
    """
    from flops_fit_ray.console.select import console_for
    from flops_fit_ray.errors import InterruptedSweepError, StorageError
    from flops_fit_ray.pipeline import run
    from flops_fit_ray.storage.paths import SweepPaths

    console = console_for(style, SweepPaths(request.root), request.spec, sys.stderr if as_json else sys.stdout)
    began = time.monotonic()
    try:
        with told_to(None if style == "quiet" else to_stderr):
            sweep = run(request, console)
    except (InterruptedSweepError, StorageError, KeyboardInterrupt) as e:
        console.say(f"{e or 'stopped by Ctrl-C'}\n{resume_lines(())}")
        return EXIT_INTERRUPTED
    _say_results(sweep, console, time.monotonic() - began, as_json=as_json)
    return exit_code(sweep)


def _say_results(sweep: Sweep, console: PlainConsole, elapsed: float, *, as_json: bool) -> None:
    from flops_fit_ray.console.json_lines import result_fields
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    console.result(sweep, elapsed)
    if as_json:
        echo(json.dumps({"schema_version": SCHEMA_VERSION, **result_fields(sweep)}))


def output_of(directory: StoragePath | None) -> StoragePath:
    """Return a sweep directory; without one, the output of sweep.yaml of this directory, else of the demo."""
    if directory is not None:
        return directory.absolute()
    path = resolve_spec(None, quiet=True)
    return resolve_output(path, read_resolved(path, ()), None)


def open_directory(directory: StoragePath | None) -> Sweep:
    """Open the sweep directory that `output_of` names."""
    from flops_fit_ray.sweep.directory import open_sweep

    return open_sweep(output_of(directory))


def exit_code(sweep: Sweep) -> int:
    """Return 0 if all experiments are done and the fit, where there is something to fit, has a law; else 1."""
    return EXIT_DONE if sweep.complete and (sweep.spec.is_one_run or not sweep.fit.problem) else EXIT_FAILED
