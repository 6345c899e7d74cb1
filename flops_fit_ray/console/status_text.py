"""Status of a sweep in words: counts, cost, what runs and what failed, and how it is resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_ray import formatting as fmt
from flops_fit_ray.flags import warning
from flops_fit_ray.ledger import Failure, Progress
from flops_fit_ray.planning import Experiment
from flops_fit_ray.sweep.directory import Sweep

if TYPE_CHECKING:
    from flops_fit_ray.sweep.finished import FinishedSweep

STATUS_LABELS = {
    "out_of_memory": "out of memory",
    "failed": "failed (user)",
    "infrastructure": "failed (infrastructure)",
    "waiting": "waiting for its parent",
}
MAX_LINES = 20  # of running experiments, and of failures, in a status


def _some(lines: list[str]) -> list[str]:
    more = [f"  ... and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return [*lines[:MAX_LINES], *more]


def _running_text(e: Experiment, progress: Progress) -> str:
    share = 100 * progress.tokens_seen / progress.tokens
    since = "" if progress.started_at is None else f", since {fmt.local_time(progress.started_at)}"
    again = f", attempt {progress.attempt}" if progress.attempt > 1 else ""
    return (
        f"  running  C {fmt.flops(e.budget)}, size {e.size}: {share:.0f} % on {progress.host} "
        f"(process {progress.pid}){since}{again}"
    )


def _failure_text(e: Experiment, failure: Failure) -> str:
    label = STATUS_LABELS.get(failure.status, failure.status)
    return f"  {label}  C {fmt.flops(e.budget)}, size {e.size} ({e.key}): {failure.error_line}"


def counts_text(sweep: Sweep) -> str:
    """Return the numbers of experiments by status."""
    shown = [f"{number} {STATUS_LABELS.get(status, status)}" for status, number in sweep.counts.items() if number]
    return f"experiments: {', '.join(shown)} of {len(sweep.plan.experiments)}"


def summary_text(sweep: Sweep, elapsed: float) -> str:
    """Return counts, FLOPs and time of the whole sweep; `elapsed` is the time of this command, in seconds."""
    device = "CPU" if all(r.device.startswith("cpu") for r in sweep.results) else "GPU"
    hours = sweep.device_seconds / 3600
    spent = f"{hours:.1f} {device}-hours" if hours >= 1 else f"{fmt.duration(sweep.device_seconds)} of {device} time"
    lines = [
        counts_text(sweep),
        f"FLOPs: {fmt.flops(sweep.flops_spent)} of {fmt.flops(sweep.plan.flops)} planned",
        f"time: {fmt.duration(elapsed)}; training in all: {spent}",
    ]
    if sweep.num_deaths:
        lines.append(f"retries: {sweep.num_deaths} after a worker or node died")
    if sweep.mixed_code:
        lines.append(warning("mixed_code", sweep.mixed_code).line)
    return "\n".join(lines)


def closing_lines(sweep: Sweep, answer: str, elapsed: float) -> list[str]:
    """Return the last words of a run: the answer, if there is one, forecasts and their scores, counts, the report."""
    lines = [f"\n{answer}"] if answer else []
    return [*lines, *_score_lines(sweep), summary_text(sweep, elapsed), f"report: {sweep.paths.report}"]


def finished_lines(found: FinishedSweep, what: str, elapsed: float) -> list[str]:
    """Return the words of a run that has nothing to do; `what` says why, beside that all is completed."""
    nothing = f"nothing to run: all {len(found.sweep.results)} experiments are completed, and {what}"
    return [*found.kept, nothing, *closing_lines(found.sweep, found.words.answer, elapsed)]


def _score_lines(sweep: Sweep) -> list[str]:
    if not sweep.paths.forecast_names():  # else nothing that can score them needs to be loaded
        return []
    from flops_fit_ray.sweep.scores import scores_of

    return list(scores_of(sweep).lines)


def status_text(sweep: Sweep) -> str:
    """Return progress, running and failed experiments of a sweep, and the command that resumes it."""
    spent = sweep.flops_spent
    lines = [
        f"{sweep.plan.name}: {sweep.paths.root}",
        counts_text(sweep),
        f"FLOPs: {fmt.flops(spent)} of {fmt.flops(sweep.plan.flops)}" if spent else "FLOPs: none spent yet",
    ]
    if begun := sweep.num_begun:
        lines.append(f"checkpoints: {begun} unfinished experiments resume from one")
    if deaths := sweep.num_deaths:
        lines.append(f"retries: {deaths} after a worker or node died")
    if sweep.mixed_code:
        lines.append(warning("mixed_code", sweep.mixed_code).line)
    lines.append(f"writer: {sweep.writer}" if sweep.writer else "writer: none; the sweep is not running")
    experiments = {e.key: e for e in sweep.plan.experiments}
    lines += _some([_running_text(e, progress) for e, progress in sweep.running])
    lines += _some([_failure_text(experiments[f.key], f) for f in sweep.failures])
    lines += [flag.line for flag in sweep.damage]
    lines += _score_lines(sweep)
    if not sweep.complete:
        lines.append(f"resume with: {sweep.command}")
    return "\n".join(lines)
