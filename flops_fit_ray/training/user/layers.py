"""Layer types that counting parameters and weight decay treat differently."""

from __future__ import annotations

from torch import nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


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
