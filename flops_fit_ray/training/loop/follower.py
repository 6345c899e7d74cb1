"""The training loop of a worker that is not the leader of its group: the same steps, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.distributed.group import Action, Group
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.step.attention import attention_kernel
from flops_fit_ray.training.step.stepper import memory_errors_named, torch_threads
from flops_fit_ray.training.user.parts import UserParts


def run_follower(
    experiment: Experiment,
    user: UserParts,
    *,
    eval_samples: int,
    group: Group,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Train along with the leader, which calls `train_experiment`, to the last step.

    Args:
        eval_samples: as for the leader; with a sharded model all workers evaluate.

    Raises:
        Exception: whatever the user's model, data or loss raises; torch's own if the leader is gone.
    """
    place = torch.device(device)
    with torch_threads(threads), attention_kernel(experiment.recipe.precision, place), memory_errors_named():
        worker = Worker(experiment, user, place, eval_samples=eval_samples, group=group)
        worker.resume()
        handlers: dict[Action, Callable[[], object]] = {
            Action.ADVANCE: lambda: worker.advance(1),
            Action.EVALUATE: worker.evaluate,
            Action.STATE: worker.state,
            Action.WEIGHTS: worker.weights,
        }
        for action in group.actions(experiment.steps - worker.step):
            handlers[action]()
