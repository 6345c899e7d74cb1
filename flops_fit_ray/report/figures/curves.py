"""Figure of the training curves: training loss over the compute spent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from flops_fit_ray.analysis import Points
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import smoothed
from flops_fit_ray.formatting import count
from flops_fit_ray.report.figures._style import INK, Drawing, colours, readable_ticks, style_axes

MAX_LABELS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingCurve:
    """Training curve of one run."""

    params: float
    flops: Floats
    loss: Floats


def training_curves(curves: Points | None) -> list[TrainingCurve]:
    """Return the smoothed curves of all runs, by N."""
    if curves is None or curves.run is None:
        return []
    curves = smoothed(curves)
    assert curves.run is not None
    found = []
    for run in np.unique(curves.run):
        here = np.flatnonzero(curves.run == run)
        here = here[np.argsort(curves.flops[here], kind="stable")]
        found.append(
            TrainingCurve(params=float(curves.params[here[0]]), flops=curves.flops[here], loss=curves.loss[here])
        )
    return sorted(found, key=lambda curve: curve.params)


def draw_curves(shown: list[TrainingCurve]) -> Figure:
    """Draw loss over C, one line per run, coloured by N."""
    figure = Drawing(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    sizes = sorted({curve.params for curve in shown})
    colour = dict(zip(sizes, colours(len(sizes)), strict=True))
    labelled = set(sizes[:: max(1, -(-len(sizes) // MAX_LABELS))])
    for curve in shown:
        label = f"N = {count(curve.params)}" if curve.params in labelled else None
        labelled.discard(curve.params)
        axes.plot(curve.flops, curve.loss, "-", color=colour[curve.params], linewidth=0.9, label=label)
    if shown:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        if not readable_ticks(axes):
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    axes.set_xlabel("C (FLOPs spent)")
    axes.set_ylabel("training loss")
    style_axes(axes)
    return figure
