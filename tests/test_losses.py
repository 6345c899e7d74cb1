"""Losses: what they average over is learnt by trying them, and outputs that do not fit targets are refused."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from flops_fit_ray.errors import MemoryExhaustedError, SpecError
from flops_fit_ray.planning import Average, LossFacts
from flops_fit_ray.planning.cells import Cells
from flops_fit_ray.training.data import Batch, eval_batches
from flops_fit_ray.training.data.batch import without_empty_parts
from flops_fit_ray.training.loop._evaluate import evaluate
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.step.stepper import Stepper
from flops_fit_ray.training.user.losses import BUILT_IN_LOSSES, cross_entropy, mse
from flops_fit_ray.training.user.parts import UserParts, make_user_parts
from tests.parts import BIGRAM, Bigram, Mlp, planned, spec_of, text

WEIGHTS = torch.linspace(0.1, 3.0, 32)
PAD = 7


def padded(ignored: int, samples: int = 40) -> TensorDataset:
    """Rows of tokens of which each has targets of another number; the first sample has one alone."""
    ids, targets = (t.clone() for t in text(samples).tensors)
    targets[targets == ignored] += 1
    lengths = torch.randint(1, 17, (samples,), generator=torch.Generator().manual_seed(1))
    lengths[0] = 1
    targets[torch.arange(16)[None] >= lengths[:, None]] = ignored
    return TensorDataset(ids, targets)


def flat(outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), **options)


def by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = flat(outputs, targets, reduction="none", ignore_index=PAD)
    counts = targets.flatten() != PAD
    return (losses * counts).sum() / counts.sum()


def mean_of_means(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = functional.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none")
    counts = targets != -100
    return ((losses * counts).sum(1) / counts.sum(1)).mean()


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss(weight=WEIGHTS)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        out: Tensor = self.inner(outputs.flatten(0, 1), targets.flatten())
        return out


def shifted(model: nn.Module, batch: Any) -> Tensor:
    """As Hugging Face models do it: the labels are the inputs, and shifted in the loss."""
    return flat(model(batch[0])[:, :-1], batch[1][:, 1:])


def masked(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    losses = flat(model(batch["ids"]), batch["labels"], reduction="none")
    mask = batch["loss_mask"].flatten()
    return (losses * mask).sum() / mask.sum()


def noisy(model: nn.Module, batch: Any) -> Tensor:
    """A diffusion loss: it draws its own noise."""
    noise = torch.randn_like(batch[0])
    out: Tensor = ((model(batch[0] + noise) - noise[:, :1]) ** 2).mean()
    return out


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    found = functional.normalize(outputs.flatten(1))
    return functional.cross_entropy(found @ found.T, torch.arange(len(found)))


def summed_and_counted(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    weights = WEIGHTS[targets.flatten()] ** 2  # which no attribute tells
    return {"sum": (flat(outputs, targets, reduction="none") * weights).sum(), "count": weights.sum()}


def with_mask() -> dict[str, Tensor]:
    ids, labels = text(40).tensors
    mask = (padded(-100).tensors[1] != -100).float()
    return {"ids": ids, "labels": labels, "loss_mask": mask}


def inputs_and_noise() -> TensorDataset:
    return TensorDataset(torch.randn(40, 8, generator=torch.Generator().manual_seed(3)), torch.zeros(40, 1))


def with_nan() -> TensorDataset:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    y = x[:, :1].repeat(1, 3)
    y[::3, 1:] = math.nan
    return TensorDataset(x, y)


def of_present(outputs: Tensor, targets: Tensor) -> Tensor:
    present = ~targets.isnan()
    return ((outputs - targets.nan_to_num()).pow(2) * present).sum() / present.sum()


KINDS: dict[str, tuple[Any, Any, Any, Average]] = {
    # model, loss, data, what the loss averages over
    "-100": (Bigram, flat, padded(-100), Average()),
    "0": (Bigram, functools.partial(flat, ignore_index=0), padded(0), Average(over="targets", ignored=(0,))),
    "-1": (Bigram, lambda o, t: flat(o, t, ignore_index=-1), padded(-1), Average(over="targets", ignored=(-1,))),
    "by hand": (Bigram, by_hand, padded(PAD), Average(over="targets", ignored=(PAD,))),
    "mean of means": (Bigram, mean_of_means, padded(-100), Average(over="samples")),
    "class weights": (
        Bigram,
        Weighted(),
        padded(-100),
        Average(over="targets", ignored=(-100,), class_weights=tuple(WEIGHTS.double().tolist())),
    ),
    "shifted": (Bigram, shifted, padded(-100), Average(over="targets", ignored=(-100,), skip_first=True)),
    "mask": (Bigram, masked, with_mask(), Average(over="mask", mask="loss_mask")),
    "NaN": (Mlp, of_present, with_nan(), Average(over="present")),
    "sum": (Bigram, functools.partial(flat, reduction="sum"), padded(-100), Average(over="sum")),
    "sum and count": (Bigram, summed_and_counted, text(40), Average(over="count")),
    "noise": (Mlp, noisy, inputs_and_noise(), Average()),
    "contrastive": (Bigram, contrastive, text(40), Average(over="whole")),
    "mse": (Mlp, functional.mse_loss, TensorDataset(torch.rand(40, 8), torch.rand(40, 1)), Average()),
}


OF_LARGE = ["by hand", "class weights", "NaN", "sum", "contrastive", "shifted"]


def parts_of(kind: str, **train: Any) -> tuple[UserParts, Any]:
    model, loss, data, _ = KINDS[kind]
    size = BIGRAM if model is Bigram else {"target": "tests.parts:Mlp", "size_param": "width", "sizes": [4, 8, 16]}
    spec = spec_of(
        model=size,
        loss="tests.test_losses:flat",
        data={"train": "tests.parts:text", "max_epochs": 999},
        budgets=[1e6, 2e6],
        train={"batch_size": 8, "lr": 0.01, "optimizer": "sgd", "grad_clip": None, **train},
    )
    user = make_user_parts(model=model, model_kwargs={}, loss=loss, train=data, held_out=data, data=spec.data)
    return user, planned(spec, user)


@pytest.mark.parametrize(("kind", "large"), [*((k, False) for k in KINDS), *((k, True) for k in OF_LARGE)])
def test_what_a_loss_averages_over_is_learnt_from_it(kind: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:  # the model is not built with weights: its outputs are made up
        monkeypatch.setattr("flops_fit_ray.training.user.smoke_test.MAX_PARAMS", 0)
    user, plan = parts_of(kind)
    facts = plan.measurements.loss
    if large and user.objective.takes_model:
        assert facts.average == Average() and "the model is not run while planning" in facts.warnings[0]
        return
    assert facts.average == KINDS[kind][-1]
    assert facts.warnings == ()


def step(user: UserParts, recipe: Any, batch: Batch, micro_batch_size: int) -> tuple[float, Tensor]:
    """The loss of one step, and the weights after it."""
    torch.manual_seed(0)
    model = user.model(width=8).eval()  # without dropout
    stepper = Stepper(model, user, replace(recipe, micro_batch_size=micro_batch_size), 1, torch.device("cpu"))
    loss, _ = stepper.advance(batch, 0)
    return loss.item(), nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("noise", "contrastive")])
def test_parts_are_the_whole(kind: str) -> None:
    """The loss and the gradient of a batch, and the held-out loss, do not depend on how samples are split."""
    user, plan = parts_of(kind)
    user = replace(user, loss_facts=plan.measurements.loss)
    experiment = plan.experiments[0]
    batch = next(eval_batches(user.train_data, 8, 8))
    loss, weights = step(user, experiment.recipe, batch, 8)
    for size in (1, 2, 3):
        again, split = step(user, experiment.recipe, batch, size)
        assert again == pytest.approx(loss, rel=2e-6)
        assert torch.allclose(split, weights, rtol=0, atol=1e-6)
    model = user.model(width=8)
    found = [
        evaluate(model, user, experiment.recipe, eval_batches(user.eval_data, 40, size), torch.device("cpu")).loss  # type: ignore[arg-type] # it has some
        for size in (40, 8, 7, 1)
    ]
    assert found[1:] == pytest.approx(found[:1] * 3, rel=2e-6)
    model.eval()
    whole = user.objective(model, next(eval_batches(user.train_data, 40, 40))).item()
    assert found[0] == pytest.approx(whole * (8 / 40 if kind == "sum" else 1), rel=2e-6)


def test_a_loss_that_only_a_whole_batch_has_is_never_split(monkeypatch: pytest.MonkeyPatch) -> None:
    user, plan = parts_of("contrastive")  # whole batches, so it is taken
    for more in ({"train": {"batch_size": 8, "micro_batch_size": 2, "lr": 0.1}}, {"workers_per_trial": 2}):
        spec = spec_of(model=BIGRAM, loss="tests.test_losses:flat", budgets=[1e6, 2e6], **more)
        with pytest.raises(SpecError, match=r"(micro_batch_size|workers_per_trial): splits batches, but the loss of a"):
            measure_sizes(spec, user)
    user = replace(user, loss_facts=plan.measurements.loss)

    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stepper, "_accumulate_gradients", full)
    with pytest.raises(MemoryExhaustedError, match=r"with a batch of 8; it is not split, as the loss is no mean"):
        step(user, plan.experiments[0].recipe, next(eval_batches(user.train_data, 8, 8)), 8)


def test_rules_of_before_keep_their_keys_and_others_get_their_own() -> None:
    _, plan = parts_of("-100")

    spec = spec_of(model=BIGRAM, loss="tests.test_losses:flat", budgets=[1e6, 2e6])

    def key(average: Average) -> str:
        facts = replace(plan.measurements, loss=LossFacts(average=average))
        return Cells(spec, facts, plan.constants).make(1e6, plan.measurements.sizes[0], 0.01).key

    keys = [key(Average()), key(Average(over="whole")), key(Average(over="sum"))]
    assert keys[0] == keys[1] != keys[2]


def test_a_part_without_targets_on_a_gpu_is_replaced_by_one_with_targets() -> None:
    ids, targets = torch.arange(10).view(5, 2), torch.tensor([[-100, -100]] * 2 + [[1, 2]] * 2 + [[-100, -100]])
    batch = Batch((ids, targets, torch.ones(())), 5)
    parts = batch.split(2)
    weights = [(part.content[1] != -100).sum() for part in parts]
    assert [int(w) for w in weights] == [0, 4, 0]
    found = without_empty_parts(batch, 2, weights)
    assert [part.content[0].tolist() for part in found] == [[[4, 5], [6, 7]]] * 2 + [[[4, 5]]]
    assert found[0].content[2].ndim == 0


def test_metrics_are_averaged_by_their_own_rule() -> None:
    def accuracy(outputs: Tensor, targets: Tensor) -> float:
        hit = (outputs.argmax(-1) == targets)[targets != -100]
        return float(hit.float().mean())

    def worst(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none").max()

    user, _ = parts_of("0")
    user = replace(user, train_data=padded(-100), metrics={"error": mean_of_means, "worst": worst, "acc": accuracy})
    spec = spec_of(model=BIGRAM, loss="cross_entropy", budgets=[1e6, 2e6])
    facts = measure_sizes(spec, replace(user, loss=cross_entropy)).loss
    assert facts.metrics == {"error": Average(over="samples"), "worst": Average(over="whole"), "acc": Average()}
    (warning,) = facts.warnings
    assert warning.startswith("metrics.worst: is no mean over samples; what is reported is its mean over batches of")


class Conv(nn.Module):
    """Logits in torch's own layout, (samples, classes, positions)."""

    def __init__(self, width: int, classes: int = 32, *, last: bool = False) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(32, width), last
        self.inner, self.out = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, classes, 1)

    def forward(self, ids: Tensor) -> Tensor:
        h: Tensor = self.out(torch.relu(self.inner(self.table(ids).transpose(1, 2))))
        return h.transpose(1, 2).contiguous() if self.last else h


