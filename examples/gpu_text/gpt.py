"""A decoder-only transformer from torch's own layers."""

import torch
from torch import Tensor, nn


class GPT(nn.Module):
    """`d_model` is what the sweep varies. B batch, T context, D width, V vocabulary."""

    def __init__(self, d_model: int, n_layer: int = 4, d_head: int = 32, context: int = 256, vocab: int = 256) -> None:
        super().__init__()
        if d_model % d_head:
            raise ValueError(f"d_model={d_model} is not divisible by d_head={d_head}")
        self.tokens = nn.Embedding(vocab, d_model)
        self.positions = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_model, d_model // d_head, 4 * d_model, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True, bias=False,
            )
            for _ in range(n_layer)
        )  # fmt: skip
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab, bias=False)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        ids_BT = ids_BT.int()
        places = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTD = self.tokens(ids_BT) + self.positions(places)
        for block in self.blocks:
            x_BTD = block(x_BTD, src_mask=self.causal, is_causal=True)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV
