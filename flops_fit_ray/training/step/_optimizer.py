"""Optimizers and their parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_ray.planning import Recipe
from flops_fit_ray.training.lazy_compiler import import_compiler_late
from flops_fit_ray.training.user.layers import NORMS, embedding_only_params
from flops_fit_ray.training.user.optimizers import user_optimizer
from flops_fit_ray.training.user.parts import UserParts


def make_optimizer(model: nn.Module, recipe: Recipe, user: UserParts) -> torch.optim.Optimizer:
    """Create the optimizer of a recipe, or the user's, over the trainable parameters.

    Raises:
        TypeError, ValueError: the user's factory returned something else.
    """
    import_compiler_late()
    if user.optimizer is not None:
        return user_optimizer(user.optimizer, model, recipe.lr)
    groups = parameter_groups(model, recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    # fused: one kernel for all parameters, because small models are bound by kernel launches
    params = [p for group in groups for p in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=fused)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those with weight decay, matrices, and those without: vectors, norms, embeddings."""
    no_decay = embedding_only_params(model)
    for module in model.modules():
        if isinstance(module, NORMS):
            no_decay |= {id(p) for p in module.parameters(recurse=False)}
    params = [p for p in model.parameters() if p.requires_grad]
    if not weight_decay:
        return [{"params": params, "weight_decay": 0.0}]

    def decays(p: Tensor) -> bool:
        return p.ndim >= 2 and id(p) not in no_decay

    groups = [
        {"params": [p for p in params if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in params if not decays(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
