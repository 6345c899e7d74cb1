"""Several workers that train one experiment together: the tokens and the loss of one worker, and its checkpoints."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flops_fit_ray.engine._team import by_node, use_interface
from flops_fit_ray.errors import InterruptedSweepError
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.distributed.group import (
    SINGLE_WORKER,
    Group,
    connect_store,
    create_store,
    process_group,
)
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.follower import run_follower
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import BIGRAM, Bigram, planned, spec_of, text, user_parts_of

TIMEOUT = 60.0
REPLICAS, SHARDED = "replicas", "sharded"
TEXT = {"model": BIGRAM, "data": {"train": "tests.parts:text"}, "loss": "cross_entropy", "budgets": [1e6, 2e6]}


def ragged() -> Any:
    """Rows of tokens with targets that are left out, so that shares of a batch weigh differently."""
    data = text(500)
    x, y = (t.clone() for t in data.tensors)
    generator = torch.Generator().manual_seed(3)
    y[torch.rand(y.shape, generator=generator) < torch.rand(len(y), 1, generator=generator)] = -100
    y[0::7] = -100  # and whole rows
    return torch.utils.data.TensorDataset(x, y)


class Gated(nn.Module):
    """A branch that only some samples take, and one that nobody takes: parameters without a gradient."""

    def __init__(self, width: int, vocab: int = 32) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False)
        self.more, self.never = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        taken = ids[:, 0] < 8
        if ids.is_meta or bool(taken.any()):
            h = h + self.more(h) * taken[:, None, None]
        out: Tensor = self.head(h)
        return out


class Stack(nn.Module):
    """Blocks in a list, a norm, a buffer, a tied table: what is gathered at once, and what is not."""

    def __init__(self, width: int, vocab: int = 32) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(vocab, width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
                                    for _ in range(3))  # fmt: skip
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        for block in self.blocks:
            inner = block(h)
            inner += h  # in place, as many do
            h = h + self.scale * inner
        out: Tensor = self.head(self.norm(h))
        return out


def two_optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    assert isinstance(model, Stack)
    rest = [p for name, p in model.named_parameters() if not name.startswith("blocks")]
    return [torch.optim.SGD(model.blocks.parameters(), lr=lr, momentum=0.9), torch.optim.AdamW(rest, lr=lr)]


def parts(kind: str, **train: Any) -> tuple[Experiment, UserParts, int]:
    """An experiment of each kind, with what it trains on."""
    recipe = {"batch_size": 8, "lr": 0.02, "grad_clip": 0.5, "weight_decay": 0.1, "seed": 5, **train}
    if kind == "mlp":
        spec = spec_of(train=recipe, model={"target": "tests.parts:Mlp", "size_param": "width", "sizes": [4, 8, 16],
                                            "kwargs": {"dropout": 0.0}})  # fmt: skip
        user = user_parts_of(spec)
    else:
        budgets = [8e6, 1.6e7] if kind == "stack" else TEXT["budgets"]
        spec = spec_of(**{**TEXT, "train": recipe, "budgets": budgets})
        model = {"text": Bigram, "ragged": Bigram, "gated": Gated, "stack": Stack}[kind]
        user = user_parts_of(spec, model=model, train=ragged() if kind == "ragged" else text(500))
        user = replace(user, optimizer=two_optimizers) if kind == "stack" else user
    plan = planned(spec, user)
    return plan.experiments[1], user, plan.measurements.data.eval_samples


def kind_of(how: str) -> type[Group]:
    """The group of a way to share the work; the sharded one brings a second of imports, so nobody else has them."""
    if how == REPLICAS:
        return Group
    from flops_fit_ray.training.distributed.fsdp import ShardedGroup

    return ShardedGroup


class Stops(Observer):
    """Ends the experiment at a token count."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def progress(self, tokens_seen: int, train_loss: float | None) -> None:
        if tokens_seen >= self._tokens:
            raise InterruptedSweepError("stop")


def _follow_forever(calls: Connection) -> None:
    """A worker's process: it joins one group after the other, and answers with a traceback or nothing."""
    while True:
        kind, train, group, port = calls.recv()
        try:
            experiment, user, eval_samples = parts(kind, **train)
            with process_group(connect_store("127.0.0.1", port, TIMEOUT), group, "cpu", TIMEOUT):
                run_follower(experiment, user, eval_samples=eval_samples, group=group)
            calls.send("")
        except BaseException:
            calls.send(traceback.format_exc())
            raise


