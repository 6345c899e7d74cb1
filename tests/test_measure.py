"""N and FLOPs agree with closed forms, on the meta device, for models of any kind."""

import asyncio
import functools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import ModelSize
from flops_fit_ray.training.preflight._params import _non_embedding, count_params
from flops_fit_ray.training.preflight.model_size import Known, SpecMeasurer, measure_sizes
from flops_fit_ray.training.user._targets import load_target
from tests.parts import (
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

ROOT = Path(__file__).parent.parent


def sizes_of(user_model: Any, train: Any, loss: str = "mse", **sections: Any) -> tuple[ModelSize, ...]:
    spec = spec_of(loss=loss, **sections)
    return measure_sizes(spec, user_parts_of(spec, model=user_model, train=train)).sizes


def model_section(param: str | None, sizes: list[Any], **kwargs: Any) -> dict[str, Any]:
    return {"target": "tests.parts:X", "size_param": param, "sizes": sizes, "kwargs": kwargs}


def test_linear_is_6n_per_sample() -> None:
    found = sizes_of(TruncatedRegression, power_law_regression(100), model=model_section("features", [4, 32, 500]))
    assert [(s.params, s.flops_per_token) for s in found] == [(4, 24.0), (32, 192.0), (500, 3000.0)]
    assert {s.flops_source for s in found} == {"counted on the meta device"}


def test_mlp_counts_matmuls_and_not_biases() -> None:
    found = sizes_of(Mlp, regression(100))
    assert [s.params for s in found] == [10 * w + 1 for w in (4, 8, 16)]
    assert [s.flops_per_token for s in found] == [4.0 * 8 * w + 6 * w for w in (4, 8, 16)]  # inputs have no gradient


def test_lookup_tables_are_not_in_n_but_a_tied_head_is() -> None:
    untied, tied = Bigram(8), Bigram(8, tied=True)
    counts = [(c.params, c.source) for c in map(count_params, (untied, tied))]
    assert counts == [(256, "all parameters but lookup tables (head included)"), (256, "all parameters")]
    (first, *_) = sizes_of(Bigram, text(), "cross_entropy", model=model_section("width", [8, 16, 32]))
    assert (first.params, first.params_total, first.params_non_embedding) == (256, 512, 0)
    assert first.flops_per_token == 6.0 * 256  # 16 tokens a sample, and each counted once


@pytest.mark.parametrize("width", [16, 64])  # 4 x 16 is the context, 4 x 64 the vocabulary: layers shaped like tables
def test_non_embedding_leaves_out_tables_and_the_head_alone(width: int) -> None:
    gpt = load_target("model:GPT", ROOT / "examples" / "bytes", "model.target")
    model = gpt(width, n_layer=2, n_head=2, context=64)
    expected = sum(p.numel() for p in model.parameters()) - 2 * 256 * width - 64 * width
    assert _non_embedding(model) == expected


def test_the_demo_model_is_6n_plus_attention() -> None:
    gpt = load_target("model:GPT", ROOT / "examples" / "bytes", "model.target")
    ids = torch.zeros(64, 64, dtype=torch.int)
    found = sizes_of(gpt, TensorDataset(ids, ids), "cross_entropy", model=model_section("d_model", [16, 32, 64]))
    for size, d in zip(found, (16, 32, 64), strict=True):
        matmul = 2 * 12 * d * d + 256 * d
        assert size.params == matmul + 2 * 2 * 2 * d + 2 * d  # and the gains and biases of five norms
        assert size.flops_per_token == 6 * matmul + 2 * 12 * d * 64  # attention, whole matrix: 12·L·d·T


def test_num_params_of_the_model_wins() -> None:
    class Counting(Mlp):
        def num_params(self) -> int:
            return 3 * sum(p.numel() for p in self.parameters())

    found = sizes_of(Counting, regression(100))
    assert [s.params for s in found] == [3 * (10 * w + 1) for w in (4, 8, 16)]
    assert found[0].params_source == "num_params() of the model (123, where 41 are counted: all parameters)"
    assert found[0].params_total == 41


def test_sizes_may_be_mappings_and_models_partials_or_factories() -> None:
    def factory(width: int, inputs: int) -> nn.Module:
        return Mlp(width, inputs=inputs)

    sizes = [{"width": 4}, {"width": 8}, {"width": 16}]
    for model in (functools.partial(Mlp, inputs=8), functools.partial(factory, inputs=8), Mlp):
        found = sizes_of(model, regression(100), model=model_section(None, sizes))
        assert [s.size for s in found] == ["width=4", "width=8", "width=16"]
        assert [s.params for s in found] == [41, 81, 161]


def test_convolutions_share_weights_so_6n_is_wrong() -> None:
    class Conv(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, width, 3, bias=False)
            self.norm = nn.BatchNorm2d(width)
            self.head = nn.Linear(width, 10, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(self.conv(x)).mean(dim=(2, 3)))
            return out

    images = TensorDataset(torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.long))
    (first, *_) = sizes_of(Conv, images, "cross_entropy", model=model_section("width", [4, 8, 16]))
    assert first.flops_per_token == 4 * 36 * 4 * 9 + 6 * 40  # 6 × 6 positions use the same 9 weights; images raw


