"""Fits, predictions and comparisons as text for a terminal or a log."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import (
    METHODS,
    Analysis,
    Comparison,
    Interval,
    Sensitivity,
    SweepFit,
)
from flops_fit_ray.sweep.minima import Minimum
from flops_fit_ray.sweep.recommend import Recommendation
from flops_fit_ray.sweep.validity import CardItem, CardVerdict
from flops_fit_ray.tables import Table

MAX_VALLEYS = 40  # lines
MAX_HOLD_OUTS = 10


def table_text(table: Table) -> str:
    """Return the columns, the number of rows and the warnings of a table of runs."""
    columns = ", ".join(f"{ours} = {theirs!r}" for ours, theirs in table.columns.items())
    lines = [f"{table.path}: {len(table.points)} of {table.rows} rows; {columns}"]
    return "\n".join([*lines, *(flag.line for flag in table.flags), ""])


def analysis_text(analysis: Analysis) -> str:
    """Return the whole analysis: fit, methods, predictions, sensitivity panel, doubts, hold-outs."""
    fit = analysis.fit
    notes = [flag.line for flag in fit.warnings if flag.severity == "info"]
    notes += [f"note: {fit.skew.words}"] if fit.skew is not None and fit.default == "valley" else []
    blocks = ["\n".join([fit_text(fit), *notes])]
    if analysis.target is not None and sum(method.params_opt is not None for method in fit.methods.values()) > 1:
        blocks.append(methods_text(analysis))
    blocks += [str(one) for one in analysis.predictions]
    if analysis.published is not None:
        blocks.append(analysis.published.words)
    if analysis.sensitivity is not None:
        blocks.append(panel_text(analysis.sensitivity))
    said = {flag for one in analysis.predictions for flag in one.warnings}
    blocks.append("\n".join(flag.line for flag in analysis.doubts if flag not in said))
    blocks.append(hold_out_text(analysis))
    return "\n\n".join(block for block in blocks if block)


def fit_text(fit: SweepFit) -> str:
    """Return valleys, laws and warnings; notes are only in `analysis_text`."""
    rows = []
    shown = [(v, i) for v, i in zip(fit.valleys, fit.intervals, strict=True) if fit.points.labelled or len(v.loss) > 2]
    for valley, intervals in shown[:MAX_VALLEYS]:
        row = [fmt.flops(valley.budget), str(len(valley.loss))]
        if valley.status != "interior":
            rows.append([*row, valley.status, "", "", "", ""])
            continue
        params, tokens = (intervals.params_opt, intervals.tokens_opt) if intervals else (None, None)
        row += [
            fmt.count(valley.params_opt),
            _bounds(params),
            fmt.count(valley.tokens_opt),
            _bounds(tokens),
        ]
        rows.append([*row, f"{valley.loss_opt:.4f}"])
    percent = f"{100 * fit.options.confidence:g} %"
    lines = []
    if rows:
        lines += [fmt.table(["C", "runs", "N_opt", percent, "D_opt", percent, "L_opt"], rows), ""]
    if fit.laws and fit.default != "valley":
        lines.append(f"{fit.answer.label}:")
    for name, law in fit.laws:
        bounds = law.exponent_interval(fit.options.confidence)
        shown_bounds = f"  exponent {percent} [{bounds.low:.3f}, {bounds.high:.3f}]" if bounds else ""
        lines.append(f"{name} = {law.formula}{shown_bounds}")
    if fit.problem:
        others = [name for name in METHODS if name in fit.methods and fit.methods[name].params_opt is not None]
        lines.append(f"no law: {fit.problem}" + (f"; there is one by --method {others[0]}" if others else ""))
    elif not fit.options.draws:
        lines.append("no intervals: draws is 0")
    loud = [flag for flag in fit.warnings if flag.severity != "info"]
    return "\n".join([*lines, *(flag.line for flag in loud)])


def minima_text(minima: Sequence[Minimum]) -> str:
    """Return the metrics at the minima as a table; empty without metrics."""
    names = sorted({name for minimum in minima for name in minimum.metrics})
    rows = [
        [fmt.flops(m.budget), fmt.count(m.params), *(f"{m.metrics[n]:.4g}" if n in m.metrics else "" for n in names)]
        for m in minima
    ]
    return fmt.table(["C", "N_opt", *names], rows) if names else ""


def methods_text(analysis: Analysis) -> str:
    """Return a table of the methods, one line each, and the Huber surface."""
    fit, target = analysis.fit, analysis.target
    assert target is not None
    rows = []
    for name in METHODS:
        method = fit.methods.get(name)
        if method is None:
            continue
        law = method.params_opt
        if law is None:
            rows.append([method.label, method.status, "", "", "", ""])
            continue
        bounds = law.exponent_interval(fit.options.confidence)
        exponents = f"[{bounds.low:.3f}, {bounds.high:.3f}]" if bounds else ""
        answer = law.interval(target, fit.options.confidence)
        rows.append([method.label, method.status, f"{law.exponent:.4f}", exponents, fmt.count(law.at(target)),
                     _bounds(answer)])  # fmt: skip
    percent = f"{100 * fit.options.confidence:g} %"
    lines = [fmt.table(["method", "status", "a", percent, f"N_opt({fmt.flops(target)})", percent], rows)]
    surface = fit.surface.surface
    if surface is not None and surface.usable and surface.surface is not None:
        s, starts = surface.surface, surface.starts
        arrived = f"; {starts.arrived} of {starts.total} starts come there" if starts else ""
        e, a, b = (float(x[0]) for x in (s.log_e, s.log_a, s.log_b))
        terms = f"{math.exp(a):.5g}/N^{s.alpha[0]:.4f} + {math.exp(b):.5g}/D^{s.beta[0]:.4f}"
        shown = f"({terms})^{s.k[0]:.4f}" if surface.form == "coupled" else terms
        loss = "Huber" if surface.loss == "huber" else "squared error"
        lines.append(f"L = {math.exp(e):.5g} + {shown} ({loss}, objective {surface.objective:.6g}{arrived})")
    return "\n".join(lines)


def panel_text(panel: Sensitivity) -> str:
    """Return the sensitivity panel as a table, and its sentence."""
    base = panel.rows[0].params
    assert base is not None
    rows = []
    for row in panel.rows:
        if row.params is None or row.exponent is None or row.tokens is None:
            rows.append([row.lever, row.choice, "-", "", "", ""])
            continue
        rows.append([row.lever, row.choice, fmt.count(row.params), f"x{row.params / base:.3f}",
                     fmt.count(row.tokens), f"{row.exponent:.4f}"])  # fmt: skip
    names = [cells[0] for cells in rows]
    for i in range(1, len(rows)):  # a lever is named once
        rows[i][0] = "" if names[i] == names[i - 1] else names[i]
    head = ["lever", "choice", f"N_opt({fmt.flops(panel.budget)})", "ratio", "D_opt", "a"]
    return fmt.table(head, rows, left=2) + "\n" + panel.sentence


_INSIDE = {None: "", True: ", inside its interval", False: ", OUTSIDE its interval"}


def hold_out_text(analysis: Analysis) -> str:
    """Return the error of each top budget's N_opt as predicted from the budgets below it."""
    lines = [
        f"  C = {fmt.flops(one.budget)} from the {one.fitted} below ({one.extrapolation:.3g}x beyond): "
        f"N_opt {fmt.count(one.predicted)} predicted, {fmt.count(one.observed)} observed, off by x{one.factor:.3g}"
        f"{_INSIDE[one.inside]}"
        for one in analysis.top_hold_outs[-MAX_HOLD_OUTS:]
    ]
    if analysis.loss_hold_out is not None:
        h = analysis.loss_hold_out
        lines.append(
            f"  losses of the top {h.points} runs, predicted by a surface through the others: {h.rms:.4f} rms, "
            f"bias {h.bias:+.4f}"
        )
    return "\n".join(["hold-out:", *lines]) if lines else ""