class Pool:
    """Processes of other workers, kept from one test to the next: to start one takes longer than to train."""

    def __init__(self) -> None:
        self._others: list[tuple[BaseProcess, Connection]] = []

    def call(self, kind: str, train: dict[str, Any], groups: Sequence[Group], port: int) -> list[Connection]:
        """Let a process follow as each of these members of a group. Returns where their answers come from."""
        context = multiprocessing.get_context("forkserver")  # imports torch once, and not for each of them
        context.set_forkserver_preload([__name__, "flops_fit_ray.training.distributed.fsdp"])
        while len(self._others) < len(groups):
            here, there = context.Pipe()
            process = context.Process(target=_follow_forever, args=(there,), daemon=True)
            process.start()
            self._others.append((process, here))
        calls = [here for _, here in self._others[: len(groups)]]
        for here, group in zip(calls, groups, strict=True):
            here.send((kind, train, group, port))
        return calls

    def close(self) -> None:
        """End them, whatever they are waiting for."""
        for process, here in self._others:
            process.kill()  # torch's threads may abort a process whose interpreter is being taken apart
            process.join()
            here.close()
        self._others.clear()


POOL = Pool()


@pytest.fixture(scope="module", autouse=True)
def _pool_ends() -> Iterator[None]:
    yield
    POOL.close()


def trained(
    kind: str,
    size: int,
    policy: SavePolicy | None = None,
    observer: Observer | None = None,
    *,
    how: str = REPLICAS,
    **train: Any,
) -> Outcome:
    """The outcome with so many workers, this one leading."""
    experiment, user, eval_samples = parts(kind, **train)
    arguments: dict[str, Any] = {"eval_samples": eval_samples, "policy": policy, "observer": observer}
    if size == 1:
        return train_experiment(experiment, user, **arguments)
    store, port = create_store("127.0.0.1")
    group_of = kind_of(how)
    answers = POOL.call(kind, train, [group_of(rank, size) for rank in range(1, size)], port)
    try:
        with process_group(store, group_of(0, size), "cpu", TIMEOUT) as group:
            outcome = train_experiment(experiment, user, **arguments, group=group)
    except BaseException:
        POOL.close()  # the others wait for a leader that is gone
        raise
    assert [answer.recv() if answer.poll(TIMEOUT) else "no answer" for answer in answers] == [""] * (size - 1)
    return outcome


@pytest.mark.parametrize(
    ("kind", "size", "how", "train"),
    [
        ("text", 2, REPLICAS, {}),
        ("ragged", 2, REPLICAS, {"micro_batch_size": 2}),
        ("gated", 2, REPLICAS, {}),
        ("mlp", 3, REPLICAS, {"optimizer": "sgd", "momentum": 0.9}),
        ("stack", 2, SHARDED, {}),
        ("ragged", 2, SHARDED, {"micro_batch_size": 2}),
        ("mlp", 3, SHARDED, {"optimizer": "sgd", "momentum": 0.9}),
    ],
)
def test_a_group_has_the_tokens_and_the_loss_of_one_worker(
    kind: str, size: int, how: str, train: dict[str, Any]
) -> None:
    alone, together = trained(kind, 1, **train), trained(kind, size, how=how, **train)
    experiment, _, _ = parts(kind, **train)
    assert together.tokens_seen == alone.tokens_seen == experiment.tokens
    assert (alone.workers, together.workers) == (1, size)
    assert alone.all_reduce_share is None and (together.all_reduce_share is None) == (how == SHARDED)
    assert together.all_reduce_share is None or 0 < together.all_reduce_share < 1
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)
    assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-6)
    norms = [(a.grad_norm, b.grad_norm) for a, b in zip(alone.curve, together.curve, strict=True) if a.grad_norm]
    assert norms and all(b == pytest.approx(a, rel=1e-4) for a, b in norms)


# Of each group that is interrupted those that go on from its checkpoint, and their sizes
GO_ON: list[tuple[str, list[tuple[str, int]]]] = [
    (REPLICAS, [(REPLICAS, 2), (REPLICAS, 1), (SHARDED, 2)]),
    (SHARDED, [(SHARDED, 2), (REPLICAS, 1)]),
]


