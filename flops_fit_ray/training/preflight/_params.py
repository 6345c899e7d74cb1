"""N of a model: which of its parameters are counted, and by what definition."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_ray.errors import SpecError
from flops_fit_ray.training.user.layers import EMBEDDINGS, embedding_only_params
from flops_fit_ray.training.user.user_code import user_code

NO_COUNT = 500  # times fewer than the parameters that train: a number of thousands or millions, or of something else
CLOSE = 0.01  # relative difference of two counts that is not worth a word


@dataclass(frozen=True, kw_only=True)
class ParamCount:
    """Parameters of one model; elements that several parameters share are counted once."""

    params: int  # N
    source: str  # definition of N
    total: int
    frozen: int  # of `total`, those that never train
    non_embedding: int
    first_params: int  # N as earlier versions counted it: with what is frozen, without tables that make products
    first_source: str


def count_params(model: nn.Module, matrices: Collection[str] = (), memory: Mapping[str, tuple[int, int]] | None = None
                 ) -> ParamCount:  # fmt: skip
    """Count N: the model's own `num_params`, else all parameters that train, without lookup tables.

    An embedding table does no arithmetic; an output head does, tied or not. The same runs can give N ~ C^0.37 or C^0.70
    under different definitions, so every plan states its own.

    Args:
        matrices: names of lookup tables that are factors of matrix products too, as a head by `F.linear` is.
        memory: `memory_of` the model as it was built; by default as it is.

    Raises:
        SpecError: the model's `num_params` gives no count.
    """
    named = dict(model.named_parameters())
    lookups = embedding_only_params(model)
    tables = {name for name, p in named.items() if id(p) in lookups}
    elements = _elements(named, tables - set(matrices), memory or memory_of(model))
    trained = {name: n for name, n in elements.items() if named[name].requires_grad}
    counted = sum(n for name, n in trained.items() if name not in tables or name in matrices)
    total = sum(elements.values())
    frozen = total - sum(trained.values())
    non_embedding = _non_embedding(model)
    all_but = "all parameters" if not tables else "all parameters but lookup tables (head included)"
    definition = "all parameters" if not tables - set(matrices) else "all parameters but lookup tables (head included)"
    source = definition if not frozen else f"{definition}, of those that train"
    first = sum(n for name, n in elements.items() if name not in tables)
    params = declared_params(model, trained=total - frozen)
    if params is not None:
        source = all_but = "num_params() of the model"
        first = params
        if not (1 - CLOSE) * min(non_embedding, counted) <= params <= (1 + CLOSE) * max(total, counted):
            source += f" ({params}, where {counted} are counted: {definition})"
    return ParamCount(
        params=counted if params is None else params,
        source=source,
        total=total,
        frozen=frozen,
        non_embedding=non_embedding,
        first_params=first,
        first_source=all_but,
    )


def memory_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return an id of the memory of each parameter, and the elements that fit there. Copies to a device part it."""
    found = {}
    for name, p in model.named_parameters():
        if p.layout is torch.strided:
            storage = p.untyped_storage()
            found[name] = (int(storage._cdata), storage.nbytes() // p.element_size())
    return found


def _elements(
    named: Mapping[str, Tensor], lookups: Collection[str], memory: Mapping[str, tuple[int, int]]
) -> dict[str, int]:
    """Return the elements of each parameter. Shared memory is given to one: a head before a table."""
    room = dict(memory.values())
    elements = {}
    for name in sorted(named, key=lambda n: n in lookups):
        elements[name] = named[name].numel()
        if name in memory:
            key = memory[name][0]
            elements[name] = min(elements[name], room[key])
            room[key] -= elements[name]
    return elements


def _non_embedding(model: nn.Module) -> int:
    """Count parameters that train, without embeddings and the head: the last layer shaped like the largest table."""
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, EMBEDDINGS)}
    rest = [p for p in model.parameters() if id(p) not in tables and p.requires_grad]
    if tables:
        vocabulary = max(tables.values(), key=lambda weight: weight.shape[0]).shape
        heads = [p for p in rest if p.shape == vocabulary]  # others may have that shape; the head is last
        rest = [p for p in rest if not heads or p is not heads[-1]]
    return sum(p.numel() for p in rest)


def declared_params(model: Any, *, trained: int = 0) -> int | None:
    """Return what the model's own `num_params`, a method or a number, says; None without one.

    Raises:
        SpecError: it needs arguments, raises, or is no count of parameters.
    """
    kind = type(model).__name__
    way_out = "return the number of parameters, or rename it, and N is counted"
    with user_code(f"model.target: num_params of {kind} (rename it, and N is counted) raised"):
        declared: Any = getattr(model, "num_params", None)
        if declared is None:
            return None
        if callable(declared):
            needed = [p.name for p in inspect.signature(declared).parameters.values()
                      if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]  # fmt: skip
            if needed:
                raise _fault(f"num_params() of {kind} needs {', '.join(needed)}; give it defaults, or rename it, "
                             "and N is counted")  # fmt: skip
            declared = declared()
    count = _whole_number(declared)
    if count is None or count <= 0:
        raise _fault(f"num_params of {kind} gave {_shown(declared)}, which is no count of parameters ({trained} of it "
                     f"train); {way_out}")  # fmt: skip
    if count * NO_COUNT < trained:
        raise _fault(f"num_params of {kind} gave {count}, where {trained} parameters train: is it in thousands or "
                     f"millions? {way_out[0].upper()}{way_out[1:]}")  # fmt: skip
    return count


def _whole_number(value: Any) -> int | None:
    if isinstance(value, bool | str | bytes) or value is None:
        return None
    try:
        number = float(value)  # numpy's and torch's scalars too
    except Exception:  # noqa: BLE001 - a value of the user's may raise anything; then it is no number
        return None
    return int(number) if math.isfinite(number) and number == int(number) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fault(what: str) -> SpecError:
    return SpecError("spec", [f"model.target: {what}"])


def default_dtype() -> str:
    """Return the dtype of parameters for which the model names none, such as `float32`."""
    return str(torch.get_default_dtype()).removeprefix("torch.")
