"""One experiment: exactly its tokens, exactly its bits."""

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from flops_fit_ray.errors import DivergedError, ExperimentError
from flops_fit_ray.planning import Experiment, Recipe
from flops_fit_ray.training.data import Batch, MapDataset, eval_batches, num_samples
from flops_fit_ray.training.data._feed import IndexedFeed
from flops_fit_ray.training.data.dataset import fetch as fetch_at
from flops_fit_ray.training.loop._divergence import LossLevels
from flops_fit_ray.training.loop._evaluate import evaluate
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer, Speed
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.step._lr_schedule import lr_factor
from flops_fit_ray.training.user.losses import cross_entropy, mse
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import BIGRAM, Bigram, Mlp, Pairs, planned, spec_of, text, user_parts_of

PLAIN = {"batch_size": 8, "lr": 0.05, "optimizer": "sgd", "schedule": "constant", "grad_clip": None, "seed": 5}


def fetch(data: Any, indices: Any) -> Batch:
    return fetch_at(data, np.array(list(indices)))


def map_style(data: Any) -> MapDataset:
    return cast(MapDataset, data)


def lr_at(step: int, steps: int, recipe: Recipe) -> float:
    return recipe.lr * lr_factor(step, steps, recipe)


def first_experiment(train: dict[str, Any], **sections: Any) -> tuple[Experiment, UserParts, int]:
    spec = spec_of(train=train, **sections)
    user = user_parts_of(spec)
    plan = planned(spec, user)
    return plan.experiments[1], user, plan.measurements.data.eval_samples


