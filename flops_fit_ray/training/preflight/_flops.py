"""FLOPs of one training step of a model, counted while it runs: forward, loss and backward.

The backward pass is counted as it runs. A weight whose input needs no gradient (the first layer of raw inputs) costs
one product there and not two, frozen layers that pass gradients on cost one, what runs under `no_grad` none.
Activations that are computed again (`torch.utils.checkpoint`) are no work of the model, and are not counted again.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from flops_fit_ray.errors import SpecError
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.data.batch import batch_device
from flops_fit_ray.training.lazy_compiler import import_compiler_late
from flops_fit_ray.training.preflight._flop_counter import CountingMode, FlopCounter
from flops_fit_ray.training.preflight._flop_formulas import aten, formulas, is_opaque
from flops_fit_ray.training.preflight._known_shapes import KnownShapes, storage_of
from flops_fit_ray.training.user.layers import EMBEDDINGS, embedding_only_params
from flops_fit_ray.training.user.losses import Objective, check_loss, outputs_of
from flops_fit_ray.training.user.wrong_samples import MixedTypesError, refuse_mixed_types

NO_GRADIENT = "does not depend on any parameter that trains; is it detached, or computed under no_grad?"
LOOKUPS = {aten.embedding, aten._embedding_bag, aten._embedding_bag_forward_only, aten.index_select, aten.index,
           aten._unsafe_index, aten.gather}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """FLOPs of one batch."""

    total: int  # forward, loss and backward
    forward: int  # of the model alone, by torch's formulas: earlier versions took three times this
    matrices: frozenset[str]  # lookup tables that are factors of matrix products too, by parameter name
    uncounted: tuple[str, ...]  # modules with matrices in which nothing was counted, and operations without a formula
    without_gradient: tuple[str, ...]  # trainable parameters that the loss does not reach


class LossError(Exception):
    """The loss raised where the model ran; the cause says how."""


def count_flops(
    objective: Objective, model: nn.Module, batch: Batch, *, with_loss: bool = True, autocast: bool = True
) -> FlopCount:
    """Train one step without an optimizer, and count.

    Args:
        with_loss: False takes the sum of the model's outputs in its place, for a loss that cannot run here.
        autocast: products of floats of 32 and 16 bits may be meant.

    Raises:
        LossError: a loss of (outputs, targets) raised.
        SpecError: no parameter that trains has a gradient.
        MixedTypesError: matrices of two dtypes are multiplied.
        Exception: whatever the model raised, or a loss that takes it.
    """
    import_compiler_late(_Watch, CountingMode, *CountingMode.__bases__)
    model.train()
    watch = _Watch(model, autocast=autocast)
    with contextlib.ExitStack() as places:
        if batch_device(batch).type == "cpu":  # fused kernels of the CPU hide their products from the counter
            places.enter_context(sdpa_kernel(SDPBackend.MATH))
            places.enter_context(_without_onednn())
        places.enter_context(watch)
        with watch.counting("model") as forward:
            if objective.takes_model:  # it may call the model any number of times
                loss = objective(model, batch)
            else:
                outputs = outputs_of(model, batch)
        if not objective.takes_model:
            with watch.counting("loss"), _naming_loss():
                loss = objective.function(outputs, batch.target) if with_loss else _sum_of(outputs)
        with _naming_loss() if not objective.takes_model else contextlib.nullcontext():
            check_loss(loss)
        if not loss.requires_grad:
            raise SpecError("spec", [f"{'loss' if with_loss else 'model.target'}: {NO_GRADIENT}"])
        with watch.counting("backward"):
            loss.backward()
    named = dict(model.named_parameters())
    unreached = {id(p) for p in named.values() if p.requires_grad and p.grad is None}
    return FlopCount(
        total=watch.total,
        forward=watch.forward,
        matrices=frozenset(watch.matrices),
        uncounted=(*uncounted_modules(model, forward, unreached), *watch.opaque),
        without_gradient=tuple(name for name, p in named.items() if id(p) in unreached),
    )


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """Without oneDNN recurrent layers are the products that they consist of."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextlib.contextmanager
def _naming_loss() -> Iterator[None]:
    try:
        yield
    except MixedTypesError:
        raise
    except (Exception, SystemExit) as e:  # the user's code may raise anything
        raise LossError(str(e)) from e


def _sum_of(outputs: Any) -> Tensor:
    found = [t for t in tree_leaves(_plain(outputs)) if isinstance(t, Tensor) and t.requires_grad]
    if not found:
        return torch.zeros(())
    return torch.stack([t.abs().float().sum() for t in found]).sum()


