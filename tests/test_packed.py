"""Data that many workers read from one place in memory."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from flops_fit_ray.training.data import PreparedData, as_data, eval_batches, split_held_out
from flops_fit_ray.training.data.dataset import fetch
from flops_fit_ray.training.data.packed import PackedData, pack_data, unpack_data

X = torch.arange(40.0).reshape(20, 2)
Y = torch.arange(20)


def ready(value: Any, *, split: bool = True) -> PreparedData:
    data = cast(Any, as_data(value, "data.train"))
    train, held_out = split_held_out(data, 0.2) if split else (data, None)
    return PreparedData(train=train, held_out=held_out, source="here")


def packed(value: PreparedData) -> PackedData:
    found = pack_data(value)
    assert found is not None
    return found


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(
    "value",
    [TensorDataset(X, Y), (X, Y), {"x": X, "labels": Y}, Y, X.numpy(), X.to(torch.bfloat16), (X > 3, Y)],
    ids=["dataset", "tuple", "mapping", "rows", "array", "bfloat16", "bool"],
)
def test_the_same_batches_come_back(value: Any, split: bool) -> None:
    before = ready(value, split=split)
    after = unpack_data(packed(before))
    assert after.source == "here" and (after.held_out is None) == (before.held_out is None)
    parts = [(one, other) for one, other in ((before.train, after.train), (before.held_out, after.held_out)) if one]
    assert len(parts) == (2 if split else 1)
    for one, other in cast(Any, parts):
        assert len(one) == len(other) > 0
        for a, b in zip(eval_batches(one, len(one), 5), eval_batches(other, len(one), 5), strict=True):
            torch.testing.assert_close(a.content, b.content, rtol=0, atol=0)


def test_a_part_held_out_costs_no_second_copy() -> None:
    found = packed(ready((X, Y)))
    assert found.nbytes == X.nbytes + Y.nbytes + 20 * 8
    assert found.held_out is not None
    assert all(found.train.arrays[n].numbers is found.held_out.arrays[n].numbers for n in found.train.arrays)
    train = cast(Any, unpack_data(found).train)
    assert train.dataset.tensors[0].data_ptr() == X.data_ptr()  # and none in this process


def test_memory_that_nobody_may_write_to_gives_batches_that_everybody_may() -> None:
    found = packed(ready((X.clone(), Y.clone())))
    for array in found.train.arrays.values():
        array.numbers.flags.writeable = False  # as Ray's object store gives it
    train = cast(Any, unpack_data(found).train)
    batch, untouched = fetch(train, np.arange(4)), fetch(train, np.arange(4))
    batch.content[0].add_(1)
    assert torch.equal(batch.content[0], untouched.content[0] + 1)
    assert torch.equal(fetch(train, np.arange(4)).content[0], untouched.content[0])


class Mine(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return tuple(2 * t[index] for t in self.tensors)


@pytest.mark.parametrize(
    "value",
    [Mine(X, Y), [(x, y) for x, y in zip(X, Y, strict=True)], Subset(Subset(TensorDataset(X), range(9)), range(5)),
     TensorDataset(X.t())],
    ids=["a class of its own", "a list", "a part of a part", "not in a row"],
)  # fmt: skip
def test_what_is_not_plainly_made_of_tensors_is_left_alone(value: Any) -> None:
    assert pack_data(ready(value, split=False)) is None
