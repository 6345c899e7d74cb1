"""Command for Ray clusters: submit."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flops_fit_ray.cli._common import (
    LocalPath,
    cost_options,
    echo,
    json_option,
    limit_options,
    new_option,
    read_resolved,
    resolve_spec,
    set_option,
    spec_argument,
)
from flops_fit_ray.cli._lines import run_options
from flops_fit_ray.cli._put import put_text
from flops_fit_ray.cli._resume import shell_line
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, SpecError
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, storage_path
from flops_fit_ray.sweep.run_limits import RunLimits

if TYPE_CHECKING:
    from flops_fit_ray.engine.jobs import Jobs
    from flops_fit_ray.spec import BudgetsFor


@click.command()
@spec_argument
@click.option(
    "--address", help="URL of the Ray dashboard [default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265]."
)
@click.option(
    "--output",
    metavar="DIRECTORY",
    help="Sweep directory: a path shared by all nodes, or s3://... [default: output of SPEC].",
)
@click.option("--working-dir", type=LocalPath(), help="Directory uploaded to the cluster [default: that of SPEC].")
@set_option
@cost_options
@limit_options
@new_option
@click.option("--follow", is_flag=True, help="Print the job's log until it ends, and exit with its exit code.")
@json_option
def submit(
    spec: Path | None,
    address: str | None,
    output: str | None,
    working_dir: Path | None,
    overrides: tuple[str, ...],
    limit: BudgetsFor | None,
    until: str | None,
    at_most: float | None,
    slots: int | None,
    new: bool,
    follow: bool,
    as_json: bool,
) -> int:
    """Run a sweep as a job of a Ray cluster. Submitting again resumes it after any interruption.

    The directory of SPEC is uploaded to every node (code, not data: at most 100 MB). flops_fit_ray must be installed
    there.
    """
    from flops_fit_ray.engine.jobs import Jobs, Submission, words_for
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    path = resolve_spec(spec, quiet=as_json)
    resolved = read_resolved(path, overrides)
    root = _output(output or resolved.output, str(path))
    sent = path.parent if working_dir is None else working_dir.absolute()
    options = run_options(root, overrides, RunLimits(until, at_most, slots), limit)
    arguments = words_for(path, sent, [*options, *(["--new"] if new else [])])
    jobs = Jobs(address)
    place = [] if working_dir is None else ["--working-dir", str(sent)]
    again = shell_line(["submit", str(path), "--address", jobs.address, *options, *place])
    job_id = jobs.submit(Submission(name=resolved.name, working_dir=sent, words=arguments, again=again))
    status = jobs.begun(job_id)
    if as_json:
        content = {"job_id": job_id, "job_status": status, "address": jobs.address, "output": str(root)}
        echo(json.dumps({"schema_version": SCHEMA_VERSION, **content}))
    else:
        put_text(_job_text(job_id, status, jobs.address, root, again))
    if follow:
        return _follow(jobs, job_id, err=as_json)
    if status == "FAILED":
        put_text(f"error: {jobs.message(job_id)}", err=True)
    return EXIT_FAILED if status == "FAILED" else EXIT_DONE


def _output(given: str | None, source: str) -> StoragePath:
    """Return the sweep directory, which must have the same name on every node of the cluster."""
    if given is None:
        fault = "output: is missing; give --output, a path shared by all nodes of the cluster, or s3://..."
        raise SpecError(source, [fault])
    if given.startswith("~") or "$" in given:
        fault = f"output: {given!r} may mean something else on the nodes of the cluster than here; give "
        raise SpecError(source, [fault + "an absolute path shared by all nodes of the cluster, or s3://..."])
    if "://" not in given and not given.startswith("/"):
        fault = f"output: {given!r} is relative, and would be deleted with the job's temporary directory; give "
        raise SpecError(source, [fault + "an absolute path shared by all nodes of the cluster, or s3://..."])
    return storage_path(given)


def _job_text(job_id: str, status: str, address: str, root: StoragePath, again: str) -> str:
    report = root / "report.html"
    copy = "aws s3 cp or the like" if is_remote(root) else "ray rsync-down CLUSTER.yaml, scp or kubectl cp"
    lines = [
        f"job {job_id}: {status.lower()}",
        f"follow: ray job logs --follow --address {address} {job_id}",
        f"status: {shlex.join(['flops-fit-ray', 'status', str(root)])} (on a machine that sees it)",
        f"stop:   ray job stop --address {address} {job_id}",
        f"resume: {again}",
        f"report: {report} (fetch it with {copy})",
    ]
    return "\n".join(lines)


def _follow(jobs: Jobs, job_id: str, *, err: bool) -> int:
    try:
        return jobs.follow(job_id, lambda part: put_text(part, nl=False, err=err))
    except KeyboardInterrupt:
        put_text(f"\nstopped following; job {job_id} is still running", err=True)
        return EXIT_DONE
