"""The effect of a second axis in words and rows, for the terminal and for the report."""

from __future__ import annotations

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import AxisBudget, AxisFit, AxisValue, Interval, shown_value


def axis_head(axis: AxisFit) -> list[str]:
    """Return the head of the table of `axis_rows`."""
    percent = f"{100 * axis.confidence:g} %"
    against = f"against {shown_value(axis.reference)}"
    return ["C", axis.name, "runs", "N_opt", "L", against, percent, "compute", percent]


def axis_rows(axis: AxisFit) -> list[list[str]]:
    """Return a row for each value at each budget: its loss, how that differs, and the compute that it is worth."""
    return [_row(budget, one, axis) for budget in axis.budgets for one in budget.values]


def axis_lines(axis: AxisFit) -> list[str]:
    """Return the slope and the best value of each budget."""
    return [line for budget in axis.budgets for line in _lines(budget, axis)]


def axis_verdict(axis: AxisFit) -> str:
    """Return whether the axis changes the loss at all."""
    said = "changes the loss" if axis.told else "is not told apart from no effect"
    return (
        f"{axis.name} {said} at equal C, each value at its best N (F test: p = {axis.p_value:.2g}; "
        f"{fmt.counted(axis.runs, 'run')}, {axis.sigma:.4f} nats about the model, {axis.df} df)"
    )


def _row(budget: AxisBudget, one: AxisValue, axis: AxisFit) -> list[str]:
    is_reference = one.value == axis.reference
    return [
        fmt.flops(budget.budget),
        shown_value(one.value),
        str(one.runs),
        "no minimum" if one.params_opt is None else fmt.count(one.params_opt),
        f"{one.loss:.4f}",
        "" if is_reference else f"{one.difference:+.4f}",
        "" if is_reference else _bounds(one.interval, "+.4f"),
        "" if is_reference or one.compute is None else f"x{one.compute:.3g}",
        "" if is_reference or one.compute is None else _bounds(one.compute_interval, ".3g"),
    ]


def _lines(budget: AxisBudget, axis: AxisFit) -> list[str]:
    at = f"at C = {fmt.flops(budget.budget)}"
    lines = []
    if budget.slope is not None:
        of = f"ln {axis.name}" if axis.scale == "log" else axis.name
        lines.append(f"d ln L / d {of} = {budget.slope:+.4g} {_bounds(budget.slope_interval, '+.4g')} {at}, at "
                     f"{shown_value(axis.reference)}")  # fmt: skip
    if budget.best is not None:
        share = "" if budget.best_share != budget.best_share else f", in {100 * budget.best_share:.0f} % of the draws"
        if budget.at_edge:
            lines.append(f"best {axis.name} {at}: {shown_value(budget.best)} or beyond, where the runs end{share}")
        elif budget.best_interval is not None:
            lines.append(f"best {axis.name} {at}: {shown_value(budget.best)} {_bounds(budget.best_interval, '.3g')}")
        else:
            lines.append(f"best {axis.name} {at}: {shown_value(budget.best)}{share}")
    return lines


def _bounds(interval: Interval | None, form: str) -> str:
    return "no interval" if interval is None else f"[{interval.low:{form}}, {interval.high:{form}}]"
