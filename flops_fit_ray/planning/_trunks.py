"""Trunk and branch: budgets of one size share the part at constant learning rate (Hägele et al. 2024, section 3).

The trunk of an experiment ends where its decay begins. A larger budget of the same size continues from there. With
decay fraction f a size costs (1 - f)·D_max + f·sum D_k tokens (one trunk, and a decay for each budget) instead of
sum D_k, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from flops_fit_ray.planning.experiment import Experiment

LATEST_START = 0.9  # share of an experiment's steps: its last 5 % may be averaged, and must be its own
SHARING_ROLES = {"grid", "seed", "axis"}  # others have a learning rate of their own


def leaves_trunk(experiment: Experiment) -> bool:
    """Return True if other experiments can start at the end of this one's trunk."""
    return (
        experiment.recipe.schedule == "wsd"
        and experiment.role in SHARING_ROLES
        and experiment.trunk_step > max(experiment.recipe.warmup_steps, experiment.start_step)
    )


def with_parent(experiment: Experiment, others: Iterable[Experiment]) -> Experiment:
    """Return the experiment, started at the longest trunk among `others` that is a part of its own."""
    if experiment.recipe.schedule != "wsd" or experiment.role not in SHARING_ROLES:
        return experiment
    latest = min(experiment.trunk_step, int(LATEST_START * experiment.steps))
    fitting = [o for o in others if leaves_trunk(o) and o.trunk_step <= latest and _same(o, experiment)]
    if not fitting:
        return experiment
    best = max(fitting, key=lambda o: o.trunk_step)
    return replace(experiment, parent=best.key, start_step=best.trunk_step)


def unshared_note(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Yield a note where budgets of one size could share a trunk if their learning rates did not follow D.

    Args:
        experiments: of the sizes whose rates may differ between budgets.
    """
    rates: dict[tuple[object, ...], set[float]] = {}
    for e in experiments:
        if leaves_trunk(e):
            rates.setdefault((e.size, replace(e.recipe, lr=0.0)), set()).add(e.recipe.lr)
    size, found = next(((key[0], found) for key, found in rates.items() if len(found) > 1), (None, None))
    if found:
        yield (
            f"train.lr depends on D: size {size} has rates from {min(found):.3g} to {max(found):.3g}, so that its "
            "budgets share no trunk, and each trains from scratch; a rate of N alone would share them"
        )


def _same(one: Experiment, other: Experiment) -> bool:
    return one.key != other.key and one.size == other.size and one.recipe == other.recipe


def trunk_of(experiment: Experiment) -> tuple[object, ...]:
    """Identity of a trunk: equal for experiments that share it."""
    return experiment.size, experiment.recipe


def trunk_numbers(experiments: Iterable[Experiment]) -> list[int]:
    """Number the trunks from 0 in order of appearance; one number per experiment."""
    numbers: dict[tuple[object, ...], int] = {}
    return [numbers.setdefault(trunk_of(e), len(numbers)) for e in experiments]


def needed_trunks(experiments: Sequence[Experiment], finished: Collection[str]) -> set[str]:
    """Keys of experiments whose trunk checkpoint is kept: an open one starts there, or it is the longest of its trunk.

    A budget added later starts at the longest.
    """
    needed = {e.parent for e in experiments if e.parent is not None and e.key not in finished}
    longest: dict[tuple[object, ...], Experiment] = {}
    for e in experiments:
        if leaves_trunk(e) and (e.key in finished or e.key in needed):
            known = longest.get(trunk_of(e))
            if known is None or known.trunk_step < e.trunk_step:
                longest[trunk_of(e)] = e
    return needed | {e.key for e in longest.values()}
