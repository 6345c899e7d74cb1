"""A finished sweep is said from its files alone, and only as long as nothing of it has changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flops_fit_ray.console.status_text import finished_lines
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning.code_facts import CodeFacts
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.finished import finished_sweep, record_finished
from flops_fit_ray.sweep.recorded import Addition, Origin, record_origin
from tests.sweeps import make_sweep, reference_parts, reference_spec

CODE = CodeFacts(files={"a.py": "1"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    spec = reference_spec(fit={"draws": 200})
    sweep = make_sweep(tmp_path_factory.mktemp("whole") / "s", spec, reference_parts(spec))
    local_path(sweep.paths.report).touch()
    Ledger(sweep.paths).record_code(CODE)
    record_finished(sweep, CODE.digest, "N_opt = ...")
    return sweep


def finished(paths: SweepPaths, spec: SweepSpec, base: Path | None = None, code: CodeFacts = CODE) -> Any:
    return finished_sweep(paths, spec, base, lambda _, trained: trained == code)


def test_a_finished_sweep_is_known_by_its_spec(whole: Sweep) -> None:
    found = finished(whole.paths, whole.spec)
    assert found is not None and found.kept == ()
    assert found.sweep.results_sha256 == whole.results_sha256
    words = found.words
    assert (words.code, words.answer, words.has_problem) == (CODE.digest, "N_opt = ...", False)
    train = whole.spec.train.model_copy(update={"precision": "auto"})  # as measured for this directory
    assert finished(whole.paths, whole.spec.model_copy(update={"train": train})) is not None


def test_another_spec_or_other_code_is_not_finished(whole: Sweep) -> None:
    other = SweepSpec.model_validate({**whole.spec.model_dump(), "fit": {"draws": 300}})
    assert finished(whole.paths, other) is None
    assert finished(whole.paths, whole.spec, base=Path("/elsewhere")) is None
    assert finished(whole.paths, whole.spec, code=CodeFacts(files={"a.py": "2"})) is None


def test_a_finished_sweep_is_known_with_what_was_added(whole: Sweep, tmp_path: Path) -> None:
    copy = SweepPaths(Path(shutil.copytree(local_path(whole.paths.root), tmp_path / "copy")))
    added = whole.spec.budgets[-1]
    sizes = tuple(size for size in added.sizes or () if isinstance(size, int))
    first = whole.spec.model_copy(update={"budgets": whole.spec.budgets[:-1]})
    assert finished(copy, first) is None
    record_origin(copy, Origin(command="", added=(Addition(budgets=(added.flops,), sizes=sizes),)))
    found = finished(copy, first)
    assert found is not None and found.kept[0].startswith("kept: what `extend` added in")
    lines = finished_lines(found, "so it is", 1.0)
    assert lines[1] == "nothing to run: all 21 experiments are completed, and so it is" and "N_opt = ..." in lines[2]


def edit_words(paths: SweepPaths) -> None:
    path = local_path(paths.finished)
    path.write_text(path.read_text().replace("N_opt", "D_opt"))


def another_version(paths: SweepPaths) -> None:
    path = local_path(paths.finished)
    content = {name: value for name, value in json.loads(path.read_text()).items() if not name.startswith("sealed")}
    path.write_text(json.dumps({**content, "version": "0.0.1"}))


def forecast(paths: SweepPaths) -> None:
    local_path(paths.forecasts).mkdir()
    (local_path(paths.forecasts) / "20260101.json").write_text("{}")


WHAT_IS_LEFT: dict[str, Callable[[SweepPaths], None]] = {
    "a result": lambda paths: shutil.rmtree(local_path(paths.experiments / min(paths.begun_keys()))),
    "the report": lambda paths: local_path(paths.report).unlink(),
    "other words": edit_words,
    "another version": another_version,
    "a forecast to be scored": forecast,
    "no spec": lambda paths: local_path(paths.spec).unlink(),
    "no plan": lambda paths: local_path(paths.plan).unlink(),
}


@pytest.mark.parametrize("change", WHAT_IS_LEFT.values(), ids=WHAT_IS_LEFT)
def test_whatever_is_missing_is_for_a_run(whole: Sweep, tmp_path: Path, change: Callable[[SweepPaths], None]) -> None:
    copy = SweepPaths(Path(shutil.copytree(local_path(whole.paths.root), tmp_path / "copy")))
    assert finished(copy, whole.spec) is not None
    change(copy)
    assert finished(copy, whole.spec) is None
