"""What users bring: models, losses and data of every kind, through the same plan and the same loop."""

import functools
import json
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from flops_fit_ray.errors import DataEndedError, SpecError
from flops_fit_ray.planning import Experiment, plan_from_json
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.user.losses import BUILT_IN_LOSSES, cross_entropy
from flops_fit_ray.training.user.parts import UserParts, make_user_parts
from tests.parts import (
    BIGRAM,
    Bigram,
    Mlp,
    TruncatedRegression,
    planned,
    power_law_regression,
    regression,
    spec_of,
    text,
    user_parts_of,
)
from tests.streams import Noisy, Plain, Stateful, loader, mappings, token_file
from tests.sweeps import KNOWN_TRAIN


class Cnn(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Vit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(width, 2, 4 * width, batch_first=True)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))
        return out


class Lstm(nn.Module):
    def __init__(self, width: int, vocab: int = 32) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(vocab, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab)

    def forward(self, ids: Tensor) -> tuple[Tensor, Any]:  # (logits, state), as recurrent models like to return
        out, state = self.lstm(self.table(ids))
        logits: Tensor = self.head(out)
        return logits, state


class NanoGpt(Bigram):
    """(ids, targets) -> (logits, loss), as nanoGPT does."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        logits = super().forward(ids)
        return logits, None if targets is None else cross_entropy(logits, targets)


@dataclass
class ModelOutput:
    loss: Tensor | None
    logits: Tensor


class HuggingFaceStyle(Bigram):
    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(ids)
        return ModelOutput(loss=None if labels is None else cross_entropy(logits, labels), logits=logits)


class DictOutput(Bigram):
    def forward(self, ids: Tensor) -> Any:
        return {"logits": super().forward(ids)}


class Autoencoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, width), nn.Linear(width, 8)


def reconstruction(model: Autoencoder, batch: Tensor) -> Any:
    return (model.decoder(torch.relu(model.encoder(batch))) - batch).pow(2).mean()


class Nested(NamedTuple):
    ids: Tensor
    extra: dict[str, Tensor]
    target: Tensor


class Pairs(IterableDataset[Any]):
    """Endless nested samples."""

    def __iter__(self) -> Iterator[Nested]:
        rows = text(500)
        while True:
            for ids, target in (rows[i] for i in range(len(rows))):
                yield Nested(ids, {"scale": torch.ones(())}, target)


class TakesNested(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = Bigram(width)

    def forward(self, ids: Tensor, extra: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.inner(ids) * extra["scale"][:, None, None]
        return out


class Token(nn.Module):
    """A loss that is a module with a buffer."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), weight=self.weight)


def images(samples: int = 500) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    return x, (x.mean(dim=(1, 2, 3)) * 20).round().long() % 4


# What is brought: model, data, loss.
GUESTS: dict[str, tuple[Callable[..., nn.Module], Callable[[Path], Any], Any]] = {
    "MLP": (Mlp, lambda d: regression(500), "mse"),
    "CNN with BatchNorm": (Cnn, lambda d: images(), "cross_entropy"),
    "ViT": (Vit, lambda d: images(), "cross_entropy"),
    "LSTM that returns (logits, state)": (Lstm, lambda d: text(), "cross_entropy"),
    "nanoGPT: (ids, targets) -> (logits, loss)": (NanoGpt, lambda d: text(), "model"),
    "Hugging Face style: mapping in, .loss out": (HuggingFaceStyle, lambda d: mappings(), "model"),
    "the same with our loss on .logits": (HuggingFaceStyle, lambda d: mappings(), "cross_entropy"),
    "mapping out": (DictOutput, lambda d: Noisy(), "cross_entropy"),
    "a partial": (functools.partial(Bigram, vocab=32), lambda d: text(), "cross_entropy"),
    "nested samples, endless": (TakesNested, lambda d: Pairs(), "cross_entropy"),
    "endless iterable": (Bigram, lambda d: Stateful(), "cross_entropy"),
    "finite iterable": (Bigram, lambda d: Plain(), "cross_entropy"),
    "token file": (Bigram, lambda d: token_file(d), "cross_entropy"),
    "ready loader": (Bigram, lambda d: loader(), "cross_entropy"),
    "module loss": (Bigram, lambda d: text(), Token()),
    "(model, batch) -> loss, rows without a target": (Autoencoder, lambda d: images()[0][:, 0, 0], reconstruction),
    "numpy arrays": (Bigram, lambda d: tuple(t.numpy() for t in text().tensors), "cross_entropy"),
}


WITHOUT_HELD_OUT = {"nested samples, endless", "endless iterable", "finite iterable", "ready loader"}


