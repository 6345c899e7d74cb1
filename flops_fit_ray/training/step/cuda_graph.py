"""The whole optimizer step as one CUDA graph, for small models, which are bound by kernel launches.

1) The first WARMUP_STEPS steps run eagerly on a side stream: libraries choose kernels and allocate workspaces there,
   which must not happen during capture (torch's notes on CUDA semantics, "CUDA Graphs").
2) Forward, backward, clipping and the optimizer are captured once. The graph reads the batch from `_content` and the
   learning rate from tensors on the device, at fixed addresses.
3) From then on a step copies its batch and learning rate there and replays the graph.

A model that cannot be captured (it reads a number from the device, or shapes change) trains eagerly, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_ray.errors import first_line
from flops_fit_ray.planning import Recipe
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.data.batch import map_tensors
from flops_fit_ray.training.distributed.group import SINGLE_WORKER, Group
from flops_fit_ray.training.step.device import DeviceTimer
from flops_fit_ray.training.step.stepper import Stepper
from flops_fit_ray.training.user.parts import UserParts

WARMUP_STEPS = 3  # real optimizer steps


def make_stepper(
    model: nn.Module,
    user: UserParts,
    recipe: Recipe,
    steps: int,
    device: torch.device,
    say: Callable[[str], None],
    group: Group = SINGLE_WORKER,
    all_reduces: DeviceTimer | None = None,
) -> Stepper:
    """Return the stepper of a recipe: a CUDA graph if it asks for one and can be captured."""
    capturable = (
        recipe.cuda_graph
        and group.is_single
        and device.type == "cuda"
        and user.optimizer is None
        and recipe.optimizer == "adamw"
        and recipe.precision != "fp16"  # GradScaler reads from the device at every step whether to skip it
        and recipe.micro_batch_size == recipe.batch_size
    )
    if recipe.cuda_graph and not capturable:
        say("train.cuda_graph needs one GPU, adamw, fp32 or bf16, and no micro-batches; running eagerly")
    if not capturable:
        return Stepper(model, user, recipe, steps, device, group, all_reduces)
    made = CUDAGraphStepper(model, user, recipe, steps, device)
    made.say = say
    return made


class CUDAGraphStepper(Stepper):
    """Replays a CUDA graph from its fourth step on, as long as batches keep their shapes."""

    say: Callable[[str], None]

    def __init__(self, model: nn.Module, user: UserParts, recipe: Recipe, steps: int, device: torch.device) -> None:
        super().__init__(model, user, recipe, steps, device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._taken = 0  # steps in this process
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False
        self._content: Any = None  # the batch that the graph reads
        self._graph_loss: Tensor
        self._graph_norm: Tensor | None = None

    def _write_lr(self, group: dict[str, Any], lr: float) -> None:
        """Write the rate to the device, where the graph reads it. A loaded checkpoint has a number or a CPU tensor."""
        group["capturable"] = True
        if not (isinstance(group["lr"], Tensor) and group["lr"].is_cuda):
            group["lr"] = torch.zeros((), device=self._device)
        group["lr"].fill_(lr)

    def advance(self, batch: Batch, step: int) -> tuple[Tensor, Tensor | None]:
        """Take optimizer step `step`, by replaying the graph if there is one.

        The tensors returned are the graph's own: the next replay writes over them.
        """
        self._taken += 1
        if self._failed:
            return super().advance(batch, step)
        if self._taken <= WARMUP_STEPS:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                found = super().advance(batch, step)
            torch.cuda.current_stream().wait_stream(self._stream)
            return found
        if self._graph is None:
            self._capture(batch.to(self._device))
        if self._graph is None or not _copied(self._content, batch.content):
            return super().advance(batch, step)
        self.set_lr(step)
        self._graph.replay()
        return self._graph_loss, self._graph_norm

    def _capture(self, batch: Batch) -> None:
        self._content = map_tensors(batch.content, Tensor.clone)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        try:
            # What other threads ask of the device must neither fail nor end the capture: the feed reads the next batch
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._graph_loss = self._accumulate_gradients(Batch(self._content, batch.num_samples))
                self._graph_norm = self._update()
        except Exception as e:  # noqa: BLE001 - the user's code may raise anything; eagerly it is still right
            self._failed = True
            self.optimizer.zero_grad()
            torch.cuda.synchronize(self._device)
            self.say(f"CUDA graph capture failed ({type(e).__name__}: {first_line(e)}); running eagerly")
            return
        self._graph = graph


def _copied(to: Any, source: Any) -> bool:
    """Copy a batch into the tensors that the graph reads; False if its structure, shapes or dtypes differ."""
    if isinstance(to, Tensor):
        if not isinstance(source, Tensor) or to.shape != source.shape or to.dtype != source.dtype:
            return False
        to.copy_(source, non_blocking=True)
        return True
    if isinstance(to, Mapping):
        return isinstance(source, Mapping) and to.keys() == source.keys() and all(_copied(to[k], source[k]) for k in to)
    if isinstance(to, tuple | list):
        return len(to) == len(source) and all(_copied(a, b) for a, b in zip(to, source, strict=True))
    return bool(to == source)
