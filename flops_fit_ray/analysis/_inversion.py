"""Inverses of laws and surfaces in every draw: the C, or the D at a fixed N, at which a loss is reached."""

from __future__ import annotations

import numpy as np

from flops_fit_ray.analysis._curved_law import CurvedDraws, CurvedLaw
from flops_fit_ray.analysis._law import Law, LawDraws
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface import Surfaces, lowest_total, tokens_for


def one_draw(law: Law) -> LawDraws:
    """Return a law itself as draws, (1,)."""
    if isinstance(law, CurvedLaw):
        return law.curve
    return LawDraws(
        exponent=np.array([law.exponent]),
        log10_coefficient=np.array([law.log10_coefficient]),
        offset=np.array([law.offset]),
    )


def log_compute_for(law: LawDraws, loss: Floats) -> Floats:
    """Return ln C at which laws of L_opt reach `loss`; both (draws,), or one of them (1,).

    L = E + K·C^-gamma gives ln C = ln((L - E)/K) / -gamma. It is infinite where L <= E, which no C reaches, and NaN
    where a draw has no law. A curved law has the least C of its surface at that loss.
    """
    above = loss - law.offset
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if isinstance(law, CurvedDraws):
            log_n, log_d = lowest_total(law.surfaces, law.cost, loss, 0.0)
            x = law.cost.per_token(log_n)[0] + log_d
        else:
            x = (np.log(above) - np.log(10) * law.log10_coefficient) / np.asarray(law.exponent)
    missing = np.isnan(law.exponent) | np.isnan(loss)
    return np.asarray(np.where(missing, np.nan, np.where(above > 0, x, np.inf)))


def log_tokens_for(surfaces: Surfaces, loss: Floats, log_params: float) -> Floats:
    """Return ln D at which surfaces reach `loss` (surfaces,) at one N; infinite where no D does, NaN without a draw."""
    log_d = tokens_for(surfaces, loss, np.array(log_params))
    missing = np.isnan(surfaces.alpha) | np.isnan(loss)
    return np.asarray(np.where(missing, np.nan, np.where(np.isnan(log_d), np.inf, log_d)))