def test_a_model_that_meta_cannot_run_is_counted_on_the_cpu() -> None:
    class NeedsNumbers(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if x.sum().item() > 0 else 2)

    found = sizes_of(NeedsNumbers, regression(100))
    assert [s.flops_source for s in found] == ["counted on the CPU"] * 3
    assert [s.flops_per_token for s in found] == [s.flops_per_token for s in sizes_of(Mlp, regression(100))]


def test_sizes_that_are_known_are_not_measured_again_for_other_budgets() -> None:
    built: list[int] = []

    class Counted(Mlp):
        def __init__(self, width: int) -> None:
            built.append(width)
            super().__init__(width)

    user, known = user_parts_of(spec_of(), model=Counted), Known()
    first = measure_sizes(spec_of(budgets=[1e5, 4e5]), user, known=known)
    before = len(built)
    again = measure_sizes(spec_of(budgets=[2e5, 8e5]), user, known=known)
    assert again.sizes == first.sizes and built[before:] == [4]  # to be tried on two samples
    other = spec_of(train={**spec_of().train.model_dump(exclude_unset=True), "precision": "bf16"})
    measure_sizes(other, user, known=known)
    assert len(known.sizes) == 2 * len(first.sizes)  # run in another precision it may cost something else


class Proxy:
    """An object that answers no attribute but with an error of its own, as lazy ones of libraries do."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


PROXY = Proxy()  # the user's module holds it


def test_an_object_that_answers_no_attribute_is_passed_over() -> None:
    assert len(sizes_of(Mlp, regression(100))) == 3


def test_a_future_that_a_notebook_holds_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of a notebook holds some: instances of a class of C that has a dictionary and no `__dict__`."""
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(sys.modules[__name__], "PROXY", [loop.create_future()])
    assert len(sizes_of(Mlp, regression(100))) == 3
    loop.close()


def test_data_are_read_once_while_budgets_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nreads = []\n"
        "def data():\n    reads.append(1)\n    return torch.rand(500, 8), torch.rand(500, 1)\n"
    )
    measurer = SpecMeasurer(tmp_path)
    spec = spec_of(data={"train": "mine:data"}, budgets=[1e5, 4e5])
    first = measurer.measure(spec)
    again = measurer.measure(spec_of(data={"train": "mine:data"}, budgets=[2e5, 8e5]))
    assert again.data == first.data and len(sys.modules["mine"].reads) == 1
    measurer.measure(spec_of(data={"train": "mine:data", "eval_fraction": 0.2}, budgets=[1e5, 4e5]))
    assert len(sys.modules["mine"].reads) == 2  # other data than before


