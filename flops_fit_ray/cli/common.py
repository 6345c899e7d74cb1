"""What the commands share: arguments, which spec or directory is meant, and the line that goes on with a sweep."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, faults_of

if TYPE_CHECKING:
    from flops_fit_ray.planning import Plan
    from flops_fit_ray.spec import SweepSpec
    from flops_fit_ray.sweep import Sweep

SPEC_NAME = "sweep.yaml"
DEMO_FILES = (SPEC_NAME, "model.py", "data.py")

spec_argument = click.argument("spec", required=False, type=click.Path(path_type=Path))
directory_argument = click.argument("directory", required=False, type=click.Path(path_type=Path))
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the spec, e.g. train.batch_size=16."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object to stdout; the rest to stderr."
)


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


def planned(spec: Path | None, overrides: Sequence[str], *, quiet: bool) -> tuple[Path, SweepSpec, Plan]:
    """The spec's path, the spec, and its plan, with faults named by the path."""
    from flops_fit_ray.planning import make_plan
    from flops_fit_ray.training.measure import survey_spec

    path = resolve_spec(spec, quiet=quiet)
    resolved = read_resolved(path, overrides)
    with faults_of(str(path)):
        return path, resolved, make_plan(resolved, survey_spec(resolved, path.parent))


def resolve_output(path: Path, spec: SweepSpec, output: Path | None) -> Path:
    """`--output` is relative to here; what the spec says, and the default, to the spec: so that a rerun resumes."""
    if output is not None:
        return output.absolute()
    base = Path.cwd() if path.parent == demo_directory().absolute() else path.parent
    return base / (spec.output or f"runs/{spec.name}")


def command_line(path: Path, root: Path, overrides: Sequence[str]) -> str:
    """A command line that goes on with this sweep when it is pasted into a shell."""
    installed = shutil.which("flops-fit-ray")
    ours = installed is not None and Path(installed).parent == Path(sys.executable).parent
    door = ["flops-fit-ray"] if ours else [sys.executable, "-m", "flops_fit_ray"]
    sets = [word for override in overrides for word in ("--set", override)]
    return shlex.join([*door, "run", str(path), "--output", str(root), *sets])


def open_directory(directory: Path | None) -> Sweep:
    """The sweep that is meant."""
    from flops_fit_ray.sweep import open_sweep

    if directory is None:
        path = resolve_spec(None, quiet=True)
        directory = resolve_output(path, read_resolved(path, ()), None)
    return open_sweep(directory)


def exit_code(sweep: Sweep) -> int:
    """0 where all experiments are done and a law was wanted and found, or none was wanted."""
    return EXIT_DONE if sweep.complete and (sweep.spec.is_one_run or not sweep.fit.problem) else EXIT_FAILED