def test_the_plain_recipe_is_a_bare_pytorch_loop_bit_for_bit() -> None:
    experiment, user, eval_samples = first_experiment(PLAIN)
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model = Mlp(width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    feed = IndexedFeed(map_style(user.train_data), 8, seed=5)
    losses = []
    for _ in range(experiment.steps):
        batch = feed.next_batch()
        optimizer.zero_grad()
        loss = functional.mse_loss(model(batch.content[0]), batch.target)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        held_out = [
            float(functional.mse_loss(model(b.content[0]), b.target).double()) * b.num_samples
            for b in (fetch(user.eval_data, range(s, min(s + 8, 100))) for s in range(0, 100, 8))
        ]
    outcome = train_experiment(experiment, user, eval_samples=eval_samples)
    assert eval_samples == 100
    tail = max(1, round(0.05 * experiment.steps))
    assert outcome.train_loss == math.fsum(losses[-tail:]) / tail
    assert outcome.loss == pytest.approx(math.fsum(held_out) / 100, rel=1e-15)


def test_exactly_d_tokens_are_seen() -> None:
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text"},
        loss="cross_entropy",
        budgets=[1e6, 2e6],
    )
    user = user_parts_of(spec, model=Bigram, train=text(500))
    calls: list[int] = []

    def counting(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(targets.numel())
        return cross_entropy(outputs, targets)

    plan = planned(spec, user)
    for experiment in plan.experiments:
        calls.clear()
        outcome = train_experiment(experiment, replace(user, loss=counting), eval_samples=8)
        assert outcome.tokens_seen == experiment.tokens == sum(calls[:-1])  # the last call is the evaluation
        assert len(calls) == experiment.steps + 1


def test_the_same_experiment_gives_the_same_bits_whatever_ran_before() -> None:
    experiment, user, eval_samples = first_experiment({"batch_size": 8, "lr": 1e-2, "seed": 1})
    first = train_experiment(experiment, user, eval_samples=eval_samples)
    torch.rand(1000)
    train_experiment(replace(experiment, recipe=replace(experiment.recipe, seed=9)), user, eval_samples=3)
    torch.set_num_threads(2)
    again = train_experiment(experiment, user, eval_samples=eval_samples)
    torch.set_num_threads(1)
    everything = fetch(user.train_data, range(num_samples(map_style(user.train_data))))
    one_by_one = replace(user, train_data=Pairs(everything.content[0], everything.target))
    by_item = train_experiment(experiment, one_by_one, eval_samples=eval_samples)
    assert (first.loss, first.loss_stderr, first.train_loss) == (again.loss, again.loss_stderr, again.train_loss)
    assert first.loss == by_item.loss


def test_another_seed_is_another_run() -> None:
    experiment, user, eval_samples = first_experiment({"batch_size": 8, "lr": 1e-2})
    other = replace(experiment, recipe=replace(experiment.recipe, seed=1))
    first, second = (train_experiment(e, user, eval_samples=eval_samples).loss for e in (experiment, other))
    assert first != second


def test_evaluation_is_in_eval_mode_and_weighs_by_samples() -> None:
    _, user, _ = first_experiment(PLAIN)
    model = Mlp(8, dropout=0.9)
    found = evaluate(
        model,
        user,
        recipe(),
        eval_batches(cast(Any, user.eval_data), 20, 8),
        torch.device("cpu"),
    )
    loss, stderr = found.loss, found.loss_stderr
    assert model.training
    model.eval()
    batch = fetch(user.eval_data, range(20))
    whole = functional.mse_loss(model(batch.content[0]), batch.target).item()
    assert loss == pytest.approx(whole, rel=1e-6)
    means = [
        functional.mse_loss(model(b.content[0]), b.target).item()
        for b in (fetch(user.eval_data, range(s, min(s + 8, 20))) for s in (0, 8, 16))
    ]
    assert stderr == pytest.approx(torch.tensor(means).std().item() / math.sqrt(3), rel=1e-5)


def test_evaluation_weighs_by_targets_that_count() -> None:
    spec = spec_of(loss="cross_entropy")
    ids, targets = (t.clone() for t in text(40).tensors)
    targets[:8, 2:] = -100
    targets[16:24] = -100
    user = user_parts_of(spec, model=Bigram, train=(ids, targets))
    model = Bigram(8)
    data = TensorDataset(ids, targets)
    found = evaluate(model, user, recipe(), eval_batches(data, 40, 8), torch.device("cpu"))
    assert found.loss == pytest.approx(cross_entropy(model(ids), targets).item(), rel=1e-6)


def test_divergence_is_named() -> None:
    experiment, user, eval_samples = first_experiment({**PLAIN, "lr": 1e6})
    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) after \d\d tokens"):
        train_experiment(experiment, user, eval_samples=eval_samples)
    kept: list[float] = []

    def exploding(outputs: Tensor, targets: Tensor) -> Tensor:
        kept.append(1e4 if 12 <= len(kept) < 23 else 1.0)
        return mse(outputs, targets) * 0 + kept[-1]

    exploded = replace(user, loss=exploding)
    message = r"the training loss is 1e\+04 after 176 tokens: 8 of the last 9 readings are 1e\+04 or more, after 1 \(if"
    with pytest.raises(DivergedError, match=message):  # 12 quiet steps, 8 loud ones, 2 more to be sure
        train_experiment(experiment, exploded, eval_samples=eval_samples)
    kept.clear()
    goes_on = SavePolicy(stop_diverged=False)
    assert train_experiment(experiment, exploded, eval_samples=eval_samples, policy=goes_on).loss == 1.0
    for bad in (math.nan, math.inf):
        broken = replace(user, loss=lambda out, y, bad=bad: mse(out, y) * bad)
        with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) after 8 tokens"):
            train_experiment(experiment, broken, eval_samples=eval_samples)


QUIET = [3 - 0.01 * i for i in range(40)]


@pytest.mark.parametrize("scale", [1.0, 1e5, 1e-5])
def test_losses_that_stay_far_above_all_levels_of_before_have_exploded(scale: float) -> None:
    def first_seen(losses: list[float]) -> int | None:
        levels = LossLevels()
        for number, loss in enumerate(losses):
            levels.add(loss * scale)
            if levels.exploded():
                return number
        return None

    assert first_seen([*QUIET, *[32.8] * 40]) is None  # eleven times the highest level of before
    assert first_seen([*QUIET, *[33.0] * 40]) == 49
    assert first_seen([*QUIET, *([1e9] * 5 + [2.0] * 5) * 10]) is None  # spikes that pass
    assert first_seen([-5.0] * 40 + [60.0] * 20) == 49 and first_seen([-5.0] * 40 + [44.0] * 20) is None
    assert first_seen([3.0, *[5000.0] * 40]) == 19 and first_seen([3.0, *[2000.0] * 40]) is None
    assert first_seen([0.0] * 30 + [0.5] * 100) is None and first_seen([1e-9] * 30 + [0.5] * 100) is None
    assert first_seen([i / 250 for i in range(250)]) is None
    assert first_seen([1.0] * 25 + [1.3**i for i in range(90)]) is not None
    drawn = np.random.default_rng(0)
    for _ in range(30):  # batches of 4 with heavy tails: without a mean, or without a variance
        assert first_seen((drawn.standard_cauchy((250, 4)) ** 2).mean(axis=1).tolist()) is None
        assert first_seen(np.exp(3 * drawn.standard_normal((250, 4))).mean(axis=1).tolist()) is None