def test_the_users_own_flop_count_wins() -> None:
    spec = spec_of()
    user = user_parts_of(spec)
    own = replace(user, flops_per_token=lambda model: 1234.0)
    assert {s.flops_per_token for s in measure_sizes(spec, own).sizes} == {1234.0}


def test_with_the_users_own_count_the_model_is_not_run() -> None:
    class OnlyOnGpu(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("this kernel needs a GPU")

    spec = spec_of()
    user = replace(user_parts_of(spec, model=OnlyOnGpu), flops_per_token=lambda model: 6.0 * count_params(model).params)
    assert [s.flops_per_token for s in measure_sizes(spec, user).sizes] == [6.0 * (10 * w + 1) for w in (4, 8, 16)]
    with pytest.raises(SpecError, match="this kernel needs a GPU"):
        measure_sizes(spec, user_parts_of(spec, model=OnlyOnGpu))


class Heads(Mlp):
    def __init__(self, width: int) -> None:
        if width % 8:
            raise ValueError(f"width={width} is not divisible by 8 heads")
        super().__init__(width)


class NoFlops(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=1, keepdim=True) * self.weight.sum()


REFUSED = [
    (Heads, "width=4 raised ValueError: width=4 is not divisible by 8 heads"),
    (functools.partial(Mlp, inputs=9), "width=4 fails on a first batch: RuntimeError"),
    (NoFlops, "no FLOPs were counted; set model.flops_per_token"),
    (lambda width: nn.Identity(), "width=4 has no parameters"),
    (lambda width: 3, "made a int, not an nn.Module"),
    (lambda size: Mlp(size), "model.size_param: <lambda> takes no argument 'width'; it takes size"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refusals_name_the_size_and_the_reason(model: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("(", r"\(").replace(")", r"\)")):
        sizes_of(model, regression(100))


def test_auto_sizes_skip_what_the_model_refuses() -> None:
    spec = spec_of(model=model_section("width", "auto"), budgets=[1e9, 2e9])  # type: ignore[arg-type] # the word
    plan = planned(spec, user_parts_of(spec, model=Heads, train=regression(1_000_000)))
    assert plan.measurements.skipped[0].startswith("model.sizes: width=1 raised ValueError")
    assert all(int(e.size) % 8 == 0 for e in plan.experiments)
    assert min(sum(e.budget == b for e in plan.expected) for b in (1e9, 2e9)) >= 5


TEN_BILLION = """
import time
started = time.perf_counter()
import torch
from torch import nn
from flops_fit_ray import find_optimal

class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)
    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, D // 128, 128).permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(B, T, D))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

class GPT(nn.Module):
    def __init__(self, d, layers):
        super().__init__()
        self.table = nn.Embedding(50304, d)
        self.blocks = nn.Sequential(*[Block(d) for _ in range(layers)])
        self.head = nn.Linear(d, 50304, bias=False)
    def forward(self, ids):
        return self.head(self.blocks(self.table(ids)))

class Stream(torch.utils.data.Dataset):
    def __len__(self): return 10**12
    def __getitem__(self, i):
        ids = torch.arange(1025) % 50304
        return ids[:-1], ids[1:]

sizes = [{"d": 1024, "layers": 24}, {"d": 2048, "layers": 24}, {"d": 2560, "layers": 32}, {"d": 4096, "layers": 32},
         {"d": 4608, "layers": 38}]
plan = find_optimal(GPT, dataset=Stream(), eval_dataset=Stream(), compute_budgets=[1e20, 1e21, 1e22], sizes=sizes,
                    batch_size=256, train=False)
with open("/proc/self/status") as status:  # getrusage would count what the parent process had
    memory = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
print(plan.measurements.sizes[-1].params, len(plan.experiments), time.perf_counter() - started, memory)
"""


def test_planning_ten_billion_parameters_allocates_no_weights() -> None:
    output = subprocess.check_output([sys.executable, "-c", TEN_BILLION], text=True)
    params, experiments, _, megabytes = map(float, output.split())
    assert params > 9.9e9
    assert experiments == 15
    assert megabytes < 500