def plan_user_parts(model: Any, data: Any, loss: Any, **train: Any) -> tuple[list[Experiment], UserParts, int]:
    word = loss if isinstance(loss, str) else "tests.parts:loss"
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "max_epochs": 60},
        loss=word,
        budgets=[2e5, 4e5] if model in (Mlp, Autoencoder) else [2e6, 4e6],  # a sample is one token: many steps
        train={"batch_size": 8, "lr": 1e-2, **train},
    )
    user = user_parts_of(spec, model=model, train=data, loss=BUILT_IN_LOSSES[loss] if isinstance(loss, str) else loss)
    plan = planned(spec, user)
    return list(plan.experiments), user, plan.measurements.data.eval_samples


def counted(user: UserParts, experiment: Experiment, eval_samples: int) -> tuple[Outcome, int]:
    """The outcome, and D as counted by somebody else: the samples that went through the model in training."""
    seen = 0

    def model(**kwargs: Any) -> nn.Module:
        built = user.model(**kwargs)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal seen
            if module.training:
                first = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
                seen += len(first)

        target = built if not isinstance(built, Autoencoder) else built.encoder
        target.register_forward_pre_hook(hook, with_kwargs=True)
        return built

    from dataclasses import replace

    outcome = train_experiment(experiment, replace(user, model=model), eval_samples=eval_samples)
    return outcome, seen


@pytest.mark.parametrize("batch_size", [8, 12])
@pytest.mark.parametrize("name", GUESTS)
def test_tokens_planned_are_tokens_seen(name: str, batch_size: int, tmp_path: Path) -> None:
    model, data, loss = GUESTS[name]
    brought = data(tmp_path)
    if isinstance(brought, DataLoader):
        brought = DataLoader(brought.dataset, batch_size=batch_size, shuffle=True)
    experiments, user, eval_samples = plan_user_parts(model, brought, loss, batch_size=batch_size)
    for experiment in experiments[:2]:
        outcome, samples = counted(user, experiment, eval_samples)
        per_sample = experiment.tokens // (experiment.steps * batch_size)
        assert outcome.tokens_seen == experiment.tokens == samples * per_sample
        assert per_sample == (1 if name in ("MLP", "CNN with BatchNorm", "ViT") or "rows" in name else 16)
        assert np.isfinite(outcome.loss)
        assert outcome.loss_kind == ("held-out" if eval_samples else "training, smoothed")
        assert (outcome.loss == outcome.train_loss) == (outcome.loss_kind != "held-out") == (name in WITHOUT_HELD_OUT)


def test_all_ways_to_give_the_same_data_and_loss_give_the_same_loss(tmp_path: Path) -> None:
    """Tensors, arrays, mappings; our loss, the model's own, the user's two kinds."""

    def full(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    ways = [
        (Bigram, text(), "cross_entropy"),
        (Bigram, tuple(t.numpy() for t in text().tensors), "cross_entropy"),
        (Bigram, text(), lambda out, y: cross_entropy(out, y)),
        (Bigram, text(), full),
        (Bigram, text(), Token()),
        (NanoGpt, text(), "model"),
        (HuggingFaceStyle, mappings(), "model"),
        (HuggingFaceStyle, mappings(), "cross_entropy"),
        (DictOutput, text(), "cross_entropy"),
    ]
    losses = set()
    for model, data, loss in ways:
        experiments, user, eval_samples = plan_user_parts(model, data, loss)
        losses.add(train_experiment(experiments[0], user, eval_samples=eval_samples).loss)
    assert len(losses) == 1


RULE = "mine:rule"


def test_a_token_rule_of_the_users(tmp_path: Path) -> None:
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "count_tokens": RULE},
        loss="cross_entropy",
        budgets=[1e6, 2e6],
    )
    user = make_user_parts(
        model=Bigram,
        model_kwargs={},
        loss=cross_entropy,
        train=text(),
        held_out=None,
        data=spec.data,
        count_tokens=lambda batch: batch[1][:, ::2].numel(),
    )
    plan = planned(spec, user)
    assert plan.measurements.data.tokens_per_sample == 8
    assert plan.measurements.data.token_unit == f"what {RULE} counts"
    outcome = train_experiment(plan.experiments[0], user, eval_samples=8)
    assert outcome.tokens_seen == plan.experiments[0].tokens


