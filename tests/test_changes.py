"""F20: what has changed since the last run is shown; what is completed is not trained again in another way unasked."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import TensorDataset

from flops_fit_ray.console.status_text import status_text
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.pipeline import grown_plan
from flops_fit_ray.planning import Average, LossFacts, Planner
from flops_fit_ray.planning.code_facts import CodeFacts
from flops_fit_ray.spec import SweepSpec, make_spec
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.changes import Changes, changes_since, recorded_in
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.recorded import recorded_constants
from flops_fit_ray.sweep.validity import validity_card
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import Mlp, regression, spec_of, user_parts_of
from tests.sweeps import adaptive_reference_spec, grow_sweep, make_sweep, reference_parts


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Four of six experiments are done."""
    spec = spec_of()
    return make_sweep(tmp_path_factory.mktemp("half"), spec, user_parts_of(spec), only=4)


def compared(sweep: Sweep, spec: SweepSpec, user: UserParts) -> Changes:
    planner = Planner(spec, measure_sizes(spec, user), recorded_constants(sweep.paths))
    return changes_since(recorded_in(sweep.paths), spec, grown_plan(planner, Ledger(sweep.paths)))


def changed(sweep: Sweep, user: UserParts | None = None, **changes: Any) -> Changes:
    content = sweep.spec.model_dump(mode="json")
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = content
        for name in parents:
            here = here[name]
        here[last] = value
    spec = make_spec(content, "test")
    return compared(sweep, spec, user or user_parts_of(spec))


def test_nothing_has_changed(half: Sweep) -> None:
    assert changed(half) == Changes(lines=(), changed=0, dropped=0)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"budgets": [1e5, 2e5, 2.8e5]}, ["budgets: also C = 280000"]),
        ({"model__sizes": [4, 6, 8, 16]}, ["model.sizes: [4, 8, 16] -> [4, 6, 8, 16]"]),
        ({"fit__draws": 400, "max_retries": 0}, ["max_retries: 3 -> 0", "fit.draws: 200 -> 400"]),
        ({"checkpoint__steps": 7}, ["checkpoint.steps: null -> 7"]),
    ],
)
def test_additions_and_what_changes_no_result_are_fine(half: Sweep, changes: Any, lines: list[str]) -> None:
    assert changed(half, **changes) == Changes(lines=tuple(lines), changed=0, dropped=0)


def test_sizes_of_a_budget_are_compared_whatever_they_are(half: Sweep) -> None:
    own = [{"flops": 1e5, "sizes": [{"width": 5}, {"width": 9}, {"width": 17}]}, {"flops": 2e5, "sizes": [4, 8, 32]}]
    assert changed(half, budgets=own).lines == (
        "budgets: sizes of C = 100000: None -> [{'width': 5}, {'width': 9}, {'width': 17}]",
        "budgets: sizes of C = 200000: None -> [4, 8, 32]",
    )


def test_another_definition_of_n_is_refused_though_nothing_would_be_trained_again(half: Sweep) -> None:
    class Declaring(Mlp):
        def num_params(self) -> int:
            return sum(p.numel() for p in self.parameters()) - 1

    found = changed(half, user_parts_of(half.spec, model=Declaring))
    assert (found.changed, found.redefined) == (0, 4)
    assert "N of 4 completed experiments is counted in another way now: model, size 4: N 41 -> 40" in str(
        found.refusal("test")
    )


def test_what_is_left_out_is_counted(half: Sweep) -> None:
    found = changed(half, budgets=[1e5, 2.8e5])
    assert found.lines == ("budgets: without C = 200000", "budgets: also C = 280000")
    assert (found.changed, found.dropped) == (0, 1)
    assert changed(half, model__sizes=[4, 8, 32]).dropped == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train__lr": 0.02}, "train.lr: 0.01 -> 0.02"),
        ({"train__batch_size": 4}, "train.batch_size: 8 -> 4"),
        ({"train__seed": 1}, "train.seed: 0 -> 1"),
        ({"data__eval_fraction": 0.1}, "data.eval_fraction: 0.05 -> 0.1"),
        ({"model__kwargs": {"dropout": 0.0}}, "model.kwargs.dropout: (not set) -> 0.0"),
        ({"model__target": "tests.parts:Other"}, 'model.target: "tests.parts:Mlp" -> "tests.parts:Other"'),
    ],
)
def test_a_changed_recipe_is_refused(half: Sweep, changes: Any, line: str) -> None:
    user = user_parts_of(half.spec) if "model__target" in changes else None
    found = changed(half, user, **changes)
    assert line in found.lines and found.changed == 4
    refusal = str(found.refusal("runs/x"))
    assert refusal.startswith("runs/x: 4 completed experiments of this directory would be trained again in another way")
    assert line in refusal and "--new" in refusal and "--output" in refusal


class Wider(Mlp):
    """The code behind the same name, edited."""

    def __init__(self, width: int, inputs: int = 8, dropout: float = 0.1) -> None:
        super().__init__(2 * width, inputs, dropout)


def _shifted() -> TensorDataset:
    x, y = regression().tensors
    return TensorDataset(x + 1.0, y)


