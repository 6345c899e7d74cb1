"""FLOPs of operations that torch's own counter leaves out, or counts by another convention.

One multiply-add is 2 FLOPs, of a matrix product as of everything that is one; what is elementwise is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
Formula = Callable[..., int]

COMPLEX = 4  # real multiplications of one complex one, and so for the additions
# Fused attention computes its scores again in the backward pass, one product of its five. That saves memory and is no
# work of the model: without it the backward pass is twice the forward, as everywhere.
FUSED_BACKWARD = 4 / 5
# Decompositions, solvers, distances: they cost more than an elementwise operation, and have no formula here
OPAQUE = ("linalg_", "_linalg_", "cholesky", "lu_", "triangular_solve", "_cdist_", "cdist", "histogram", "mkldnn_rnn",
          "_thnn_fused", "_cudnn_rnn", "miopen_rnn")  # fmt: skip
ELEMENTWISE = ("linalg_vector_norm", "linalg_cross", "linalg_diagonal")  # by name only they look like the others


def formulas() -> dict[Any, Formula]:
    """Return the FLOPs of an operation as functions of its arguments and `out_val`, by operation."""
    counted = {op: _by_convention(op, formula) for op, formula in flop_registry.items()}
    return counted | {op: formula for ops, formula in _MORE for op in ops}


def is_opaque(op: Any) -> bool:
    """Return True for an operation without a formula that may do much work: another library's, or a solver."""
    if isinstance(op, torch._ops.HigherOrderOperator):
        return True
    name, space = op._qualified_op_name.rpartition("::")[2], op._qualified_op_name.partition("::")[0]
    if space not in ("aten", "prim", "prims", "profiler", "debugprims"):
        return True
    return name.startswith(OPAQUE) and not name.startswith(ELEMENTWISE)


def _by_convention(op: Any, formula: Formula) -> Formula:
    """Return torch's formula, adjusted for complex and sparse operands and for fused attention."""
    name = str(getattr(op, "__name__", op))
    scale = FUSED_BACKWARD if "attention" in name and name.endswith("backward") else 1

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        operands = [a for a in args if isinstance(a, Tensor)]
        sparse = next((a for a in operands if a.layout is not torch.strided), None)
        if sparse is not None:
            return _sparse_product(sparse, operands[-1])
        flops = formula(*args, out_val=out_val, **kwargs) * scale
        return round(flops * (COMPLEX if any(a.is_complex() for a in operands) else 1))

    return count


def _dense(count: Callable[..., float]) -> Formula:
    """Wrap a formula of the tensors among an operation's arguments, in their order."""

    def flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        operands = [a for a in args if isinstance(a, Tensor)]
        return round(count(*operands) * (COMPLEX if any(a.is_complex() for a in operands) else 1))

    return flops


def _sparse_product(sparse: Tensor, dense: Tensor) -> int:
    """2 FLOPs per non-zero entry and column."""
    entries = sparse._nnz() * math.prod(sparse.shape[sparse.sparse_dim() :]) if sparse.is_sparse else sparse._nnz()
    return int(2 * entries * (dense.shape[-1] if dense.ndim > 1 else 1))


def _sparse_addmm(_: Tensor, sparse: Tensor, dense: Tensor, *__: Any, out_val: Any = None, **___: Any) -> int:
    return _sparse_product(sparse, dense) if sparse.layout is not torch.strided else _sparse_product(dense, sparse)


