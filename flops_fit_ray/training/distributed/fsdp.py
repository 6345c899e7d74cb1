"""Fully sharded data parallelism (Zhao et al. 2023, arXiv:2304.11277), by torch's `fully_shard` (FSDP2).

Each worker keeps a shard of every weight, gradient and optimizer state, and all-gathers the weights of a block while it
computes with them. So all workers must run the same modules in the same order, and every gather is a collective: the
leader announces what it is about to do, and the others join.

Checkpoints have the layout of one worker, so that any number of workers can resume them. They are gathered and
distributed by hand, not by `torch.distributed.checkpoint.state_dict` (torch 2.13), because `set_optimizer_state_dict`

- refuses a checkpoint in which a parameter has no optimizer state ("Missing optimizer state for parameter"), as
  replicas write it of a parameter without gradients; with `strict=False` that parameter gets the state of step 1;
- takes an optimizer step to create the state that it fills, which a user's own optimizer may not survive;
- names states by parameter where checkpoints number them; and `get_model_state_dict` copies a tied weight per name.
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
from flops_fit_ray.training.user.layers import blocks_of


class ShardedGroup(Group):
    """One of several workers with a shard of the model each."""

    sharded = True

    def all_reduce_gradients(self, params: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Return the sum of the losses. The gradients have been reduce-scattered by the backward pass."""
        summed = loss.double()
        dist.all_reduce(summed)
        return summed.to(loss.dtype)

    def place_model(self, model: nn.Module, device: torch.device) -> None:
        """Move this worker's shard of a model to the device, block by block: the whole may not fit."""
        self.broadcast_weights(model, device)
        shard_model(model, device, self.world_size)

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Return a tensor unsharded, on every worker."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def _gather(self, tensor: Tensor) -> Tensor:
        """Gather a tensor on the leader's CPU. The others take part, and keep nothing: the whole may not fit."""
        if not isinstance(tensor, DTensor):
            return tensor
        full = tensor.full_tensor()
        return full.cpu() if self.is_leader else full.new_empty(0)

    def gather_model_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the full model state on the leader; a tied weight is one tensor, as in the model."""
        params = dict(model.named_parameters(remove_duplicate=False))
        found: dict[int, Tensor] = {}
        state = {}
        for name, tensor in model.state_dict().items():
            if (param := params.get(name)) is None:
                state[name] = tensor
            else:
                if id(param) not in found:
                    found[id(param)] = self._gather(tensor)
                state[name] = found[id(param)]
        return state

    def gather_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the full optimizer state on the leader, numbered by parameter."""
        state: dict[str, Any] = map_tensors(optimizer.state_dict(), self._gather)
        return state

    def distribute_state(
        self, state: Mapping[str, Any] | None, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Mapping[str, Any] | None:
        """Return this worker's shards of the leader's checkpoint state, and all of what is not sharded.

        1) The leader replaces every tensor to be sharded by its shape and dtype.
        2) The rest is broadcast.
        3) The tensors are scattered one at a time: a full optimizer state may not fit into one worker.
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
        """Tell the other workers what to join."""
        if self.is_leader:
            self._exchange(action)

    def actions(self, steps: int) -> Iterator[Action]:
        """Yield what the leader announces, until it is done."""
        while (action := self._exchange(Action.END)) != Action.END:
            yield action

    def _exchange(self, action: Action) -> Action:
        """Broadcast the leader's action."""
        box = torch.tensor([action], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(box, src=0)
        return Action(int(box))


def shard_model(model: nn.Module, device: torch.device, world_size: int) -> None:
    """Replace a model that all workers hold in full by this worker's shard of it, on the device.

    Raises:
        ValueError: a parameter has no dimension to shard.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    units = fsdp_units(model)
    for unit in (*units, model):
        unit.register_forward_hook(_clone_views)  # must run before FSDP's own forward hook
    for block in units:
        fully_shard(block, mesh=mesh)
    whole_model = fully_shard(model, mesh=mesh)
    # Samples may decide which weights are used (experts, gates): reduce zeros for those that one worker did not use
    whole_model.set_reduce_scatter_unused_params(True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are weighted by w_m / W already (group.py, step 2), so gradients are summed, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _clone_views(module: nn.Module, args: Any, output: Any) -> Any:
    """Clone every view in a module's output.

    FSDP gathers weights for the backward pass in a hook on the output's gradient. The hook of a view that is changed in
    place (`x += y`) never fires, and torch would silently compute with weights that were not gathered.
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
    """Return the modules to gather one at a time: blocks that share no weight."""
    everywhere = _count_uses(model)
    blocks = ((block, _count_uses(block)) for block in blocks_of(model))
    return [block for block, uses in blocks if all(everywhere[p] == n for p, n in uses.items())]


def _count_uses(module: nn.Module) -> Counter[int]:
    """Count the modules that hold each parameter, by its id."""
    return Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))


@dataclass(frozen=True)
class _Placeholder:
    """Stands for a tensor to be sharded, while the rest of a state is broadcast."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _extract_tensors(
    state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, tensors: list[Tensor]
) -> dict[str, Any]:
    """Return a state with placeholders for the tensors to be sharded, and append those to `tensors` in that order."""

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
