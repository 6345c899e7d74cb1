"""More of a sweep, and when it is enough."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from flops_fit_ray.analysis import FitOptions, Place, Points, SweepFit, expected_factors, fit_minima
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.errors import SpecError
from flops_fit_ray.pipeline import RunRequest, run
from flops_fit_ray.planning import Experiment, Measurements
from flops_fit_ray.report import write_report
from flops_fit_ray.spec import SYNTHETIC_LOSS, Budget, SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.extend import Continued, continued, extend_spec
from flops_fit_ray.sweep.recorded import Addition, Origin, record_origin, record_spec, recorded_origin
from flops_fit_ray.sweep.stopping import factor_at
from tests.parts import spec_of
from tests.surfaces import HOFFMANN, optimum, sweep_on
from tests.worlds import DATA, SIZES, adaptive_spec, planner_of, size


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
                        methods={"valley": low.method}, default="valley", options=options, with_sure_rates=None),
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
    longer = continued(long, SweepPaths(tmp_path / "run"), said.append).spec
    assert longer == extend_spec(short, budgets=[4e5]) and longer.is_one_run and "is kept" in said[0]
    both = grow_sweep(tmp_path / "run", longer, user)
    before, after = both.results
    assert before == first.results[0] and after.parent == before.key
    assert after.tokens_executed is not None and after.tokens_executed < after.tokens_seen
    (alone,) = grow_sweep(tmp_path / "alone", long, user).results
    assert (after.loss, after.key, alone.parent) == (alone.loss, alone.key, None)
    assert "C = 4e5" in local_path(write_report(both)).read_text()

    auto = long.model_copy(update={"train": long.train.model_copy(update={"precision": "auto"})})
    kept = continued(auto, SweepPaths(tmp_path / "run"), said.append).spec  # as it was measured for this directory
    assert [b.flops for b in kept.budgets] == [1e5, 4e5] and kept.train.precision == "auto" and said.pop() == said[0]

    assert continued(short, SweepPaths(tmp_path / "run"), said.append).spec == short  # nothing shorter is recorded
    slower = long.model_copy(update={"train": long.train.model_copy(update={"lr": 0.01})})
    assert continued(slower, SweepPaths(tmp_path / "run"), said.append).spec == slower and len(said) == 1


LISTED = [{"flops": 1e5, "sizes": [4, 8, 16]}, {"flops": 2e5, "sizes": [4, 8, 16]}]


def directory_of(root: Path, spec: SweepSpec, *added: Addition) -> SweepPaths:
    """A directory whose sweep was begun with this spec, and extended."""
    paths = SweepPaths(root)
    wider = spec
    for one in added:
        wider = extend_spec(wider, budgets=one.budgets, sizes=one.sizes, seeds=one.seeds)
    record_spec(paths, wider)
    record_origin(paths, Origin(command="", added=added))
    return paths


def test_what_was_added_stays_in_its_directory(tmp_path: Path) -> None:
    """Budgets, sizes and seeds, of a spec that has grown meanwhile, too."""
    said: list[str] = []
    adaptive, listed = adaptive_spec(budgets=[1e17, 1e18]), spec_of(budgets=LISTED)
    more = Addition(budgets=(3e18, 1e19)), Addition(seeds=4, seeds_before=adaptive.grid.seeds)
    paths = directory_of(tmp_path / "adaptive", adaptive, *more)
    kept = continued(adaptive, paths, said.append)
    assert kept.added == more and [b.flops for b in kept.spec.budgets] == [1e17, 1e18, 3e18, 1e19]
    assert kept.spec.grid.seeds == 4
    assert said == [f"kept: what `extend` added in {paths.root}: C = 3e18, C = 1e19, seeds 4 (--new leaves it out)"]
    held = extend_spec(adaptive, budgets=[3e18, 1e19], seeds=4)  # as `extend` itself goes on, and a spec with all of it
    assert continued(held, paths, said.append) == Continued(spec=held, added=more) and len(said) == 1
    assert continued(held, paths, said.append, new=True) == Continued(spec=held, added=more) and len(said) == 1
    assert continued(adaptive, paths, said.append, new=True) == Continued(spec=adaptive)
    assert said.pop().startswith(f"left out (--new): what `extend` added in {paths.root}: C = 3e18, C = 1e19, seeds 4")
    five = extend_spec(adaptive, budgets=[1e19], seeds=5)
    kept = continued(five, paths, said.append)
    assert [b.flops for b in kept.spec.budgets] == [1e17, 1e18, 3e18, 1e19] and kept.spec.grid.seeds == 5
    assert ": C = 3e18 (" in said.pop()

    sized = Addition(sizes=(32,)), Addition(budgets=(4e5,), sizes=(8, 16, 64))
    paths = directory_of(tmp_path / "listed", listed, *sized)
    assert [b.sizes for b in continued(listed, paths, said.append).spec.budgets] == [
        [4, 8, 16, 32],
        [4, 8, 16, 32],
        [8, 16, 64],
    ]
    assert ": size 32, C = 4e5 (" in said.pop()
    other = spec_of(budgets=LISTED, model={"target": "tests.parts:Linear", "size_param": "width"})
    assert continued(other, paths, said.append) == Continued(spec=other)
    del said[:]
    fewer = adaptive_spec(budgets=[1e20, 1e21])  # whose smallest budget is above what was added
    assert continued(fewer, SweepPaths(tmp_path / "adaptive"), said.append) == Continued(spec=fewer)
    assert (
        said[0].startswith("what `extend` added in ")
        and "does not fit this spec, and is left out: --budget: C = 3e18" in said[0]
    )


@pytest.mark.usefixtures("no_figures")
def test_a_run_by_the_spec_keeps_what_extend_added(tmp_path: Path) -> None:
    """The directory remembers, until a run says --new."""
    spec = adaptive_spec(budgets=[1e17, 1e18], fit={"draws": 200}).model_copy(update={"loss": SYNTHETIC_LOSS})
    paths, out = SweepPaths(tmp_path), io.StringIO()
    request = RunRequest(
        spec=spec,
        source="sweep.yaml",
        root=tmp_path,
        measure=lambda wider, counting: Measurements(sizes=SIZES, data=DATA),
        load_user_parts=lambda prepared=None: pytest.fail("nothing is trained"),
        command="flops-fit-ray run sweep.yaml",
    )
    console = PlainConsole(out)
    run(request, console)
    added = (Addition(budgets=(1e19,)),)
    both = run(replace(request, spec=extend_spec(spec, budgets=[1e19]), added=added), console)
    assert len(both.spec.budgets) == 3 and "kept" not in out.getvalue()
    again = run(request, console)
    assert again.plan == both.plan and again.results == both.results
    assert out.getvalue().count(f"kept: what `extend` added in {tmp_path}: C = 1e19 (--new leaves it out)") == 1
    assert recorded_origin(paths) == Origin(command=request.command, frame=both.plan.constants, added=added)
    bare = run(replace(request, new=True), console)
    assert len(bare.spec.budgets) == 2 and "left out (--new): what `extend` added" in out.getvalue()
    assert recorded_origin(paths) == Origin(command=request.command, frame=both.plan.constants)