@pytest.mark.parametrize(
    ("user", "line"),
    [
        (lambda spec: user_parts_of(spec, train=_shifted()), "data.train: its samples are not those of before"),
        (lambda spec: user_parts_of(spec, model=Wider), "model, size 4: N 41 -> 81, FLOPs per token"),
    ],
)
def test_the_same_spec_with_other_parts_is_refused(
    half: Sweep, user: Callable[[SweepSpec], UserParts], line: str
) -> None:
    found = compared(half, half.spec, user(half.spec))
    assert any(said.startswith(line) for said in found.lines) and found.changed == 4


def test_adaptive_sweeps_are_compared_as_their_results_decide_them(tmp_path: Path) -> None:
    spec = adaptive_reference_spec(seeds=0, sizes=4, first_sizes=4)
    sweep = grow_sweep(tmp_path, spec, reference_parts(spec))
    done = len(sweep.results)
    assert compared(sweep, spec, reference_parts(spec)) == Changes(lines=(), changed=0, dropped=0)
    wider = replace_budgets(spec, 3.2e6)
    assert compared(sweep, wider, reference_parts(wider)).changed == 0
    other = spec.model_copy(update={"train": spec.train.model_copy(update={"lr": 0.02})})
    assert compared(sweep, other, reference_parts(other)).changed == done


def test_edited_code_is_said_and_its_results_are_kept_and_named(half: Sweep, tmp_path: Path) -> None:
    shutil.copytree(local_path(half.paths.root), tmp_path, dirs_exist_ok=True)
    ledger = Ledger(SweepPaths(tmp_path))
    first, second = (
        CodeFacts(files={"parts.py": "1", "data.py": "1"}),
        CodeFacts(files={"parts.py": "2", "data.py": "1"}),
    )
    results = open_sweep(tmp_path).results
    assert len(results) == 4 and open_sweep(tmp_path).mixed_code is None  # as earlier versions left it
    planner = Planner(half.spec, measure_sizes(half.spec, user_parts_of(half.spec)), half.plan.constants)
    plan = grown_plan(planner, ledger)
    assert changes_since(recorded_in(ledger.paths), half.spec, plan, second).lines == ()
    for result, code in zip(results, (first, first, first, second), strict=True):
        ledger.record_code(code)
        write_json(
            ledger.paths.result(result.key), {"schema_version": 1, **asdict(result), "code": code.digest}, sealed=True
        )
    found = changes_since(recorded_in(ledger.paths), half.spec, plan, second)
    said = (
        "code: parts.py was edited; results of 3 completed experiments of before stay, and open ones go on from "
        "their checkpoints"
    )
    assert found == Changes(lines=(said,), changed=0, dropped=0)
    sweep = open_sweep(tmp_path)
    warning = (
        "3 of 4 results were trained by other code than the newest one (parts.py was edited): a law of both holds only "
        "if the change does not touch the loss; another --output trains all of them by one code"
    )
    assert sweep.mixed_code == warning and f"{warning} [mixed_code]" in sweep.warnings
    assert f"warning: {warning} [mixed_code]\n" in status_text(sweep) + "\n"
    assert validity_card(sweep.fit, sweep)[-1].words.endswith(warning)


def replace_budgets(spec: SweepSpec, more: float) -> SweepSpec:
    return make_spec({**spec.model_dump(mode="json"), "budgets": [*(b.flops for b in spec.budgets), more]}, "test")


def test_a_plan_that_cannot_be_read_is_no_licence_to_train_again(half: Sweep, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(local_path(half.paths.root), root)
    sweep = replace(half, paths=replace(half.paths, root=root))
    local_path(sweep.paths.plan).write_bytes(sweep.paths.plan.read_bytes()[:-100])
    assert changed(sweep).changed == 0  # the same spec makes the same plan again
    assert changed(sweep, train__lr=0.02).changed == 4
    local_path(sweep.paths.spec).write_text("{torn")
    assert changed(sweep).changed == 0
    assert changed(sweep, train__lr=0.02).changed == 4


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (
            LossFacts(average=Average(over="sum")),
            "loss: was taken as a mean over integer targets that are not -100, else over samples; tried, it is a sum "
            "over samples; held-out losses are sums over train.batch_size samples",
        ),
        (
            LossFacts(classes_second=True),
            "loss: logits were taken as (..., classes); tried, they are (samples, classes, positions)",
        ),
    ],
)
def test_a_directory_whose_losses_were_weighed_in_another_way_is_refused(
    half: Sweep, facts: LossFacts, line: str, tmp_path: Path
) -> None:
    shutil.copytree(local_path(half.paths.root), tmp_path, dirs_exist_ok=True)
    old = open_sweep(tmp_path)
    plan = read_json(old.paths.plan)
    assert plan is not None
    del plan["loss"]  # as versions wrote it that did not try the loss
    write_json(old.paths.plan, plan)
    measured = replace(measure_sizes(old.spec, user_parts_of(old.spec)), loss=facts)
    planner = Planner(old.spec, measured, recorded_constants(old.paths))
    found = changes_since(recorded_in(old.paths), old.spec, grown_plan(planner, Ledger(old.paths)))
    assert (found.lines, found.changed) == ((line,), 4)
    (refusal,) = found.refusal("run").faults
    assert refusal.startswith(
        f"4 completed experiments of this directory would be trained again in another way: {line}"
    )
    assert "another --output, or say --new" in refusal
    assert changed(old) == Changes(lines=(), changed=0, dropped=0)  # the rule of before goes on
