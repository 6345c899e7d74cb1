"""One step: accumulation, precision, optimizers, schedules, and what happens when memory runs out."""

import itertools
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from flops_fit_ray.errors import MemoryExhaustedError, SpecError
from flops_fit_ray.planning import Experiment, Recipe, make_plan
from flops_fit_ray.training.data import Batch, TokenFile
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.step import device
from flops_fit_ray.training.step._lr_schedule import lr_factor
from flops_fit_ray.training.step._optimizer import make_optimizer, parameter_groups
from flops_fit_ray.training.step.attention import attention_kernel
from flops_fit_ray.training.step.stepper import Stepper
from flops_fit_ray.training.user.losses import cross_entropy
from flops_fit_ray.training.user.parts import UserParts, load_user_parts
from tests.parts import BIGRAM, Bigram, Mlp, planned, spec_of, text, user_parts_of

ROOT = Path(__file__).parent.parent


def experiment_of(model: Any = Bigram, train: Any = None, **recipe: Any) -> tuple[Experiment, UserParts]:
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "max_epochs": 9},
        loss="cross_entropy",
        budgets=[4e6, 8e6],
        train={"batch_size": 8, "lr": 1e-2, **recipe},
    )
    user = user_parts_of(spec, model=model, train=text() if train is None else train)
    return planned(spec, user).experiments[1], user


def run(experiment: Experiment, user: UserParts, **recipe: Any) -> Outcome:
    return train_experiment(replace(experiment, recipe=replace(experiment.recipe, **recipe)), user, eval_samples=24)


@pytest.mark.parametrize("micro_batch_size", [8, 4, 3, 1])
def test_accumulation_is_the_big_batch(micro_batch_size: int) -> None:
    experiment, user = experiment_of()
    whole = run(experiment, user)
    parts = run(experiment, user, micro_batch_size=micro_batch_size)
    assert parts.loss == pytest.approx(whole.loss, rel=2e-6)
    assert len(whole.curve) == experiment.steps + 1  # the last point is the evaluation
    for a, b in zip(parts.curve[:-1], whole.curve[:-1], strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    assert parts.micro_batch_size == micro_batch_size


def gradient(
    batch: Batch, micro_batch_size: int, model: nn.Module, user: UserParts, recipe: Recipe
) -> tuple[float, Tensor]:
    torch.manual_seed(0)
    stepper = Stepper(model, user, replace(recipe, micro_batch_size=micro_batch_size), 10, torch.device("cpu"))
    loss = stepper._gradients(batch)
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_accumulation_weighs_by_targets_that_count() -> None:
    """Where most targets of some samples are ignored, a mean of means would be wrong."""
    experiment, user = experiment_of()
    ids, targets = (t[:8].clone() for t in text().tensors)
    targets[0, 1:] = -100
    targets[3] = -100
    batch = Batch((ids, targets), 8)
    model = Bigram(8).double()
    loss, whole = gradient(batch, 8, model, user, experiment.recipe)
    for micro_batch_size in (4, 2, 1):
        again, parts = gradient(batch, micro_batch_size, model, user, experiment.recipe)
        assert again == pytest.approx(loss, rel=1e-6)
        assert torch.allclose(parts, whole, rtol=0, atol=1e-14)


def test_a_mapping_and_what_has_no_sample_axis_are_split_well() -> None:
    batch = Batch({"ids": torch.arange(6).view(3, 2), "mask": torch.ones(()), "names": {"x": torch.zeros(3)}}, 3)
    first, second = batch.split(2)
    assert first.content["ids"].tolist() == [[0, 1], [2, 3]] and second.content["ids"].tolist() == [[4, 5]]
    assert second.content["mask"].ndim == 0 and len(second.content["names"]["x"]) == 1
    assert (first.num_samples, second.num_samples) == (2, 1)


def real_text(lr: float, precision: str) -> Outcome:
    from flops_fit_ray.spec import read_spec

    base = ROOT / "examples" / "bytes"
    spec = read_spec(base / "sweep.yaml", ["model.sizes=[24, 32, 48]", "budgets=[6e10, 2e11]"])
    user = load_user_parts(spec, base)
    experiment = next(e for e in make_plan(spec, measure_sizes(spec, user)).experiments if e.size == 32)
    recipe = replace(experiment.recipe, precision=precision, warmup_steps=20, lr=lr)
    return train_experiment(replace(experiment, steps=200, tokens=200 * 512, recipe=recipe), user, eval_samples=256)


def test_bf16_is_within_3e_3_of_fp32_over_200_steps_of_real_text() -> None:
    full, half = real_text(1e-3, "fp32"), real_text(1e-3, "bf16")
    assert half.precision == "bf16"
    pairs = [(a.train_loss, b.train_loss) for a, b in zip(full.curve, half.curve, strict=True) if a.train_loss]
    assert len(pairs) == 200
    differences = [abs(a - b) for a, b in pairs if b is not None]
    assert 0 < max(differences) < 3e-3
    assert 0 < abs(full.loss - half.loss) < 3e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (5, 9)])
