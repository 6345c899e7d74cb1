"""A model split over the workers of an experiment: fully sharded data parallelism (Zhao et al. 2023, arXiv:2304.11277).

Each worker keeps its part of every weight, gradient and optimizer state, and has the whole weights of a block only
while it computes with them. All workers must therefore run the same modules in the same order, and what a worker asks
its group for, all of them must ask for: the leader tells the others what it is about to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from flops_fit_ray.training.data.batch import map_tensors
from flops_fit_ray.training.distributed.group import Action, Group

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class ShardedGroup(Group):
    """One of several workers, each with its part of the model."""

    sharded = True

    def all_reduce_gradients(self, params: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """The sum of the losses; the backward pass has summed the gradients."""
        summed = loss.double()
        dist.all_reduce(summed)
        return summed.to(loss.dtype)

    def place_model(self, model: nn.Module, device: torch.device) -> None:
        """Bring this worker's part of a model to the device, block by block: the whole may be larger."""
        self.broadcast_weights(model, device)
        shard_model(model, device, self.world_size)

    def gather_full(self, value: Any) -> Any:
        """A tree of plain values, with every tensor that is split put together, on the CPU."""
        return map_tensors(value, _full_tensor)

    def gather_model_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's state, whole; a tied weight is one tensor, as it is in the model."""
        params = dict(model.named_parameters(remove_duplicate=False))
        found: dict[int, Tensor] = {}
        state = {}
        for name, tensor in model.state_dict().items():
            if (param := params.get(name)) is None:
                state[name] = tensor
            else:
                if id(param) not in found:
                    found[id(param)] = _full_tensor(tensor)
                state[name] = found[id(param)]
        return state

    def distribute_state(
        self, state: Mapping[str, Any] | None, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Mapping[str, Any] | None:
        """The leader's state: this worker's part of what is split, and all of the rest.

        A whole optimizer state of a model that needs this does not fit into each worker, so tensors come one by one.
        """
        tensors: list[Tensor] = []
        box = [None if state is None else _extract_tensors(state, model, optimizer, tensors)]
        dist.broadcast_object_list(box, src=0)
        found = box[0]
        if found is None:
            return None
        mesh = next(p.device_mesh for p in model.parameters() if isinstance(p, DTensor))
        device = torch.device(mesh.device_type)

        def filled(value: Any) -> Any:
            if isinstance(value, _Placeholder):
                full = tensors.pop(0) if self.is_leader else torch.empty(value.shape, dtype=value.dtype)
                full = full.to(device)
                return distribute_tensor(full, mesh, [Shard(0)], src_data_rank=0)
            return {key: filled(part) for key, part in value.items()} if isinstance(value, dict) else value

        return {**found, "model": filled(found["model"]), "optimizer": filled(found["optimizer"])}

    def announce(self, action: Action) -> None:
        """Have the others do what this worker, their leader, is about to do."""
        if self.is_leader:
            self._exchange(action)

    def actions(self, steps: int) -> Iterator[Action]:
        """What the leader has the others do, until it is done."""
        while (action := self._exchange(Action.END)) != Action.END:
            yield action

    def _exchange(self, action: Action) -> Action:
        """The leader's action, on every worker."""
        box = torch.tensor([action], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(box, src=0)
        return Action(int(box))


def _full_tensor(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def shard_model(model: nn.Module, device: torch.device, world_size: int) -> None:
    """Leave this worker with its part of a model that all of them hold whole, on the device.

    Raises:
        ValueError: a parameter that cannot be split: a number without dimensions.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    units = fsdp_units(model)
    for unit in (*units, model):
        unit.register_forward_hook(_clone_views)  # before torch's own hook
    for block in units:
        fully_shard(block, mesh=mesh)
    whole_model = fully_shard(model, mesh=mesh)
    # Where a sample decides which weights are used, all workers must still sum the same ones
    whole_model.set_reduce_scatter_unused_params(True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The shares of a batch are weighted already: the sum of their gradients is the gradient of the mean
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _clone_views(module: nn.Module, args: Any, output: Any) -> Any:
    """A module's output with a copy for every view of another tensor.

    Weights are gathered for the backward pass when the gradient of the output is there. Of a view that is changed in
    place (`x += y`) torch never hears that, and would go on with other weights, in silence.
    """
    if isinstance(output, Tensor):
        return output.clone() if output._is_view() else output
    if isinstance(output, MutableMapping):  # a class of its own, often
        for name, value in list(output.items()):
            output[name] = _clone_views(module, args, value)
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_clone_views(module, args, value) for value in output))
    if isinstance(output, tuple | list):
        return type(output)(_clone_views(module, args, value) for value in output)
    return output


def fsdp_units(model: nn.Module) -> list[nn.Module]:
    """What is gathered at once: the modules of the outermost lists, but for those that share a weight with another."""
    everywhere = _count_uses(model)
    return [
        b
        for b in _container_members(model)
        if (own := _count_uses(b)) and all(everywhere[p] == count for p, count in own.items())
    ]


def _container_members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, CONTAINERS):
            yield from child.children()
        else:
            yield from _container_members(child)


def _count_uses(module: nn.Module) -> Counter[int]:
    """How many modules hold each parameter."""
    return Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))


@dataclass(frozen=True)
class _Placeholder:
    """Where a tensor belongs that every worker gets its part of."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _extract_tensors(
    state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, tensors: list[Tensor]
) -> dict[str, Any]:
    """A state with gaps where the tensors were that are to be split; they are appended to `tensors`, in this order."""

    def placeholder(tensor: Tensor) -> _Placeholder:
        tensors.append(tensor)
        return _Placeholder(tuple(tensor.shape), tensor.dtype)

    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    shapes = dict(enumerate(p.shape for group in optimizer.param_groups for p in group["params"]))

    def like_its_param(number: Any, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and value.shape == shapes.get(number)

    weights = {name: placeholder(t) if name in names else t for name, t in state["model"].items()}
    moments = {
        number: {name: placeholder(v) if like_its_param(number, v) else v for name, v in of_param.items()}
        for number, of_param in state["optimizer"].get("state", {}).items()
    }
    return {**state, "model": weights, "optimizer": {**state["optimizer"], "state": moments}}
