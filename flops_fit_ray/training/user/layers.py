"""What kinds of layers a model is made of."""

from __future__ import annotations

from torch import nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def embedding_only_params(model: nn.Module) -> set[int]:
    """The ids of the parameters that only embedding layers use: a table tied to a head is none of them."""
    tables = set()
    others = set()
    for module in model.modules():
        used = {id(p) for p in module.parameters(recurse=False)}
        if isinstance(module, EMBEDDINGS):
            tables |= used
        else:
            others |= used
    return tables - others
