"""Published laws, and what they answer, as text for a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import PublishedAnswer, PublishedLaw

EXAMPLE = 1e21  # FLOPs at which the laws are shown beside each other


def laws_table(laws: Sequence[PublishedLaw]) -> str:
    """Return the laws beside each other: exponent of N_opt, and the optimum at C = 1e21."""
    rows = []
    for law in laws:
        n, d, loss = law.optimum(EXAMPLE)
        rows.append([law.name, "L(N, D)" if law.surface is not None else "optima", f"{law.laws[0].exponent:.4g}",
                     fmt.count(n), fmt.count(d), f"{d / n:.3g}", "" if loss is None else f"{loss:.4f}"])  # fmt: skip
    at = fmt.flops(EXAMPLE)
    return fmt.table(["name", "has", "a", f"N_opt({at})", "D_opt", "D/N", "L_opt"], rows, left=2)


def laws_text(laws: Sequence[PublishedLaw]) -> str:
    """Return one block for each law: source, formula with constants, runs, units, notes."""
    return "\n\n".join("\n".join(_lines(law)) for law in laws)


def _lines(law: PublishedLaw) -> list[str]:
    n, d, loss = law.laws
    constants = [
        f"{name} = {value:.15g}" + (f" (SE {law.stderr[name]:g})" if name in law.stderr else "")
        for name, value in law.constants.items()
    ]
    optima = [f"N_opt = {n.formula}", f"D_opt = {d.formula}", *([] if loss is None else [f"L_opt = {loss.formula}"])]
    ranges = [
        f"{name} from {show(span[0])} to {show(span[1])}"
        for name, span, show in (
            ("C", law.budgets, fmt.flops),
            ("N", law.params, fmt.count),
            ("D", law.tokens, fmt.count),
        )
        if span is not None
    ]
    return [
        f"{law.name}: {law.label}",
        f"  source     {law.source}",
        f"  law        {law.formula}",
        f"  constants  {', '.join(constants)}",
        *([f"  optima     {', '.join(optima)}"] if law.surface is not None else []),
        f"  fitted to  {', '.join(ranges)}",
        f"  units      loss: {law.loss_unit or 'none published'}; N: {law.params_counted}; C in FLOPs",
        f"  data       {law.data}",
        *([f"  note       {law.note}"] if law.note else []),
    ]


def published_text(answer: PublishedAnswer) -> str:
    """Return N, D and L of a published law at one C, and how far that is from its runs."""
    law = answer.law
    loss = "none published" if answer.loss is None else f"{answer.loss:.4f} {law.loss_unit}"
    known = [f"{one.quantity} {one.factor:.3g}x" for one in answer.distances if one.factor > 1]
    inside = "within the range of its runs" if answer.distances else "the paper does not say which runs"
    flags = [flag for flag in answer.warnings if flag.severity != "severe"]
    return "\n".join(
        [
            *(f"{flag}" for flag in answer.warnings if flag.severity == "severe"),
            f"C = {fmt.flops(answer.budget)} FLOPs, by {law.label} (no intervals)",
            f"  N  {fmt.count(answer.params)}  ({law.params_counted})",
            f"  D  {fmt.count(answer.tokens)}  (D/N {answer.tokens / answer.params:.3g}; {law.data})",
            f"  L  {loss}",
            f"  {'extrapolation factors beyond its runs: ' + ', '.join(known) if known else inside}",
            f"  {law.source}",
            *(flag.line for flag in flags),
            *([f"note: {law.note}"] if law.note else []),
        ]
    )
