"""Command line: parses, prints, and exits with the exit code. Heavy imports happen inside the commands."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from flops_fit_ray.cli import _fit_commands as fit_commands
from flops_fit_ray.cli import _init as init_command
from flops_fit_ray.cli import _run_commands as run_commands
from flops_fit_ray.cli import _selftest as selftest
from flops_fit_ray.cli import _serve as serve
from flops_fit_ray.cli import _status as status_command
from flops_fit_ray.cli import _submit as submit
from flops_fit_ray.engine.interrupt import interruptible
from flops_fit_ray.errors import EXIT_DONE, EXIT_INPUT, EXIT_INTERRUPTED, FlopsFitError
from flops_fit_ray.waiting import to_stderr, told_to


def enter(args: Sequence[str] | None = None, prog_name: str = "flops-fit-ray") -> NoReturn:
    """Run `main` and end the process at once, without the interpreter's teardown.

    Tearing down torch and Ray takes 1 to 2 s, in which a thread left behind by Tune could start Ray again; so it could
    where Ray has died, and RAY_ENABLE_AUTO_CONNECT forbids it.
    """
    _fix_hash_seed(sys.argv[1:] if args is None else args)
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        main(args, prog_name)
    except SystemExit as e:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(e.code if isinstance(e.code, int) else EXIT_DONE)


def enter_run(args: Sequence[str]) -> NoReturn:
    """Enter the command `run`. A command in the place of its spec is refused: `run` is the command already."""
    prog_name = "python -m flops_fit_ray"
    if args and args[0] in commands.commands and not Path(args[0]).exists():
        meant = " ".join([prog_name, *args])
        click.echo(f"error: {args[0]!r} is a command, and {prog_name}.run runs a sweep; write {meant}", err=True)
        sys.exit(EXIT_INPUT)
    enter(["run", *args], prog_name=prog_name)


def _fix_hash_seed(args: Sequence[str]) -> None:
    """Start the interpreter again with the hash seed of the workers, in commands that read the user's data.

    The order of a set of strings depends on it, and so may a split or a vocabulary: without this every process, and
    every run that resumes, would have another one. A seed that the user has set is kept.
    """
    if "PYTHONHASHSEED" not in os.environ and sys.executable and {"plan", "check", "run", "extend"} & set(args[:1]):
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the same command again


def main(args: Sequence[str] | None = None, prog_name: str = "flops-fit-ray") -> NoReturn:
    """Run a command and exit with its code: 0 done, 1 failures, 2 wrong input, 4 interrupted and resumable."""
    try:
        with interruptible(), told_to(to_stderr):
            code = commands.main(args=args, prog_name=prog_name, standalone_mode=False)
    except click.ClickException as e:
        e.show()
        code = e.exit_code
    except FlopsFitError as e:
        click.echo(f"error: {e}", err=True)
        code = e.exit_code
    except (KeyboardInterrupt, click.Abort):  # click makes the latter of a signal
        click.echo("interrupted; the same command resumes", err=True)
        code = EXIT_INTERRUPTED
    sys.exit(code if isinstance(code, int) else EXIT_DONE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flops-fit-ray")
def commands() -> None:
    """Find the compute-optimal model size N and tokens D for C FLOPs by an IsoFLOP sweep on Ray Tune.

    Exit codes: 0 all done, 1 finished with failed experiments or without a fit, 2 wrong input, 4 interrupted and
    resumable.

    Without DIRECTORY, commands that read a sweep take the output of sweep.yaml in this directory, else of the built-in
    demo.
    """


for command in (
    init_command.init,
    run_commands.plan,
    run_commands.check,
    run_commands.run,
    run_commands.extend,
    status_command.status,
    fit_commands.fit,
    fit_commands.predict,
    fit_commands.score,
    fit_commands.compare,
    fit_commands.report,
    submit.submit,
    serve.serve,
    selftest.selftest,
):
    commands.add_command(command)
