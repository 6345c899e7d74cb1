"""Minima that are none: between sizes in the curve, but not by the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flops_fit_ray.analysis._valley_minima import MinimaErrors
from flops_fit_ray.analysis.valley import Valley

STANDARD_ERRORS = 1.96  # of log10 N on each side: 95 % of a normal


def bracketed(valleys: Sequence[Valley], errors: MinimaErrors | None) -> tuple[Valley, ...]:
    """Take the status `interior` from valleys whose minimum the losses do not show.

    - `edge`: the curve falls below 0, or by more than all losses span: it does not follow the losses, whose minimum is
      where no sizes were run.
    - `concave`: the noise leaves the minimum a range that is wider than the sizes that were run, as a curve does that
      may as well bend the other way.

    Args:
        errors: covariances of the minima by the noise of their losses; None where that is not known.
    """
    own = [0.0] * len(valleys) if errors is None else np.sqrt(np.diag(errors.log10_params))
    return tuple(_checked(v, float(e)) if v.status == "interior" else v for v, e in zip(valleys, own, strict=True))


def _checked(valley: Valley, error: float) -> Valley:
    params, loss = valley.params[valley.used], valley.loss[valley.used]
    lowest, highest, least = float(loss.min()), float(loss.max()), valley.loss_opt
    if least <= 0 or lowest - least > highest - lowest:
        fall = "below 0" if least <= 0 else f"to {least:.4g}, further below the lowest loss than all losses span"
        side = {float(params[0]): "smaller ", float(params[-1]): "larger "}.get(float(params[loss.argmin()]), "")
        reason = f"the curve falls {fall}, so it does not follow the losses; add {side}sizes, and some between"
        return replace(valley, status="edge", reason=reason)
    span = float(np.ptp(np.log10(params)))
    if 2 * STANDARD_ERRORS * error > span:
        reason = (
            f"noise leaves N_opt open by x/÷{10 ** (STANDARD_ERRORS * error):.3g}, more than the sizes that were run "
            f"(x/÷{10 ** (span / 2):.3g}); add seeds, or sizes further apart"
        )
        return replace(valley, status="concave", reason=reason)
    return valley
