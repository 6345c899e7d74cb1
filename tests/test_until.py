"""`--until`: once the grid is done, single runs that tell most for their FLOPs, recorded and replayed."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from flops_fit_ray import Result, find_optimal
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Measurements, Planner, is_single_run
from flops_fit_ray.planning.lr_probes import lr_law
from flops_fit_ray.spec import SingleRun, SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.sweep.extend import continued
from flops_fit_ray.sweep.next_places import SweepSpace
from flops_fit_ray.sweep.recorded import record_spec
from flops_fit_ray.sweep.stopping import (
    StoppingRule,
    decide_next,
    factor_at,
    stopping_rule_for,
    with_budgets,
    with_runs,
)
from flops_fit_ray.sweep.validity import validity_card
from tests.parts import Mlp
from tests.test_from_flops_fit import SAMPLES
from tests.worlds import DATA, SIZES, adaptive_spec, loss_in, planner_of, run_through, world

RUNS = [
    SingleRun(flops=1e17, size=SIZES[44].params),
    SingleRun(flops=3e18, size=SIZES[52].params),  # a budget of its own
    SingleRun(flops=3e18, size=SIZES[52].params, seed=1),
]


def test_the_rule_is_read_or_refused() -> None:
    spec = adaptive_spec(budgets=[1e17, 1e18])
    assert stopping_rule_for(spec, None) is None
    for text in ("1.3@1e21", "ci=1.3@1e21"):
        assert stopping_rule_for(spec, text) == StoppingRule(target=1e21, factor=1.3)
    assert stopping_rule_for(spec, "1.3", 1e20) == StoppingRule(target=1e19, factor=1.3, at_most=1e20)
    wished = adaptive_spec(budgets=[1e17, 1e18], grid={"target": 1e20})
    assert stopping_rule_for(wished, "2") == StoppingRule(target=1e20, factor=2)
    assert stopping_rule_for(wished, "2@3e20") == StoppingRule(target=3e20, factor=2)
    for wrong in ("1", "0.9@1e21", "ci=", "x@y", "1.3@", "1.3@-1", "1.3@inf", "inf", "nan", "loss=1@2", ""):
        with pytest.raises(SpecError, match="is not of the form FACTOR"):
            stopping_rule_for(spec, wrong)
    with pytest.raises(SpecError, match="positive number of FLOPs"):
        stopping_rule_for(spec, "1.3@1e21", -1.0)


def test_single_runs_follow_the_grid_and_change_nothing_of_it() -> None:
    spec = adaptive_spec(budgets=[1e17, 3e17, 1e18])
    alone, _ = run_through(planner_of(spec), loss_in(world()))
    near = max((e for e in alone.experiments if e.budget == 1e18 and e.role == "grid"), key=lambda e: e.params)
    runs = [RUNS[0], *(run.model_copy(update={"size": near.size}) for run in RUNS[1:])]
    longer = planner_of(with_runs(spec, runs))
    plans = [run_through(longer, loss_in(world()), random.Random(seed))[0] for seed in range(3)]
    assert plans[0] == plans[1] == plans[2]  # whoever ends first
    known = {e.key for e in alone.experiments}
    assert [e.key for e in plans[0].experiments[: len(known)]] == [e.key for e in alone.experiments]
    first, second, third = plans[0].experiments[len(known) :]
    assert [(e.budget, e.size, e.role) for e in (first, second, third)] == [
        (1e17, SIZES[44].size, "grid"),
        (3e18, near.size, "grid"),
        (3e18, near.size, "seed"),
    ]
    assert all(is_single_run(e) for e in (first, second, third)) and not any(map(is_single_run, alone.experiments))
    assert third.recipe.seed == 1000 and third.of == second.key and third.recipe.lr == second.recipe.lr
    assert second.recipe == near.recipe and second.parent == near.key  # goes on from its trunk


def test_runs_that_cannot_be_are_named() -> None:
    for run, words in (
        (SingleRun(flops=1e18, size=12345), "size 12345: is no size of this sweep; it has 10000, 11892, "),
        (SingleRun(flops=1e6, size=SIZES[60].params), "D would be less than one batch"),
    ):
        with pytest.raises(SpecError, match=f"grid.runs: C = .*{words}"):
            planner_of(with_runs(adaptive_spec(), [run]))
    few = Measurements(sizes=SIZES, data=DATA.__class__(**{**vars(DATA), "train_samples": 10**10}))
    spec = with_runs(adaptive_spec(budgets=[1e17, 3e17]), [SingleRun(flops=1e20, size=SIZES[40].params)])
    with pytest.raises(SpecError, match="D would be .* steps, and the data allow 20,000,000"):
        Planner(spec, few)


def rate(params: int, width: int, tokens: int) -> float:
    return float(1e-3 * (params / 1e4) ** -0.25 * (tokens / 1e6) ** -0.1)


def mocked(output: Path, **more: Any) -> Result:
    usual = {"sizes": [16, 32, 64, 128, 256, 512, 1024], "quiet": True, "draws": 200, "lr": rate}
    given: dict[str, Any] = usual | more
    budgets = [1e8, 3e8, 1e9, 3e9]
    return find_optimal(Mlp, "width", None, SAMPLES, nn.MSELoss(), budgets, True, "mock", output, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flops_fit_ray.report.write._figures", lambda *_: iter(()))  # as `no_figures`, for the whole file
        return mocked(tmp_path_factory.mktemp("until") / "grid")


@pytest.mark.usefixtures("no_figures")
def test_runs_are_added_until_the_optimum_is_known_and_stay(whole: Result, tmp_path: Path) -> None:
    now = factor_at(whole.fit, 3e10)
    assert now is not None
    asked = now**0.8
    result = mocked(tmp_path, until=f"{asked}@3e10")
    after, runs = factor_at(result.fit, 3e10), result._sweep.spec.grid.runs
    assert after is not None and after <= asked < now and runs
    chosen = [e for e in result.plan.experiments if is_single_run(e)]
    assert [(e.budget, e.size) for e in chosen] == [(run.flops, run.size) for run in runs]
    assert all(e.recipe.lr == rate(e.params, int(e.size), e.tokens) for e in chosen)  # at budgets of their own, too
    assert {e.key for e in whole.plan.experiments} == {e.key for e in result.plan.experiments} - {e.key for e in chosen}
    assert result.complete and result.compute_budgets == whole.compute_budgets

    again = mocked(tmp_path)  # without the rule
    assert again._sweep.spec == result._sweep.spec and again.complete
    rule = StoppingRule(target=3e10, factor=asked)
    assert decide_next(again._sweep, rule).reached


def test_it_ends_where_no_more_may_be_spent_or_run(whole: Result) -> None:
    sweep = whole._sweep
    rule = StoppingRule(target=3e10, factor=1.0001)
    first = decide_next(sweep, rule)
    assert first.runs == decide_next(open_sweep(sweep.paths.root), rule).runs  # of the results alone
    assert 1 <= len(first.runs) <= 4 and "expected to give x/÷" in first.message
    spent = sum(e.flops_executed for e in sweep.plan.experiments)
    for at_most, words in ((0.5 * spent, "FLOPs allowed are spent; raise --at-most"), (spent + 1, "raise --at-most")):
        ended = decide_next(sweep, StoppingRule(target=3e10, factor=1.0001, at_most=at_most))
        assert not ended.runs and words in ended.message and ended.message.endswith(": stopped")
    inside = decide_next(sweep, StoppingRule(target=1e9, factor=1.0001))
    assert not inside.runs and "is not beyond the budgets" in inside.message
    enough = decide_next(sweep, StoppingRule(target=3e10, factor=1e9))
    assert enough.reached and not enough.runs and "of --until: done" in enough.message


def test_it_ends_where_probed_rates_are_all_that_is_left(whole: Result) -> None:
    sweep = whole._sweep
    of = sweep.standing[10]
    tried = [
        replace(of, key=f"{i}", role="lr_check", lr=of.lr * f, loss=of.loss + 0.02) for i, f in enumerate((0.5, 2))
    ]
    plan = replace(sweep.plan, lr=lr_law([(of.params, of.tokens_seen, of.lr)], 20.0))
    probed = replace(sweep, plan=plan, results=(*sweep.results, *tried))
    ended = decide_next(probed, StoppingRule(target=3e10, factor=1.0001))
    assert not ended.runs and "what the probes leave open of the learning rates is x/÷" in ended.message
    card = {item.item: item.words for item in validity_card(probed.fit, probed)}
    assert "is left if all rates were the best (best rates ~ N^-0.25·D^-0.15" in card["learning rate"]
    untried = replace(sweep, plan=plan)
    assert untried.fit.rates is None
    card = {item.item: item.words for item in validity_card(untried.fit, untried)}
    assert card["learning rate"].endswith(
        "; intervals take the rates for the best ones, as no (N, D) has losses of three"
    )


def test_sizes_share_no_price_and_budgets_of_one_size_do(whole: Result) -> None:
    space = SweepSpace(whole._sweep)
    dear, nearer = ([p for p in space.places(c, 1e3) if p.size in (64, 128)] for c in (1e10, 6e9))
    assert len(dear) == len(nearer) == 2
    alone = [space.prices([p])[0] for p in (*dear, *nearer)]
    both = space.prices([*dear, *nearer])
    assert both[2:] == alone[2:]  # the smaller budget goes first
    assert all(b < a for a, b in zip(alone[:2], both[:2], strict=True))  # and the dearer one starts at its trunk
    assert all(space.prices([dear[i], nearer[i]]) == [both[i], both[i + 2]] for i in (0, 1))
    assert space.prices([dear[0], dear[0]])[1] == alone[0]  # another seed has no trunk


@pytest.mark.usefixtures("no_figures")
def test_noise_that_nothing_tells_is_measured_first(tmp_path: Path) -> None:
    few = {"sizes": [32, 256, 1024]}
    grid = mocked(tmp_path / "grid", **few)
    spent = sum(e.flops_executed for e in grid.plan.experiments)
    poor = decide_next(grid._sweep, StoppingRule(target=1e11, factor=2, at_most=spent + 1))
    assert not poor.runs and "2 more seeds of C = 1e8 size " in poor.message and "raise --at-most" in poor.message
    result = mocked(tmp_path / "more", **few, until="2@1e11", grid={"max_experiments": 14})
    assert factor_at(result.fit, 1e11) is not None
    first, second = result._sweep.spec.grid.runs[:2]
    assert (first.flops, first.seed, second.seed) == (1e8, 1, 2) and first.size == second.size
    (of,) = {e.of for e in result.plan.experiments if e.role == "seed" and e.budget == 1e8}
    assert of in {e.key for e in result.plan.experiments if e.role == "grid"}


def test_what_a_directory_chose_belongs_to_its_sweep(tmp_path: Path) -> None:
    said: list[str] = []
    spec = adaptive_spec(budgets=[1e17, 3e17])
    paths = SweepPaths(tmp_path)

    def recorded(one: SweepSpec) -> None:
        record_spec(paths, one)

    assert continued(spec, paths, said.append).spec is spec
    recorded(with_runs(spec, RUNS))
    assert continued(spec, paths, said.append).spec.grid.runs == RUNS and "3 single runs that were chosen" in said.pop()
    other = adaptive_spec(budgets=[1e17, 3e17], model={"target": "m:Other", "size_param": "width"})
    assert continued(other, paths, said.append).spec == other and not said
    longer = adaptive_spec(budgets=[1e17, 3e17, 1e18])
    assert continued(longer, paths, said.append).spec.grid.runs == RUNS
    recorded(longer)  # as an earlier --until left it
    assert continued(spec, paths, said.append).spec == spec
    kept = continued(spec, paths, said.append, until=True).spec
    assert kept == with_budgets(spec, longer.budgets[2:]) and said[-1].startswith("the budgets C = 1e18 in ")