def test_a_loss_must_be_one_number() -> None:
    experiment, user, eval_samples = first_experiment(PLAIN)
    per_sample = replace(user, loss=lambda out, y: functional.mse_loss(out, y, reduction="none"))
    with pytest.raises(ExperimentError, match=r"must be one number, a mean over the batch, but is \(8, 1\)"):
        train_experiment(experiment, per_sample, eval_samples=eval_samples)


def test_samples_of_other_lengths_are_noticed() -> None:
    experiment, user, eval_samples = first_experiment(PLAIN)
    with pytest.raises(ExperimentError, match=r"saw \d+ tokens, but 7 were planned"):
        train_experiment(replace(experiment, tokens=7), user, eval_samples=eval_samples)


def test_gradients_are_clipped_to_the_norm() -> None:
    class Steep(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, width))

        def forward(self, x: Tensor) -> Tensor:
            return 1e3 * functional.linear(x, self.weight)

    experiment, user, _ = first_experiment({**PLAIN, "lr": 0.5, "grad_clip": 1.0})
    one_step = replace(experiment, steps=1, tokens=8, size_kwargs={"width": 8})
    kept: list[nn.Module] = []

    def build(**kwargs: Any) -> nn.Module:
        kept.append(Steep(**kwargs))
        return kept[-1]

    train_experiment(one_step, replace(user, model=build, loss=mse), eval_samples=8)
    (model,) = kept
    assert torch.linalg.vector_norm(next(model.parameters())).item() == pytest.approx(0.5, rel=1e-4)


def test_the_speed_is_of_the_last_lap_that_had_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Speed | None]] = []

    class Watching(Observer):
        def progress(self, tokens_seen: int, train_loss: float | None) -> None:
            seen.append((tokens_seen, self.speed))

    experiment, user, _ = first_experiment(PLAIN)
    laps = iter([None, None, 100.0, None, 300.0])  # the first begins the clock
    monkeypatch.setattr("flops_fit_ray.training.loop.loop.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("flops_fit_ray.training.loop.loop.peak_flops", lambda *_: (1e6, "stated"))
    monkeypatch.setattr("flops_fit_ray.training.loop.meter.Meter.lap", lambda meter, tokens: next(laps))
    train_experiment(replace(experiment, steps=4, tokens=32), user, eval_samples=8, observer=Watching())
    assert seen[0] == (8, None)
    assert [(tokens, speed.tokens_per_second) for tokens, speed in seen if speed] == [(16, 100), (24, 100), (32, 300)]
    assert [speed.mfu for _, speed in seen if speed] == pytest.approx(
        [tps * experiment.flops_per_token / 1e6 for tps in (100, 100, 300)]
    )


def recipe(**changes: Any) -> Recipe:
    experiment, _, _ = first_experiment(PLAIN)
    return replace(experiment.recipe, **{"lr": 2.0, "warmup_steps": 10, "final_lr_fraction": 0.1, **changes})


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear", "constant"])
def test_schedules_meet_their_ends(schedule: str) -> None:
    r = recipe(schedule=schedule)
    steps = 200
    assert lr_at(0, steps, r) == pytest.approx(2.0 / 11, abs=1e-12)
    assert lr_at(10, steps, r) == pytest.approx(2.0, abs=1e-12)
    last, next_to_last = lr_at(199, steps, r), lr_at(198, steps, r)
    one_past = lr_at(200, steps, r)
    assert one_past == pytest.approx(2.0 if schedule == "constant" else 0.2, abs=1e-12)
    assert (last < next_to_last) == (schedule != "constant")


def test_wsd_is_flat_and_then_straight() -> None:
    r = recipe(schedule="wsd", decay_fraction=0.25, warmup_steps=0)
    assert {lr_at(s, 200, r) for s in range(151)} == {2.0}
    assert lr_at(175, 200, r) == pytest.approx(2.0 * 0.55, abs=1e-12)