def card_text(card: Sequence[CardItem]) -> str:
    """Return the validity card's count of verdicts, and its warnings and failures."""
    counts = Counter(item.verdict for item in card)
    verdicts: tuple[CardVerdict, ...] = ("PASS", "WARN", "FAIL", "UNKNOWN")
    totals = ", ".join(f"{counts[verdict]} {verdict}" for verdict in verdicts if counts[verdict])
    lines = [f"  {item.verdict}  {item.item}: {item.words}" for item in card if item.verdict in ("WARN", "FAIL")]
    return "\n".join([f"validity: {totals}", *lines])


def recommendation_text(advice: Recommendation) -> str:
    """Return the recommended training run."""
    size = f"{advice.size_param or 'size'} = {advice.size}, " if advice.size is not None else ""
    lines = [
        f"run: {size}N = {fmt.count(advice.params)}, D = {fmt.count(advice.tokens)}, {advice.steps:,} steps of "
        f"{advice.batch_size} samples, lr {advice.lr:.3g}"
    ]
    if advice.seconds is not None:
        within = advice.seconds_interval
        bounds = f" [{fmt.duration(within.low)}, {fmt.duration(within.high)}]" if within else ""
        lines.append(f"  {fmt.duration(advice.seconds)}{bounds} at the measured speed of one {advice.device}")
    return "\n".join([*lines, *(f"note: {note}" for note in advice.notes)])


