"""`find_optimal`: the same answers through Python, and no argument that is silently ignored."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flops_fit_ray import Result, SpecError, find_optimal
from flops_fit_ray.api._request import requested
from flops_fit_ray.engine.loaders import ObjectLoader, refuse_unpicklable
from flops_fit_ray.errors import ArgumentError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.pipeline import RunRequest
from flops_fit_ray.planning import Plan
from flops_fit_ray.spec.arguments import describe, describe_value, readable_name
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.finished import record_finished
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.user.source_code import code_of_objects
from tests.parts import Mlp, TruncatedRegression, planned, power_law_regression, regression, spec_of, user_parts_of
from tests.sweeps import make_sweep, reference_parts, reference_spec

ARGUMENTS: dict[str, Any] = {
    "model_size_param": "width",
    "dataset": regression(),
    "loss_fn": "mse",
    "compute_budgets": [1e5, 2e5],
    "sizes": [4, 8, 16],
    "batch_size": 8,
    "lr": 1e-2,
}


def plan_with(model: Any = Mlp, **changes: Any) -> Plan:
    return find_optimal(model, **{**ARGUMENTS, **changes}, train=False)


def test_the_plan_is_the_specs_plan() -> None:
    spec = reference_spec()
    other = planned(spec, reference_parts(spec))
    plan = find_optimal(
        TruncatedRegression,
        "features",
        dataset=power_law_regression(),
        loss_fn="mse",
        compute_budgets=[{"flops": b.flops, "sizes": b.sizes} for b in spec.budgets],
        train=False,
        batch_size=4,
        lr=0.04,
        optimizer="sgd",
        grad_clip=None,
        warmup_tokens=0,
    )
    cells = [(e.budget, e.size, e.params, e.tokens, e.recipe) for e in plan.experiments]
    assert cells == [(e.budget, e.size, e.params, e.tokens, e.recipe) for e in other.experiments]


def test_nothing_is_written_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(plan_with(output_dir="out").experiments) == 6
    assert list(tmp_path.iterdir()) == []
    frame = plan_with().to_frame()
    assert list(frame["tokens"]) == [e.tokens for e in plan_with().experiments]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"batchsize": 3}, "batchsize: unknown option; did you mean 'batch_size'?"),
    (
        {"frobnicate": 3},
        "frobnicate: unknown option; known: activation_checkpointing, address, at_most, axes, batch_size",
    ),
    ({"learning_rate": 1e-3}, "learning_rate: unknown option; write lr"),
    ({"num_train_epochs": 3}, "num_train_epochs: unknown option; write max_epochs (D follows from the budget;"),
    ({"wandb_project": "x"}, "wandb_project: unknown option; write trackers={'wandb': {'project': ...}}"),
    ({"criterion": "mse"}, "criterion: unknown option; write loss_fn"),
    ({"budgets": [1e5]}, "budgets: unknown option; write compute_budgets"),
    ({"max_trials": 9}, "max_trials: unknown option; write grid={'max_experiments': ...}"),
    ({"size_param": "width"}, "size_param: unknown option; write model_size_param"),
    ({"compute_budgets": None}, "compute_budgets: is missing"),
    ({"loss_fn": "hinge"}, "loss_fn: 'hinge' is none of cross_entropy, mse"),
    ({"model_kwargs": {"dropuot": 0.1}}, "model_kwargs: Mlp takes no argument 'dropuot'; did you mean 'dropout'?"),
    ({"lr": -1}, "lr: must be a positive"),
    ({"model_size_param": None}, "size_param is missing"),
    ({"dataset": 3}, "dataset: 3 holds no samples (input, target)."),
    ({"dataset": [1, 2]}, "dataset: [1, 2] holds no samples (input, target)."),
    ({"dataset": Path("train.bin")}, "train.bin') holds no samples"),
    ({"dataset": [torch.ones(9, 4), torch.ones(9, 1)]}, "a list of 2 arrays would be as many samples; write a tuple"),
    ({"dataset": regression}, "dataset: regression is a function; pass what it returns"),
    ({"dataset": (x for x in range(3))}, "dataset: is a generator, which can be iterated only once"),
    ({"eval_dataset": [1]}, "eval_dataset: [1] holds no samples"),
    ({"compute_budgets": 1e5}, "compute_budgets: must be a list of FLOPs"),
    ({"compute_budgets": "1e5,2e5"}, "compute_budgets: must be a list of FLOPs"),
    ({"model_kwargs": [1]}, "model_kwargs: must be a mapping"),
    ({"model_kwargs": {"width": 4}}, "kwargs.width is the size parameter"),
    ({"output_dir": None}, "output_dir: must be a path (got None)"),
    ({"resume": "no"}, "resume: must be True or False (got 'no')"),
    ({"slots": "4", "at_most": -1}, "slots: must be a positive whole number (got '4')"),
    ({"loss_fn": 42}, "loss_fn must be callable"),
    ({"loss_fn": nn.MSELoss}, "loss_fn: MSELoss is a class; write MSELoss() with parentheses"),
    ({"mode": "runs/here"}, "mode: must be one of local, mock (got 'runs/here'); output_dir comes after it"),
    ({"metrics": [1]}, "metrics: must be functions by name"),
    ({"optimizer": lambda m, lr: 3}, "optimizer returned a int, not a torch.optim.Optimizer"),
    ({"checkpoint": {"minuets": 1}}, "checkpoint.minuets: unknown key; did you mean 'minutes'?"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match="^find_optimal: ") as caught:
        plan_with(**change)
    assert message in str(caught.value)


def test_text_is_no_truth_value(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="train: must be True or False"):
        find_optimal(Mlp, **{**ARGUMENTS, "train": "false", "output_dir": tmp_path})
    other: dict[str, Any] = {**ARGUMENTS, "compute_budgets": np.array([1e5, 2e5]), "sizes": np.array([4, 8, 16])}
    plan: Any = find_optimal(Mlp, **{**other, "train": np.bool_(False)})
    assert plan.num_experiments == 6


def test_all_wrong_arguments_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        plan_with(model=3, batchsize=3, dataset="train.csv", lr=-1)
    assert len(caught.value.faults) == 4


def test_keys_follow_the_code_that_has_no_name() -> None:
    def keys(**changes: Any) -> set[str]:
        return {e.key for e in plan_with(**changes).experiments}

    first = keys(loss_fn=lambda a, b: (a - b).pow(2).mean())
    assert first == keys(loss_fn=lambda a, b: (a - b).pow(2).mean())
    assert not first & keys(loss_fn=lambda a, b: (a - b).abs().mean())
    assert not keys(loss_fn=nn.HuberLoss(delta=1.0)) & keys(loss_fn=nn.HuberLoss(delta=2.0))
    assert not keys() & keys(dataset=regression(1999))
    assert not keys() & keys(model=functools.partial(Mlp, dropout=0.2))
    assert not keys() & keys(model_kwargs={"dropout": 0.2})


def test_descriptions_are_the_same_in_every_process() -> None:
    assert describe(Mlp) == "tests.parts:Mlp"
    assert describe(functools.partial(Mlp, dropout=0.2)) == "partial(tests.parts:Mlp, dropout=0.2)"
    assert "0x" not in describe(regression()) + describe(nn.MSELoss()) + str(describe_value({"a": nn.ReLU}))
    assert describe_value({"a": [1, 2.5, None]}) == {"a": [1, 2.5, None]}
    for data, name in (
        ((1, 2), "a tuple"),
        ({"x": 1}, "a dict"),
        (regression(), "TensorDataset"),
        (Mlp, "tests.parts:Mlp"),
    ):
        assert readable_name(describe(data)) == name
    assert readable_name("data:Windows(length=64)") == "Windows(length=64)" and readable_name("a/b.bin") == "a/b.bin"


def test_what_cannot_travel_is_named_before_anything_runs(tmp_path: Path) -> None:
    handle = (tmp_path / "open").open("w")

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        handle.write("x")
        return (a - b).pow(2).mean()

    spec = spec_of()
    with handle, pytest.raises(SpecError, match="loss cannot be sent to a worker: PicklingError"):
        refuse_unpicklable(ObjectLoader(user_parts_of(spec, loss=loss)))


class AskedError(Exception):
    """A run was asked for."""


def test_a_finished_sweep_is_answered_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As long as arguments, code and data are those of before."""

    def asked(request: RunRequest, console: object) -> None:
        raise AskedError(request.from_checkpoint)

    monkeypatch.setattr("flops_fit_ray.api._find_optimal.run", asked)
    monkeypatch.setattr("flops_fit_ray.api._find_optimal.plan_request", lambda *_: pytest.fail("models are measured"))
    arguments: dict[str, Any] = {**ARGUMENTS, "output_dir": tmp_path}
    request, _ = requested(
        Mlp, "width", None, regression(), "mse", [1e5, 2e5], tmp_path, "local",
        {name: ARGUMENTS[name] for name in ("sizes", "batch_size", "lr")}, False,
    )  # fmt: skip
    loader = request.load_user_parts
    assert isinstance(loader, ObjectLoader)
    with pytest.raises(AskedError):  # there is nothing yet
        find_optimal(Mlp, **arguments)
    sweep = make_sweep(tmp_path, request.spec, loader.user)
    code = code_of_objects(loader.user)
    Ledger(sweep.paths).record_code(code)
    record_finished(sweep, code.digest, "N_opt = ...")
    local_path(sweep.paths.report).touch()

    found = find_optimal(Mlp, **arguments)
    assert found.complete and len(found.to_frame()) == 6
    said = capsys.readouterr().out
    assert "nothing to run: all 6 experiments are completed, and arguments, code, data and version are those" in said
    assert "N_opt = ..." in said and said.rstrip().endswith("report.html")
    others: list[dict[str, Any]] = [{"dataset": regression(1999)}, {"lr": 2e-2}, {"new": True}, {"until": "2@1e6"}]
    for other in others:
        with pytest.raises(AskedError):
            find_optimal(Mlp, **{**arguments, **other})
    key = sweep.plan.experiments[0].key
    with pytest.raises(ArgumentError, match=f"^find_optimal: from_checkpoint: {tmp_path} has no checkpoint {key}@7"):
        find_optimal(Mlp, **arguments, from_checkpoint=f"{key}@7")
    CheckpointStore(sweep.paths.checkpoints(key).directory, key=key).save({"step": 7}, 7)
    with pytest.raises(AskedError, match=f"{key}@7"):  # which `run` goes back to, as for the command line
        find_optimal(Mlp, **arguments, from_checkpoint=f"{key}@7")


@pytest.mark.usefixtures("no_figures")
def test_result(tmp_path: Path) -> None:
    spec = reference_spec()
    result = Result(make_sweep(tmp_path, spec, reference_parts(spec)))
    assert result.complete and repr(result) == f"Result({str(tmp_path)!r}, 21 of 21 experiments)"
    answer = result.predict(1.6e6)
    assert answer.params_interval is not None
    assert answer.params_interval.low < answer.params < answer.params_interval.high
    table = result.chinchilla_table()
    assert list(table["budget"]) == [1e5, 4e5, 1.6e6, 1.6e7, 1.6e8]
    assert table["extrapolation"].iloc[-1] == pytest.approx(100, rel=0.02)
    assert (table["params_low"] < table["params"]).all() and (table["params"] < table["params_high"]).all()
    assert list(result.chinchilla_table([1e6])["budget"]) == list(result.chinchilla_table(1e6)["budget"]) == [1e6]
    assert len(result.to_frame()) == 21
    result.plot(tmp_path / "v.png")
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")
    assert local_path(result.report()).read_text().startswith("<!doctype html>")
    assert any("3 budgets over a range of 16x" in w for w in result.warnings)
