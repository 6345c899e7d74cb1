"""Text of the effect of a second axis, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import AxisFit
from flops_fit_ray.sweep.axis_runs import SweepAxis
from flops_fit_ray.sweep.axis_words import axis_head, axis_lines, axis_rows, axis_verdict


def axis_text(axis: AxisFit, *, notes: bool = True) -> str:
    """Return the verdict, a table of each value at each budget, the slope and the best value, and what was assumed."""
    lines = [axis_verdict(axis), "", fmt.table(axis_head(axis), axis_rows(axis)), "", *axis_lines(axis)]
    return "\n".join([*lines, *(flag.line for flag in axis.warnings if notes or flag.severity != "info")])


def axes_text(axes: Sequence[SweepAxis]) -> str:
    """Return the same of every axis of a sweep, without what was assumed; empty without axes."""
    return "\n\n".join(axis.problem if axis.fit is None else axis_text(axis.fit, notes=False) for axis in axes)
