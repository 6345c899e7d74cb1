"""FLOPs of fused kernels against counts by hand, on the meta device: no GPU has to be there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.preflight._flops import FlopCount, count_flops
from flops_fit_ray.training.user.losses import Objective

aten = torch.ops.aten
B, H, T, D = 2, 4, 16, 32  # batch, heads, context, width of a head
E, M, N = 4, 24, 48  # experts, tokens of all of them together, width after them

ATTENTION: dict[str, Callable[..., Tensor]] = {
    "flash": lambda q, k, v: aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0],
    "efficient": lambda q, k, v: aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0],
    "cudnn": lambda q, k, v: aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[0],
    "flash on the CPU": lambda q, k, v: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0],
    "flash, heads third": lambda q, k, v: aten._flash_attention_forward(
        *(a.transpose(1, 2) for a in (q, k, v)), None, None, T, T, 0.0, True, False
    )[0],
    "efficient, heads third": lambda q, k, v: aten._efficient_attention_forward(
        *(a.transpose(1, 2) for a in (q, k, v)), None, None, None, T, T, 0.0, 0, True
    )[0],
    "math": lambda q, k, v: torch.softmax(q @ k.transpose(-1, -2), -1) @ v,
}


class Weights(nn.Module):
    """Applies a function to its weights and nothing else."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(torch.empty(s, device="meta", dtype=torch.bfloat16) for s in shapes)

    def forward(self, x: Tensor) -> Any:
        return self.function(*self.weights)


def counted(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> FlopCount:
    """Count a training step whose loss has a gradient without strides of 0."""
    objective = Objective(function=lambda outputs, target: (outputs * outputs).sum(), takes_model=False)
    empty = torch.empty(1, 1, device="meta")
    return count_flops(objective, Weights(function, *shapes), Batch(content=(empty, empty), num_samples=1))


@pytest.mark.parametrize("kernel", ATTENTION)
def test_every_attention_kernel_costs_the_same_work(kernel: str) -> None:
    # 1) forward: Q K' and P V, each 2 B H T T D; 2) backward: two products for each of them. The scores that fused
    # kernels compute once more are no work of the model, and the mask saves none.
    once = 2 * B * H * T * T * D
    found = counted(ATTENTION[kernel], *[(B, H, T, D)] * 3)
    assert found.total == 2 * once + 4 * once
    assert found.uncounted == () and found.without_gradient == ()


@pytest.mark.parametrize("kernel", ["efficient", "cudnn", "math"])
def test_values_narrower_than_keys(kernel: str) -> None:
    found = counted(ATTENTION[kernel], (B, H, T, D), (B, H, T, D), (B, H, T, D // 2))
    assert found.total == 3 * 2 * B * H * T * T * (D + D // 2)


def test_queries_that_share_keys_cost_what_each_head_costs() -> None:
    found = counted(ATTENTION["flash"], (B, H, T, D), (B, 1, T, D), (B, 1, T, D))
    assert found.total == 3 * 2 * (2 * B * H * T * T * D)


@pytest.mark.parametrize(
    ("a", "b", "grouped", "forward"),
    [
        ((M, D), (E, D, N), True, 2 * M * D * N),  # each token meets its own expert, and no other
        ((E, M, D), (E, D, N), False, 2 * E * M * D * N),  # as many tokens for every expert: a product of batches
        ((M, D), (D, N), True, 2 * M * D * N),  # the gradient of the experts: D is in parts, each summed apart
        ((E, M, D), (D, N), True, 2 * M * D * N),  # every expert has its own columns
    ],
)
def test_a_grouped_product_costs_what_meets(
    a: tuple[int, ...], b: tuple[int, ...], grouped: bool, forward: int
) -> None:
    ends = torch.empty(E, dtype=torch.int32, device="meta") if grouped else None
    found = counted(lambda x, y: torch._grouped_mm(x, y, offs=ends), a, b)
    assert found.total == 3 * forward  # two products backward, of other kinds than the forward one