def test_a_stream_that_ends_before_d_fails_with_the_numbers() -> None:
    experiments, user, _ = plan_user_parts(Bigram, Plain(100), "cross_entropy")
    from dataclasses import replace

    once = replace(user, max_epochs=1.0)
    message = r"data.train ended after 96 samples in whole batches of 8 \(1 of at most 1 epochs\): 1,536 of D = [\d,]+"
    with pytest.raises(DataEndedError, match=message):
        train_experiment(experiments[0], once, eval_samples=0)
    assert train_experiment(experiments[0], user, eval_samples=0).tokens_seen == experiments[0].tokens


def test_every_experiment_of_a_process_sees_the_same_stream() -> None:
    for data in (Plain(), Stateful(), loader()):
        experiments, user, _ = plan_user_parts(Bigram, data, "cross_entropy")
        first = train_experiment(experiments[0], user, eval_samples=0)
        train_experiment(experiments[1], user, eval_samples=0)
        assert train_experiment(experiments[0], user, eval_samples=0).loss == first.loss


def test_a_known_length_is_planned_with_and_an_unknown_one_said() -> None:
    spec = spec_of(data={"train": "tests.parts:text"}, loss="cross_entropy", budgets=[1e8, 2e8])
    with pytest.raises(SpecError, match=r"need more data than there is; .* epochs of 7,936, where data.max_epochs"):
        planned(spec, user_parts_of(spec, model=Bigram, train=loader(500)))
    plan = planned(spec, user_parts_of(spec, model=Bigram, train=Stateful()))
    assert {e.epochs for e in plan.experiments} == {None}
    assert any("data.train has no length" in w for w in plan.warnings)
    warning = "there is no held-out data: losses are training losses, the mean of the last 5 % of steps; set data.eval"
    assert f"{warning} [no_held_out]" in plan.warnings


def test_held_out_streams_and_loaders() -> None:
    spec = spec_of(data={"train": "tests.parts:text", "eval_samples": 50}, loss="cross_entropy", budgets=[1e6, 2e6])

    def loss_on(held_out: Any) -> float:
        user = make_user_parts(
            model=Bigram, model_kwargs={}, loss=cross_entropy, train=text(), held_out=held_out, data=spec.data
        )
        plan = planned(spec, user)
        assert plan.measurements.data.eval_samples == 50
        found = [train_experiment(plan.experiments[0], user, eval_samples=50).loss for _ in range(2)]
        assert found[0] == found[1]
        return found[0]

    straight = DataLoader(text(60), batch_size=16)
    assert loss_on(straight) == pytest.approx(loss_on(text(60)), rel=1e-6)
    assert loss_on(Stateful()) > 0
    unknown = spec.model_copy(update={"data": spec.data.model_copy(update={"eval_samples": None})})
    user = make_user_parts(
        model=Bigram, model_kwargs={}, loss=cross_entropy, train=text(), held_out=Stateful(), data=unknown.data
    )
    with pytest.raises(SpecError, match="data.eval_samples: is missing"):
        planned(unknown, user)


def test_a_hugging_face_dataset_is_taken_as_it_is(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    inputs, targets = text().tensors
    rows = {"ids": inputs.tolist(), "labels": targets.tolist()}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "hf")
    stored = datasets.load_from_disk(tmp_path / "hf")
    losses = []
    for data in (stored, mappings()):
        experiments, user, eval_samples = plan_user_parts(HuggingFaceStyle, data, "model")
        losses.append(train_experiment(experiments[0], user, eval_samples=eval_samples).loss)
    assert losses[0] == losses[1]
    experiments, user, eval_samples = plan_user_parts(HuggingFaceStyle, stored.to_iterable_dataset(), "model")
    assert train_experiment(experiments[0], user, eval_samples=0).tokens_seen == experiments[0].tokens
    with pytest.raises(SpecError, match="is a DatasetDict; pass one of its splits: train, test"):
        plan_user_parts(HuggingFaceStyle, stored.train_test_split(0.1, seed=0), "model")


class Blind(Bigram):
    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        return super().forward(ids)


BAD: list[tuple[Any, Any, str, str]] = [
    (Bigram, lambda: text().tensors[0], "cross_entropy", "a sample must be a tuple"),
    (Blind, lambda: text(), "model", "loss: model needs a model that returns its loss"),
    (
        Bigram,
        lambda: loader(),
        "cross_entropy",
        "train.batch_size: is 4, but the DataLoader's is 8; set both to the same",
    ),
    (
        lambda width: types.SimpleNamespace(),
        lambda: text(),
        "cross_entropy",
        "made a SimpleNamespace, not an nn.Module",
    ),
]


