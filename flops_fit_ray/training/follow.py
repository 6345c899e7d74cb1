"""Training an experiment as one of a group that does not lead: the same steps, and nothing written."""

from __future__ import annotations

import torch

from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.attention import attention_kernel
from flops_fit_ray.training.care import Care, Observer
from flops_fit_ray.training.group import Group
from flops_fit_ray.training.guest import Guest
from flops_fit_ray.training.loop import Training
from flops_fit_ray.training.step import settings


def follow(experiment: Experiment, guest: Guest, *, group: Group, device: str = "cpu", threads: int = 1) -> None:
    """Train with the leader of a group, who calls `train_experiment`, to the last step.

    Raises:
        Exception: whatever the user's model, data or loss raises, and torch's own where the leader has gone.
    """
    place = torch.device(device)
    with settings(threads), attention_kernel(experiment.recipe.precision, place):
        training = Training(experiment, guest, place, 0, Care(), Observer(), group)
        training.resume()
        training.advance()
