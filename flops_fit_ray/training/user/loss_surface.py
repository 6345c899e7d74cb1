"""A loss surface of the user's own for simulated sweeps: `(params, tokens) -> loss`, arrays in, nats out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning.loss_surfaces import LossFunction, LossSurface, Numbers
from flops_fit_ray.training.user._targets import load_target
from flops_fit_ray.training.user.user_code import user_code

OPTION = "--surface"


def load_surface(target: str, base: Path) -> LossSurface:
    """Import the function that `module:function` names, relative to the directory `base`.

    Raises:
        SpecError: it cannot be imported. Calls of it raise one where it raises, or returns no finite positive losses.
    """
    try:
        function = load_target(target, base, OPTION)
    except SpecError as e:
        raise _refusal(e.faults[0].removeprefix(f"{OPTION}: ")) from e.__cause__
    return LossSurface(name=target, formula=f"L = {target}(N, D)", loss=_checked(function, target))


def _checked(function: Callable[..., Any], target: str) -> LossFunction:
    def loss(params: Numbers, tokens: Numbers) -> Numbers:
        n, d = (np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (params, tokens))
        found = _losses(function, target, n, d)
        return found if np.ndim(params) else float(found[0])

    return loss


def _losses(
    function: Callable[..., Any], target: str, params: NDArray[np.float64], tokens: NDArray[np.float64]
) -> NDArray[np.float64]:
    try:
        with user_code("raised"):
            found = np.asarray(function(params.copy(), tokens.copy()))  # it may write into them
    except SpecError as e:
        words = f"{e.faults[0]}; it is called with two numpy arrays, N and D, and returns their losses"
        raise _refusal(f"{target!r} {words}") from e.__cause__
    if found.shape != params.shape:
        raise _refusal(
            f"{target!r} returned an array of shape {found.shape} for {len(params)} sizes; return one loss for each"
        )
    if found.dtype.kind not in "fiu":
        raise _refusal(f"{target!r} returned values of type {found.dtype}; return losses in nats, as real numbers")
    losses = found.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(losses) & (losses > 0)))
    if len(wrong):
        i = int(wrong[0])
        raise _refusal(
            f"{target!r} returned {losses[i]:g} at N = {params[i]:.4g}, D = {tokens[i]:.4g}; a loss must be finite "
            "and positive, in nats, also between and beyond the sweep's sizes"
        )
    return losses


def _refusal(fault: str) -> SpecError:
    return SpecError(OPTION, [fault])
