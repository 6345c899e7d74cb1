"""Figures of the report: functions that return the numbers of a figure, and functions that draw them. No fitting."""

from flops_fit_ray.report.figures._axis_values import draw_axis
from flops_fit_ray.report.figures._laws import LawBand, comparison_bands, draw_comparison, draw_laws, law_bands
from flops_fit_ray.report.figures._panel import draw_panel, panel_numbers
from flops_fit_ray.report.figures._style import for_page, lay_out, save, to_png, to_svg
from flops_fit_ray.report.figures._surface import contours, draw_contours, draw_residuals, residuals
from flops_fit_ray.report.figures._valleys import draw_valleys, valley_curves
from flops_fit_ray.report.figures.curves import draw_curves, draw_overlay, training_curves

__all__ = [
    "LawBand",
    "comparison_bands",
    "contours",
    "draw_axis",
    "draw_comparison",
    "draw_contours",
    "draw_curves",
    "draw_laws",
    "draw_overlay",
    "draw_panel",
    "draw_residuals",
    "draw_valleys",
    "for_page",
    "law_bands",
    "lay_out",
    "panel_numbers",
    "residuals",
    "save",
    "to_png",
    "to_svg",
    "training_curves",
    "valley_curves",
]