def _fft(x: Tensor, dims: Iterable[int], *_: Any, out_val: Any = None, **__: Any) -> int:
    """5 n·log2 n per complex transform of n points (Cooley and Tukey's); half of it where one side is real."""
    real = x if not x.is_complex() else out_val if isinstance(out_val, Tensor) and not out_val.is_complex() else None
    whole = x if real is None else real
    points = math.prod(whole.shape[d] for d in dims)
    return round((5 if real is None else 2.5) * whole.numel() * math.log2(max(points, 1)))


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, out_val: Any = None, **_: Any) -> int:
    """Each gradient, of input and weight, takes as many multiply-adds as the forward pass, in groups or not."""
    transposed, wanted = rest[4], rest[-1]
    forward = 2 * x.shape[0] * math.prod((x if transposed else grad).shape[2:]) * weight.numel()
    return forward * (bool(wanted[0]) + bool(wanted[1]))


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: list[int],
    expand_b: list[int],
    expand_c: list[int],
    summed: list[int],
    *_: Any,
    out_val: Any = None,
    **__: Any,
) -> int:
    """Count sum(a·b·c) as torch computes it: the product of a and b, then with c. `expand`: axes an operand lacks."""
    rank = a.ndim + len(expand_a)
    sizes = [1] * rank
    shapes = []
    for operand, expand in ((a, expand_a), (b, expand_b), (c, expand_c)):
        rest = iter(operand.shape)
        shape = [1 if axis in expand else next(rest) for axis in range(rank)]
        shapes.append(shape)
        sizes = [max(pair) for pair in zip(sizes, shape, strict=True)]
    first = [max(pair) for pair in zip(shapes[0], shapes[1], strict=True)]
    left = [1 if axis in summed and axis in expand_c else n for axis, n in enumerate(first)]
    second = [max(pair) for pair in zip(left, shapes[2], strict=True)]
    scale = COMPLEX if a.is_complex() else 1
    return 2 * scale * (math.prod(first) + math.prod(second))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Two products for each head of the queries, scores and weighted values; a mask saves none.

    The backward pass has two for each of them. Kernels compute their scores once more there: no work of the model.
    """
    return 2 * q.shape[-2] * k.shape[-2] * (q.shape[-1] + v.shape[-1]) * math.prod(q.shape[:-2])


def _heads_behind(op: Any, first: int, offsets: int) -> Formula:
    """Return the formula of attention over (batch, tokens, heads, width); torch takes its axes for (.., heads, tokens).

    Args:
        first: position of the queries among the arguments; keys and values follow.
        offsets: position of the offsets of sequences in one row, whose lengths torch's formula takes apart.
    """
    apart = _by_convention(op, flop_registry[op])

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        if args[offsets] is not None:
            return apart(*args, out_val=out_val, **kwargs)
        q, k, v = (a.transpose(1, 2) for a in args[first : first + 3])
        return (2 if first else 1) * _attention(q, k, v)

    return count


def _grouped_mm(a: Tensor, b: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Each row of `a` meets the matrix of its group, or each column of `b` the rows of its group."""
    return 2 * (b.numel() * a.shape[-2] if (a.ndim, b.ndim) == (3, 2) else a.numel() * b.shape[-1])


_MORE: tuple[tuple[tuple[Any, ...], Formula], ...] = (
    ((aten.mv,), _dense(lambda matrix, vector: 2 * matrix.numel())),
    ((aten.addmv,), _dense(lambda added, matrix, vector: 2 * matrix.numel())),
    ((aten.dot, aten.vdot), _dense(lambda a, b: 2 * a.numel())),
    ((aten.addbmm,), _dense(lambda added, a, b: 2 * a.numel() * b.shape[-1])),
    ((aten._euclidean_dist,), _dense(lambda a, b: 2 * a.numel() * b.shape[-2])),
    ((aten.convolution_backward,), _conv_backward),
    ((aten._fft_c2c, aten._fft_r2c, aten._fft_c2r), _fft),
    ((aten._trilinear,), _trilinear),
    ((aten._sparse_addmm, aten._sparse_mm), _sparse_addmm),
    ((aten._grouped_mm,), _grouped_mm),
    ((aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_efficient_attention,
      aten._scaled_dot_product_cudnn_attention, aten._scaled_dot_product_flash_attention_for_cpu),
     _dense(lambda q, k, v, *_: _attention(q, k, v))),
    ((aten._scaled_dot_product_flash_attention_backward, aten._scaled_dot_product_efficient_attention_backward,
      aten._scaled_dot_product_cudnn_attention_backward, aten._scaled_dot_product_flash_attention_for_cpu_backward),
     _dense(lambda grad, q, k, v, *_: 2 * _attention(q, k, v))),
    *(((op,), _heads_behind(op, first, offsets)) for op, first, offsets in (
        (aten._flash_attention_forward, 0, 3), (aten._efficient_attention_forward, 0, 4),
        (aten._flash_attention_backward, 1, 6), (aten._efficient_attention_backward, 1, 6))),
)  # fmt: skip
