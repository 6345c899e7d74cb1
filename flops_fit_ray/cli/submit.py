"""Commands for clusters: submit."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flops_fit_ray.cli.common import (
    door,
    json_option,
    limit_options,
    read_resolved,
    resolve_spec,
    run_options,
    set_option,
    spec_argument,
)
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, SpecError
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, storage_path
from flops_fit_ray.sweep.run_limits import RunLimits

if TYPE_CHECKING:
    from flops_fit_ray.engine.jobs import Jobs


@click.command()
@spec_argument
@click.option("--address", help="The dashboard [default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265].")
@click.option("--output", metavar="DIRECTORY", help="A path that every node sees, or s3://... [default: the spec's].")
@click.option(
    "--working-dir",
    type=click.Path(path_type=Path),
    help="What is sent to the cluster [default: the directory of SPEC].",
)
@set_option
@limit_options
@click.option("--new", is_flag=True, help="Where the spec has changed, train completed experiments anew; the old stay.")
@click.option("--follow", is_flag=True, help="Show what the job says until it ends, and end with its exit code.")
@json_option
def submit(
    spec: Path | None,
    address: str | None,
    output: str | None,
    working_dir: Path | None,
    overrides: tuple[str, ...],
    until: str | None,
    at_most: float | None,
    slots: int | None,
    new: bool,
    follow: bool,
    as_json: bool,
) -> int:
    """Run a sweep as a job of a Ray cluster; submit again to go on after any interruption.

    The directory of SPEC travels to every node (code, not data: at most 100 MB). flops_fit_ray is installed there.
    """
    from flops_fit_ray.engine.jobs import Jobs, Submission, words_for
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    path = resolve_spec(spec, quiet=as_json)
    resolved = read_resolved(path, overrides)
    root = _output(output or resolved.output, str(path))
    sent = path.parent if working_dir is None else working_dir.absolute()
    options = run_options(root, overrides, RunLimits(until, at_most, slots))
    words = words_for(path, sent, [*options, *(["--new"] if new else [])])
    jobs = Jobs(address)
    place = [] if working_dir is None else ["--working-dir", str(sent)]
    again = shlex.join([*door(), "submit", str(path), "--address", jobs.address, *options, *place])
    job_id = jobs.submit(Submission(name=resolved.name, working_dir=sent, words=words, again=again))
    status = jobs.begun(job_id)
    if as_json:
        content = {"job_id": job_id, "job_status": status, "address": jobs.address, "output": str(root)}
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **content}))
    else:
        click.echo(_words(job_id, status, jobs.address, root, again))
    if follow:
        return _follow(jobs, job_id, err=as_json)
    if status == "FAILED":
        click.echo(f"error: {jobs.message(job_id)}", err=True)
    return EXIT_FAILED if status == "FAILED" else EXIT_DONE


def _output(given: str | None, source: str) -> StoragePath:
    """Where the sweep goes, as every node of the cluster names it."""
    if given is None:
        fault = "output: is missing; a job needs --output, a path that every node of the cluster sees, or s3://..."
        raise SpecError(source, [fault])
    if "://" not in given and not given.startswith("/"):
        fault = f"output: {given!r} is relative, and would be lost with the job's temporary directory; give "
        raise SpecError(source, [fault + "an absolute path that every node of the cluster sees, or s3://..."])
    return storage_path(given)


def _words(job_id: str, status: str, address: str, root: StoragePath, again: str) -> str:
    report = root / "report.html"
    copy = "aws s3 cp or the like" if is_remote(root) else "ray rsync-down CLUSTER.yaml, scp or kubectl cp"
    lines = [
        f"job {job_id}: {status.lower()}",
        f"follow: ray job logs --follow --address {address} {job_id}",
        f"status: flops-fit-ray status {shlex.quote(str(root))} (where that can be seen)",
        f"stop:   ray job stop --address {address} {job_id}",
        f"go on:  {again}",
        f"report: {report} (fetch it with {copy})",
    ]
    return "\n".join(lines)


def _follow(jobs: Jobs, job_id: str, *, err: bool) -> int:
    try:
        return jobs.follow(job_id, lambda part: click.echo(part, nl=False, err=err))
    except KeyboardInterrupt:
        click.echo(f"\nnot followed any more; job {job_id} goes on", err=True)
        return EXIT_DONE
