"""Mixed precision: the dtype that a model computes in. Weights and optimizer states stay in fp32."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from flops_fit_ray.errors import ResourceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Check that the device supports a precision.

    Raises:
        ResourceError: it does not.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ResourceError(f"train.precision: {name} does not support bf16; set fp16 or fp32")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of a forward pass: torch's autocast; a no-op in fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Return the loss scaler that fp16 needs against underflow of gradients; None otherwise."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None
