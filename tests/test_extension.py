"""More of a sweep, and when it is enough."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from flops_fit_ray.analysis import FitOptions, Place, Points, SweepFit, expected_factors, fit_minima
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Experiment
from flops_fit_ray.report import write_report
from flops_fit_ray.spec import Budget
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.extend import extend_spec, longer_run
from flops_fit_ray.sweep.stopping import factor_at
from tests.parts import spec_of
from tests.surfaces import HOFFMANN, optimum, sweep_on
from tests.worlds import adaptive_spec, planner_of, size


def test_budgets_sizes_and_seeds_are_added() -> None:
    spec = adaptive_spec(budgets=[1e17, 1e18])
    assert [b.flops for b in extend_spec(spec, budgets=[1e19, 3e18]).budgets] == [1e17, 1e18, 3e18, 1e19]
    assert extend_spec(spec, seeds=4).grid.seeds == 4
    assert extend_spec(spec) == spec
    assert extend_spec(spec, device="cpu").device == "cpu"
    listed = spec_of()
    assert extend_spec(listed, sizes=[32, 8]).model.sizes == [4, 8, 16, 32]
    own = spec_of(budgets=[{"flops": 1e5, "sizes": [4, 8, 16]}, {"flops": 2e5, "sizes": [8, 16, 32]}])
    assert [b.sizes for b in extend_spec(own, sizes=[64]).budgets] == [[4, 8, 16, 64], [8, 16, 32, 64]]
    assert extend_spec(own, budgets=[4e5], sizes=[16, 32, 64]).budgets[2].sizes == [16, 32, 64]


@pytest.mark.parametrize(
    ("spec", "more", "message"),
    [
        (adaptive_spec(budgets=[1e17, 1e18]), {"budgets": [1e18]}, "is in this sweep already"),
        (adaptive_spec(budgets=[1e17, 1e18]), {"budgets": [1e16]}, "below the smallest"),
        (adaptive_spec(budgets=[1e17, 1e18]), {"budgets": [-1.0]}, "must be a positive"),
        (adaptive_spec(budgets=[1e17, 1e18]), {"sizes": [8]}, "chooses its sizes itself"),
        (
            spec_of(
                model={"target": "tests.parts:Mlp", "size_param": "width"},
                budgets=[{"flops": 1e5, "sizes": [4, 8, 16]}, {"flops": 2e5, "sizes": [8, 16, 32]}],
            ),
            {"budgets": [4e5]},
            "give those of the new budget with --size",
        ),
    ],
)
def test_what_cannot_be_added(spec: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        extend_spec(spec, **more)


def valleys_alone(points: Points, options: FitOptions) -> SweepFit:
    """As much of a fit as factors look at."""
    low = fit_minima(points, options)
    return cast(
        SweepFit,
        SimpleNamespace(params_opt=low.method.params_opt, valleys=low.valleys, noise=low.noise, points=points,
                        optima=[(v, None) for v in low.valleys if v.status == "interior"], lack_of_fit=(),
                        methods={"valley": low.method}, default="valley", options=options),
    )  # fmt: skip


def following(budget: float) -> list[Experiment]:
    """The experiments of one more budget: five sizes about its optimum, in steps of 2."""
    n = optimum(HOFFMANN, budget)[0]
    spec = adaptive_spec(budgets=[budget, 2 * budget])
    cells = planner_of(spec).cells
    return [cells.make(budget, size(round(n * factor)), 1e-3) for factor in (0.25, 0.5, 1, 2, 4)]


def test_a_larger_budget_narrows_about_as_much_as_was_promised() -> None:
    budgets = [1e18, 3e18, 1e19, 3e19]
    places = [Place(budget=e.budget, params=float(e.params), tokens=float(e.tokens)) for e in following(1e20)]
    before, promised, kept = [], [], []
    for seed in range(40):
        options = FitOptions(draws=300)
        now = valleys_alone(sweep_on(HOFFMANN, budgets, sizes=5, noise=0.01, seed=seed), options)
        later = valleys_alone(sweep_on(HOFFMANN, [*budgets, 1e20], sizes=5, noise=0.01, seed=seed), options)
        promise, truth = expected_factors(now, 1e21, places)["valley"], factor_at(later, 1e21)
        assert truth is not None
        before.append(np.log(factor_at(now, 1e21) or np.nan))
        promised.append(np.log(promise))
        kept.append(np.log(truth))
    assert np.median(promised) < 0.85 * np.median(before)
    assert np.median(promised) == pytest.approx(np.median(kept), rel=0.25)


def test_a_sweep_knows_its_base(tmp_path: Path) -> None:
    from tests.sweeps import make_sweep, reference_parts, reference_spec

    assert make_sweep(tmp_path, reference_spec(), reference_parts(reference_spec()), only=0).base is None


def test_a_finished_run_is_trained_for_longer(tmp_path: Path) -> None:
    """From its trunk: to the bits of a run that was as long from the start, and at the price of what is new."""
    from tests.sweeps import grow_sweep, reference_parts, reference_spec

    whole = reference_spec()
    user = reference_parts(whole)
    short, long = (whole.model_copy(update={"budgets": [Budget(flops=flops, sizes=[48])]}) for flops in (1e5, 4e5))
    first = grow_sweep(tmp_path / "run", short, user)
    said: list[str] = []
    longer = longer_run(long, SweepPaths(tmp_path / "run"), said.append)
    assert longer == extend_spec(short, budgets=[4e5]) and longer.is_one_run and "is kept" in said[0]
    both = grow_sweep(tmp_path / "run", longer, user)
    before, after = both.results
    assert before == first.results[0] and after.parent == before.key
    assert after.tokens_executed is not None and after.tokens_executed < after.tokens_seen
    (alone,) = grow_sweep(tmp_path / "alone", long, user).results
    assert (after.loss, after.key, alone.parent) == (alone.loss, alone.key, None)
    assert "C = 4e5" in local_path(write_report(both)).read_text()

    auto = long.model_copy(update={"train": long.train.model_copy(update={"precision": "auto"})})
    kept = longer_run(auto, SweepPaths(tmp_path / "run"), said.append)  # as it was measured for this directory
    assert [b.flops for b in kept.budgets] == [1e5, 4e5] and kept.train.precision == "auto" and said.pop() == said[0]

    assert longer_run(short, SweepPaths(tmp_path / "run"), said.append) == short  # nothing shorter is recorded
    slower = long.model_copy(update={"train": long.train.model_copy(update={"lr": 0.01})})
    assert longer_run(slower, SweepPaths(tmp_path / "run"), said.append) == slower and len(said) == 1
