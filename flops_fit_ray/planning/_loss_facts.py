"""Facts about the losses of a sweep: how the loss of a batch is put together from those of its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from flops_fit_ray.flags import Flagged
from flops_fit_ray.storage.codec import Record

if TYPE_CHECKING:
    from flops_fit_ray.spec import SweepSpec


@dataclass(frozen=True, kw_only=True)
class Average(Record):
    """Rule by which a loss averages, so what the parts of a batch weigh in the loss of the whole.

    over:
        auto     integer targets that are not -100, else samples
        targets  integer targets that are none of `ignored`, each with the weight of its class where there are weights
        present  targets that are not NaN
        mask     the sum of a mask or of weights in the batch
        samples  samples, whatever their targets
        sum      nothing: the loss of a batch is the sum of those of its parts
        count    nothing: the loss returns its sum and its count
        whole    the loss is no mean over parts: only a whole batch has one
    """

    over: Literal["auto", "targets", "present", "mask", "samples", "sum", "count", "whole"] = "auto"
    ignored: tuple[int, ...] = ()
    skip_first: bool = False  # the first position of every sample does not count: targets are shifted in the loss
    mask: str = ""  # path of the mask in the batch: a key or a number, for nested ones several with dots between
    class_weights: tuple[float, ...] = ()

    def __str__(self) -> str:
        first = ", without the first of each sample" if self.skip_first else ""
        return {
            "auto": "a mean over integer targets that are not -100, else over samples",
            "targets": f"a mean over targets{self._but()}{first}{self._weighted()}",
            "present": "a mean over targets that are not NaN",
            "mask": f"a mean weighed by {self.mask!r} of the batch{first}",
            "samples": "a mean over samples",
            "sum": "a sum over samples; held-out losses are sums over train.batch_size samples",
            "count": "sum and count, as the loss returns them",
            "whole": "no mean over parts of a batch, so batches are never split; "
            "held-out losses are means over batches of train.batch_size samples",
        }[self.over]

    def _but(self) -> str:
        return f" that are not {' or '.join(map(str, self.ignored))}" if self.ignored else ""

    def _weighted(self) -> str:
        return f", with {len(self.class_weights)} class weights" if self.class_weights else ""


@dataclass(frozen=True, kw_only=True)
class LossFacts(Record):
    """The facts about the loss and the metrics of a sweep that were learnt by trying them."""

    average: Average = Average()
    metrics: Mapping[str, Average] = field(default_factory=dict)  # by name
    classes_second: bool = False  # cross_entropy: where shapes leave it open, logits are (samples, classes, positions)
    warnings: tuple[Flagged, ...] = ()


NOTHING_LEARNT = LossFacts()


def perplexity(spec: SweepSpec, loss: float) -> float | None:
    """Return the perplexity of a loss; None where its unit is not known, or beyond floats."""
    if spec.loss_in is None or loss * spec.nats > 700:
        return None
    return math.exp(loss * spec.nats)


def derived_metrics(spec: SweepSpec, loss: float) -> dict[str, float]:
    """Return what follows from a loss whose unit is known: the perplexity, and the bits per byte."""
    if spec.loss_in is None:
        return {}
    found = {} if (value := perplexity(spec, loss)) is None else {"perplexity": value}
    per_token = spec.data.bytes_per_token
    return found if per_token is None else {**found, "bits_per_byte": loss * spec.nats / math.log(2) / per_token}
