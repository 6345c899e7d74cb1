"""Batch sizes tried beside the minima of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flops_fit_ray.ledger import ExperimentResult
from flops_fit_ray.planning import Experiment
from flops_fit_ray.sweep._lr_checks import Beside


@dataclass(frozen=True, kw_only=True)
class BatchCheck(Beside):
    """Another batch size beside one minimum, at the same D and with a learning rate that goes with it."""

    batch_size: int  # samples
    grid_batch_size: int  # of the minimum
    lr_factor: float  # of the rate that the grid has there

    def words(self, *, from_python: bool = False) -> str:
        """Return the sentence that reports show, with the way out."""
        way = (
            f"batch_size={self.batch_size}, new=True" if from_python else f"train.batch_size: {self.batch_size}, --new"
        )
        return (
            f"batch-limited: at C = {self.budget:g}, size {self.size}, batches of {self.batch_size} samples instead of "
            f"{self.grid_batch_size}, at {self.lr_factor:.2g} times the learning rate, are better by {self.gain:.3g}: "
            f"the valleys are not those of well tuned models; to train all with them, {way}"
        )


def batch_checks(
    results: Sequence[ExperimentResult], planned: Mapping[str, Experiment], sigma: float | None
) -> tuple[BatchCheck, ...]:
    """Return the checks both of whose runs are there.

    Args:
        planned: experiments by key, whose recipes have the batch sizes.
        sigma: standard deviation of one run's loss.
    """
    by_key = {r.key: r for r in results}
    return tuple(
        BatchCheck(
            budget=r.budget,
            size=r.size,
            batch_size=planned[r.key].recipe.batch_size,
            grid_batch_size=planned[r.of].recipe.batch_size,
            lr_factor=r.lr / by_key[r.of].lr,
            gain=by_key[r.of].loss - r.loss,
            sigma=sigma,
        )
        for r in results
        if r.role == "batch_check" and r.of in by_key and {r.key, r.of} <= planned.keys()
    )