def comparison_text(comparison: Comparison, first: str, second: str) -> str:
    """Return two laws side by side."""
    rows = []
    for d in comparison.differences:
        ratio = d.neutral == 1
        value = f"x{d.difference:.4g}" if ratio else f"{d.difference:+.4f}"
        bounds = ""
        if d.interval is not None:
            low, high = d.interval.low, d.interval.high
            bounds = f"[x{low:.4g}, x{high:.4g}]" if ratio else f"[{low:+.4f}, {high:+.4f}]"
        shown = [fmt.count(v) if ratio else f"{v:.4f}" for v in (d.a, d.b)]
        verdict = {True: "differs", False: "no significant difference", None: "no interval"}[d.differs]
        rows.append([d.name, *shown, value, bounds, verdict])
    percent = f"{100 * comparison.confidence:g} %"
    head = ["", "first", "second", "second against first", percent, ""]
    return "\n".join(
        [
            f"first:  {first}",
            f"second: {second}",
            f"at C = {fmt.flops(comparison.budget)} FLOPs, by {comparison.method}",
            fmt.table(head, rows),
            *speedup_lines(comparison),
            "extrapolation factors "
            + " and ".join(
                "not published" if factor is None else f"{factor:.3g}" for factor in comparison.extrapolation
            ),
            *(flag.line for flag in comparison.warnings),
        ]
    )


def speedup_lines(comparison: Comparison) -> list[str]:
    """Return the lines on the effective speedup of the second; none where it has none."""
    found = comparison.speedup
    if found is None:
        return []
    if found.verdict == "incomparable":
        return [found.words]
    ends = [one for one in (found.curve[0], found.curve[-1]) if one.budget != found.at.budget]
    elsewhere = [f"{fmt.factor(one.factor)}{_factors(one.interval)} at {fmt.flops(one.budget)}" for one in ends]
    lines = [
        f"{100 * comparison.confidence:g} %: {found.words}",
        f"  {found.basis_words}" + (f"; {', '.join(elsewhere)}" if elsewhere else ""),
    ]
    if found.tokens is not None:
        t = found.tokens
        lines.append(
            f"  or {fmt.factor(t.factor)}{_factors(t.interval)} of the tokens, at N = {fmt.count(t.params)} and D = "
            f"{fmt.count(t.tokens)}, by the surfaces"
        )
    if found.deciding is not None:
        lines.append(f"  {found.deciding.words}")
    return lines


def _factors(interval: Interval | None) -> str:
    return f" [{fmt.factor(interval.low)}, {fmt.factor(interval.high)}]" if interval else ""


def _bounds(interval: Interval | None) -> str:
    return fmt.interval(interval.low, interval.high) if interval else ""
