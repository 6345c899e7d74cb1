"""Trunk and branch: the bits of a run from scratch, the FLOPs of the formula, trunks kept as long as needed."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flops_fit_ray.engine._dispatch import Dispatcher
from flops_fit_ray.engine._live_plan import LivePlan
from flops_fit_ray.engine._trainable import trunk_store
from flops_fit_ray.engine.interrupt import StopRequest
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Experiment, Plan, Planner, make_plan, needed_trunks
from flops_fit_ray.planning._trunks import leaves_trunk, with_parent
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import BIGRAM, planned, spec_of, user_parts_of
from tests.streams import every_kind
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_checkpoint import KINDS, RECIPES, Dropping, Killed, Killer


def chain_of(data: Any, **train: Any) -> tuple[list[Experiment], UserParts, int]:
    """Three budgets of one size, each at the trunk of the one before; about 40, 80 and 160 steps."""
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "max_epochs": 20, "eval_every_tokens": 1000},
        loss="cross_entropy",
        budgets=[9e6, 1.8e7, 3.6e7],
        train={"batch_size": 8, "lr": 1e-2, "seed": 3, **train},
    )
    user = replace(user_parts_of(spec, model=Dropping, train=data), max_epochs=20)
    plan = planned(spec, user)
    chain = [e for e in plan.experiments if e.size == 8]
    assert [e.parent for e in chain] == [None, chain[0].key, chain[1].key]
    return chain, user, plan.measurements.data.eval_samples


def trunk_in(directory: Path, key: str) -> CheckpointStore:
    return CheckpointStore(directory / "trunks" / key, key=key, keep=1)


def run(
    e: Experiment, user: UserParts, eval_samples: int, directory: Path, observer: Any = None, **policy: Any
) -> Outcome:
    parent = None if e.parent is None else trunk_in(directory, e.parent)
    looked_after = SavePolicy(trunk=trunk_in(directory, e.key), parent=parent, eval_every_tokens=1000, **policy)
    return train_experiment(e, user, eval_samples=eval_samples, policy=looked_after, observer=observer)


def same(one: Outcome, other: Outcome) -> bool:
    return (one.loss, one.loss_stderr, one.train_loss, one.tokens_seen) == (
        other.loss,
        other.loss_stderr,
        other.train_loss,
        other.tokens_seen,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_has_the_bits_of_a_run_from_scratch(kind: str, tmp_path: Path) -> None:
    chain, user, eval_samples = chain_of(every_kind(tmp_path)[kind])
    for e in chain:
        branched = run(e, user, eval_samples, tmp_path)
        whole = train_experiment(
            e.from_scratch(), user, eval_samples=eval_samples, policy=SavePolicy(eval_every_tokens=1000)
        )
        assert same(branched, whole)
        assert branched.parent_step == e.start_step and whole.parent_step == 0
        per_step = e.tokens // e.steps
        assert branched.tokens_executed == per_step * (e.steps - e.start_step)
        assert whole.tokens_executed == whole.tokens_seen == branched.tokens_seen == e.tokens
        # The curve is whole, and its losses mean the same
        assert [p.step for p in branched.curve] == [p.step for p in whole.curve]
        losses = [[p.train_loss for p in o.curve if p.train_loss is not None] for o in (branched, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        assert branched.seconds_executed and branched.seconds_executed <= branched.seconds


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_branches(recipe: str, tmp_path: Path) -> None:
    chain, user, eval_samples = chain_of(every_kind(tmp_path)["tensors"], **RECIPES[recipe])
    branched = [run(e, user, eval_samples, tmp_path) for e in chain]
    whole = [train_experiment(e.from_scratch(), user, eval_samples=eval_samples) for e in chain]
    assert all(map(same, branched, whole))


def test_killed_after_branching_and_gone_on_with(tmp_path: Path) -> None:
    chain, user, eval_samples = chain_of(every_kind(tmp_path)["augmented"])
    outcomes = []
    for e in chain:
        store = CheckpointStore(tmp_path / e.key, key=e.key)
        with pytest.raises(Killed):
            run(e, user, eval_samples, tmp_path, Killer(13), store=store, checkpoint_steps=5)
        outcomes.append(run(e, user, eval_samples, tmp_path, store=store, checkpoint_steps=5))
    whole = [train_experiment(e.from_scratch(), user, eval_samples=eval_samples) for e in chain]
    assert all(map(same, outcomes, whole))
    assert all(e.start_step < (o.resumed_from or 0) for o, e in zip(outcomes, chain, strict=True))
    assert [o.tokens_executed for o in outcomes] == [e.tokens // e.steps * (e.steps - e.start_step) for e in chain]


@pytest.mark.parametrize("damage", ["missing", "no note", "one bit", "of another step"])
def test_without_its_trunk_an_experiment_begins_from_scratch_aloud(damage: str, tmp_path: Path) -> None:
    (first, second, _), user, eval_samples = chain_of(every_kind(tmp_path)["tensors"])
    run(first, user, eval_samples, tmp_path)
    trunk = tmp_path / "trunks" / first.key
    (state,) = trunk.glob("*.pt")
    if damage == "missing":
        shutil.rmtree(trunk)
    elif damage == "no note":
        state.with_suffix(".json").unlink()
    elif damage == "one bit":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    else:
        second = replace(second, start_step=second.start_step - 1)
    observer = Killer()
    outcome = run(second, user, eval_samples, tmp_path, observer)
    whole = train_experiment(second.from_scratch(), user, eval_samples=eval_samples)
    assert same(outcome, whole) and outcome.parent_step == 0 and outcome.tokens_executed == second.tokens
    assert any("training from scratch" in event and event.startswith("ALOUD") for event in observer.events)


def test_a_sweep_executes_the_flops_of_the_formula(tmp_path: Path) -> None:
    """Per size and chain (1 - f)·D_max + f·sum D_k tokens, counted in the worker, within 0.1 %."""
    spec = reference_spec(3)
    budgets = [b.model_copy(update={"sizes": [48, 68, 96]}) for b in spec.budgets]
    train = spec.train.model_copy(update={"batch_size": 1})
    spec = spec.model_copy(update={"budgets": budgets, "train": train})
    sweep = make_sweep(tmp_path, spec, reference_parts(spec))
    for size in {e.size for e in sweep.plan.experiments}:
        chain = [e for e in sweep.plan.experiments if e.size == size]
        executed = sum(r.tokens_executed or 0 for r in sweep.results if r.size == size)
        f, tokens = spec.train.decay_fraction, [e.tokens for e in chain]
        assert executed == pytest.approx((1 - f) * max(tokens) + f * sum(tokens), rel=1e-3)
    assert sweep.flops_spent == pytest.approx(sweep.plan.flops, rel=1e-12)
    assert sweep.flops_spent < 0.87 * sum(r.flops for r in sweep.results)
    chained = [r for r in sweep.results if r.parent is not None]
    assert len(chained) == 6 and all(r.parent_step > 0 for r in chained)
    # A fit knows what shares a trunk
    assert sweep.points.num_runs == len({e.size for e in sweep.plan.experiments})


def test_trunks_live_as_long_as_they_are_needed(tmp_path: Path) -> None:
    spec = reference_spec(3)
    user = reference_parts(spec)
    sweep = make_sweep(tmp_path, spec, user)
    paths = SweepPaths(tmp_path)
    keys = [e.key for e in sweep.plan.experiments]
    longest = {e.key for e in sweep.plan.experiments if not any(o.parent == e.key for o in sweep.plan.experiments)}
    assert needed_trunks(sweep.plan.experiments, set(keys)) == longest
    assert needed_trunks(sweep.plan.experiments, ()) == {e.parent for e in sweep.plan.experiments} - {None}
    assert paths.trunk_keys() == set(keys)
    result = Ledger(paths).paths.result(keys[-1])
    aside = result.rename(tmp_path / "aside.json")
    told: list[Plan] = []
    live = LivePlan(Planner(spec, measure_sizes(spec, user)), Ledger(paths), told.append)
    aside.rename(result)
    Dispatcher(live, Slots(resources={"cpu": 1}, count=1), StopRequest()).look()
    assert live.done() and paths.trunk_keys() == longest


def test_only_runs_of_one_recipe_share_a_trunk() -> None:
    spec = spec_of(budgets=[1e5, 2.8e5])
    plan = planned(spec, user_parts_of(spec))
    small, large = plan.experiments[0], plan.experiments[3].from_scratch()
    assert with_parent(large, [small]).parent == small.key
    for change in ({"lr": 0.5}, {"seed": 1}, {"warmup_steps": 7}):
        other = replace(small, recipe=replace(small.recipe, **change))
        assert with_parent(large, [other]).parent is None
    assert with_parent(large, [replace(small, size=99)]).parent is None
    for schedule in ("cosine", "linear", "constant"):
        whole = spec_of(budgets=[1e5, 2.8e5], train={"batch_size": 8, "lr": 1e-2, "schedule": schedule})
        assert all(e.parent is None and not leaves_trunk(e) for e in planned(whole, user_parts_of(whole)).experiments)
    off = spec_of(budgets=[1e5, 2.8e5], grid={"trunk": False})
    assert all(e.parent is None for e in planned(off, user_parts_of(off)).experiments)


def test_keys_know_nothing_of_trunks() -> None:
    on, off = (
        make_plan(spec, measure_sizes(spec, user_parts_of(spec)))
        for spec in (spec_of(budgets=[1e5, 2.8e5]), spec_of(budgets=[1e5, 2.8e5], grid={"trunk": False}))
    )
    assert [e.key for e in on.experiments] == [e.key for e in off.experiments]


def test_where_trunks_lie(tmp_path: Path) -> None:
    store = trunk_store(SweepPaths(tmp_path), "abc")
    assert store.steps() == [] and SweepPaths(tmp_path).trunk_keys() == set()


def test_rates_that_follow_from_d_are_said_to_cost_the_trunks() -> None:
    spec = spec_of(budgets=[2e5, 2.8e5])
    by_size, by_tokens, by_step = (
        planned(spec, replace(user_parts_of(spec), lr=rule))
        for rule in (
            lambda params, size: 1e-2 / params**0.5,
            lambda params, size, tokens: 10 / tokens,
            lambda params, size, tokens: 1e-2,
        )
    )
    assert any(e.parent for e in by_size.experiments) and by_size.notes == ()
    assert not any(e.parent for e in by_tokens.experiments)
    first = [e.recipe.lr for e in by_tokens.experiments if e.size == by_tokens.experiments[0].size]
    (note,) = by_tokens.notes
    assert note.startswith(f"train.lr depends on D: size 4 has rates from {first[1]:.3g} to {first[0]:.3g}, so that ")
    assert note in str(by_tokens)
    assert any(e.parent for e in by_step.experiments) and by_step.notes == ()  # it takes D, and does not follow it
