"""The group of commands, and how a process that ran one ends: with an exit code of ours, and a last line."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import click

from flops_fit_ray.cli._put import put_text
from flops_fit_ray.cli._resume import resume_lines, set_resume_line
from flops_fit_ray.engine.interrupt import interruptible
from flops_fit_ray.errors import EXIT_DONE, EXIT_INPUT, EXIT_INTERRUPTED, FlopsFitError
from flops_fit_ray.waiting import to_stderr, told_to

COMPLETION = "_FLOPS_FIT_RAY_COMPLETE"  # set by a shell that completes a command line: click answers it, and exits
# Errors of the system that are nobody's fault in here, wherever they are met
WRONG_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE)


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
        put_text(f"error: {e}{more}", err=True)
        return e.exit_code
    except OSError as e:
        if e.errno not in (*WRONG_PLACES, *NO_ROOM):
            raise
        place = f"{e.filename}: " if e.filename else ""
        more = f"\n{resume_lines(typed)}" if e.errno in NO_ROOM else "; choose another place, or give it the permission"
        put_text(f"error: {place}{e.strerror}{more}", err=True)
        return EXIT_INTERRUPTED if e.errno in NO_ROOM else EXIT_INPUT
    except (KeyboardInterrupt, click.Abort, SystemExit) as e:  # click makes the second; Ray exits on a signal
        if isinstance(e, SystemExit) and COMPLETION in os.environ:
            raise
        put_text(f"{_why(e)}\n{resume_lines(typed)}", err=True)
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else EXIT_DONE


def _why(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"ended by exit({error.code})"
    return str(error.__cause__ or error) or "interrupted"  # click puts its own in the place of a signal's


# The module of each command, in the order of --help: imported when the command is asked for, so that `status` loads
# nothing that it does not need
HOMES = {
    "init": "_init",
    "plan": "_run_commands",
    "check": "_run_commands",
    "run": "_run_commands",
    "extend": "_run_commands",
    "status": "_status",
    "fit": "_fit_commands",
    "predict": "_predict_commands",
    "score": "_predict_commands",
    "compare": "_fit_commands",
    "axis": "_axis_command",
    "laws": "_published_laws",
    "report": "_fit_commands",
    "submit": "_submit",
    "serve": "_serve",
    "selftest": "_selftest",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; None where there is none of this name."""
        if cmd_name not in HOMES:
            return None
        command: click.Command = getattr(importlib.import_module(f"flops_fit_ray.cli.{HOMES[cmd_name]}"), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flops-fit-ray")
def commands() -> None:
    """Find the compute-optimal model size N and tokens D for C FLOPs by an IsoFLOP sweep on Ray Tune.

    Exit codes: 0 all done, 1 finished with failed experiments or without a fit, 2 wrong input, 4 interrupted and
    resumable.

    Without DIRECTORY, commands that read a sweep take the output of sweep.yaml in this directory, else of the built-in
    demo.
    """