class Fixed(nn.Module):
    """Takes samples of one length alone."""

    def __init__(self, width: int, length: int = 32, kind: str = "linear") -> None:
        super().__init__()
        self.kind, self.table, self.mix = kind, nn.Embedding(32, width), nn.Linear(length, length)
        self.linear, self.conv = nn.Linear(width, 32), nn.Conv1d(width, 32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.mix(self.table(ids).transpose(1, 2))
        if self.kind == "linear":
            return self.linear(h.transpose(1, 2))  # type: ignore[no-any-return] # torch leaves it untyped
        return self.conv(h) if self.kind == "conv" else self.conv(h) + 0  # type: ignore[no-any-return] # the same


def facts_of(model: Any, data: Any, loss: Any = cross_entropy) -> LossFacts:
    name = next((n for n, f in BUILT_IN_LOSSES.items() if f is loss), "tests.test_losses:flat")
    spec = spec_of(model=BIGRAM, loss=name, budgets=[2e6, 4e6], data={"train": "tests.parts:text"})
    user = make_user_parts(model=model, model_kwargs={}, loss=loss, train=data, held_out=None, data=spec.data)
    return measure_sizes(spec, user).loss


@pytest.mark.parametrize(
    ("model", "second"),
    [
        (Conv, True),
        (functools.partial(Conv, last=True), False),
        (Bigram, False),
        (Fixed, False),
        (functools.partial(Fixed, kind="conv"), True),
    ],
)
def test_the_axis_of_the_classes_is_found_where_there_are_as_many_positions(model: Any, second: bool) -> None:
    data = text(200, context=32)
    facts = facts_of(model, data)
    assert facts.classes_second is second
    with pytest.MonkeyPatch.context() as patched:  # a large model has shapes on the meta device
        patched.setattr("flops_fit_ray.training.user.smoke_test.MAX_PARAMS", 0)
        assert facts_of(model, data) == facts
    built = model(width=8)
    logits, targets = built(data.tensors[0]), data.tensors[1]
    expected = functional.cross_entropy(logits if second else logits.transpose(1, 2), targets)
    user = make_user_parts(model=model, model_kwargs={}, loss=cross_entropy, train=data, held_out=None,
                           data=spec_of().data)  # fmt: skip
    found = replace(user, loss_facts=facts).objective(built, Batch((data.tensors[0], targets), 200))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_layouts_that_nothing_tells_apart_and_losses_of_the_other_layout_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = text(200, context=32)
    with pytest.raises(SpecError, match=r"\(N, 32, 32\) and targets \(N, 32\): there are as many positions as classes"):
        facts_of(functools.partial(Fixed, kind="odd"), data)
    with pytest.raises(SpecError, match=r"logits are \(samples, positions, classes\), and the loss takes another"):
        facts_of(Bigram, data, functional.cross_entropy)
    with pytest.raises(SpecError, match=r"logits are \(samples, classes, positions\), and the loss takes another"):
        facts_of(Conv, data, flat)
    assert facts_of(Conv, data, functional.cross_entropy) == LossFacts()
    monkeypatch.setattr("flops_fit_ray.training.user.smoke_test.MAX_PARAMS", 0)
    with pytest.raises(SpecError, match=r"logits are \(samples, classes, positions\), and the loss takes another"):
        facts_of(Conv, data, flat)
    monkeypatch.setattr(
        "flops_fit_ray.training.user._loss_probe.MOST", 100
    )  # too large to be made up: nothing is known
    (warning,) = facts_of(Conv, data, flat).warnings
    assert warning.startswith(
        "loss: what it averages over is not known (ValueError: the outputs of 5 samples are 5,120"
    )


def ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


FITTING: list[tuple[Callable[..., Tensor], tuple[int, ...], Tensor]] = [
    (cross_entropy, (6, 4), ids(6)),
    (cross_entropy, (6, 4), ids(6, 1)),
    (cross_entropy, (6, 5, 4), ids(6, 5)),
    (cross_entropy, (30, 4), ids(6, 5)),
    (cross_entropy, (6, 4, 5), ids(6, 5)),
    (cross_entropy, (6, 4, 5, 7), ids(6, 5, 7)),
    (cross_entropy, (6, 5, 4, 5), ids(6, 4, 5)),  # as many classes as columns
    (cross_entropy, (6, 4), torch.full((6, 4), 0.25)),
    (mse, (6, 1), torch.zeros(6)),
    (mse, (6,), torch.zeros(6, 1)),
    (mse, (6, 12), torch.zeros(6, 1, 3, 4)),
]


@pytest.mark.parametrize(("loss", "shape", "targets"), FITTING)
def test_shapes_that_fit(loss: Callable[..., Tensor], shape: tuple[int, ...], targets: Tensor) -> None:
    expected = math.log(shape[1 if targets.ndim > 1 and shape[-1] != 4 else -1]) if loss is cross_entropy else 0.0
    assert loss(torch.zeros(shape), targets).item() == pytest.approx(expected, rel=1e-6)


UNFITTING: list[tuple[Callable[..., Tensor], Any, Tensor, str]] = [
    (cross_entropy, torch.zeros(5, 6, 4), ids(6, 5), r"logits \(5, 6, 4\) do not fit targets \(6, 5\)"),
    (cross_entropy, torch.zeros(6, 4), ids(6, 4), r"logits \(6, 4\) do not fit targets \(6, 4\)"),
    (cross_entropy, torch.zeros(6, 1), ids(6), "have one class, whose cross-entropy is always 0"),
    (mse, torch.zeros(6, 3, 4), torch.zeros(6, 4, 3), r"outputs \(6, 3, 4\) and targets \(6, 4, 3\) differ in shape"),
    (mse, torch.zeros(6, 6), torch.zeros(6), "differ in shape"),
    (mse, [torch.zeros(6, 1)] * 3, torch.zeros(6, 1), r"returns a list with 3 tensors of shape \(6, 1\)"),
    (cross_entropy, (torch.zeros(6, 4), torch.zeros(6, 4)), ids(6), "returns a tuple with 2 tensors"),
    (cross_entropy, {"out": torch.zeros(6, 4)}, ids(6), "a dict without logits"),
]


@pytest.mark.parametrize(("loss", "outputs", "targets", "message"), UNFITTING)
def test_shapes_that_do_not_fit(loss: Callable[..., Tensor], outputs: Any, targets: Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        loss(outputs, targets)


def test_the_first_of_a_tuple_is_taken_where_the_others_are_something_else() -> None:
    logits = torch.zeros(6, 4)
    for outputs in ((logits, None), (logits, torch.zeros(6, 9)), (logits, (logits, logits)), [logits]):
        assert cross_entropy(outputs, ids(6)).item() == pytest.approx(math.log(4), rel=1e-6)


def plain_difference(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


def test_faults_of_a_loss_are_found_in_the_plan() -> None:
    x = torch.rand(40, 8)
    with pytest.raises(SpecError, match=r"outputs \(N, 1\) and targets \(N,\) are broadcast, so that every output"):
        facts_of(Mlp, (x, x[:, 0]), plain_difference)
    assert facts_of(Mlp, (x, x[:, :1]), plain_difference) == LossFacts()
    with pytest.raises(SpecError, match="loss: does not depend on any parameter that trains; is it detached"):
        facts_of(Mlp, (x, x[:, :1]), lambda o, t: plain_difference(o, t).detach())
    with pytest.raises(SpecError, match=r"targets are class ids, and 0\.\d+ is none; for numbers take loss: mse"):
        facts_of(functools.partial(Mlp, inputs=8), (x, x[:, 0]), lambda o, t: o.mean()) and facts_of(
            lambda width: nn.Linear(8, 4), (x, x[:, 0] + 0.001)
        )
    with pytest.raises(SpecError, match=r"one number, a mean over the batch, but is tuple; return .mean\(\) of a"):
        facts_of(Mlp, (x, x[:, :1]), lambda o, t: (plain_difference(o, t), o))


def test_batch_statistics_of_parts_are_said() -> None:
    class Normed(Mlp):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.layers.insert(1, nn.BatchNorm1d(width))

    spec = spec_of(train={"batch_size": 8, "micro_batch_size": 2, "lr": 0.1})
    user = make_user_parts(model=Normed, model_kwargs={}, loss=mse, held_out=None, data=spec.data,
                           train=TensorDataset(torch.rand(900, 8), torch.rand(900, 1)))  # fmt: skip
    warnings = measure_sizes(spec, user).loss.warnings
    assert any(
        "BatchNorm1d computes its statistics over 2 samples and not over train.batch_size 8" in w for w in warnings
    )