@pytest.mark.parametrize(("before", "others"), GO_ON, ids=[before for before, _ in GO_ON])
def test_a_group_goes_on_from_its_checkpoint_and_so_does_one_worker(
    before: str, others: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flops_fit_ray.training.loop.loop.PROGRESS_SECONDS", 0.0)
    whole = trained("stack", 2, how=before)
    experiment, _, _ = parts("stack")

    def policy_in(place: Path) -> SavePolicy:
        return SavePolicy(store=CheckpointStore(place, key=experiment.key), checkpoint_seconds=None)

    with pytest.raises(InterruptedSweepError):
        trained("stack", 2, policy_in(tmp_path / "interrupted"), Stops(experiment.tokens // 2), how=before)
    for number, (after, size) in enumerate(others):
        shutil.copytree(tmp_path / "interrupted", tmp_path / str(number))
        resumed = trained("stack", size, policy_in(tmp_path / str(number)), how=after)
        assert resumed.resumed_from and resumed.tokens_seen == experiment.tokens
        if (after, size) == (before, 2):
            assert (resumed.loss, resumed.train_loss) == (whole.loss, whole.train_loss)  # the same bits
        else:
            assert resumed.loss == pytest.approx(whole.loss, rel=1e-6)


def test_workers_that_share_a_model_hold_their_parts_and_evaluate_and_write_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.tensor import DTensor

    from flops_fit_ray.training.distributed.fsdp import ShardedGroup

    held: list[tuple[int, int]] = []
    place_model = ShardedGroup.place_model

    def noted(self: ShardedGroup, model: nn.Module, device: torch.device) -> None:
        whole = sum(p.numel() for p in model.parameters())
        place_model(self, model, device)
        held.append((sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)), whole))

    monkeypatch.setattr(ShardedGroup, "place_model", noted)
    found = {}
    for name, size, how in (("alone", 1, REPLICAS), ("sharded", 2, SHARDED)):
        experiment, _, _ = parts("stack")
        store = CheckpointStore(tmp_path / name, key=experiment.key, best=True)
        every = experiment.tokens // 4
        policy = SavePolicy(
            store=store, keep_best=True, eval_every_tokens=every, weights=tmp_path / f"{name}.safetensors"
        )
        found[name] = trained("stack", size, policy, how=how)
    on_the_way = {name: [p.eval_loss for p in of.curve if p.eval_loss is not None] for name, of in found.items()}
    assert len(on_the_way["alone"]) >= 4
    assert on_the_way["sharded"] == pytest.approx(on_the_way["alone"], rel=1e-6)
    alone, sharded = (load_file(tmp_path / f"{name}.safetensors") for name in found)
    assert alone.keys() == sharded.keys() and "head.weight" not in sharded  # tied: once
    assert all(torch.allclose(sharded[name], alone[name], rtol=1e-4, atol=1e-5) for name in alone)
    ((part, whole),) = held
    assert part <= 0.55 * whole


def test_workers_that_share_a_model_may_use_different_weights() -> None:
    experiment, _, _ = parts("gated")
    together = trained("gated", 2, how=SHARDED)
    assert together.tokens_seen == experiment.tokens
    assert together.loss == pytest.approx(trained("gated", 1).loss, rel=0.01)


def test_what_is_gathered_at_once_shares_no_weight_with_the_rest() -> None:
    from flops_fit_ray.training.distributed.fsdp import fsdp_units

    model = Stack(4)
    assert fsdp_units(model) == list(model.blocks)
    (first, second) = (cast(nn.Sequential, model.blocks[i])[0] for i in (0, 1))
    second.weight = first.weight
    assert fsdp_units(model) == [model.blocks[2]]
    assert fsdp_units(nn.Linear(2, 2)) == []


def test_dropout_differs_between_workers_and_resumes_to_the_same_bits() -> None:
    masks = {(g.rank, step): _drawn(g, step) for g in (Group(0, 2), Group(1, 2)) for step in range(2)}
    assert len({tuple(m.tolist()) for m in masks.values()}) == 4
    assert torch.equal(_drawn(Group(1, 2), 1), masks[1, 1])
    assert torch.equal(_drawn(Group(0, 2), 1, shared=True), _drawn(Group(1, 2), 1, shared=True))


def _drawn(group: Group, step: int, *, shared: bool = False) -> Tensor:
    group.seed_step(7, step, shared=shared)
    return torch.rand(4)


def test_shares_are_the_batch() -> None:
    batch = Batch((torch.arange(10), torch.arange(10)), 10)
    for size in (1, 2, 3, 4, 12):
        shares = [Group(rank, size).local_batch(batch) for rank in range(size)]
        drawn = torch.cat([s.content[0] for s in shares if s is not None])
        assert torch.equal(drawn, torch.arange(10))
        assert max(s.num_samples for s in shares if s is not None) == Group(0, size).max_local_samples(10)
    assert SINGLE_WORKER.local_batch(batch) is batch


def test_alone_nothing_is_changed() -> None:
    before = torch.random.get_rng_state()
    SINGLE_WORKER.seed_step(1, 2, shared=True)
    model = nn.Linear(2, 2)
    loss = torch.tensor(1.0)
    SINGLE_WORKER.place_model(model, torch.device("cpu"))
    assert SINGLE_WORKER.all_reduce_gradients(list(model.parameters()), loss) is loss
    state = {"step": 1}
    assert SINGLE_WORKER.distribute_state(state, model, torch.optim.SGD(model.parameters())) is state
    torch.random.set_rng_state(before)


def test_ranks_follow_nodes_and_the_interface_is_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_node("b", ["a", "b", "c", "a", "b"]) == [1, 4, 0, 3, 2]  # the leader is on b
    assert by_node("a", ["a", "a"]) == [0, 1] and by_node("z", ["b", "a", "b"]) == [0, 2, 1]
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "mine0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface("192.0.2.77")  # of no interface here
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    use_interface("127.0.0.1")
    assert (os.environ["NCCL_SOCKET_IFNAME"], os.environ["GLOO_SOCKET_IFNAME"]) == ("mine0", "lo")
