"""A byte-level transformer whose MLPs are mixtures of experts: each token goes to one of them (Fedus et al. 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Experts(nn.Module):
    """The router sends each token to its best expert, whose output is weighed by the router's probability."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        weight, chosen = self.router(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            of_it = (chosen == number).nonzero().flatten()
            out = out.index_add(0, of_it, weight[of_it, None] * expert(rows[of_it]))
        return out.view_as(x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, experts: int) -> None:
        super().__init__()
        self.heads, self.norm, self.norm_experts = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.experts = Experts(width, experts)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.experts(self.norm_experts(x))


class MoE(nn.Module):
    def __init__(self, width: int, experts: int = 4, layers: int = 2, heads: int = 2, context: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, experts) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def num_params(self) -> int:
        """N as the sweep counts it: the active parameters, those that one token meets. Lookup tables do not count."""
        idle = sum(
            p.numel()
            for block in self.blocks
            for expert in list(block.experts.experts)[1:]
            for p in expert.parameters()
        )
        tables = self.tokens.weight.numel() + self.positions.weight.numel()
        return sum(p.numel() for p in self.parameters()) - tables - idle
