"""Several workers that train one experiment together: the tokens and the loss of one worker, and its checkpoints."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flops_fit_ray.errors import InterruptedSweepError
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.care import Care, Observer
from flops_fit_ray.training.checkpoint import CheckpointStore
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.follow import follow
from flops_fit_ray.training.group import ALONE, Group, joined, meet, open_store
from flops_fit_ray.training.guest import Guest
from flops_fit_ray.training.loop import train_experiment
from flops_fit_ray.training.outcome import Outcome
from tests.parts import BIGRAM, Bigram, guest_of, planned, spec_of, text

TIMEOUT = 60.0
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


def parts(kind: str, **train: Any) -> tuple[Experiment, Guest, int]:
    """An experiment of each kind, with what it trains on."""
    recipe = {"batch_size": 8, "lr": 0.02, "grad_clip": 0.5, "weight_decay": 0.1, "seed": 5, **train}
    if kind == "mlp":
        spec = spec_of(train=recipe, model={"target": "tests.parts:Mlp", "size_param": "width", "sizes": [4, 8, 16],
                                            "kwargs": {"dropout": 0.0}})  # fmt: skip
        guest = guest_of(spec)
    else:
        spec = spec_of(**{**TEXT, "train": recipe})
        model = {"text": Bigram, "ragged": Bigram, "gated": Gated}[kind]
        guest = guest_of(spec, model=model, train=ragged() if kind == "ragged" else text(500))
    plan = planned(spec, guest)
    return plan.experiments[1], guest, plan.survey.data.eval_samples


class Stops(Observer):
    """Ends the experiment at a token count."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def progress(self, tokens_seen: int, train_loss: float | None) -> None:
        if tokens_seen >= self._tokens:
            raise InterruptedSweepError("stop")


def _follower(kind: str, train: dict[str, Any], rank: int, size: int, port: int) -> None:
    try:
        experiment, guest, eval_samples = parts(kind, **train)
        with joined(meet("127.0.0.1", port, TIMEOUT), Group(rank, size), "cpu", TIMEOUT) as group:
            follow(experiment, guest, eval_samples=eval_samples, group=group)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        raise


def trained(kind: str, size: int, care: Care | None = None, observer: Observer | None = None, **train: Any) -> Outcome:
    """The outcome with so many workers, this one leading."""
    experiment, guest, eval_samples = parts(kind, **train)
    arguments: dict[str, Any] = {"eval_samples": eval_samples, "care": care, "observer": observer}
    if size == 1:
        return train_experiment(experiment, guest, **arguments)
    store, port = open_store("127.0.0.1")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_follower, args=(kind, train, rank, size, port)) for rank in range(1, size)]
    for other in others:
        other.start()
    try:
        with joined(store, Group(0, size), "cpu", TIMEOUT) as group:
            outcome = train_experiment(experiment, guest, **arguments, group=group)
        for other in others:
            other.join(TIMEOUT)
            assert other.exitcode == 0
        return outcome
    finally:
        for other in others:
            other.kill()
            other.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size", "train"),
    [
        ("text", 2, {}),
        ("ragged", 2, {"micro_batch_size": 2}),
        ("gated", 2, {}),
        ("mlp", 4, {"optimizer": "sgd", "momentum": 0.9}),
    ],
)
def test_a_group_has_the_tokens_and_the_loss_of_one_worker(kind: str, size: int, train: dict[str, Any]) -> None:
    alone, together = trained(kind, 1, **train), trained(kind, size, **train)
    experiment, _, _ = parts(kind, **train)
    assert together.tokens_seen == alone.tokens_seen == experiment.tokens
    assert (alone.workers, together.workers) == (1, size)
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)
    assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-6)
    norms = [(a.grad_norm, b.grad_norm) for a, b in zip(alone.curve, together.curve, strict=True) if a.grad_norm]
    assert norms and all(b == pytest.approx(a, rel=1e-4) for a, b in norms)


@pytest.mark.slow
def test_a_group_goes_on_from_its_checkpoint_and_so_does_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flops_fit_ray.training.loop.PROGRESS_SECONDS", 0.0)
    whole = trained("text", 2)
    experiment, _, _ = parts("text")
    for number, size in enumerate((2, 1)):
        care = Care(store=CheckpointStore(tmp_path / str(number), key=experiment.key), checkpoint_seconds=None)
        with pytest.raises(InterruptedSweepError):
            trained("text", 2, care, Stops(experiment.tokens // 2))
        resumed = trained("text", size, care)
        assert resumed.resumed_from and resumed.tokens_seen == experiment.tokens
        if size == 2:
            assert (resumed.loss, resumed.train_loss) == (whole.loss, whole.train_loss)  # the same bits
        else:
            assert resumed.loss == pytest.approx(whole.loss, rel=1e-6)


def test_dropout_differs_between_workers_and_resumes_to_the_same_bits() -> None:
    masks = {(g.rank, step): _drawn(g, step) for g in (Group(0, 2), Group(1, 2)) for step in range(2)}
    assert len({tuple(m.tolist()) for m in masks.values()}) == 4
    assert torch.equal(_drawn(Group(1, 2), 1), masks[1, 1])
    assert torch.equal(_drawn(Group(0, 2), 1, shared=True), _drawn(Group(1, 2), 1, shared=True))


def _drawn(group: Group, step: int, *, shared: bool = False) -> Tensor:
    group.seed(7, step, shared=shared)
    return torch.rand(4)


def test_shares_are_the_batch() -> None:
    batch = Batch((torch.arange(10), torch.arange(10)), 10)
    for size in (1, 2, 3, 4, 12):
        shares = [Group(rank, size).own(batch) for rank in range(size)]
        drawn = torch.cat([s.content[0] for s in shares if s is not None])
        assert torch.equal(drawn, torch.arange(10))
        assert max(s.num_samples for s in shares if s is not None) == Group(0, size).share(10)
    assert ALONE.own(batch) is batch


def test_alone_nothing_is_changed() -> None:
    before = torch.random.get_rng_state()
    ALONE.seed(1, 2, shared=True)
    model = nn.Linear(2, 2)
    loss = torch.tensor(1.0)
    ALONE.place(model, torch.device("cpu"))
    assert ALONE.sum_gradients(list(model.parameters()), loss) is loss
    state = {"step": 1}
    assert ALONE.share_state(state, model, torch.optim.SGD(model.parameters())) is state
    torch.random.set_rng_state(before)
