"""Figure of the training curves: training loss over the compute spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flops_fit_ray.analysis import Points
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import smoothed
from flops_fit_ray.formatting import count, flops
from flops_fit_ray.planning import Experiment
from flops_fit_ray.report.figures._style import INK, Drawing, colours, readable_ticks, style_axes

MAX_LABELS = 8


PANELS = (("train_loss", "training loss"), ("lr", "learning rate"), ("grad_norm", "gradient norm"),
          ("tokens_per_second", "tokens/s"))  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class OverlaidCurve:
    """Measurements of one experiment along its training, each (points,); NaN where nothing stands."""

    label: str
    params: float
    flops: Floats
    panels: Mapping[str, Floats]


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


def overlaid(e: Experiment, rows: Sequence[Mapping[str, Any]]) -> OverlaidCurve:
    """Return the curve of an experiment from the rows of its file; tokens per second are those since the row before."""
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in ("tokens", "seconds")}
    with np.errstate(divide="ignore", invalid="ignore"):
        speed = np.diff(columns["tokens"], prepend=0) / np.diff(columns["seconds"], prepend=0)
    panels = {name: np.array([_number(row.get(name)) for row in rows]) for name, _ in PANELS[:-1]}
    return OverlaidCurve(
        label=f"C {flops(e.budget)}, N {count(e.params)}",
        params=float(e.params),
        flops=columns["tokens"] * e.flops_per_token,
        panels={**panels, "tokens_per_second": np.where(speed > 0, speed, np.nan)},
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def draw_overlay(shown: Sequence[OverlaidCurve]) -> Figure:
    """Draw loss, learning rate, gradient norm and speed over C, one line per experiment in each."""
    figure = Drawing(figsize=(7.2, 5.4), layout="constrained")
    sizes = sorted({curve.params for curve in shown})
    colour = dict(zip(sizes, colours(len(sizes)), strict=True))
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for curve in shown:
            good = (curve.panels[name] > 0) & (curve.flops > 0)
            axes.plot(curve.flops[good], curve.panels[name][good], "-", color=colour[curve.params], linewidth=0.9,
                      label=curve.label)  # fmt: skip
        if any(len(line.get_xdata()) for line in axes.lines):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel("C (FLOPs spent)")
        style_axes(axes)
        if name == "train_loss" and 0 < len(shown) <= MAX_LABELS:
            axes.legend(frameon=False, labelcolor=INK, fontsize=7)
    return figure
