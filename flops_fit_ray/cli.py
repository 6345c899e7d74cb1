"""The command line: parses, prints, and ends with the exit code. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, FlopsFitError, faults_of

if TYPE_CHECKING:
    from flops_fit_ray.planning import Plan
    from flops_fit_ray.spec import SweepSpec
    from flops_fit_ray.sweep import Sweep

SPEC_NAME = "sweep.yaml"
DEMO_FILES = (SPEC_NAME, "model.py", "data.py")


def main(args: Sequence[str] | None = None, prog_name: str = "flops-fit-ray") -> NoReturn:
    """Run a command and leave with its exit code: 0 done, 1 failures, 2 wrong input, 4 interrupted and resumable."""
    try:
        code = commands.main(args=args, prog_name=prog_name, standalone_mode=False)
    except click.ClickException as e:
        e.show()
        code = e.exit_code
    except FlopsFitError as e:
        click.echo(f"error: {e}", err=True)
        code = e.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; the same command goes on", err=True)
        code = EXIT_INTERRUPTED
    sys.exit(code if isinstance(code, int) else EXIT_DONE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flops-fit-ray")
def commands() -> None:
    """For C FLOPs: how big a model, on how much data, and how sure are you?

    Exit codes: 0 all done and counted, 1 finished with failed experiments or a fit that could not be made, 2 the input
    is wrong, 4 interrupted and resumable.

    Commands that read a sweep take the output of sweep.yaml in this directory, else of the built-in demo, where no
    DIRECTORY is given.
    """


_spec_argument = click.argument("spec", required=False, type=click.Path(path_type=Path))
_directory_argument = click.argument("directory", required=False, type=click.Path(path_type=Path))
_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the spec, e.g. train.batch_size=16."
)
_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object to stdout; the rest to stderr."
)


@commands.command()
@click.argument("directory", default=".", type=click.Path(path_type=Path))
def init(directory: Path) -> None:
    """Write a commented starter (sweep.yaml, model.py, data.py) that runs as it is."""
    present = [name for name in DEMO_FILES if (directory / name).exists()]
    if present:
        raise click.UsageError(f"{directory} has {', '.join(present)} already; nothing was written")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in DEMO_FILES:
            (directory / name).write_bytes((_demo_directory() / name).read_bytes())
    except OSError as e:
        raise click.UsageError(f"{directory}: cannot be written: {e.strerror}") from e
    click.echo(f"wrote {', '.join(str(directory / name) for name in DEMO_FILES)}")
    click.echo(f"next: flops-fit-ray plan {directory / SPEC_NAME}, then flops-fit-ray run {directory / SPEC_NAME}")


@commands.command()
@_spec_argument
@_set_option
@_json_option
def plan(spec: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show every experiment with its N, D, steps and FLOPs. Nothing is run or written."""
    from flops_fit_ray.console.plain import plan_text

    _, _, made = _planned(spec, overrides, quiet=as_json)
    click.echo(json.dumps(made.to_json(), indent=1) if as_json else plan_text(made))


@commands.command()
@_spec_argument
@_set_option
@click.option("--address", help="An existing Ray cluster, e.g. auto [default: RAY_ADDRESS, else a local one].")
@_json_option
def check(spec: Path | None, overrides: tuple[str, ...], address: str | None, as_json: bool) -> int:
    """Try the smallest and the biggest model on a real worker: ten answers, PASS, WARN or FAIL.

    Nothing is written. Exit code 1 if an answer is FAIL.
    """
    import functools

    from flops_fit_ray.engine.check import check_on_worker
    from flops_fit_ray.layout import SCHEMA_VERSION
    from flops_fit_ray.training.guest import load_guest

    path, resolved, made = _planned(spec, overrides, quiet=as_json)
    load = functools.partial(load_guest, resolved, path.parent)
    report, slots = check_on_worker(made, resolved, load_guest=load, address=address)
    content = {"schema_version": SCHEMA_VERSION, "slots": slots.count, **report.to_json()}
    click.echo(json.dumps(content) if as_json else str(report))
    return EXIT_FAILED if report.verdict == "FAIL" else EXIT_DONE


@commands.command()
@_spec_argument
@click.option("--output", type=click.Path(path_type=Path), help="The sweep directory [default: runs/NAME beside SPEC].")
@_set_option
@click.option("--address", help="An existing Ray cluster, e.g. auto [default: RAY_ADDRESS, else a local one].")
@_json_option
def run(spec: Path | None, output: Path | None, overrides: tuple[str, ...], address: str | None, as_json: bool) -> int:
    """Run a sweep and write its report; run again to go on after any interruption.

    Without SPEC: sweep.yaml of this directory, else the built-in demo.
    """
    import functools

    from flops_fit_ray.analysis import n_opt_to_json
    from flops_fit_ray.console.plain import PlainConsole, counts_text, fit_text
    from flops_fit_ray.errors import InterruptedSweepError
    from flops_fit_ray.layout import SCHEMA_VERSION
    from flops_fit_ray.pipeline import run_sweep
    from flops_fit_ray.training.guest import load_guest

    console = PlainConsole(sys.stderr if as_json else sys.stdout)
    path, resolved, made = _planned(spec, overrides, quiet=as_json)
    root = _resolve_output(path, resolved, output)
    command = _command(path, root, overrides)
    try:
        sweep = run_sweep(
            resolved,
            made,
            root=root,
            load_guest=functools.partial(load_guest, resolved, path.parent),
            address=address,
            console=console,
            command=command,
        )
    except (InterruptedSweepError, KeyboardInterrupt):
        console.say(f"interrupted; what is recorded is safe. Go on with:\n{command}")
        return EXIT_INTERRUPTED
    console.say("\n" + fit_text(sweep.fit))
    console.say(counts_text(sweep))
    console.say(f"report: {sweep.paths.report}")
    if as_json:
        closing = {
            "schema_version": SCHEMA_VERSION,
            "output": str(root),
            "status": sweep.counts,
            "n_opt": n_opt_to_json(sweep.fit),
            "report": str(sweep.paths.report),
            "results_sha256": sweep.results_sha256,
        }
        click.echo(json.dumps(closing))
    return _exit_code(sweep)


