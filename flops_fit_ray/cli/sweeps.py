"""Commands that make and follow a sweep: init, plan, check, run, status."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from flops_fit_ray.cli.common import (
    DEMO_FILES,
    SPEC_NAME,
    command_line,
    demo_directory,
    directory_argument,
    exit_code,
    json_option,
    open_directory,
    planned,
    resolve_output,
    set_option,
    spec_argument,
)
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED


@click.command()
@click.argument("directory", default=".", type=click.Path(path_type=Path))
def init(directory: Path) -> None:
    """Write a commented starter (sweep.yaml, model.py, data.py) that runs as it is."""
    present = [name for name in DEMO_FILES if (directory / name).exists()]
    if present:
        raise click.UsageError(f"{directory} has {', '.join(present)} already; nothing was written")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in DEMO_FILES:
            (directory / name).write_bytes((demo_directory() / name).read_bytes())
    except OSError as e:
        raise click.UsageError(f"{directory}: cannot be written: {e.strerror}") from e
    click.echo(f"wrote {', '.join(str(directory / name) for name in DEMO_FILES)}")
    click.echo(f"next: flops-fit-ray plan {directory / SPEC_NAME}, then flops-fit-ray run {directory / SPEC_NAME}")


@click.command()
@spec_argument
@set_option
@json_option
def plan(spec: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show every experiment with its N, D, steps and FLOPs. Nothing is run or written."""
    from flops_fit_ray.console.plain import plan_text

    _, _, made = planned(spec, overrides, quiet=as_json)
    click.echo(json.dumps(made.to_json(), indent=1) if as_json else plan_text(made))


@click.command()
@spec_argument
@set_option
@click.option("--address", help="An existing Ray cluster, e.g. auto [default: RAY_ADDRESS, else a local one].")
@json_option
def check(spec: Path | None, overrides: tuple[str, ...], address: str | None, as_json: bool) -> int:
    """Try the smallest and the biggest model on a real worker: ten answers, PASS, WARN or FAIL.

    Nothing is written. Exit code 1 if an answer is FAIL.
    """
    import functools

    from flops_fit_ray.engine.check import check_on_worker
    from flops_fit_ray.layout import SCHEMA_VERSION
    from flops_fit_ray.training.guest import load_guest

    path, resolved, made = planned(spec, overrides, quiet=as_json)
    load = functools.partial(load_guest, resolved, path.parent)
    report, slots = check_on_worker(made, resolved, load_guest=load, address=address)
    content = {"schema_version": SCHEMA_VERSION, "slots": slots.count, **report.to_json()}
    click.echo(json.dumps(content) if as_json else str(report))
    return EXIT_FAILED if report.verdict == "FAIL" else EXIT_DONE


@click.command()
@spec_argument
@click.option("--output", type=click.Path(path_type=Path), help="The sweep directory [default: runs/NAME beside SPEC].")
@set_option
@click.option("--address", help="An existing Ray cluster, e.g. auto [default: RAY_ADDRESS, else a local one].")
@json_option
def run(spec: Path | None, output: Path | None, overrides: tuple[str, ...], address: str | None, as_json: bool) -> int:
    """Run a sweep and write its report; run again to go on after any interruption.

    Without SPEC: sweep.yaml of this directory, else the built-in demo.
    """
    import functools

    from flops_fit_ray.analysis import n_opt_to_json
    from flops_fit_ray.console.fits import fit_text
    from flops_fit_ray.console.plain import PlainConsole, counts_text
    from flops_fit_ray.errors import InterruptedSweepError
    from flops_fit_ray.layout import SCHEMA_VERSION
    from flops_fit_ray.pipeline import run_sweep
    from flops_fit_ray.training.guest import load_guest

    console = PlainConsole(sys.stderr if as_json else sys.stdout)
    path, resolved, made = planned(spec, overrides, quiet=as_json)
    root = resolve_output(path, resolved, output)
    command = command_line(path, root, overrides)
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
    if not resolved.is_one_run:  # one run has nothing to fit
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
    return exit_code(sweep)


@click.command()
@directory_argument
@json_option
def status(directory: Path | None, as_json: bool) -> None:
    """Show how far a sweep is, from its files alone."""
    from flops_fit_ray.console.plain import status_text
    from flops_fit_ray.layout import SCHEMA_VERSION

    sweep = open_directory(directory)
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