def test_the_bf16_kernel_of_the_cpu_is_attention(causal: bool, queries: int, keys: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (queries, keys, keys))
    exact = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    expected = torch.autograd.grad(exact.pow(2).sum(), (q, k, v))
    own = nn.functional.scaled_dot_product_attention
    with attention_kernel("bf16", torch.device("cpu")) as name, torch.autocast("cpu", torch.bfloat16):
        assert name == "baddbmm" and nn.functional.scaled_dot_product_attention is not own
        fast = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        found = torch.autograd.grad(fast.float().pow(2).sum(), (q, k, v))
        mask = torch.zeros(queries, keys)
        with_mask = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # goes to torch's own
        assert torch.allclose(with_mask.float(), own(q, k, v).float(), atol=3e-2)
    assert nn.functional.scaled_dot_product_attention is own
    assert torch.allclose(fast.float(), exact, atol=3e-2)
    assert all(torch.allclose(a.float(), b, atol=0.15) for a, b in zip(found, expected, strict=True))
    with attention_kernel("fp32", torch.device("cpu")) as name:
        assert name == "torch" and nn.functional.scaled_dot_product_attention is own


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_computes_in_it_and_keeps_weights_in_fp32(precision: str) -> None:
    seen = set()

    class Spy(Bigram):
        def forward(self, ids: Tensor) -> Tensor:
            out = super().forward(ids)
            seen.add((out.dtype, self.head.weight.dtype))
            return out

    experiment, user = experiment_of(Spy, precision=precision)
    outcome = train_experiment(experiment, user, eval_samples=24)
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert (expected, torch.float32) in seen
    assert outcome.precision == precision
    assert outcome.loss == pytest.approx(run(experiment, user, precision="fp32").loss, abs=2e-2)


