"""The number format that a model computes in. Weights and optimizer states stay in fp32."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from flops_fit_ray.errors import ResourceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Make sure that the device can compute in a precision.

    Raises:
        ResourceError: it cannot.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ResourceError(f"train.precision: {name} has no bf16; say fp16 or fp32")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The context of a forward pass: matmuls in the lower precision, the rest as torch's autocast says."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """What keeps small fp16 gradients from vanishing; bf16 has fp32's range and needs none."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None
