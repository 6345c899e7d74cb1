"""Warnings about a number: a code for programs, a severity, and a message for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from flops_fit_ray.fit_options import SURFACES, SurfaceStatus, ValleyStatus

Severity = Literal["info", "warning", "severe"]
LABELS = {"info": "note", "warning": "warning", "severe": "WARNING"}
# Every code that there is; docs/troubleshooting.md says of each what it means, and what to do
CODES = frozenset({
    # Of a table: what was assumed or left out
    "assumed", "binned", "budgets_by_nearness", "copies_left_out", "curves", "derived_column", "earlier_steps_left_out",
    "flops_factor", "left_out_rows", "optima", "other_settings_left_out", "refused_rows",
    # Of two sweeps that are compared
    "other_data", "other_loss",
    # Of a sweep's files
    "damaged",
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
    def line(self) -> str:
        """The message as a line of a terminal: after its severity, and with its place in docs/troubleshooting.md."""
        return f"{LABELS[self.severity]}: {self.message} [{self.code}]"

    def to_json(self) -> dict[str, str]:
        """Return the flag as a JSON object."""
        return {"code": self.code, "severity": self.severity, "message": self.message}
