"""Wrong models, losses and data are named as what they are, once and in one line, before anything is trained."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from flops_fit_ray import find_optimal
from flops_fit_ray.cli import enter_run
from flops_fit_ray.errors import ArgumentError, ExperimentError, SpecError
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.preflight.model_size import SpecMeasurer
from flops_fit_ray.training.user.losses import check_loss, cross_entropy
from flops_fit_ray.training.user.wrong_parts import argument_faults, unknown_loss
from flops_fit_ray.training.user.wrong_samples import sample_fault
from tests.parts import Bigram, Mlp, regression, spec_of

HERE = "tests.test_wrong_parts"
X, Y = regression(64).tensors
IDS = torch.arange(64) % 4
built = Mlp(4)
numbers = [1, 2, 3]
texts = ["a cat", "a dog"] * 32


class Plain:
    """No nn.Module."""

    def __init__(self, width: int) -> None:
        self.width = width


class Classifier(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Large(Classifier):
    """Too large to be run while it is planned: it is counted on the meta device alone."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.layers = nn.Sequential(nn.Linear(8, 5000), nn.Linear(5000, 5000), nn.Linear(5000, width))


class Weighted(nn.Module):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.alpha * functional.mse_loss(outputs, targets)


class Squared:
    """A loss by class, as nn.MSELoss is, and no nn.Module."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).pow(2).mean()


def make_loss(reduction: str = "mean") -> nn.MSELoss:
    return nn.MSELoss(reduction=reduction)


def any_keywords(**kwargs: Any) -> Mlp:
    return Mlp(**kwargs)


def fault_of(model: Any = Mlp, loss: Any = "mse", data: Any = None, **options: Any) -> str:
    with pytest.raises(ArgumentError) as caught:
        find_optimal(
            model,
            **{"model_size_param": "width", "sizes": [4, 8], **options},
            dataset=(X, Y) if data is None else data,
            loss_fn=loss,
            compute_budgets=[1e4, 2e4],
            train=False,
            batch_size=8,
            lr=1e-2,
        )
    (fault,) = caught.value.faults
    return fault


TAKES = "takes width, inputs, dropout"
SIZE = "model_size_param: Mlp takes no argument"
ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"model_size_param": "widht"}, f"{SIZE} 'widht'; did you mean 'width'? It {TAKES}"),
    ({"model_size_param": "layers"}, f"{SIZE} 'layers'; it {TAKES}"),
    ({"model_size_param": "widht", "sizes": "auto"}, f"{SIZE} 'widht'; did you mean 'width'? It {TAKES}"),
    ({"model_size_param": "inputs"}, f"model_kwargs: Mlp needs 'width' too; it {TAKES}"),
    ({"model_kwargs": {"Dropout": 0.1}},
     f"model_kwargs: Mlp takes no argument 'Dropout'; did you mean 'dropout'? It {TAKES}"),
    ({"model_size_param": None, "sizes": [{"width": 4}, {"wdth": 8}]},
     f"sizes: Mlp takes no argument 'wdth'; did you mean 'width'? It {TAKES}"),
    ({"model": functools.partial(Mlp, inputs=8), "model_size_param": "layers"}, f"{SIZE} 'layers'; it {TAKES}"),
    ({"model": built}, "model_cls: is a Mlp that is built already; give the class, Mlp, of which each size is "
                       "built"),
    ({"model": Plain}, "model_cls: the class Plain is no torch.nn.Module; derive it from nn.Module"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), ARGUMENTS)
def test_models(change: dict[str, Any], words: str) -> None:
    assert fault_of(**change) == words


def test_models_without_data() -> None:
    with pytest.raises(ArgumentError) as caught:
        find_optimal(Mlp, "layers", compute_budgets=[1e4, 2e4])
    assert caught.value.faults == (f"{SIZE} 'layers'; it {TAKES}",)


def test_arguments_of_what_cannot_be_judged_are_left_alone() -> None:
    assert argument_faults(any_keywords, [("k", "depth")], "k") == []
    assert argument_faults(Mlp, [("k", "width")], "k") == []
    assert argument_faults(dict, [("k", "width")], "k") == []


LOSSES: list[tuple[Any, str]] = [
    (nn.MSELoss, "loss_fn: MSELoss is a class; write MSELoss() with parentheses"),
    (functools.partial(nn.MSELoss, reduction="mean"), "loss_fn: MSELoss is a class; give an object of it, "
                                                     "MSELoss(...)"),
    (make_loss, "loss_fn: make_loss cannot be called as (outputs, targets) or (model, batch); if it makes a loss, "
                "give what make_loss() returns"),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "words"), LOSSES)
def test_losses(loss: Any, words: str) -> None:
    assert fault_of(loss=loss) == words


def test_a_loss_that_returns_a_loss() -> None:
    with pytest.raises(ExperimentError, match="the loss returned MSELoss, another loss, and no number"):
        check_loss(nn.MSELoss())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crossentropy", "did you mean 'cross_entropy'?"),
        ("cross-entropy", "did you mean 'cross_entropy'?"),
        ("ce", "did you mean 'cross_entropy'?"),
        ("CrossEntropyLoss", "did you mean 'cross_entropy'?"),
        ("nn.CrossEntropyLoss", "did you mean 'cross_entropy'?"),
        ("F.cross_entropy", "did you mean 'cross_entropy'?"),
        ("mse_loss", "did you mean 'mse'?"),
        ("MSE", "did you mean 'mse'?"),
        ("modle", "did you mean 'model'?"),
        ("SmoothL1Loss", "write torch.nn:SmoothL1Loss"),
        ("F.l1_loss", "write torch.nn.functional:l1_loss"),
        ("losses.focal", "for a loss of your own write losses:focal"),
        ("hinge", "write your own as module:attribute"),
    ],
)
def test_names_of_losses(name: str, words: str) -> None:
    assert unknown_loss(name) == f"loss: {name!r} is none of cross_entropy, mse, model; {words}"


SPECS: list[tuple[dict[str, Any], str]] = [
    ({"loss": f"{HERE}:numbers"}, f"loss: '{HERE}:numbers' is of type list; name a class, a function or"),
    ({"loss": f"{HERE}:Plain"}, f"loss: '{HERE}:Plain' is a class whose objects cannot be called"),
    ({"loss": f"{HERE}:Weighted"}, "loss: Weighted needs 'alpha' too; it takes alpha; make an object of it in its"),
    ({"model": {"target": f"{HERE}:numbers", "size_param": "width"}}, f"model.target: '{HERE}:numbers' is of type li"),
    ({"metrics": {"accuracy": f"{HERE}:texts"}}, f"metrics.accuracy: '{HERE}:texts' is of type list"),
    ({"model": {"target": f"{HERE}:built", "size_param": "width"}}, "model.target: is a Mlp that is built already"),
    ({"data": {"train": f"{HERE}:numbers"}}, "data.train: [1, 2, 3] holds no samples (input, target). Expected a"),
    ({"data": {"train": f"{HERE}:built"}}, "data.train: Mlp has no __len__ and __getitem__"),
    ({"data": {"train": "tests.parts:regression", "kwargs": {"sample": 9}}},
     "data.kwargs: regression takes no argument 'sample'; did you mean 'samples'? It takes samples, inputs"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), SPECS)
def test_specs(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        SpecMeasurer(tmp_path).measure(spec_of(**change))
    (fault,) = caught.value.faults
    assert fault.startswith(words)


def test_a_loss_by_class_need_be_no_module(tmp_path: Path) -> None:
    spec = spec_of(loss=f"{HERE}:Squared")
    measured = SpecMeasurer(tmp_path).measure
    assert measured(spec).loss.average == measured(spec_of()).loss.average


ARRAYS = "write a tuple of arrays, such as (frame[inputs].to_numpy('float32'), frame[[target]].to_numpy('float32'))"
DATA: list[tuple[Any, str]] = [
    (numbers, "dataset: [1, 2, 3] holds no samples (input, target). Expected a torch.utils.data.Dataset, a DataLoader"),
    (texts, "dataset: ['a cat', 'a dog', "),
    (pd.DataFrame({"x": [1.0] * 64}), f"dataset: is a pandas DataFrame; {ARRAYS}"),
    ((pd.DataFrame({"x": [1.0] * 64}), pd.Series([1.0] * 64)), f"dataset: holds a pandas DataFrame; {ARRAYS}"),
    ({"x": [[1.0] * 8] * 64, "y": [1.0] * 64}, "dataset: is a dict whose 'x' is a list; its values must be tensors or"),
    ({}, "dataset: is an empty dict; pass at least one sample"),
    (([[1.0] * 8] * 64, [1.0] * 64), "dataset: a tuple of 2 lists would be as many samples; write a tuple of tensors"),
    ((np.array(["a"] * 64), np.zeros(64)), "dataset: holds an array of dtype <U1, which no tensor can hold"),
    ([([1.0] * 8, [1.0])] * 64, "dataset: inputs are lists of 8 numbers, of which a batch is 8 tensors; make each"),
    ([("a cat", 1.0)] * 64, "dataset: inputs are text; give token ids, a tensor of integers"),
    ([1.0 * torch.ones(8)] * 64, "dataset: a sample must be a tuple (input, ..., target) or a mapping with labels"),
]


@pytest.mark.parametrize(("data", "words"), DATA, ids=[words for _, words in DATA])
def test_data(data: Any, words: str) -> None:
    assert fault_of(data=data, sizes=[4]).startswith(words)


TO_FLOAT = "convert with .float() (NumPy: .astype('float32'))"
IDS_ONLY = "and an nn.Embedding looks up ids"
TO_IDS = "convert with .long() (NumPy: .astype('int64'))"
INTEGERS = f"and the model multiplies them by float32 weights; {TO_FLOAT}; ids are for an nn.Embedding"
TOKENS = torch.arange(64 * 4).view(64, 4) % 32
bce = functional.binary_cross_entropy
TYPES: list[tuple[Any, Any, Any, str]] = [
    (Mlp, "mse", (X.double(), Y), f"inputs are float64, and the model's weights float32; {TO_FLOAT}"),
    (Mlp, "mse", (X.half(), Y), f"inputs are float16, and the model's weights float32; {TO_FLOAT}"),
    (Mlp, "mse", (X.long(), Y), f"inputs are int64, {INTEGERS}"),
    (Mlp, "mse", (X > 0, Y), f"inputs are bool, {INTEGERS}"),
    (Large, "mse", (X.double(), X[:, :4]), f"inputs are float64, and the model's weights float32; {TO_FLOAT}"),
    (Large, "mse", (X.half(), X[:, :4]), f"inputs are float16, and the model's weights float32; {TO_FLOAT}"),
    (Large, "mse", (X.long(), X[:, :4]), f"inputs are int64, {INTEGERS}"),
    (Bigram, "cross_entropy", (TOKENS.float(), TOKENS), f"inputs are float32, {IDS_ONLY}; {TO_IDS}"),
    (Bigram, "cross_entropy", (TOKENS.short(), TOKENS), f"inputs are int16, {IDS_ONLY}; {TO_IDS}"),
    (Classifier, nn.CrossEntropyLoss(), (X, IDS.float()),
     f"targets are float32, and the loss takes class ids; {TO_IDS}"),
    (Mlp, lambda o, t: bce(o.sigmoid(), t), (X, (Y > 0).double()),
     f"targets are float64, and the loss takes float32; {TO_FLOAT}"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "loss", "data", "words"), TYPES, ids=[f"{m.__name__} {w}" for m, _, _, w in TYPES])
def test_dtypes(model: Any, loss: Any, data: Any, words: str) -> None:
    assert fault_of(model, loss, data, sizes=[4]) == f"dataset: {words}"


def test_no_dtype_is_blamed_for_another_error() -> None:
    own = RuntimeError("mat1 and mat2 must have the same dtype, but got Half and Float")  # of the model's own making
    assert sample_fault(own, Bigram(4), Batch((TOKENS, TOKENS), 64)) == ""
    assert sample_fault(RuntimeError("shapes differ"), Mlp(4), Batch((X.double(), Y), 64)) == ""


def test_the_types_of_named_parts_are_named() -> None:
    named = {"x": X, "mask": X.double(), "y": Y}
    error = RuntimeError("mat1 and mat2 must have the same dtype, but got Double and Float")
    assert sample_fault(error, Mlp(4), Batch(named, 64)).startswith(
        "data.train: 'mask' of a sample is float64, and the"
    )


FRACTION = torch.cat([IDS[:63].float(), torch.tensor([0.5])])  # in a sample that is not among the first


@pytest.mark.parametrize("make", [lambda: (X, FRACTION), lambda: {"x": X, "y": FRACTION}], ids=["tuple", "dict"])
def test_class_ids_are_whole_numbers(make: Callable[[], Any]) -> None:
    fault = fault_of(Classifier, "cross_entropy", make())
    assert fault == "dataset: targets are class ids, and 0.5 is none; for numbers take loss: mse"


def test_targets_of_cross_entropy_by_type() -> None:
    logits, probabilities = torch.randn(64, 4), functional.one_hot(IDS, 4)
    expected = functional.cross_entropy(logits, IDS)
    for targets in (IDS.float(), IDS.short(), IDS.double(), probabilities.float()):
        assert cross_entropy(logits, targets) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match=r"of torch.int64: give class ids, .argmax\(-1\), or probabilities"):
        cross_entropy(logits, probabilities)
    with pytest.raises(ValueError, match="targets are class ids, and 0.5 is none"):
        cross_entropy(logits, FRACTION)


def test_samples_on_a_device_of_their_own() -> None:
    data = TensorDataset(X.to("meta"), Y.to("meta"))  # in the place of a GPU, which few machines of tests have
    fault = fault_of(data=data, resources_per_trial={"cpu": 1})
    assert fault.startswith("dataset: samples are on meta; give them on the CPU (.cpu()): workers move each batch")


def test_a_command_after_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        enter_run(["plan", "x.yaml"])
    words = (
        "'plan' is a command, and python -m flops_fit_ray.run runs a sweep; write python -m flops_fit_ray plan x.yaml"
    )
    assert capsys.readouterr().err == f"error: {words}\n"
