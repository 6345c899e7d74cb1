"""The group of commands, and how a process that ran one ends: with an exit code of ours, and a last line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import click

from flops_fit_ray.cli import _fit_commands as fit_commands
from flops_fit_ray.cli import _init as init_command
from flops_fit_ray.cli import _predict_commands as predict_commands
from flops_fit_ray.cli import _run_commands as run_commands
from flops_fit_ray.cli import _selftest as selftest
from flops_fit_ray.cli import _serve as serve
from flops_fit_ray.cli import _status as status_command
from flops_fit_ray.cli import _submit as submit
from flops_fit_ray.cli._resume import resume_lines, set_resume_line
from flops_fit_ray.engine.interrupt import interruptible
from flops_fit_ray.errors import EXIT_DONE, EXIT_INPUT, EXIT_INTERRUPTED, FlopsFitError
from flops_fit_ray.waiting import to_stderr, told_to

# Errors of the system that are nobody's fault in here, wherever they are met
WRONG_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)


def run_command(args: Sequence[str] | None, prog_name: str) -> int:
    """Run a command and return its exit code: 0 done, 1 failures, 2 wrong input, 4 interrupted and resumable."""
    typed = list(sys.argv[1:] if args is None else args)
    set_resume_line("")
    try:
        with interruptible(), told_to(to_stderr):
            code = commands.main(args=args, prog_name=prog_name, standalone_mode=False)
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except FlopsFitError as e:
        more = f"\n{resume_lines(typed)}" if e.exit_code == EXIT_INTERRUPTED else ""
        click.echo(f"error: {e}{more}", err=True)
        return e.exit_code
    except OSError as e:
        if e.errno not in (*WRONG_PLACES, *NO_ROOM):
            raise
        place = f"{e.filename}: " if e.filename else ""
        more = f"\n{resume_lines(typed)}" if e.errno in NO_ROOM else "; choose another place, or give it the permission"
        click.echo(f"error: {place}{e.strerror}{more}", err=True)
        return EXIT_INTERRUPTED if e.errno in NO_ROOM else EXIT_INPUT
    except (KeyboardInterrupt, click.Abort, SystemExit) as e:  # click makes the second; Ray exits on a signal
        click.echo(f"{_why(e)}\n{resume_lines(typed)}", err=True)
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else EXIT_DONE


def _why(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"ended by exit({error.code})"
    return str(error.__cause__ or error) or "interrupted"  # click puts its own in the place of a signal's


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
    predict_commands.predict,
    predict_commands.score,
    fit_commands.compare,
    fit_commands.report,
    submit.submit,
    serve.serve,
    selftest.selftest,
):
    commands.add_command(command)
