"""Commands that run a sweep: plan, check, run, extend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flops_fit_ray.cli._common import (
    POSITIVE,
    FiniteRange,
    StoragePathType,
    address_option,
    base_of,
    code_option,
    cost_options,
    device_option,
    directory_argument,
    echo,
    from_checkpoint_option,
    json_option,
    limit_options,
    new_option,
    open_directory,
    output_of,
    output_option,
    output_options,
    read_resolved,
    request_for,
    resolve_output,
    resolve_spec,
    run_request,
    set_option,
    spec_argument,
)
from flops_fit_ray.cli._finished import say_finished
from flops_fit_ray.cli._lines import command_line, extend_line, given_options
from flops_fit_ray.cli._put import put_text
from flops_fit_ray.cli._resume import set_resume_line
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.run_limits import RunLimits
from flops_fit_ray.waiting import to_stderr

if TYPE_CHECKING:
    from flops_fit_ray.console.select import OutputStyle
    from flops_fit_ray.planning.loss_surfaces import LossSurface
    from flops_fit_ray.spec import BudgetsFor


@click.command()
@spec_argument
@set_option
@click.option(
    "--output",
    type=StoragePathType(),
    help="Sweep directory with the rates that `check` measured [default: runs/NAME beside SPEC].",
)
@code_option
@cost_options
@click.option("--slots", type=click.IntRange(min=1), help="Experiments at a time [default: as found by check].")
@click.option("--rate", type=POSITIVE, help="FLOP/s of one slot [default: as measured by check].")
@click.option("--price", type=POSITIVE, help="Price of one slot for one hour.")
@click.option("--simulate", is_flag=True, help="Simulate the whole sweep on a known loss surface, fit included.")
@click.option(
    "--surface",
    default="hoffmann",
    show_default=True,
    metavar="SURFACE",
    help="With --simulate: hoffmann, besiroglu, lopsided or E,A,B,alpha,beta, of the fitted form; kaplan, cross, bend, "
    "small or odd, which are not; a published law that has one, by its name in `laws`; or module:function of yours, "
    "(params, tokens) -> losses in nats, all arrays.",
)
@click.option(
    "--noise",
    default=0.005,
    show_default=True,
    type=FiniteRange(min=0),
    help="With --simulate: standard deviation of a loss, in nats.",
)
@click.option(
    "--sweeps",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="With --simulate: number of sweeps, each with its own noise.",
)
@click.option(
    "--lr-factor",
    type=POSITIVE,
    help="With --simulate: the best learning rate over the spec's own [default: 1 for a rate that the spec gives, 1.7 "
    "for auto].",
)
@json_option
def plan(
    spec: Path | None,
    overrides: tuple[str, ...],
    output: StoragePath | None,
    code: Path | None,
    limit: BudgetsFor | None,
    slots: int | None,
    rate: float | None,
    price: float | None,
    simulate: bool,
    surface: str,
    noise: float,
    sweeps: int,
    lr_factor: float | None,
    as_json: bool,
) -> None:
    """Show every experiment with its N, D, steps and FLOPs, and the price of the sweep. Trains and writes nothing.

    The price includes hours after `check` or with --rate, and money with --price.
    """
    from flops_fit_ray.budgets import with_budgets_chosen
    from flops_fit_ray.console.simulation_text import simulation_text
    from flops_fit_ray.pipeline import plan_request
    from flops_fit_ray.planning import priced, stated_rate
    from flops_fit_ray.sweep.extend import continued
    from flops_fit_ray.sweep.recorded import recorded_constants, recorded_rates

    path = resolve_spec(spec, quiet=as_json)
    resolved = read_resolved(path, overrides)
    root = resolve_output(path, resolved, output)
    world = _surface(surface, base_of(path, code)) if simulate else None
    request = request_for(resolved, base_of(path, code), root, source=str(path), limits=RunLimits(slots=slots))
    stated = None if rate is None else stated_rate(rate, slots or 1)
    request = with_budgets_chosen(
        request,
        limit,
        to_stderr if as_json else put_text,
        rates=stated,
        measure_speed=False,
    )
    resolved = continued(request.spec, SweepPaths(root), to_stderr if as_json else put_text).spec
    request = replace(request, spec=resolved)
    _, made = plan_request(request, recorded_constants(SweepPaths(root)))
    if world is not None:
        from flops_fit_ray.sweep.simulate import simulate_spec

        found = simulate_spec(resolved, made, surface=world, noise=noise, sweeps=sweeps, lr_factor=lr_factor)
        echo(json.dumps(found.to_json()) if as_json else simulation_text(found))
        return
    rates = stated or recorded_rates(SweepPaths(root), made.constants)
    made = priced(made, resolved.grid.start, rates=rates, slots=slots, money_per_hour=price)
    echo(json.dumps(made.to_json(), indent=1) if as_json else str(made))


def _surface(text: str, base: Path) -> LossSurface:
    """Return the surface that --surface names; functions are looked for in the directory `base`."""
    if ":" in text:
        from flops_fit_ray.training.user.loss_surface import load_surface

        return load_surface(text, base)
    from flops_fit_ray.planning.loss_surfaces import stated_surface

    return stated_surface(text)


@click.command()
@spec_argument
@set_option
@output_option
@address_option
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    help="Experiments to plan for on an autoscaling cluster [default: as many as fit now].",
)
@code_option
@json_option
def check(
    spec: Path | None,
    overrides: tuple[str, ...],
    output: StoragePath | None,
    address: str | None,
    slots: int | None,
    code: Path | None,
    as_json: bool,
) -> int:
    """Check the smallest and the largest model on a real worker: ten checks, each PASS, WARN or FAIL.

    The measured speed is kept in the sweep directory (rates.json), where `plan` reads it. Exit code 1 on any FAIL.
    """
    from flops_fit_ray.budgets import with_some_budgets
    from flops_fit_ray.pipeline import check as check_request
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    path = resolve_spec(spec, quiet=as_json)
    resolved = read_resolved(path, overrides)
    root = resolve_output(path, resolved, output)
    limits = RunLimits(slots=slots)
    request = request_for(resolved, base_of(path, code), root, source=str(path), address=address, limits=limits)
    report, found = check_request(with_some_budgets(request), keep=True)
    content = {"schema_version": SCHEMA_VERSION, "slots": found.count, **report.to_json()}
    echo(json.dumps(content) if as_json else str(report))
    return EXIT_FAILED if report.verdict == "FAIL" else EXIT_DONE


@click.command()
@spec_argument
@output_option
@set_option
@code_option
@cost_options
@limit_options
@new_option
@from_checkpoint_option
@address_option
@output_options
@json_option
def run(
    spec: Path | None,
    output: StoragePath | None,
    overrides: tuple[str, ...],
    code: Path | None,
    limit: BudgetsFor | None,
    until: str | None,
    at_most: float | None,
    slots: int | None,
    new: bool,
    from_checkpoint: str | None,
    address: str | None,
    style: OutputStyle | None,
    as_json: bool,
) -> int:
    """Run a sweep and write its report. The same command resumes it after any interruption.

    On Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP running experiments are checkpointed and the exit code is 4; the last line
    printed is the command that resumes the sweep.

    Without SPEC: sweep.yaml of this directory, else the built-in demo.
    """
    path = resolve_spec(spec, quiet=as_json)
    resolved = read_resolved(path, overrides)
    root = resolve_output(path, resolved, output)
    limits = RunLimits(until, at_most, slots)
    first = given_options({"--new": new, "--from-checkpoint": from_checkpoint})
    if not (first or until or limit or as_json or style == "json"):
        finished = say_finished(resolved, base_of(path, code), root)
        if finished is not None:
            return finished
    from flops_fit_ray.budgets import with_budgets_chosen

    set_resume_line(command_line(path, root, overrides, limits, code, limit, address, first))
    command = command_line(path, root, overrides, limits, code, limit, address)
    request = request_for(
        resolved,
        base_of(path, code),
        root,
        source=str(path),
        command=command,
        address=address,
        limits=limits,
        new=new,
        from_checkpoint=from_checkpoint,
    )
    request = with_budgets_chosen(request, limit, to_stderr if as_json or style == "json" else put_text)
    return run_request(request, as_json=as_json, style=style or "")


@click.command()
@directory_argument
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=POSITIVE,
    metavar="FLOPS",
    help="Budget C to add, in FLOPs; may be repeated.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=int,
    help="Size to add; with --budget, to the new budgets only; may be repeated.",
)
@click.option(
    "--seeds", type=click.IntRange(min=0, max=20), help="Number of repeated seeds near the two smallest minima."
)
@click.option(
    "--lr-again",
    is_flag=True,
    help="Where a check called the sweep LR-limited: train it again with the learning rates that the checks ask for.",
)
@device_option
@code_option
@limit_options
@from_checkpoint_option
@address_option
@output_options
@json_option
def extend(
    directory: StoragePath | None,
    budgets: tuple[float, ...],
    sizes: tuple[int, ...],
    seeds: int | None,
    lr_again: bool,
    device: str | None,
    code: Path | None,
    until: str | None,
    at_most: float | None,
    slots: int | None,
    from_checkpoint: str | None,
    address: str | None,
    style: OutputStyle | None,
    as_json: bool,
) -> int:
    """Add budgets, sizes or seeds to a sweep. Only new experiments are trained, and existing trunks are reused.

    Without additions it resumes the sweep in its directory.
    """
    from flops_fit_ray.sweep.extend import begun_sweep, better_lr, extend_spec
    from flops_fit_ray.sweep.recorded import Addition

    root = output_of(directory)
    begun = begun_sweep(root)
    if begun.base is None:
        raise click.UsageError(
            f"{root} was run from Python: call find_optimal(...) again with more budgets and the same output_dir"
        )
    lr, found = better_lr(open_directory(root)) if lr_again else (None, None)
    wider = extend_spec(begun.spec, budgets=budgets, sizes=sizes, seeds=seeds, device=device, lr=lr)
    base = begun.base if code is None else code.absolute()
    if not base.is_dir():  # run by a job, or on another machine
        base = Path.cwd()
        put_text(
            f"{begun.base} does not exist here: loading model and data from {base} (--code names another)", err=as_json
        )
    limits = RunLimits(until, at_most, slots)
    added = {"--budget": budgets, "--size": sizes, "--seeds": seeds, "--lr-again": lr_again, "--device": device,
             "--from-checkpoint": from_checkpoint}  # fmt: skip
    set_resume_line(extend_line(root, base, limits, code, address, given_options(added)))
    command = extend_line(root, base, limits, code, address)
    source = str(SweepPaths(root).spec)
    before = begun.spec.grid.seeds
    seeds_before = None if seeds is None else before
    addition = Addition(budgets=budgets, sizes=sizes, seeds=seeds, seeds_before=seeds_before, lr=found)
    request = request_for(
        wider,
        base,
        root,
        source=source,
        command=command,
        address=address,
        limits=limits,
        new=lr_again,
        from_checkpoint=from_checkpoint,
    )
    request = replace(request, added=() if addition == Addition() else (addition,))
    return run_request(request, as_json=as_json, style=style or "")
