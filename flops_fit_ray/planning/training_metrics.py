"""The measurements of one training: what the loop returns and a result records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from flops_fit_ray.storage.codec import Amount, Column, Count, PositiveInt, Record


@dataclass(frozen=True, kw_only=True)
class TrainingMetrics(Record):
    """Measurements of one experiment. A new number is added here and where it is measured, and nowhere else.

    Fields with a default are missing in results of earlier versions.
    """

    tokens_seen: Annotated[PositiveInt, Column(70)]  # D, counted in the batches
    loss: Annotated[float, Column(90, tracked=True)]  # nats per token unless the loss says otherwise; see `loss_kind`
    loss_stderr: Annotated[Amount | None, Column(100)]  # over held-out batches; None for a single batch
    loss_kind: Annotated[str, Column(110)] = "held-out"  # or "training, smoothed" where there is no held-out data
    train_loss: Annotated[float, Column(120, tracked=True)]  # mean over the last 5 % of the steps
    metrics: Mapping[str, float] = field(default_factory=dict)  # on the held-out data, by name
    # Training, of all attempts that this result rests on, and the last evaluation
    seconds: Annotated[Amount, Column(140, tracked=True)]
    tokens_per_second: Annotated[Amount | None, Column(230, tracked=True)] = None  # of training alone
    steps_per_second: Annotated[Amount | None, Column(232, tracked=True)] = None  # optimizer steps, at that speed
    samples_per_second: Annotated[Amount | None, Column(234, tracked=True)] = None
    flops_per_second: Annotated[Amount | None, Column(240)] = None
    mfu: Annotated[Amount | None, Column(250, tracked=True)] = None  # share of the devices' peak, where it is known
    peak_source: str = ""  # where that peak comes from, or why there is none
    peak_memory_bytes: Annotated[Count | None, Column(260)] = None
    data_wait_share: Annotated[Amount | None, Column(270)] = None  # of the training time
    # Of the training time, adding up the gradients of replicas, waits for the slowest of them included; None without
    all_reduce_share: Annotated[Amount | None, Column(275)] = None
    micro_batch_size: Annotated[PositiveInt | None, Column(220)] = (
        None  # samples in one forward and backward, at the end
    )
    precision: Annotated[str, Column(210)] = "fp32"  # what ran
    attention: str = "torch"  # the kernel that ran
    device: Annotated[str, Column(280)]
    workers: Annotated[PositiveInt, Column(180)] = 1  # that trained it together
    resumed_from: Count | None = None  # step of the checkpoint that the last attempt went on from
    parent_step: Count = 0  # steps that a trunk of another experiment had taken; 0 from scratch
    tokens_executed: Annotated[Count | None, Column(320)] = None  # D without the trunk's; None: all of it
    seconds_executed: Amount | None = None  # `seconds` without the trunk's
    # Of its GPUs while it trained, evaluated and saved, without the trunk's; None where a GPU does not say
    energy_joules: Annotated[Amount | None, Column(350, tracked=True)] = None
    tokens_per_joule: Annotated[Amount | None, Column(360, tracked=True)] = None
