"""Kinds of layers, and the blocks of a model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def embedding_only_params(model: nn.Module) -> set[int]:
    """Return the ids of parameters that only embedding layers use; a table tied to a head is not among them."""
    tables = set()
    others = set()
    for module in model.modules():
        used = {id(p) for p in module.parameters(recurse=False)}
        if isinstance(module, EMBEDDINGS):
            tables |= used
        else:
            others |= used
    return tables - others


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost containers that have weights."""
    return [member for member in _container_members(model) if any(True for _ in member.parameters())]


def _container_members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, CONTAINERS):
            yield from child.children()
        else:
            yield from _container_members(child)
