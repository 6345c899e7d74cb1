"""The user's code: found beside the spec, kept as it is, named in every error."""

from pathlib import Path

import pytest
import torch
from torch import nn

from flops_fit_ray.errors import SpecError
from flops_fit_ray.training.user._targets import load_target
from flops_fit_ray.training.user.losses import cross_entropy, mse
from flops_fit_ray.training.user.parts import load_user_parts
from tests.parts import spec_of

MODEL = "from torch import nn\nWORD = '{word}'\nclass GPT(nn.Module):\n    word = WORD\n"


def project(tmp_path: Path, name: str, **files: str) -> Path:
    base = tmp_path / name
    base.mkdir()
    for module, text in files.items():
        (base / f"{module}.py").write_text(text)
    return base


def test_modules_of_the_same_name_in_two_projects(tmp_path: Path) -> None:
    one = project(tmp_path, "one", model=MODEL.format(word="one"), helper="X = 1")
    two = project(tmp_path, "two", model=MODEL.format(word="two") + "import helper\n", helper="X = 2")
    first = load_target("model:GPT", one, "model.target")
    second = load_target("model:GPT", two, "model.target")
    assert (first.word, second.word) == ("one", "two")
    assert load_target("model:GPT", two, "model.target") is second
    assert load_target("model:GPT", one, "model.target").word == "one"


def test_installed_modules_and_nested_attributes(tmp_path: Path) -> None:
    assert load_target("torch.nn:Linear", tmp_path, "k") is nn.Linear
    assert load_target("torch:nn.functional.mse_loss", tmp_path, "k") is torch.nn.functional.mse_loss


BAD = [
    ("model", "must be written module:attribute"),
    ("model:", "must be written module:attribute"),
    (":GPT", "must be written module:attribute"),
    ("nowhere:GPT", "no module 'nowhere' in "),
    ("model:GTP", "'model' has no attribute 'GTP'; did you mean 'GPT'"),
    ("model:WORD.x", "has no attribute 'x'"),
    ("broken:GPT", "importing 'broken' raised SyntaxError"),
    ("needy:GPT", "importing 'needy' needs the module 'not_installed', which is missing"),
    ("raising:GPT", "importing 'raising' raised ValueError: no"),
    ("model:NUMBER", "is of type int; name a class, a function or, for data, a dataset"),
]


@pytest.mark.parametrize(("target", "message"), BAD, ids=[t for t, _ in BAD])
def test_bad_targets(tmp_path: Path, target: str, message: str) -> None:
    base = project(
        tmp_path,
        "p",
        model=MODEL.format(word="p") + "NUMBER = 3\n",
        broken="def f(:",
        needy="import not_installed",
        raising="raise ValueError('no')",
    )
    with pytest.raises(SpecError, match="^spec: model.target: ") as caught:
        load_target(target, base, "model.target")
    assert message in str(caught.value)


def test_all_faults_of_loading_at_once(tmp_path: Path) -> None:
    spec = spec_of(
        model={"target": "no:M", "size_param": "w"}, data={"train": "no:t", "eval": "no:e"}, loss="no_such_loss"
    )
    with pytest.raises(SpecError) as caught:
        load_user_parts(spec, tmp_path)
    assert [f.split(":")[0] for f in caught.value.faults] == ["model.target", "loss", "data.train", "data.eval"]
    assert "none of cross_entropy, mse" in str(caught.value)


def test_datasets_may_be_objects_factories_or_classes(tmp_path: Path) -> None:
    base = project(
        tmp_path,
        "p",
        parts=(
            "import torch\nfrom torch import nn\nfrom torch.utils.data import TensorDataset\n"
            "def make(n=10): return TensorDataset(torch.zeros(n, 2), torch.zeros(n, 1))\n"
            "ready = make(30)\n"
            "class Own:\n    def __init__(self, n=10): self.n = n\n    def __len__(self): return self.n\n"
            "    def __getitem__(self, i): return torch.zeros(2), torch.zeros(1)\n"
            "def raises(): raise OSError('gone')\n"
            "class Loss(nn.Module):\n    def forward(self, a, b): return (a - b).abs().mean()\n"
        ),
    )

    def user(target: str, **data: object) -> object:
        model = {"target": "torch.nn:Linear", "size_param": "out_features", "kwargs": {"in_features": 2}}
        return load_user_parts(spec_of(model=model, data={"train": target, **data}, loss="parts:Loss"), base)

    for target, length in [("parts:make", 20), ("parts:ready", 30), ("parts:Own", 20)]:
        kwargs = {} if target == "parts:ready" else {"n": 20}
        loaded = user(target, kwargs=kwargs, eval="parts:ready")
        assert len(loaded.train_data) == length  # type: ignore[attr-defined] # the Guest's dataset
        assert isinstance(loaded.loss, nn.Module)  # type: ignore[attr-defined]
    with pytest.raises(SpecError, match="data.train: raises raised OSError: gone"):
        user("parts:raises")
    with pytest.raises(SpecError, match="data.kwargs: make takes no argument 'm'; it takes n"):
        user("parts:make", kwargs={"m": 1})


def test_built_in_losses() -> None:
    logits, ids = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    expected = torch.nn.functional.cross_entropy(logits.view(6, 5), ids.view(6))
    assert torch.equal(cross_entropy(logits, ids.int()), expected)
    assert mse(torch.ones(4, 1), torch.zeros(4)).item() == 1.0
    with pytest.raises(ValueError, match="differ in shape"):
        mse(torch.ones(4, 2), torch.zeros(4))
