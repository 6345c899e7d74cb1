"""Warnings: a code for programs and for docs/troubleshooting.md, a severity, and a message for people.

Refusals have codes of the same kind (`errors.REFUSALS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType, get_args

from flops_fit_ray.fit_options import SURFACES, SurfaceStatus, ValleyStatus

Severity = Literal["info", "warning", "severe"]
Flagged = NewType("Flagged", str)  # a message with its code behind it: only `Flag.text` makes one
LABELS = {"info": "note", "warning": "warning", "severe": "WARNING"}
# Every code that there is; docs/troubleshooting.md says of each what it means, and what to do
CODES = frozenset({
    # Of a table: what was assumed or left out
    "assumed", "binned", "budgets_by_nearness", "copies_left_out", "curves", "derived_column", "earlier_steps_left_out",
    "flops_factor", "left_out_rows", "optima", "other_settings_left_out", "other_values_left_out", "refused_rows",
    # Of two sweeps that are compared
    "other_data", "other_loss",
    # Of a plan: its budgets, sizes and recipe
    "axis_loss", "batch_norm", "constant_schedule", "few_sizes", "few_steps", "flat_rates", "long_trunk",
    "lr_not_measured", "one_budget", "one_long_experiment", "one_lr", "one_model", "rounded_budget",
    "sizes_above_optimum",
    # Of a plan: its data, loss and counts
    "dear_evaluation", "flops_ratio", "frozen", "held_out_small", "loss_mean", "no_data", "no_gradient",
    "no_held_out", "no_length", "other_samples", "repeated_samples", "synthetic", "token_file", "uncounted",
    # Of a sweep's files and results
    "batch_limited", "damaged", "lr_limited", "mixed_code",
    # Of points and budgets
    "checkpoints", "no_budget", "no_intervals", "narrow_range", "repeated_data", "unordered_minima",
    *(f"valley_{status}" for status in get_args(ValleyStatus) if status != "interior"),
    # Of methods
    "cost_law", "curve_chosen", "envelope_fitted", "envelope_no_law", "lack_of_fit", "learning_rates", "loss_rises",
    "lost_draws", "methods_agree", "methods_disagree", "surface_chosen", "valley_bias",
    *(f"{method}_{status}" for method in SURFACES for status in (*get_args(SurfaceStatus), "no_law")),
    # Of predictions
    "chance", "emergence", "extrapolation", "limited_data", "loss_law", "loss_not_reached", "metric_extrapolated",
    "published_law", "tokens_per_param",
})  # fmt: skip


@dataclass(frozen=True)
class Flag:
    """One warning. `code` is stable; the message may change."""

    code: str  # one of `CODES`
    severity: Severity
    message: str

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    def __str__(self) -> str:
        return self.message

    @property
    def text(self) -> Flagged:
        """The message with its place in docs/troubleshooting.md."""
        return Flagged(f"{self.message} [{self.code}]")

    @property
    def line(self) -> str:
        """The text as a line of a terminal: after its severity."""
        return f"{LABELS[self.severity]}: {self.text}"

    def to_json(self) -> dict[str, str]:
        """Return the flag as a JSON object."""
        return {"code": self.code, "severity": self.severity, "message": self.message}


def warning(code: str, message: str) -> Flag:
    """Return a flag to act on."""
    return Flag(code, "warning", message)
