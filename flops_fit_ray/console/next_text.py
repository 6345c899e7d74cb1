"""The list of the next runs as text for a terminal or a log."""

from __future__ import annotations

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import NextRuns


def next_runs_text(chosen: NextRuns) -> str:
    """Return the runs as a table: what to train, what it costs and gives, and why."""
    timed = chosen.seconds is not None
    sized = any(isinstance(run.size, str) or (run.size is not None and run.size != run.params) for run in chosen.runs)
    head = ["", "C", *(["size"] if sized else []), "N", "D", "FLOPs", *(["time"] if timed else []), "N_opt"]
    rows = []
    for number, run in enumerate(chosen.runs, 1):
        row = [str(number), fmt.flops(run.budget), *([str(run.size)] if sized else [])]
        row += [fmt.count(run.params), fmt.count(run.tokens), fmt.flops(run.flops)]
        row += [fmt.duration(run.seconds)] if timed and run.seconds is not None else [""] * timed
        together = any(later.step == run.step for later in chosen.runs[number:])
        rows.append([*row, "with the next" if together else f"x/÷{run.factor:.4g}"])
    laws = ", ".join(f"{name} x/÷{factor:.3g}" for name, factor in chosen.factors.items())
    total = f"{fmt.flops(chosen.flops)} FLOPs in all, {100 * chosen.flops / chosen.spent:.3g} % of those spent so far"
    if chosen.seconds is not None:
        total += f"; {fmt.duration(chosen.seconds)} on one device as measured"
    table = fmt.table(head, rows).splitlines()
    width = max(map(len, table))
    reasons = ["why", *(run.reason for run in chosen.runs)]
    return "\n".join(
        [
            f"next runs for N_opt at C = {fmt.flops(chosen.target)}, now known within x/÷{chosen.factor:.3g} "
            f"({100 * chosen.confidence:g} %; {laws}); the factor is what is expected after each and those above it:",
            *(f"{line.ljust(width)}  {reason}" for line, reason in zip(table, reasons, strict=True)),
            total,
        ]
    )
