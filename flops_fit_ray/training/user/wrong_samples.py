"""Samples that a model or a loss cannot take named as what they are: their dtype, device or kind, and the way out.

It is looked for after something has raised, so that nothing that works is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flops_fit_ray.training.data import Batch

WORDS_OF_TYPES = re.compile(r"dtype|scalar type|Input type \(|desired output type|datatype")
WANTS_IDS = re.compile(r"target dtype to be Long|[Ee]xpected scalar type Long")
WANTS_NUMBERS = re.compile(r"Found dtype|desired output type")
WORDS_OF_INTEGERS = {
    torch.int64: r"Long|long|int64", torch.int32: r"Int\b|\bint\b|int32", torch.int16: "Short|short|int16",
    torch.uint8: "Byte|unsigned char|uint8", torch.int8: r"Char|\bint8", torch.bool: "Bool|bool",
}  # fmt: skip # in torch's errors
CONVERSIONS = {torch.float32: ".float()", torch.float64: ".double()", torch.int64: ".long()"}
CAST = {torch.float32, torch.bfloat16, torch.float16}  # whose products autocast computes, however they are mixed
PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot")}


class MixedTypesError(TypeError):
    """A product of matrices of two dtypes."""


def refuse_mixed_types(operation: Any, args: Any, *, autocast: bool) -> None:
    """Refuse a product of two dtypes, which the meta device computes and no other does.

    Raises:
        MixedTypesError: it is one.
    """
    if operation not in PRODUCTS:
        return
    tensors = [a for a in args if isinstance(a, Tensor)]
    dtypes = {t.dtype for t in tensors if t.device.type == "meta"}
    if len(dtypes) > 1 and not (autocast and dtypes <= CAST):
        raise MixedTypesError(f"factors must have the same dtype, but are {' and '.join(sorted(map(_name, dtypes)))}")


def may_be_cast(batch: Batch, precision: str) -> bool:
    """Return True if products of floats of 32 and 16 bits may be meant: by autocast, ours or the model's own."""
    short = any(isinstance(v, Tensor) and v.dtype in CAST - {torch.float32} for _, v in _inputs(batch))
    return precision != "fp32" or not short


def sample_fault(error: BaseException | None, model: nn.Module, batch: Batch) -> str:
    """Return the fault of the samples that an error of the model or the loss comes from; empty where none is known."""
    text = str(error)
    if isinstance(error, ValueError) and text.startswith("targets "):  # a built-in loss names them itself
        return f"data.train: {text}"
    places = sorted({str(t.device) for t in tree_leaves(batch.content) if isinstance(t, Tensor)} - {"cpu", "meta"})
    if places and "device" in text:
        return device_fault(places[0])
    if isinstance(error, TypeError | AttributeError | ValueError) and (kind := _kind_fault(batch)):
        return kind
    return _type_fault(text, model, batch) if WORDS_OF_TYPES.search(text) else ""


def device_fault(device: str) -> str:
    """Return the fault of samples that are on a device of their own."""
    return (
        f"data.train: samples are on {device}; give them on the CPU (.cpu()): workers move each batch to the device of "
        "their experiment"
    )


def _kind_fault(batch: Batch) -> str:
    for words, value in _inputs(batch):
        parts = value if isinstance(value, tuple | list) else [value]
        if any(isinstance(part, str) for part in parts):
            return f"data.train: {words} text; give token ids, a tensor of integers"
        if isinstance(value, list) and parts and all(isinstance(part, Tensor) for part in parts):
            return (
                f"data.train: {words} lists of {len(parts)} numbers, of which a batch is {len(parts)} tensors; make "
                "each a tensor or an array"
            )
    return ""


def _type_fault(text: str, model: nn.Module, batch: Batch) -> str:
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    inputs = [(words, value) for words, value in _inputs(batch) if isinstance(value, Tensor)]
    if "indices" in text:
        for words, value in inputs:
            if value.dtype not in (torch.int64, torch.int32):
                return _fault(words, value, "an nn.Embedding looks up ids", torch.int64)
    target = batch.target
    if isinstance(target, Tensor) and WANTS_IDS.search(text) and target.dtype is not torch.int64:
        return _fault("targets are", target, "the loss takes class ids", torch.int64)
    if isinstance(target, Tensor) and WANTS_NUMBERS.search(text) and target.dtype is not weights:
        return _fault("targets are", target, f"the loss takes {_name(weights)}", weights)
    for words, value in inputs:
        if value.is_floating_point() and value.dtype is not weights:
            return _fault(words, value, f"the model's weights {_name(weights)}", weights)
    for words, value in inputs:
        if value.dtype in WORDS_OF_INTEGERS and re.search(WORDS_OF_INTEGERS[value.dtype], text):
            fault = _fault(words, value, f"the model multiplies them by {_name(weights)} weights", weights)
            return f"{fault}; ids are for an nn.Embedding"
    return ""


def _inputs(batch: Batch) -> Iterator[tuple[str, Any]]:
    """Yield the model's arguments, each after words on what it is."""
    positional, named = batch.arguments
    for i, value in enumerate(positional):
        yield "inputs are" if len(positional) == 1 else f"part {i} of a sample is", value
    for name, value in named.items():
        yield f"{name!r} of a sample is", value


def _fault(words: str, value: Tensor, but: str, needs: torch.dtype) -> str:
    way_out = CONVERSIONS.get(needs, f".to({needs})")
    way_out += f" (NumPy: .astype('{_name(needs)}'))"
    return f"data.train: {words} {_name(value.dtype)}, and {but}; convert with {way_out}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