@commands.command()
@_directory_argument
@_json_option
def status(directory: Path | None, as_json: bool) -> None:
    """Show how far a sweep is, from its files alone."""
    from flops_fit_ray.console.plain import status_text
    from flops_fit_ray.layout import SCHEMA_VERSION

    sweep = _open(directory)
    if as_json:
        content = {
            "schema_version": SCHEMA_VERSION,
            "output": str(sweep.paths.root),
            "status": sweep.counts,
            "flops_planned": sweep.plan.flops,
            "flops_spent": sweep.flops_spent,
            "results_sha256": sweep.results_sha256,
        }
        click.echo(json.dumps(content))
        return
    click.echo(status_text(sweep))


@commands.command()
@_directory_argument
@_json_option
def fit(directory: Path | None, as_json: bool) -> int:
    """Fit valleys and laws to what is completed. DIRECTORY is a sweep, or a results table (.csv, .parquet)."""
    from flops_fit_ray.analysis import fit_sweep, fit_to_json
    from flops_fit_ray.console.plain import fit_text

    if directory is not None and directory.suffix in (".csv", ".parquet"):
        from flops_fit_ray.tables import read_points

        fitted = fit_sweep(read_points(directory))
    else:
        fitted = _open(directory).fit
    click.echo(json.dumps(fit_to_json(fitted), indent=1) if as_json else fit_text(fitted))
    return EXIT_FAILED if fitted.problem else EXIT_DONE


@commands.command()
@click.argument("budget", type=float)
@_directory_argument
@_json_option
def predict(budget: float, directory: Path | None, as_json: bool) -> None:
    """Answer N, D and loss for BUDGET FLOPs, with intervals and the extrapolation factor."""
    from flops_fit_ray import analysis
    from flops_fit_ray.console.plain import prediction_text

    fitted = _open(directory).fit
    prediction = analysis.predict(fitted, budget)
    confidence = fitted.options.confidence
    if as_json:
        click.echo(json.dumps(analysis.prediction_to_json(prediction, confidence)))
    else:
        click.echo(prediction_text(prediction, confidence))


@commands.command()
@_directory_argument
@_json_option
def report(directory: Path | None, as_json: bool) -> None:
    """Write report.html, tables and figures of a sweep, complete or not."""
    from flops_fit_ray.layout import SCHEMA_VERSION
    from flops_fit_ray.report import write_report

    path = write_report(_open(directory))
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "report": str(path)}) if as_json else f"report: {path}")


def _demo_directory() -> Path:
    """The built-in demo: inside an installed package, or in examples/ of a checkout."""
    installed = Path(__file__).parent / "demo"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "examples" / "bytes"


def _resolve_spec(spec: Path | None, *, quiet: bool) -> Path:
    if spec is not None:
        return (spec / SPEC_NAME if spec.is_dir() else spec).absolute()
    here = Path.cwd() / SPEC_NAME
    chosen = here if here.exists() else _demo_directory() / SPEC_NAME
    what = f"{SPEC_NAME} of this directory" if chosen == here else "the built-in demo"
    click.echo(f"no SPEC given: {what} ({chosen})", err=quiet)
    return chosen.absolute()


def _read(path: Path, overrides: Sequence[str]) -> SweepSpec:
    from flops_fit_ray.spec import read_spec

    return read_spec(path, overrides)


def _planned(spec: Path | None, overrides: Sequence[str], *, quiet: bool) -> tuple[Path, SweepSpec, Plan]:
    """The spec's path, the spec, and its plan, with faults named by the path."""
    from flops_fit_ray.planning import make_plan
    from flops_fit_ray.training.measure import survey_spec

    path = _resolve_spec(spec, quiet=quiet)
    resolved = _read(path, overrides)
    with faults_of(str(path)):
        return path, resolved, make_plan(resolved, survey_spec(resolved, path.parent))


def _resolve_output(path: Path, spec: SweepSpec, output: Path | None) -> Path:
    """`--output` is relative to here; what the spec says, and the default, to the spec: so that a rerun resumes."""
    if output is not None:
        return output.absolute()
    base = Path.cwd() if path.parent == _demo_directory().absolute() else path.parent
    return base / (spec.output or f"runs/{spec.name}")


def _command(path: Path, root: Path, overrides: Sequence[str]) -> str:
    """A command line that goes on with this sweep when it is pasted into a shell."""
    installed = shutil.which("flops-fit-ray")
    ours = installed is not None and Path(installed).parent == Path(sys.executable).parent
    door = ["flops-fit-ray"] if ours else [sys.executable, "-m", "flops_fit_ray"]
    sets = [word for override in overrides for word in ("--set", override)]
    return shlex.join([*door, "run", str(path), "--output", str(root), *sets])


def _open(directory: Path | None) -> Sweep:
    from flops_fit_ray.sweep import open_sweep

    if directory is None:
        path = _resolve_spec(None, quiet=True)
        directory = _resolve_output(path, _read(path, ()), None)
    return open_sweep(directory)


def _exit_code(sweep: Sweep) -> int:
    return EXIT_DONE if sweep.complete and not sweep.fit.problem else EXIT_FAILED
