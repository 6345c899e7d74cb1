"""What the commands share: arguments, which spec or directory is meant, and the line that goes on with a sweep."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, SpecError
from flops_fit_ray.storage.object_store import ObjectPath
from flops_fit_ray.storage.storage_path import StoragePath, storage_path
from flops_fit_ray.sweep.run_limits import RunLimits

if TYPE_CHECKING:
    from flops_fit_ray.console.choice import Wish
    from flops_fit_ray.console.plain import PlainConsole
    from flops_fit_ray.pipeline import RunRequest
    from flops_fit_ray.planning import Measurements
    from flops_fit_ray.spec import SweepSpec
    from flops_fit_ray.sweep.directory import Sweep

_Function = TypeVar("_Function", bound=Callable[..., Any])

SPEC_NAME = "sweep.yaml"
DEMO_FILES = (SPEC_NAME, "model.py", "data.py")

spec_argument = click.argument("spec", required=False, type=click.Path(path_type=Path))


class StoragePathType(click.ParamType[StoragePath]):
    """A directory of a file system, or of an object store."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> StoragePath:
        """Return the path that is named, absolute."""
        if isinstance(value, Path | ObjectPath):
            return value
        try:
            return storage_path(str(value))
        except SpecError as e:
            self.fail(e.faults[0], param, ctx)


directory_argument = click.argument("directory", required=False, type=StoragePathType(), metavar="[DIRECTORY]")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the spec, e.g. train.batch_size=16."
)
code_option = click.option(
    "--code",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the model and data that SPEC names are looked for [default: beside SPEC].",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object to stdout; the rest to stderr."
)


def limit_options(function: _Function) -> _Function:
    """When to stop going on, budget after budget, and how many experiments at a time."""
    function = click.option(
        "--slots", type=click.IntRange(min=1),
        help="Experiments at a time; a cluster is asked to grow to as many [default: as many as fit now].",
    )(function)  # fmt: skip
    function = click.option(
        "--at-most", type=click.FloatRange(min=0, min_open=True),
        help="FLOPs in all that --until may spend [default: 10 times the sweep's].",
    )(function)  # fmt: skip
    return click.option(
        "--until", metavar="ci=FACTOR@C",
        help="Go on, budget after budget, until N_opt at C is known within FACTOR, e.g. ci=1.3@1e21.",
    )(function)  # fmt: skip


def look_options(function: _Function) -> _Function:
    """How much is said on the way, and how."""
    words = {
        "json": ("--json-lines", "Say what happens as one JSON object per line."),
        "quiet": ("--quiet", "Say only what fails, and what came out."),
        "plain": ("--plain", "Plain lines on a terminal too, as in a log."),
    }
    for value, (flag, help_text) in words.items():
        function = click.option(flag, "look", flag_value=value, help=help_text)(function)
    return function


def demo_directory() -> Path:
    """The built-in demo: inside an installed package, or in examples/ of a checkout."""
    installed = Path(__file__).parent.parent / "demo"
    return installed if installed.is_dir() else Path(__file__).parent.parent.parent / "examples" / "bytes"


def resolve_spec(spec: Path | None, *, quiet: bool) -> Path:
    """The spec that is meant, and a word about it where none was named."""
    if spec is not None:
        return (spec / SPEC_NAME if spec.is_dir() else spec).absolute()
    here = Path.cwd() / SPEC_NAME
    chosen = here if here.exists() else demo_directory() / SPEC_NAME
    what = f"{SPEC_NAME} of this directory" if chosen == here else "the built-in demo"
    click.echo(f"no SPEC given: {what} ({chosen})", err=quiet)
    return chosen.absolute()


def read_resolved(path: Path, overrides: Sequence[str]) -> SweepSpec:
    """The spec of a file, with overrides."""
    from flops_fit_ray.spec import read_spec

    return read_spec(path, overrides)


def base_of(path: Path, code: Path | None) -> Path:
    """The directory of a spec's code and data."""
    return path.parent if code is None else code.absolute()


def resolve_output(path: Path, spec: SweepSpec, output: StoragePath | None) -> StoragePath:
    """`--output` is relative to here; what the spec says, and the default, to the spec: so that a rerun resumes."""
    if output is not None:
        return output
    base = Path.cwd() if path.parent == demo_directory().absolute() else path.parent
    if spec.output is not None and "://" in spec.output:
        return storage_path(spec.output)
    return base / (spec.output or f"runs/{spec.name}")