def test_fp16_gradients_are_unscaled_before_they_are_clipped() -> None:
    experiment, user = experiment_of(grad_clip=0.01)
    full, half = run(experiment, user), run(experiment, user, precision="fp16")
    norms = [(a.grad_norm, b.grad_norm) for a, b in zip(full.curve, half.curve, strict=True) if a.grad_norm]
    assert len(norms) > 10 and all(b == pytest.approx(a, rel=0.05) for a, b in norms[5:])


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm((2, 4))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    model = Mixed()
    decay, spared = parameter_groups(model, 0.1)
    assert [id(p) for p in decay["params"]] == [id(model.linear.weight)]
    assert {id(p) for p in spared["params"]} == {
        id(p) for p in (model.table.weight, model.linear.bias, model.norm.weight, model.norm.bias)
    }
    assert (decay["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    tied = Bigram(4, tied=True)
    assert [group["weight_decay"] for group in parameter_groups(tied, 0.1)] == [0.1]


def test_a_factory_gives_each_group_a_rate_and_the_schedule_moves_all(tmp_path: Path) -> None:
    """What muP needs: the rate of a matrix falls with its width, that of a table does not."""
    rates: list[list[float]] = []

    class Recording(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def mup(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        assert isinstance(model, Bigram)
        groups: list[dict[str, Any]] = [{"params": [model.table.weight]}]
        groups.append({"params": [model.head.weight], "lr": lr / 8})
        return Recording(groups, lr=lr)

    experiment, user = experiment_of()
    train_experiment(experiment, replace(user, optimizer=mup), eval_samples=24)
    factors = [lr_factor(s, experiment.steps, experiment.recipe) for s in range(experiment.steps)]
    assert rates == [[1e-2 * f, 1e-2 / 8 * f] for f in factors]

    def make(optimizer: Any) -> Any:
        return make_optimizer(Bigram(4), experiment.recipe, replace(user, optimizer=optimizer))

    for wrong, named in [(3, "a int"), ([], "a list of nothing"), ((mup(Bigram(4), 1), 3), r"a tuple of \['int'\]")]:
        with pytest.raises(TypeError, match=f"train.optimizer returned {named}, not a torch.optim.Optimizer or a list"):
            make(lambda model, lr, wrong=wrong: wrong)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        make(lambda model, lr: [mup(model, lr), mup(model, lr)])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_optimizers_of_a_kind_are_one(precision: str) -> None:
    """Clipped together, unscaled once, moved by one schedule."""
    experiment, user = experiment_of(grad_clip=0.01, precision=precision)
    short = replace(experiment, steps=6, tokens=6 * experiment.tokens // experiment.steps)
    one = replace(user, optimizer=lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9))
    two = replace(
        user, optimizer=lambda m, lr: [torch.optim.SGD(c.parameters(), lr=lr, momentum=0.9) for c in m.children()]
    )
    outcomes = [train_experiment(short, parts, eval_samples=24) for parts in (one, two)]
    assert outcomes[0].loss == outcomes[1].loss
    assert [p.grad_norm for p in outcomes[0].curve] == [p.grad_norm for p in outcomes[1].curve]


SCHEDULES = [("wsd", "linear"), ("wsd", "1-sqrt"), ("cosine", "linear"), ("linear", "linear"), ("constant", "linear")]


@pytest.mark.parametrize(("schedule", "shape"), SCHEDULES, ids=[f"{s}-{d}" for s, d in SCHEDULES])
@pytest.mark.parametrize(("steps", "warmup", "final"), [(200, 10, 0.1), (1, 0, 0.0), (37, 36, 0.0), (1000, 0, 0.5)])
def test_every_schedule_is_drawn_and_meets_its_ends(
    schedule: str, shape: str, steps: int, warmup: int, final: float
) -> None:
    recipe = replace(
        experiment_of()[0].recipe,
        schedule=schedule,
        decay_shape=shape,
        warmup_steps=warmup,
        final_lr_fraction=final,
        decay_fraction=0.25,
    )
    drawn = [lr_factor(s, steps, recipe) for s in range(steps + 1)]
    assert drawn[warmup] == pytest.approx(1.0, abs=1e-12)
    assert drawn[steps] == pytest.approx(1.0 if schedule == "constant" else final, abs=1e-12)
    assert all(0 < f <= 1 for f in drawn[:steps])
    assert all(a < b for a, b in itertools.pairwise(drawn[: warmup + 1]))
    assert all(a >= b for a, b in itertools.pairwise(drawn[warmup:]))
    if schedule == "wsd" and steps == 200:
        assert set(drawn[10:151]) == {1.0}
        halfway = {"linear": 0.5, "1-sqrt": math.sqrt(0.5)}[shape]
        assert drawn[175] == pytest.approx(1 - 0.9 * halfway, abs=1e-12)
    if schedule == "cosine" and steps == 200:
        assert drawn[105] == pytest.approx(0.1 + 0.9 / 2, abs=1e-12)


def test_a_schedule_of_the_users_does_everything_itself() -> None:
    experiment, user = experiment_of()
    own = replace(user, schedule=lambda step, steps: (step + 1) / steps)
    outcome = train_experiment(experiment, own, eval_samples=24)
    assert [p.lr for p in outcome.curve if p.eval_loss is None] == [
        1e-2 * ((s + 1) / experiment.steps) for s in range(experiment.steps)
    ]


@pytest.mark.parametrize(
    ("lr", "expected"),
    [
        ({"table": {4: 0.4, 8: 0.2, 16: 0.1}}, [0.4, 0.2, 0.1]),
        ({"base": 0.4, "at": 4, "exponent": -1, "of": "size"}, [0.4, 0.2, 0.1]),
        ("mine:rule", [0.4, 0.2, 0.1]),
    ],
    ids=["table", "power", "function"],
)
def test_the_rate_of_each_size(lr: Any, expected: list[float]) -> None:
    spec = spec_of(train={"batch_size": 8, "lr": lr})
    own = (lambda params, size: 1.6 / size["width"]) if isinstance(lr, str) else None
    user = replace(user_parts_of(spec), lr=own)
    plan = planned(spec, user)
    assert [e.recipe.lr for e in plan.experiments[:3]] == pytest.approx(expected)


def test_rates_that_are_none_are_refused() -> None:
    spec = spec_of(train={"batch_size": 8, "lr": {"table": {4: 0.4}}})
    with pytest.raises(SpecError, match=r"train.lr.table: has no rate for size 8; add one \(it has \[4\]\)"):
        planned(spec, user_parts_of(spec))
    spec = spec_of(train={"batch_size": 8, "lr": "mine:rule"})
    with pytest.raises(SpecError, match="train.lr: returned -1.0 for width=4; it must be a positive number"):
        planned(spec, replace(user_parts_of(spec), lr=lambda params, size: -1))


class Greedy(Bigram):
    """Has memory for two samples at a time."""

    def forward(self, ids: Tensor) -> Tensor:
        if self.training and len(ids) > 2 and not ids.is_meta:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(ids)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch() -> None:
    words = []

    class Listener(Observer):
        def event(self, text: str, *, level: Literal["info", "warning"] = "info") -> None:
            words.append((level == "warning", text))

    experiment, user = experiment_of(Greedy)
    outcome = train_experiment(experiment, user, eval_samples=24, observer=Listener())
    assert outcome.micro_batch_size == 2
    same = run(experiment, replace(user, model=Bigram), micro_batch_size=2)
    assert (outcome.loss, outcome.tokens_seen) == (same.loss, same.tokens_seen)
    assert words == [(True, "out of memory at step 1; continuing with micro-batches of 2 and the same batch size of 8")]


def test_after_three_halvings_it_is_out_of_memory() -> None:
    experiment, user = experiment_of(Greedy, batch_size=32)
    message = r"out of memory with a micro-batch of 4, halved from 32: CUDA out of memory"
    with pytest.raises(MemoryExhaustedError, match=message):
        train_experiment(experiment, user, eval_samples=24)


def test_an_error_that_is_not_about_memory_goes_through() -> None:
    experiment, user = experiment_of()
    with pytest.raises(RuntimeError, match="my own"):
        train_experiment(experiment, replace(user, loss=lambda out, y: _raise()), eval_samples=24)


def _raise() -> Tensor:
    raise RuntimeError("my own")


def test_real_memory_that_runs_out_is_recognised() -> None:
    code = """
import resource, torch
from flops_fit_ray.training.step.stepper import is_out_of_memory
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
try:
    torch.zeros(1 << 40)
except RuntimeError as e:
    print(is_out_of_memory(e))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["True"]


def test_what_is_measured_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, user = experiment_of()
    monkeypatch.setattr("flops_fit_ray.training.loop.loop.peak_flops", lambda *_: (1e15, "stated"))
    outcome = train_experiment(
        experiment,
        replace(user, metrics={"accuracy": accuracy, "double": lambda out, y: 2 * cross_entropy(out, y)}),
        eval_samples=24,
    )
    assert outcome.metrics["double"] == pytest.approx(2 * outcome.loss, rel=1e-6)
    assert 0 <= outcome.metrics["accuracy"] <= 1
    assert outcome.tokens_per_second and outcome.mfu and outcome.data_wait_share
    assert outcome.flops_per_second and outcome.steps_per_second
    assert outcome.tokens_per_second == pytest.approx(outcome.tokens_seen / outcome.train_seconds)
    assert outcome.flops_per_second == pytest.approx(outcome.tokens_per_second * experiment.flops_per_token)
    assert outcome.mfu == pytest.approx(outcome.flops_per_second / 1e15) and outcome.peak_source == "stated"
    assert outcome.steps_per_second == pytest.approx(experiment.steps / outcome.train_seconds)
    assert outcome.samples_per_second == pytest.approx(experiment.recipe.batch_size * outcome.steps_per_second)
    assert outcome.all_reduce_share is None
    assert outcome.data_wait_share < 1
    assert outcome.peak_memory_bytes is not None and outcome.peak_memory_bytes > 50e6
    losses = [p.train_loss for p in outcome.curve if p.train_loss is not None]
    assert len(losses) == experiment.steps  # fewer than the points a curve may have
    assert outcome.curve[-1].eval_loss == outcome.loss


def test_a_peak_is_one_of_a_quiet_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured again after a minute, and never again once it was."""
    found, clock = iter([(1e9, 0.94), (2e9, 0.96)]), [1000.0]
    monkeypatch.setattr(device, "_measured_gemm", lambda *_: next(found))
    monkeypatch.setattr(device, "_measured", {})
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    answers = []
    for _ in range(4):
        answers.append(device.peak_flops("cpu x", "cpu", "fp32", 1))
        clock[0] += 40
    busy = (None, "no peak: the device was busy with something else while it was measured (94 % ours)")
    assert answers == [busy, busy, *[(2e9, "measured GEMM of 1024, 1 thread(s)")] * 2]
    assert device.peak_flops("NVIDIA H200", "cuda", "bf16", 1) == (989e12, "data sheet of H200")


def test_a_device_is_quiet_where_this_thread_had_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the thread goes at half the speed of the wall's, as beside another process on the same core."""
    monkeypatch.setattr(device, "_GEMM_SECONDS", 0.0)
    monkeypatch.setattr("time.thread_time", lambda: time.perf_counter() / 2)
    flops, share = device._measured_gemm(torch.device("cpu"), "fp32")
    assert flops > 1e6 and share == pytest.approx(0.5, rel=0.05)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).float().mean()


def test_a_long_curve_is_thinned_and_its_losses_are_means() -> None:
    experiment, user = experiment_of()
    long = replace(experiment, steps=1003, tokens=1003 * 128)
    outcome = train_experiment(long, user, eval_samples=0)
    points = [p for p in outcome.curve if p.train_loss is not None]
    assert 150 < len(points) < 260
    assert [p.step for p in points[:3]] == [1, 5, 10] and points[-1].step == 1003
    assert outcome.tokens_seen == long.tokens


def test_nothing_waits_for_the_device_between_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Observer):
        steps = 0

        def fetching(self) -> None:
            self.steps += 1

    experiment, user = experiment_of()
    long = replace(experiment, steps=420, tokens=420 * 128)
    observer, waits = Counting(), set()

    def waiting(name: str) -> None:
        own = getattr(Tensor, name)

        def spy(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            waits.add(observer.steps)
            return own(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, spy)

    for name in ("item", "tolist", "__float__", "__bool__", "__int__", "cpu"):
        waiting(name)
    monkeypatch.setattr("flops_fit_ray.training.loop.loop.PROGRESS_SECONDS", 1e9)
    train_experiment(long, user, eval_samples=0, observer=observer)
    assert waits == {1, 50, 100, 150, 200, 250, 300, 350, 400, 420}


def test_dropout_and_evaluation_on_the_way_do_not_meet() -> None:
    from flops_fit_ray.training.loop.save_policy import SavePolicy

    spec = spec_of()
    user = user_parts_of(spec, model=Mlp)
    experiment = planned(spec, user).experiments[1]
    often = train_experiment(experiment, user, eval_samples=50, policy=SavePolicy(eval_every_tokens=64))
    never = train_experiment(experiment, user, eval_samples=50)
    assert often.loss == never.loss
    assert (
        sum(p.eval_loss is not None for p in often.curve) == experiment.tokens // 64 - (experiment.tokens % 64 == 0) + 1
    )


TOKENS = 1_000_000


def token_path(tmp_path: Path, dtype: str = "uint16", header: bool = False) -> Path:
    import numpy as np

    path = tmp_path / "t.bin"
    head = np.zeros(256, np.int32)
    head[:3] = (20240520, 1, TOKENS)
    tokens = (np.arange(TOKENS) % 50_000).astype(dtype)
    path.write_bytes((head.tobytes() if header else b"") + tokens.tobytes())
    return path


@pytest.mark.parametrize(
    ("dtype", "header", "said"), [("uint16", False, "auto"), ("uint16", True, "auto"), ("uint32", False, "uint32")]
)
def test_token_files_of_each_layout(tmp_path: Path, dtype: str, header: bool, said: str) -> None:
    data = TokenFile(token_path(tmp_path, dtype, header), context=64, dtype=said)
    assert len(data) == (TOKENS - 1) // 64
    inputs, targets = data[777]
    assert inputs.tolist() == [(777 * 64 + i) % 50_000 for i in range(64)]
    assert targets.tolist() == [(777 * 64 + i + 1) % 50_000 for i in range(64)]


def test_several_token_files_are_one_after_the_other(tmp_path: Path) -> None:
    one = token_path(tmp_path)
    two = tmp_path / "u.bin"
    two.write_bytes(one.read_bytes()[: 2 * 1000])
    data = TokenFile([two, one], context=100)
    assert len(data) == 9 + 9999
    assert data[8][0][0] == 800 and data[9][0][0] == 0


FAULTY = [
    ("missing.bin", "no file 'missing.bin'"),
    ("odd.bin", "has 7 bytes, not a multiple of uint16's; set data.dtype"),
    ("short.bin", "has 3 tokens, but a window of data.context 8 needs 9"),
    ("torn.bin", "has 20 tokens of uint16, but its header says 1000000; copy it again"),
]


@pytest.mark.parametrize(("name", "message"), FAULTY)
def test_token_files_that_cannot_be_used(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "odd.bin").write_bytes(b"1234567")
    (tmp_path / "short.bin").write_bytes(b"123456")
    (tmp_path / "torn.bin").write_bytes(token_path(tmp_path, header=True).read_bytes()[: 1024 + 40])
    spec = spec_of(data={"train": name, "context": 8})
    with pytest.raises(SpecError, match=message):
        load_user_parts(spec, tmp_path)
    with pytest.raises(SpecError, match=r"data.context: is missing; data.train is a token file"):
        load_user_parts(spec_of(data={"train": name}), tmp_path)


def test_reading_a_token_file_does_not_grow_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    with path.open("wb") as file:
        file.truncate(400_000_000)  # sparse: zeros
    code = f"""
import gc, numpy as np
from flops_fit_ray.training.data import TokenFile
def rss(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])
data = TokenFile({str(path)!r}, context=1024)
data.batch(np.arange(8)); gc.collect(); before = rss()
for start in range(0, len(data) - 64, 64): data.batch(np.arange(start, start + 64))
print(rss() - before)
"""
    grown = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert grown < 20_000  # kB, where a memory map would have 390,000
