"""Order, tokens, splits and fingerprints of data."""

import signal
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from flops_fit_ray.errors import SpecError
from flops_fit_ray.training.data import Batch, MapDataset, as_data, fingerprint, split_held_out
from flops_fit_ray.training.data import dataset as dataset_module
from flops_fit_ray.training.data._feed import IndexedFeed, PrefetchedFeed, make_feed
from flops_fit_ray.training.preflight.model_size import measure_sizes
from tests.parts import Pairs, regression, spec_of, text, user_parts_of


def fetch(data: MapDataset, indices: Any) -> Batch:
    return dataset_module.fetch(data, np.array(list(indices)))


def batch_order(count: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    feed = IndexedFeed(regression(count), batch_size, seed)
    return [feed.next_indices().tolist() for _ in range(steps)]


def test_a_shorter_run_sees_a_prefix_of_a_longer_one() -> None:
    long = [i for batch in batch_order(100, 8, 40, seed=3) for i in batch]
    short = [i for batch in batch_order(100, 8, 7, seed=3) for i in batch]
    other_batch = [i for batch in batch_order(100, 5, 30, seed=3) for i in batch]
    assert long[: len(short)] == short
    assert long[: len(other_batch)] == other_batch


def test_batches_read_ahead_are_the_same_and_resume_where_they_were_given_out() -> None:
    plain, ahead = make_feed(text(50), 8, 3, 1.0), make_feed(text(50), 8, 3, 1.0, ahead=True)
    assert isinstance(ahead, PrefetchedFeed)
    first = [ahead.next_batch().content[0] for _ in range(5)]
    assert all(torch.equal(a, plain.next_batch().content[0]) for a in first)
    state = ahead.state()
    assert state == plain.state()
    rest = [plain.next_batch().content[0] for _ in range(4)]
    again = make_feed(text(50), 8, 3, 1.0, ahead=True)
    again.load_state(state)
    assert all(torch.equal(a, again.next_batch().content[0]) for a in rest)
    ahead.next_batch()
    ahead.load_state(state)
    assert all(torch.equal(a, ahead.next_batch().content[0]) for a in rest)
    assert not isinstance(make_feed(Pairs(*text(50).tensors), 8, 3, 1.0, ahead=True), PrefetchedFeed)  # it may draw


def test_every_epoch_is_another_permutation() -> None:
    flat = [i for batch in batch_order(10, 4, 10, seed=0) for i in batch]
    epochs = [flat[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    assert flat != [i for batch in batch_order(10, 4, 10, seed=1) for i in batch]


def test_a_batch_may_be_larger_than_the_data() -> None:
    flat = [i for batch in batch_order(3, 7, 3, seed=0) for i in batch]
    assert len(flat) == 21
    assert all(sorted(flat[i : i + 3]) == [0, 1, 2] for i in range(0, 21, 3))


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Pairs(*d.tensors), lambda d: Subset(d, range(len(d)))])
def test_every_kind_of_dataset_gives_the_same_batch(wrap: Any) -> None:
    data = regression(50)
    batch = fetch(wrap(data), [4, 2, 9])
    assert torch.equal(batch.content[0], data.tensors[0][[4, 2, 9]])
    assert torch.equal(batch.target, data.tensors[1][[4, 2, 9]])
    assert (batch.num_samples, batch.num_tokens()) == (3, 3)


def test_tokens_are_target_numbers_for_text_and_samples_for_labels() -> None:
    assert fetch(text(50, context=16), range(3)).num_tokens() == 48
    labels = TensorDataset(torch.randn(9, 4), torch.zeros(9, dtype=torch.long))
    assert fetch(labels, range(3)).num_tokens() == 3


def test_held_out_samples_are_never_trained_on() -> None:
    data = TensorDataset(torch.arange(1000.0)[:, None], torch.zeros(1000))
    train, held_out = split_held_out(data, 0.05)
    seen = set(fetch(train, range(950)).content[0].flatten().tolist())
    kept = set(fetch(held_out, range(50)).content[0].flatten().tolist())
    assert len(seen) == 950 and len(kept) == 50 and not seen & kept
    assert fingerprint(held_out) == fingerprint(split_held_out(data, 0.05)[1])


def test_a_fingerprint_is_that_of_earlier_versions() -> None:
    x = torch.arange(4_000).reshape(1_000, 4)  # no arithmetic that processors round differently
    assert fingerprint(as_data((x, x[:, 0]), "data.train")) == "bc9d3924a0ade029"


def test_fingerprints_see_values_types_and_lengths() -> None:
    marks = {
        fingerprint(regression(50)),
        fingerprint(regression(51)),
        fingerprint(text(50)),
        fingerprint(regression(50), text(50)),
        fingerprint(TensorDataset(*(t.double() for t in regression(50).tensors))),
    }
    assert len(marks) == 5
    assert fingerprint(regression(50)) == fingerprint(Pairs(*regression(50).tensors))


def test_a_random_dataset_is_known_by_its_length() -> None:
    class Noise(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Any:
            return torch.rand(2), torch.rand(1)

    assert fingerprint(Noise()) == fingerprint(Noise())


REFUSED = [
    (TensorDataset(torch.empty(0, 2), torch.empty(0)), "is empty"),
    (3, "int has no __len__ and __getitem__"),
    ("text", "str has no __len__ and __getitem__"),
    (iter([1, 2]), "is a list_iterator, which can be iterated only once; pass an object whose __iter__ starts over"),
    ((torch.zeros(3, 2), torch.zeros(4)), "has parts of different lengths: 0: 3, 1: 4"),
    ({"x": np.zeros(3), "y": np.zeros(2)}, "has parts of different lengths: x: 3, y: 2"),
    (DataLoader(regression(8), batch_size=None), "is a DataLoader without a batch_size"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refusals(value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=f"data.train: {message}"):
        as_data(value, "data.train")


def test_data_that_never_come_do_not_block_planning_for_ever() -> None:
    class Blocking(Pairs):
        def __getitem__(self, index: int) -> Any:
            time.sleep(60)

    spec = spec_of(data={"train": "tests.parts:regression", "timeout_seconds": 0.3})
    with pytest.raises(SpecError, match=r"TimeoutError: no samples within 0.3 s \(data.timeout_seconds\)"):
        measure_sizes(spec, user_parts_of(spec, train=Blocking(*regression().tensors)))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_samples_must_be_pairs_of_one_length_and_fill_a_batch() -> None:
    spec = spec_of()
    with pytest.raises(SpecError, match=r"a sample must be a tuple \(input, ..., target\) or a mapping with labels"):
        measure_sizes(spec, user_parts_of(spec, train=[torch.zeros(3)] * 100))
    ragged = [(torch.zeros(3), torch.zeros(1 + (i > 50), dtype=torch.long)) for i in range(100)]
    with pytest.raises(SpecError, match="samples have 1 to 2 tokens; set data.tokens_per_sample"):
        measure_sizes(spec, user_parts_of(spec, train=ragged))
    with pytest.raises(SpecError, match="train.batch_size: 8 is more than the 4 samples"):
        measure_sizes(spec, user_parts_of(spec, train=regression(5)))