@pytest.mark.parametrize(("model", "data", "loss", "message"), BAD, ids=[m for *_, m in BAD])
def test_what_does_not_fit_together_is_refused_in_the_plan(model: Any, data: Any, loss: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan_user_parts(model, data(), loss, batch_size=4)


def test_a_loader_that_makes_its_own_batches_can_be_asked_for_no_others() -> None:
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "max_epochs": 60},
        budgets=[2e6, 4e6],
        train={"batch_size": 8, "lr": 1e-2},
        grid={"batch_check": "lower"},
    )
    with pytest.raises(
        SpecError, match="grid.batch_check: the DataLoader makes batches of its own size; give its dataset"
    ):
        planned(spec, user_parts_of(spec, model=Bigram, train=loader(), loss=BUILT_IN_LOSSES["cross_entropy"]))


HOOKS: list[tuple[dict[str, Any], str]] = [
    ({"schedule": lambda step, steps: float("nan")}, "train.schedule: ValueError: step 0 of 1000 gave nan"),
    ({"schedule": lambda step: 1.0}, "train.schedule: TypeError"),
    ({"schedule": lambda step, steps: 1 / (steps - 1 - step)}, "train.schedule: ZeroDivisionError"),  # at the last
    (
        {"optimizer": lambda model, lr: 3},
        "train.optimizer: TypeError: train.optimizer returned a int, not a torch.optim.Optimizer",
    ),
    ({"optimizer": lambda model: 3}, "train.optimizer: TypeError"),
    ({"metrics": {"odd": lambda out, y: out}}, "metrics.odd: TypeError: a metric must be one number"),
    ({"metrics": {"odd": lambda out, y: out.nothing}}, "metrics.odd: AttributeError"),
    ({"count_tokens": lambda batch: 0}, "data.train: samples have 0 to 0 tokens"),
    ({"lr": lambda params: 1.0}, "train.lr: a rule of (params) cannot be called; write rule(params, size), and of"),
    ({"lr": lambda n, size, depth: 1.0}, "train.lr: a rule of (n, size, depth) cannot be called; write rule(params,"),
    ({"lr": lambda n, size, steps: 0.0}, "train.lr: returned 0.0 for width=4, steps="),
]


@pytest.mark.parametrize(("hooks", "message"), HOOKS, ids=[m for _, m in HOOKS])
def test_functions_that_do_not_work_are_named_in_the_plan(hooks: dict[str, Any], message: str) -> None:
    spec = spec_of(loss="cross_entropy", budgets=[1e6, 2e6])
    user = make_user_parts(
        model=Bigram, model_kwargs={}, loss=cross_entropy, train=text(), held_out=None, data=spec.data, **hooks
    )
    with pytest.raises(SpecError) as caught:
        planned(spec, user)
    assert message in str(caught.value)


def test_a_loss_with_parameters_is_refused() -> None:
    loss = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(SpecError, match="loss: has trainable parameters; move them into the model"):
        plan_user_parts(Bigram, text(), loss)


def test_a_rate_may_follow_from_d() -> None:
    spec = spec_of(
        model={"target": "tests.parts:TruncatedRegression", "size_param": "features", "sizes": [8, 16, 32]},
        data={"train": "tests.parts:power_law_regression"},
        budgets=[1e5, 4e5],
        train={**KNOWN_TRAIN, "lr": "tests.test_bring:rate_of_d"},
    )
    user = user_parts_of(spec, model=TruncatedRegression, train=power_law_regression())
    plans = {
        rule: planned(spec, replace(user, lr=rule))
        for rule in (rate_of_d, functools.partial(rate_of_d, unit=2.0), rate_of_size)
    }
    by_d, doubled, by_size = plans.values()
    assert len(by_d.experiments) == 6 and not any(e.parent for e in by_d.experiments)  # no two share their rate
    for e, two in zip(by_d.experiments, doubled.experiments, strict=True):
        assert e.recipe.lr == pytest.approx(0.066 * e.tokens**-0.395 * e.params**-0.15)
        assert two.recipe.lr == pytest.approx(2 * e.recipe.lr)
    assert any(e.parent for e in by_size.experiments)
    assert {(e.size, e.recipe.lr) for e in by_size.experiments} == {(8, 0.5), (16, 0.5), (32, 0.5)}
    assert plan_from_json(json.dumps(by_d.to_json()).encode()).measurements == by_d.measurements


def rate_of_d(params: int, size: object, tokens: int, unit: float = 1.0) -> float:
    return float(unit * 0.066 * tokens**-0.395 * params**-0.15)


def rate_of_size(params: int, size: object, tokens: int = 4, *more: int) -> float:
    """A default is not replaced: rules from before D was passed give what they gave."""
    return 2.0 / tokens