def run_options(root: StoragePath, overrides: Sequence[str], limits: RunLimits) -> list[str]:
    """What `run` is called with besides its spec, to do the same again."""
    sets = [word for override in overrides for word in ("--set", override)]
    return ["--output", str(root), *sets, *limits.options()]


def command_line(
    path: Path, root: StoragePath, overrides: Sequence[str], limits: RunLimits | None = None, code: Path | None = None
) -> str:
    """A command line that goes on with this sweep when it is pasted into a shell."""
    from flops_fit_ray.engine.jobs import line_to_submit

    options = [
        *([] if code is None else ["--code", str(code.absolute())]),
        *run_options(root, overrides, limits or RunLimits()),
    ]
    job = line_to_submit(["flops_fit_ray.run", str(path), *options], base_of(path, code))
    return job or shlex.join([*door(), "run", str(path), *options])


def extend_line(root: StoragePath, base: Path, limits: RunLimits) -> str:
    """The same for a sweep whose directory knows more than its spec; `base`: where its code is."""
    from flops_fit_ray.engine.jobs import line_to_submit

    words = ["extend", str(root), *limits.options()]
    return line_to_submit(["flops_fit_ray", *words], base) or shlex.join([*door(), *words])


def door() -> list[str]:
    """How this package is called from a shell here."""
    installed = shutil.which("flops-fit-ray")
    ours = installed is not None and Path(installed).parent == Path(sys.executable).parent
    return ["flops-fit-ray"] if ours else [sys.executable, "-m", "flops_fit_ray"]


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
) -> RunRequest:
    """Return the request to run a spec whose targets lie in `base`.

    Args:
        source: how faults of the spec are introduced.
        command: that resumes the sweep.
    """
    from flops_fit_ray.engine.loaders import code_loader
    from flops_fit_ray.pipeline import RunRequest

    def measure(wider: SweepSpec) -> Measurements:
        from flops_fit_ray.training.preflight.model_size import measure_spec

        return measure_spec(wider, base)

    return RunRequest(
        spec=spec,
        source=source,
        root=root,
        measure=measure,
        load_user_parts=code_loader(spec, base),
        command=command,
        address=address,
        base=base,
        limits=limits or RunLimits(),
        new=new,
    )


def run_request(request: RunRequest, *, as_json: bool, look: Wish = "") -> int:
    """Run a request, say what came out, and return the exit code.

    Args:
        look: of what is said on the way; by default what suits the terminal.
    """
    from flops_fit_ray.console.choice import console_for
    from flops_fit_ray.errors import InterruptedSweepError, StorageError
    from flops_fit_ray.pipeline import run
    from flops_fit_ray.storage.paths import SweepPaths

    console = console_for(look, SweepPaths(request.root), request.spec, sys.stderr if as_json else sys.stdout)
    began = time.monotonic()
    try:
        sweep = run(request, console)
    except (InterruptedSweepError, StorageError, KeyboardInterrupt) as e:
        console.say(f"interrupted: {e or 'by Ctrl-C'}\nWhat is recorded is safe. Go on with:\n{request.command}")
        return EXIT_INTERRUPTED
    _say_results(sweep, console, time.monotonic() - began, as_json=as_json)
    return exit_code(sweep)


def _say_results(sweep: Sweep, console: PlainConsole, elapsed: float, *, as_json: bool) -> None:
    from flops_fit_ray.console.lines import closing
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    console.result(sweep, elapsed)
    if as_json:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **closing(sweep)}))


def open_directory(directory: StoragePath | None) -> Sweep:
    """The sweep that is meant."""
    from flops_fit_ray.sweep.directory import open_sweep

    if directory is None:
        path = resolve_spec(None, quiet=True)
        directory = resolve_output(path, read_resolved(path, ()), None)
    return open_sweep(directory)


def exit_code(sweep: Sweep) -> int:
    """0 where all experiments are done and a law was wanted and found, or none was wanted."""
    return EXIT_DONE if sweep.complete and (sweep.spec.is_one_run or not sweep.fit.problem) else EXIT_FAILED
