"""Attention in bf16 on the CPU, several times as fast as torch's fused kernel there.

torch's fused CPU kernel gains nothing from bf16 and can be slower than in fp32. Two batched matrix products use the
CPU's bf16 units: softmax(mask + scale * Q K^T) V, with the causal mask as the bias of the first. Scores are rounded to
bf16, as autocast does with any product.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# B batch, H heads, T queries, S keys, K width of a head


@contextlib.contextmanager
def attention_kernel(precision: str, device: torch.device) -> Iterator[str]:
    """Patch `torch.nn.functional.scaled_dot_product_attention` for the block; yields the kernel's name for the record.

    Models that look the function up when they call it get the faster one.
    """
    if precision != "bf16" or device.type != "cpu":
        yield "torch"
        return
    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = functools.partial(_attention, original)
    try:
        yield "baddbmm"
    finally:
        functional.scaled_dot_product_attention = original


def _attention(
    original: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    supported = attn_mask is None and not dropout_p and not enable_gqa and query.device.type == "cpu"
    if not (supported and query.ndim == key.ndim == value.ndim == 4 and query.shape[:2] == key.shape[:2]):
        found: Tensor = original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        return found
    B, H, T, K = query.shape
    S = key.shape[2]
    bias_TS = _causal_bias(T, S, is_causal)
    alpha = 1 / math.sqrt(K) if scale is None else scale
    q_NTK, k_NSK = query.reshape(B * H, T, K), key.reshape(B * H, S, K)
    scores_NTS = torch.baddbmm(bias_TS.to(query.dtype), q_NTK, k_NSK.transpose(1, 2), alpha=alpha)
    out_NTV = torch.bmm(torch.softmax(scores_NTS, dim=-1), value.reshape(B * H, S, -1))
    return out_NTV.view(B, H, T, -1)


@functools.lru_cache(maxsize=16)
def _causal_bias(queries: int, keys: int, causal: bool) -> Tensor:
    """Return the bias (queries, keys): -inf above the diagonal if causal, else zeros."""
    bias = torch.zeros(queries, keys, dtype=torch.bfloat16)
    return bias.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(1), float("-inf")) if causal else bias
