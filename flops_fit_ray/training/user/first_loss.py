"""The loss of an untrained model on the first samples, in the process that plans and in each that trains."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from flops_fit_ray.errors import DataDiffersError
from flops_fit_ray.planning import FirstLoss, ModelSize
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.user.parts import UserParts, build

SAMPLES = 2
MAX_BYTES = 16 * 2**20  # of samples that travel to every worker


def first_loss(user: UserParts, size: ModelSize, batch: Batch) -> FirstLoss | None:
    """Return the loss of a model before it is trained; None where it is not the same a second time, or too large.

    Args:
        batch: of the training data, of which the first samples are taken.
    """
    two = batch.split(SAMPLES)[0] if batch.splits else batch
    tensors = [leaf for leaf in tree_leaves(two.content) if isinstance(leaf, torch.Tensor)]
    if sum(t.nbytes for t in tensors) > MAX_BYTES:
        return None
    found, again = (_loss(user, size.kwargs, two) for _ in range(2))
    if found is None or not math.isfinite(found[0]) or found != again:  # it draws by a seed of its own
        return None
    return FirstLoss(size=size.size, kwargs=size.kwargs, batch=two, loss=found[0], rounding=found[1], host=hostname())


def compare_first_loss(user: UserParts, planned: FirstLoss) -> None:
    """Compare the model and the loss of this process with those of the plan.

    What this process cannot build or run is named by its training.

    Raises:
        DataDiffersError: they are not the same.
    """
    found = _loss(user, planned.kwargs, planned.batch)
    fault = None if found is None else planned.difference(found[0], hostname())
    if fault is not None:
        raise DataDiffersError("model", [fault])


def _loss(user: UserParts, kwargs: Mapping[str, Any], batch: Batch) -> tuple[float, float] | None:
    """Return the loss with seeded generators, and the rounding of its numbers; None where there is none."""
    outside = RandomState.capture()
    RandomState.seed(0)
    try:
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):  # planning has met them before
            model = build(user, kwargs).eval()
            found = torch.as_tensor(user.objective(model, batch)).detach()
            kinds = [found.dtype, *(p.dtype for p in model.parameters() if p.is_floating_point())]
            return float(found), 4 * max(torch.finfo(kind).eps for kind in kinds)
        return None
    finally:
        RandomState.restore(outside)
