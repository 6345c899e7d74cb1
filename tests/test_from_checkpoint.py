"""Going back to a checkpoint that was named: to the bits of a run without a break, and nothing is deleted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flops_fit_ray.engine._trainable import TrialContext, run_experiment, trunk_store
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import Experiment, Plan
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, local_path
from flops_fit_ray.sweep.from_checkpoint import CheckpointName, go_back, named_checkpoint
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import BIGRAM, planned, spec_of, text, user_parts_of
from tests.records import FAILURE
from tests.test_checkpoint import Dropping, Killed, Killer


@pytest.fixture(scope="module")
def parts() -> tuple[SweepSpec, UserParts, Plan]:
    """A run of some 40 steps, and one of 80 that begins at its trunk."""
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "max_epochs": 20},
        loss="cross_entropy",
        budgets=[9e6, 1.8e7],
        train={"batch_size": 8, "lr": 1e-2, "seed": 3},
        checkpoint={"steps": 5, "keep": 3},
    )
    user = replace(user_parts_of(spec, model=Dropping, train=text()), max_epochs=20)
    return spec, user, planned(spec, user)


def chain_of(parts: tuple[SweepSpec, UserParts, Plan]) -> list[Experiment]:
    return [e for e in parts[2].experiments if e.size == 8]


def finish(root: StoragePath, parts: tuple[SweepSpec, UserParts, Plan], e: Experiment) -> ExperimentResult:
    """Train as a trial does, from whatever lies in the directory."""
    spec, user, plan = parts
    slots = Slots(resources={"cpu": 1}, count=1)
    context = TrialContext(root=root, load_user_parts=lambda: user, spec=spec,
                           eval_samples=plan.measurements.data.eval_samples, slots=slots)  # fmt: skip
    assert run_experiment(context, Ledger(SweepPaths(root)), lambda: user, e) == "completed"
    result = Ledger(SweepPaths(root)).result(e.key)
    assert result is not None
    return result


def interrupt(root: StoragePath, parts: tuple[SweepSpec, UserParts, Plan], e: Experiment, at: int) -> None:
    """Train until batch `at` is asked for, with a checkpoint every 5 steps."""
    paths = SweepPaths(root)
    store = CheckpointStore(paths.checkpoints(e.key).directory, key=e.key, keep=3)
    policy = SavePolicy(store=store, checkpoint_steps=5, trunk=trunk_store(paths, e.key),
                        parent=None if e.parent is None else trunk_store(paths, e.parent))  # fmt: skip
    with pytest.raises(Killed):
        train_experiment(e, parts[1], eval_samples=parts[2].measurements.data.eval_samples, policy=policy,
                         observer=Killer(at))  # fmt: skip


def curve_of(root: StoragePath, key: str) -> list[tuple[object, ...]]:
    return [(row["step"], row["train_loss"], row["lr"]) for row in Ledger(SweepPaths(root)).curve_rows(key)]


def test_an_experiment_goes_on_from_any_of_its_checkpoints(
    parts: tuple[SweepSpec, UserParts, Plan], tmp_path: Path
) -> None:
    """Back, further back to its trunk, and forth again: each time to the bits of a run without a break."""
    plan, (short, _) = parts[2], chain_of(parts)
    whole = finish(tmp_path / "whole", parts, short)
    ledger, paths = Ledger(SweepPaths(tmp_path / "run")), SweepPaths(tmp_path / "run")
    interrupt(paths.root, parts, short, at=39)
    assert short.steps > 39 > short.trunk_step > 30 and short.trunk_step % 5
    own = paths.checkpoints(short.key)
    written = {path.name: path.read_bytes() for path in own.directory.iterdir()}
    ledger.record_failure(replace(FAILURE, key=short.key, status="diverged"))
    said: list[str] = []

    go_back(ledger, plan, named_checkpoint(paths.root, f"{short.key}@30"), said.append)
    assert said.pop() == (
        f"{short.key} (C 9e6, size 8) goes on from its checkpoint at step 30 of {short.steps}; newer checkpoints "
        f"(35) are kept in {paths.root}/experiments/{short.key}/set-aside/1"
    )
    assert own.finished() == [25, 30] and ledger.failure(short.key) is None

    go_back(ledger, plan, named_checkpoint(paths.root, f"{short.key}-t{short.trunk_step}"), said.append)  # an id
    assert own.finished() == [25, 30, short.trunk_step] and "kept" not in said.pop()
    go_back(ledger, plan, CheckpointName(short.key, 25), said.append)
    go_back(ledger, plan, CheckpointName(short.key, 35), said.append)  # which was set aside
    assert own.finished() == [25, 35] and "step 35 of" in said.pop()
    go_back(ledger, plan, CheckpointName(short.key, 25), said.append)
    kept = {path.name: path.read_bytes() for place in paths.set_aside(short.key) for path in place.directory.iterdir()}
    assert kept.items() >= {name: content for name, content in written.items() if int(name[:10]) > 25}.items()

    again = finish(paths.root, parts, short)
    assert again.resumed_from == 25 and curve_of(paths.root, short.key) == curve_of(tmp_path / "whole", short.key)
    assert (again.loss, again.loss_stderr, again.train_loss) == (whole.loss, whole.loss_stderr, whole.train_loss)
    assert len(paths.set_aside(short.key)) == 3  # what was kept outlives the experiment


def test_a_longer_run_begins_again_at_the_trunk_of_a_completed_one(
    parts: tuple[SweepSpec, UserParts, Plan], tmp_path: Path
) -> None:
    plan, (short, long) = parts[2], chain_of(parts)
    paths, ledger = SweepPaths(tmp_path), Ledger(SweepPaths(tmp_path))
    before = finish(tmp_path, parts, short)
    interrupt(tmp_path, parts, long, at=20)
    trunk = f"{short.key}@{short.trunk_step}"
    assert long.start_step == short.trunk_step and paths.checkpoints(long.key).finished()
    said: list[str] = []
    go_back(ledger, plan, named_checkpoint(tmp_path, trunk), said.append)
    (line,) = said
    assert line.startswith(f"{long.key} (C 1.8e7, size 8) begins at {trunk}, the trunk of {short.key}")
    assert paths.checkpoints(long.key).started() == [] and len(paths.set_aside(long.key)) == 1
    after = finish(tmp_path, parts, long)
    assert (after.resumed_from, after.parent, after.parent_step) == (None, short.key, short.trunk_step)
    alone = finish(tmp_path / "alone", parts, long.from_scratch())
    assert after.loss == alone.loss and ledger.result(short.key) == before

    with pytest.raises(SpecError, match="is completed, and its result stays; no open experiment begins at its trunk"):
        go_back(ledger, plan, named_checkpoint(tmp_path, trunk), said.append)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{key}@11", "no checkpoint {key}@11; there are {key}@5, {key}@10, {other}@5"),
        ("{key}-c11", "no checkpoint {key}@11; there are {key}@5"),
        ("aaaaaaaaaaaaaaaa@5", "no checkpoint aaaaaaaaaaaaaaaa@5; there are "),
        ("{key}-w", "final weights are no checkpoint: give KEY@STEP"),
        ("{key}", "is no checkpoint; give KEY@STEP"),
        ("{key}@", "is no checkpoint; give KEY@STEP"),
        ("{key}@-5", "is no checkpoint; give KEY@STEP"),
        ("../{key}@5", "is no checkpoint; give KEY@STEP"),
        ("{key}@10", "{key}@10 is damaged (its sha256 differs); there are {key}@5, {other}@5"),
        ("{other}@5", "this plan has no experiment {other}"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    name: str, words: str, parts: tuple[SweepSpec, UserParts, Plan], tmp_path: Path
) -> None:
    plan, ledger = parts[2], Ledger(SweepPaths(tmp_path))
    key, other = plan.experiments[0].key, "bbbbbbbbbbbbbbbb"
    for owner, step in ((key, 5), (key, 10), (other, 5)):
        CheckpointStore(ledger.paths.checkpoints(owner).directory, key=owner).save({"step": step}, step)
    local_path(ledger.paths.checkpoints(key).state(10)).write_bytes(b"torn")
    names = {"key": key, "other": other}
    with pytest.raises(SpecError) as refused:
        go_back(ledger, plan, named_checkpoint(tmp_path, name.format(**names)), print)
    assert words.format(**names) in str(refused.value) and len(refused.value.faults) == 1
    assert ledger.paths.checkpoints(key).finished() == [5, 10] and refused.value.exit_code == 2


def test_a_directory_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no checkpoint aaaaaaaaaaaaaaaa@5; it has no other"):
        named_checkpoint(tmp_path / "none", "aaaaaaaaaaaaaaaa@5")