def _plain(outputs: Any) -> Any:
    return dict(vars(outputs)) if hasattr(outputs, "__dict__") and not isinstance(outputs, Tensor | dict) else outputs


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Sees every operation: counts it by phase, and follows the lookup tables of a model into matrix products."""

    def __init__(self, model: nn.Module, *, autocast: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._autocast = autocast
        self._shapes = KnownShapes()
        self.total = 0
        self.forward = 0
        self.matrices: set[str] = set()
        self.opaque: dict[str, None] = {}  # in the order they were met
        tables = embedding_only_params(model)
        self._model = model
        self._tables = {storage_of(p): name for name, p in model.named_parameters() if id(p) in tables}
        self._kept: list[Tensor] = []  # a storage that is freed would lend its id to another
        self._phase = ""
        self._counter: FlopCounterMode | None = None

    @contextlib.contextmanager
    def counting(self, phase: str) -> Iterator[FlopCounterMode]:
        """Count the operations of the block."""
        mapping = {op: self._counted(op, formula) for op, formula in formulas().items()}
        self._phase = phase
        with FlopCounter(display=False, custom_mapping=mapping) as self._counter:
            yield self._counter
        self._counter = None

    def _counted(self, op: Any, formula: Callable[..., int]) -> Callable[..., int]:
        plain = flop_registry.get(op)

        def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
            if self._phase == "backward" and is_recomputed():
                return 0
            flops = formula(*args, out_val=out_val, **kwargs)
            self.total += flops
            if self._phase == "model" and plain is not None:
                self.forward += plain(*args, out_val=out_val, **kwargs)
            if self._phase != "backward" and self._tables:
                self.matrices |= {self._tables[s] for a in args if (s := storage_of(a)) in self._tables}
            return flops

        count._get_raw = True  # type: ignore[attr-defined] # FlopCounterMode's mark of a formula that takes tensors
        return count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        op = getattr(func, "_overloadpacket", func)
        if self._phase != "backward":
            refuse_mixed_types(op, args, autocast=self._autocast)
        out = self._shapes.run(func, args, kwargs or {})
        if self._phase == "backward":
            return out
        if self._counter is not None and is_opaque(op) and op not in self._counter.flop_registry:
            self._name_opaque(op, self._counter)
        if self._tables and isinstance(out, Tensor) and op not in LOOKUPS:
            self._follow(args, out)
        return out

    def _follow(self, args: Any, out: Tensor) -> None:
        """Take the result for the table where it is made of the table alone: a view, a copy, a scaled table."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        names = {self._tables.get(storage_of(a)) for a in tensors}
        largest = max((a.numel() for a in tensors if storage_of(a) in self._tables), default=0)
        small = [a for a in tensors if storage_of(a) not in self._tables and 2 * a.numel() <= largest]
        names -= {None} if len(small) == sum(storage_of(a) not in self._tables for a in tensors) else set()
        if len(names) == 1 and None not in names:
            (name,) = names
            assert name is not None
            self._tables.setdefault(storage_of(out), name)
            self._kept.append(out)

    def _name_opaque(self, op: Any, counter: FlopCounterMode) -> None:
        root = type(self._model).__name__
        inside = max((str(p) for p in counter.mod_tracker.parents if p != "Global"), key=len, default=root)
        place = inside.removeprefix(f"{root}.")
        self.opaque.setdefault(f"{getattr(op, '_qualified_op_name', None) or op.__name__} in {place}")


def is_recomputed() -> bool:
    """Return True while the backward pass computes activations again: gradients are recorded, or it is checkpoint's."""
    if torch.is_grad_enabled():
        return True
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name == "_engine_run_backward":  # from here on it is the backward pass itself, if a nested one
            return False
        if file == checkpoint.__file__ and name in ("recompute_fn", "unpack_hook", "backward"):
            return True
        frame = frame.f_back
    return False


def uncounted_modules(model: nn.Module, counter: FlopCounterMode, unreached: set[int]) -> tuple[str, ...]:
    """Return the modules with matrices for which no FLOPs were counted, without embeddings.

    One that had nothing to compute is none of them: an expert to which no token of the batch went, whether it ran on
    no rows, or did not run at all.

    A matrix may be used by its parent module (nn.MultiheadAttention does so with its projections): if FLOPs were
    counted in the parent outside of its children, its children are assumed to be counted there.
    """
    root = type(model).__name__
    seen = {str(name): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}

    def counted_as(name: str) -> str:
        return f"{root}.{name}" if name else root

    counts = {name: seen.get(counted_as(name), 0) for name, _ in model.named_modules()}
    tables = embedding_only_params(model)
    found = []
    for name, module in model.named_modules():
        weights = [p for p in module.parameters(recurse=False) if p.ndim >= 2 and id(p) not in tables]
        if not weights or counts[name] or isinstance(module, EMBEDDINGS):
            continue
        if counted_as(name) in seen or all(id(p) in unreached for p in weights):
            continue
        parent = name.rpartition(".")[0]
        siblings = sum(counts[f"{parent}.{child}" if parent else child] for child, _ in _children(model, parent))
        if counts[parent] <= siblings:
            found.append(name or root)
    return tuple(found)


def _children(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    return list(model.get_submodule(name).named_children())
