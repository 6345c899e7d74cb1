"""Ready loaders: graphs, padded batches, worker processes, and what a batch may hold."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Plan
from flops_fit_ray.training.data import Batch, as_data, eval_batches, first_batches, make_feed, repeated_samples
from flops_fit_ray.training.data._stream import Stream
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user.losses import cross_entropy
from flops_fit_ray.training.user.parts import UserParts, make_user_parts
from tests.parts import Bigram, planned, spec_of

COUNT = 4000


class Graphs(Dataset[Any]):
    """Graph i has 4 to 11 nodes."""

    def __init__(self, count: int = COUNT) -> None:
        generator = torch.Generator().manual_seed(0)
        self.nodes = torch.randint(4, 12, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(int(self.nodes[index]), 4, generator=torch.Generator().manual_seed(index))
        return x, x.sum()


def graphs(named: bool, count: int = COUNT) -> DataLoader[Any]:
    def collate(items: Any) -> Any:
        owner = torch.cat([torch.full((len(x),), i) for i, (x, _) in enumerate(items)])
        nodes, targets = torch.cat([x for x, _ in items]), torch.stack([y for _, y in items])
        if named:  # targets of nodes, so that only a name tells the number of graphs
            return {"x": nodes, "batch": owner, "num_graphs": len(items), "y": nodes.sum(1)}
        return nodes, owner, targets

    return DataLoader(Graphs(count), batch_size=8, shuffle=True, collate_fn=collate)


class GraphNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 1)

    def forward(self, x: Tensor, batch: Tensor, num_graphs: int | None = None) -> Tensor:
        out: Tensor = self.b(torch.relu(self.a(x))).squeeze(-1)
        return out if num_graphs is not None else torch.zeros(8, device=x.device).index_add_(0, batch, out)


def parts_of(brought: Any, model: Any = GraphNet, held_out: Any = None, loss: Any = None, **spec: Any) -> Any:
    made = spec_of(**{"budgets": [2e5, 4e5], **spec})
    user = make_user_parts(
        model=model, model_kwargs={}, loss=loss or (lambda outputs, targets: ((outputs - targets) ** 2).mean()),
        train=brought, held_out=held_out, data=made.data,
    )  # fmt: skip
    return made, user


def plan_of(*args: Any, **kwargs: Any) -> tuple[Plan, UserParts]:
    spec, user = parts_of(*args, **kwargs)
    return planned(spec, user), user


@pytest.mark.parametrize("named", [True, False])
def test_d_of_graphs_is_graphs_and_flops_are_those_of_mean_batches(named: bool) -> None:
    plan, user = plan_of(graphs(named), held_out=graphs(named, 64))
    data = plan.measurements.data
    assert (data.tokens_per_sample, data.train_samples, data.eval_samples) == (1, COUNT, 64)
    # By hand: 4 W weights without a gradient of their inputs, 4 FLOPs each and node, W with 6; 7.5 nodes a graph
    assert [s.flops_per_token for s in plan.sizes] == pytest.approx([22 * w * 7.5 for w in (4, 8, 16)], rel=0.05)
    (note,) = data.notes
    assert note.startswith("data.train: batches hold ") and "FLOPs are counted on one of mean size" in note
    experiment = plan.experiments[0]
    assert train_experiment(experiment, user, eval_samples=64).tokens_seen == experiment.tokens


def test_graphs_are_not_split() -> None:
    with pytest.raises(SpecError, match="train.micro_batch_size: a batch of data.train cannot be split: the"):
        plan_of(graphs(True), train={"batch_size": 8, "micro_batch_size": 4, "lr": 1e-2})
    with pytest.raises(SpecError, match="workers_per_trial: a batch of data.train cannot be split"):
        plan_of(graphs(True), workers_per_trial=2)
    (batch,) = eval_batches(as_data(graphs(False), "data.eval"), 3, 8)
    assert batch.num_samples == 8  # a batch is evaluated whole
    with pytest.raises(ValueError, match="a batch of 8 samples cannot be split into parts of 4"):
        batch.to(torch.device("cpu")).split(4)


class Sentences(Dataset[Any]):
    """Sentence i has 5 + i % 20 tokens."""

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, index: int) -> Tensor:
        return torch.randint(1, 32, (6 + index % 20,), generator=torch.Generator().manual_seed(index))


def padded(items: Any) -> tuple[Tensor, Tensor]:
    rows = nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=-100)
    return rows[:, :-1].clamp_min(0), rows[:, 1:]


def test_padded_batches_are_refused_with_the_number_to_set_and_counted_on_their_mean() -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(Sentences(), batch_size=8, shuffle=True, collate_fn=padded)

    with pytest.raises(SpecError) as caught:
        plan_of(loader(), Bigram, loss=cross_entropy)
    message = str(caught.value)
    assert "tokens; set data.tokens_per_sample to their mean, 2" in message
    # By hand: 5 to 24 tokens, 14.5 on average
    assert ", or 14 without the targets" in message or ", or 15 without the targets" in message
    assert "D then counts samples times that number" in message
    plan, _ = plan_of(
        loader(),
        Bigram,
        loss=cross_entropy,
        data={"train": "tests.parts:text", "tokens_per_sample": 15},
        budgets=[1e6, 2e6],
    )
    longest = 0.95 * 24  # tokens a row of a batch has on average, by hand: the expected maximum of 8 is 22.1
    per_row = plan.sizes[0].flops_per_token * 15 / (6 * 4 * 32)
    assert 20.5 < per_row < longest + 1


class Sharded(IterableDataset[Any]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for i in range(first, self.count, step):
            yield torch.tensor([float(i)]), torch.tensor([float(i)])


@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_that_worker_processes_leave_incomplete_are_not_planned_with(drop_last: bool) -> None:
    stream = Stream(DataLoader(Sharded(1262), batch_size=8, num_workers=2, drop_last=drop_last))
    assert stream.whole_samples == 1248  # 1262 - 2 * 7, and 631 = 78 * 8 + 7 of each
    feed = make_feed(stream, 8, 0, 1.0)
    for _ in range(1248 // 8):
        feed.next_batch()
    one = Stream(DataLoader(Sharded(1262), batch_size=8))
    assert (one.whole_samples, one.readable_samples) == (1256, 1262)  # torch says 158 batches, 1264 samples


class Rows(IterableDataset[Any]):
    """Rows of a file, in order or shuffled, or rows that are drawn at random; `shares` says who divides them."""

    def __init__(self, order: str, shares: str = "") -> None:
        self.order, self.shares = order, shares
        self.part = (0, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        if self.shares == "iter" and info is not None:
            self.part = info.id, info.num_workers
        rows = range(200) if self.order == "in order" else torch.randperm(200).tolist()
        for i in rows[self.part[0] :: self.part[1]]:
            x = torch.rand(4) if self.order == "drawn" else torch.full((4,), float(i))
            yield x, x.sum(0, keepdim=True)


def take_part(worker: int) -> None:
    info = get_worker_info()
    assert info is not None and isinstance(info.dataset, Rows)
    info.dataset.part = worker, info.num_workers


@pytest.mark.parametrize(
    ("order", "shares", "expected"),
    [
        ("in order", "", "refused"),
        ("in order", "iter", ""),
        ("in order", "worker_init_fn", ""),
        ("shuffled", "", "doubtful"),
        ("shuffled", "iter", ""),
        ("drawn", "", "doubtful"),
    ],
)
def test_processes_of_a_loader_that_all_give_every_sample_are_noticed(order: str, shares: str, expected: str) -> None:
    init = take_part if shares == "worker_init_fn" else None
    data = as_data(DataLoader(Rows(order, shares), batch_size=8, num_workers=2, worker_init_fn=init), "data.train")
    fault, doubt = repeated_samples(data)
    assert (bool(fault), bool(doubt)) == (expected == "refused", expected == "doubtful"), (fault, doubt)
    one = as_data(DataLoader(Rows(order), batch_size=8, num_workers=1), "data.train")
    assert repeated_samples(one) == ("", "")


def test_a_loader_whose_samples_come_twice_is_refused_with_the_way_out() -> None:
    with pytest.raises(SpecError, match=r"data.train: each of the 2 processes .* comes 2 times; .*get_worker_info\(\)"):
        plan_of(DataLoader(Rows("in order"), batch_size=8, num_workers=2))


def test_what_a_batch_may_hold() -> None:
    batch = Batch({"x": torch.arange(4), "names": ["a", "b", "c", "d"], "none": None, "mask": torch.ones(())}, 4)
    assert [part.content["names"] for part in batch.split(2)] == [["a", "b"], ["c", "d"]]
    assert batch.split(2)[1].content["none"] is None

    class Own:
        def to(self, device: Any) -> Any:
            return self

    loader = DataLoader(Graphs(16), batch_size=8, collate_fn=lambda items: Own())
    with pytest.raises(SpecError, match="but is a Own; return one of these from collate_fn"):
        plan_of(loader)
    assert len(first_batches(as_data(graphs(False), "data.train"), 8)) == 32


def test_graphs_without_a_number_are_refused_with_the_way_out() -> None:
    def nodes_alone(items: Any) -> Any:
        x = torch.cat([x for x, _ in items])
        return x, x.sum(1)

    spec, user = parts_of(DataLoader(Graphs(), batch_size=8, collate_fn=nodes_alone))
    with pytest.raises(SpecError, match=r"samples instead of 8; .* \(graphs\), return a mapping with num_graphs"):
        measure_sizes(spec, user)
