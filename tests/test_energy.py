"""Energy of a training: counted by an observer, carried through checkpoints, unknown where a part of it is."""

from pathlib import Path

import pytest

from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.loop.save_policy import SavePolicy
from tests.parts import planned, spec_of, user_parts_of


class Counter(Observer):
    """GPUs that draw 7 J between two questions."""

    joules = -7.0

    def energy(self, workers: int) -> float | None:
        assert workers == 1
        self.joules += 7.0
        return self.joules


def train(observer: Observer, store: CheckpointStore | None = None) -> Outcome:
    spec = spec_of()
    user = user_parts_of(spec)
    plan = planned(spec, user)
    return train_experiment(
        plan.experiments[0],
        user,
        eval_samples=plan.measurements.data.eval_samples,
        observer=observer,
        policy=SavePolicy(store=store, checkpoint_steps=2),
    )


def test_energy_is_counted_from_the_first_step_to_the_last_evaluation() -> None:
    outcome = train(Counter())
    assert outcome.energy_joules == 7.0
    assert outcome.tokens_executed and outcome.tokens_per_joule == outcome.tokens_executed / 7.0


def test_energy_goes_through_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, key="k", keep=1)
    train(Counter(), store)
    state, _ = store.newest()
    assert state is not None and state["energy"] > 0
    counter = Counter()
    assert train(counter, store).energy_joules == state["energy"] + counter.joules


@pytest.mark.parametrize("observers", [(Observer, Observer), (Observer, Counter)], ids=["no counter", "not at first"])
def test_energy_is_unknown_where_a_part_of_it_is(observers: tuple[type[Observer], ...], tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, key="k", keep=1)
    for observer in observers:
        outcome = train(observer(), store)
    assert outcome.resumed_from and outcome.energy_joules is None and outcome.tokens_per_joule is None
