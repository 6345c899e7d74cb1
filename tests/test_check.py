"""The check finds what is wrong, and nothing where all is well."""

import gc
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flops_fit_ray.planning import Plan
from flops_fit_ray.training.preflight import _target_leak, timing
from flops_fit_ray.training.preflight.check import CheckReport, check_plan
from flops_fit_ray.training.user.losses import BUILT_IN_LOSSES
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import BIGRAM, Bigram, Mlp, planned, regression, spec_of, text, user_parts_of
from tests.streams import every_kind, mappings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _collect_only_what_is_new() -> Iterator[None]:
    """Keep all that is imported out of the collections of garbage before each model that is timed."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.02)
    if "verdict_on_targets" not in request.fixturenames:
        monkeypatch.setattr(_target_leak, "LEAK_STEPS", 3)  # too few to learn to copy


def parts(model: Any = Bigram, data: Any = None, loss: str = "cross_entropy") -> tuple[Plan, UserParts]:
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "max_epochs": 1e6},
        loss=loss,
        budgets=[4e8, 8e8],
    )
    user = user_parts_of(spec, model=model, train=text() if data is None else data, loss=BUILT_IN_LOSSES[loss])
    return planned(spec, user), user


def checked(model: Any = Bigram, data: Any = None, loss: str = "cross_entropy") -> CheckReport:
    return check_plan(*parts(model, data, loss), device="cpu")


def answers(report: CheckReport) -> dict[str, str]:
    return {line.name: line.verdict for line in report.lines}


def words(report: CheckReport, name: str) -> str:
    return next(line.words for line in report.lines if line.name == name)


def test_ten_answers_and_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit_ray.training.preflight.check.MAX_WAIT_SHARE", 1.0)  # a busy machine waits
    report = checked()
    assert len(report.lines) == 10 and report.verdict == "PASS", report.lines
    assert set(report.step_seconds) == {"4", "8", "16"}
    assert "128 in a batch of 8 samples; one is one target token" in words(report, "tokens")
    assert "the same losses to the last bit" in words(report, "checkpoint")
    assert words(report, "FLOPs") == "1.00 to 1.00 times 6ND, counted on the meta device"  # a head without a bias
    assert (
        len(re.findall(r"tokens/s, [\d.e+]+ steps/s \(MFU (?:\d+ %|N/A)\)", words(report, "speed"))) == 2
    )  # the smallest and the largest
    assert json.loads(json.dumps(report.to_json()))["verdict"] == "PASS"


@pytest.mark.parametrize("kind", ["augmented", "token file", "iterable", "iterable with state", "loader", "mappings"])
def test_every_kind_of_data_can_be_checked(kind: str, tmp_path: Path) -> None:
    report = checked(Bigram, every_kind(tmp_path)[kind])
    assert len(report.lines) == 10 and report.verdict != "FAIL", str(report)
    held_out = "held-out data: none" not in words(report, "data")
    assert held_out == (kind in ("augmented", "token file", "mappings"))
    assert answers(report)["checkpoint"] == "PASS"
    noisy = kind in ("augmented", "loader")  # inputs with noise in them are no shifted targets
    assert ("random tokens" in words(report, "targets")) != noisy


def unshifted() -> tuple[Tensor, Tensor]:
    inputs, _ = text().tensors
    return inputs, inputs


class SeesAll(nn.Module):
    """Attention that is not causal: with targets shifted by one it can look them up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(32, 4 * width), nn.Embedding(16, 4 * width)
        self.block = nn.TransformerEncoderLayer(4 * width, 2, 8 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4 * width, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        out: Tensor = self.head(self.block(x, src_mask=self.mask(ids)))
        return out

    def mask(self, ids: Tensor) -> Tensor | None:
        return None


class Causal(SeesAll):
    def mask(self, ids: Tensor) -> Tensor | None:
        size = ids.shape[1]
        return torch.full((size, size), float("-inf"), device=ids.device).triu(1)


class Silent(SeesAll):
    """Its head begins with zeros, so that nothing tells before it has been trained a little."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        nn.init.zeros_(self.head.weight)


class OfAllTokens(Causal):
    """Causal; its loss is no mean over positions, of which nothing can be told without training."""

    def forward(self, ids: Tensor, target: Tensor | None = None) -> Any:
        assert target is not None
        loss = nn.functional.cross_entropy(super().forward(ids).flatten(0, 1), target.flatten())
        return {"loss": loss**2}


class ShiftsInside(Bigram):
    """Labels that are the inputs, shifted by the model: as Hugging Face's causal models do."""

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(ids)
        assert labels is not None
        return {"loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


class Forgets(ShiftsInside):
    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Any:
        assert labels is not None
        return {"loss": nn.functional.cross_entropy(Bigram.forward(self, ids).flatten(0, 1), labels.flatten())}


@pytest.mark.parametrize(
    ("model", "data", "loss", "verdict_on_targets"),
    [
        (Bigram, unshifted(), "cross_entropy", "FAIL"),
        (SeesAll, text(), "cross_entropy", "FAIL"),
        (Causal, text(), "cross_entropy", "PASS"),
        (ShiftsInside, {"ids": text().tensors[0], "labels": text().tensors[0]}, "model", "PASS"),
        (Forgets, {"ids": text().tensors[0], "labels": text().tensors[0]}, "model", "FAIL"),
        (ShiftsInside, mappings(), "model", "PASS"),
    ],
    ids=["not shifted", "not causal", "causal", "shifted inside", "not shifted inside", "shifted twice"],
)
def test_a_model_that_sees_its_targets_is_found_out(model: Any, data: Any, loss: str, verdict_on_targets: str) -> None:
    report = checked(model, data, loss)
    assert answers(report)["targets"] == verdict_on_targets, words(report, "targets")


@pytest.mark.parametrize(
    ("model", "loss", "said"),
    [
        (SeesAll, "cross_entropy", "is attention causal"),
        (Silent, "cross_entropy", "is attention causal"),
        (Causal, "cross_entropy", ""),
        (OfAllTokens, "model", ""),
    ],
)
def test_attention_that_is_not_causal_is_seen_before_anything_is_copied(model: Any, loss: str, said: str) -> None:
    """Narrow models learn too slowly what later tokens tell; three steps are enough to see that they do."""
    ids, target = text().tensors
    report = checked(model, {"ids": ids, "target": target} if loss == "model" else text(), loss)
    line = words(report, "targets")
    assert answers(report)["targets"] == ("FAIL" if said else "PASS") and said in line, line
    assert "after 3 steps" in line


def test_there_is_nothing_to_copy_without_tokens() -> None:
    spec = spec_of()
    user = user_parts_of(spec, model=Mlp, train=regression())
    report = check_plan(planned(spec, user), user, device="cpu")
    assert answers(report)["targets"] == "PASS" and "not applicable" in words(report, "targets")


class Idle(Bigram):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.unused = nn.Linear(3, 3)


class Hot(Bigram):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        nn.init.normal_(self.head.weight, std=30)


class Keeps(Bigram):
    """State that no checkpoint can hold."""

    calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(ids) * (1 + self.calls / 100)


class Breaks(Bigram):
    def forward(self, ids: Tensor) -> Tensor:
        if self.table.weight.shape[1] == 16 and not ids.is_meta:
            raise RuntimeError("too wide")
        return super().forward(ids)


FOUND = [
    (Idle, "gradients", "WARN", "2 parameters have no gradient: unused.weight, unused.bias"),
    (Hot, "first loss", "WARN", "ln(32 classes) is 3.466; check the initialisation"),
    (Keeps, "checkpoint", "FAIL", "does the model keep state outside its buffers?"),
    (Breaks, "runs", "FAIL", "size 16: RuntimeError: too wide"),
]


@pytest.mark.parametrize(("model", "name", "verdict", "message"), FOUND, ids=[n for _, n, *_ in FOUND])
def test_what_is_wrong_is_found(model: Any, name: str, verdict: str, message: str) -> None:
    report = checked(model)
    assert answers(report)[name] == verdict
    assert message in words(report, name)
    assert report.verdict == verdict


def test_a_plan_that_is_not_of_this_model_is_found() -> None:
    plan, user = parts()
    other = replace(user, model=lambda width: Bigram(width + 1))
    report = check_plan(plan, other, device="cpu")
    assert answers(report)["runs"] == "FAIL" and "the plan counted" in words(report, "runs")


def test_the_faster_precision_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, user = parts()
    plan = timing.with_precision(plan, "auto")
    seconds = timing.choose_precision(plan, user, device="cpu").seconds
    assert set(seconds) == {"fp32", "bf16"} and all(s > 0 for s in seconds.values())
    time_training = timing.time_training
    for factor, expected in [(0.5, "bf16"), (0.99, "fp32"), (2.0, "fp32")]:

        def timed(experiment: Any, *rest: Any, factor: float = factor) -> Any:
            step = 1.0 if experiment.recipe.precision == "fp32" else factor
            return replace(time_training(experiment, *rest), step_seconds=step)

        monkeypatch.setattr(timing, "time_training", timed)
        choice = timing.choose_precision(plan, user, device="cpu")
        whole = sum(e.steps for e in plan.experiments) * min(1.0, factor)
        assert choice.precision == expected
        assert choice.compile == (whole / 3 > 300)
    assert set(timing.choose_precision(timing.with_precision(plan, "bf16"), user, device="cpu").seconds) == {"bf16"}


def test_the_sweep_is_priced_by_both_ends() -> None:
    plan, user = parts()
    ends = [timing.time_training(e, user, torch.device("cpu")) for e in timing.smallest_and_biggest(plan)]
    same = [replace(m, step_seconds=0.01) for m in ends]
    assert timing.sweep_seconds(plan, same) == pytest.approx(
        0.01 * sum(e.steps - e.start_step for e in plan.experiments)
    )
    by_flops = [replace(m, step_seconds=1e-9 * m.experiment.flops_per_token) for m in ends]
    whole = sum(1e-9 * e.flops_per_token * (e.steps - e.start_step) for e in plan.experiments)
    assert timing.sweep_seconds(plan, by_flops) == pytest.approx(whole)
