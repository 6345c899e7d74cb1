"""Budgets that are chosen for a limit: the widest range that models, data, steps and the limit allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit_ray import formatting as fmt
from flops_fit_ray.budgets import with_budgets_chosen
from flops_fit_ray.errors import SpecError
from flops_fit_ray.pipeline import RunRequest
from flops_fit_ray.planning import COUNTING, Measurements, Planner, stated_rate
from flops_fit_ray.planning.auto_budgets import choose_budgets, spaced
from flops_fit_ray.spec import SYNTHETIC_LOSS, BudgetsFor, SweepSpec, dump_spec, make_spec, read_spec
from tests.worlds import DATA, SIZES, adaptive_spec


@given(low=st.floats(1e3, 1e25), ratio=st.floats(10, 1e4))
def test_budgets_lie_within_their_ends_and_about_a_root_of_ten_apart(low: float, ratio: float) -> None:
    found = spaced(low, ratio * low)
    assert 3 <= len(found) <= 6 and list(found) == sorted(set(found))
    assert low <= found[0] < 1.02 * low and 0.98 * ratio * low < found[-1] <= ratio * low
    assert all(float(f"{c:.3g}") == c for c in found)


def test_the_largest_budget_is_as_large_as_the_limit_allows() -> None:
    def allowed(flops: Sequence[float]) -> bool:
        return 4 * sum(flops) <= 1e20

    found = choose_budgets(1e17, math.inf, allowed)
    assert found.binds == "limit" and found.flops[0] == 1e17 and 0.9e20 < 4 * sum(found.flops) <= 1e20
    limited = choose_budgets(1e17, 3e18, allowed)
    assert limited.binds == "data" and limited.flops == spaced(1e17, 3e18)
    wide = choose_budgets(1e12, math.inf, allowed)  # the smallest rises with it
    assert wide.flops[-1] / wide.flops[0] == pytest.approx(300, rel=0.02) and 4 * sum(wide.flops) > 0.9e20
    assert choose_budgets(1e19, math.inf, allowed).flops == ()


def request_of(spec: SweepSpec, root: Path, data: int = 10**18) -> RunRequest:
    from flops_fit_ray.storage.storage_path import storage_path

    measured = Measurements(sizes=SIZES[::2], data=replace(DATA, train_samples=data))
    return RunRequest(
        spec=spec,
        source="sweep.yaml",
        root=storage_path(root),
        measure=lambda spec, counting: measured,
        load_user_parts=lambda: None,  # type: ignore[arg-type] # nothing is trained
        command="",
    )


def open_spec(**limit: float) -> SweepSpec:
    content = adaptive_spec().model_dump(mode="json") | {"budgets": limit or "auto"}
    return make_spec(content, "sweep.yaml", open_budgets=True)


def test_a_sweep_takes_what_it_may(tmp_path: Path) -> None:
    said: list[str] = []
    request = request_of(open_spec(), tmp_path)
    chosen = with_budgets_chosen(request, BudgetsFor(flops=1e20), said.append)
    plan = Planner(chosen.spec, request.measure(chosen.spec, 1)).plan()
    spent = sum(e.flops_executed for e in plan.expected)
    assert 0.85e20 < spent <= 1e20 and all(e.steps >= 300 for e in plan.expected)
    assert (
        len(said) == 1 and "as much as 1e20 FLOPs allow" in said[0] and f"{len(plan.expected)} experiments" in said[0]
    )
    asks_for_less = replace(request, spec=open_spec(flops=1e15))  # an option comes before the spec
    hour = with_budgets_chosen(asks_for_less, BudgetsFor(minutes=60), said.append, rates=stated_rate(1e17, 4))
    assert 3e19 < sum(b.flops for b in hour.spec.budgets) < 1e21  # 1.4e21 FLOPs in all
    few = with_budgets_chosen(request_of(open_spec(), tmp_path, data=10**8), BudgetsFor(flops=1e25), said.append)
    assert "as much as data and models allow" in said[-1] and few.spec.budgets[-1].flops < 1e19


def test_models_are_measured_once_for_the_same_budgets(tmp_path: Path) -> None:
    asked: list[tuple[float, ...]] = []
    request = request_of(open_spec(), tmp_path)

    def measure(spec: SweepSpec, counting: int) -> Measurements:
        asked.append(tuple(b.flops for b in spec.budgets))
        return request.measure(spec, counting)

    counted = replace(request, measure=measure)
    chosen = with_budgets_chosen(counted, BudgetsFor(flops=1e20), lambda line: None)
    chosen.measure(chosen.spec, COUNTING)  # as planning does
    assert len(asked) == len(set(asked)) and asked[-1] == tuple(b.flops for b in chosen.spec.budgets)


def test_what_cannot_be_chosen_is_refused_with_the_way_out(tmp_path: Path) -> None:
    request, say = request_of(open_spec(), tmp_path), lambda line: None
    with pytest.raises(SpecError, match="what the sweep may cost, in minutes, hours or flops: give minutes=30"):
        with_budgets_chosen(request, None, say)
    with pytest.raises(SpecError, match="the least .* more than 1e6 FLOPs; give .* FLOPs, or lower") as caught:
        with_budgets_chosen(request, BudgetsFor(flops=1e6), say)
    enough = float(str(caught.value).partition("; give ")[2].split()[0])
    assert len(with_budgets_chosen(request, BudgetsFor(flops=enough), say).spec.budgets) == 3
    with pytest.raises(SpecError, match="are listed, so a limit of 1e20 FLOPs chooses none"):
        with_budgets_chosen(request_of(adaptive_spec(), tmp_path), BudgetsFor(flops=1e20), say)
    with pytest.raises(SpecError, match="add data"):
        with_budgets_chosen(request_of(open_spec(), tmp_path, data=100), BudgetsFor(flops=1e20), say)

    def no_model(spec: SweepSpec, counting: int) -> Measurements:
        raise SpecError("spec", ["model.target: no module"])

    with pytest.raises(SpecError, match=r"^sweep.yaml: model.target: no module"):
        with_budgets_chosen(replace(request, measure=no_model), BudgetsFor(flops=1e20), say)
    content = adaptive_spec().model_dump(mode="json") | {"budgets": "auto"}
    with pytest.raises(SpecError, match="are chosen by `plan` and `run`"):
        make_spec(content, "find_optimal")


def test_budgets_of_a_directory_stay(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(dump_spec(adaptive_spec(budgets=[1e17, 1e18])))
    said: list[str] = []
    again = with_budgets_chosen(request_of(open_spec(), tmp_path), None, said.append)
    assert [b.flops for b in again.spec.budgets] == [1e17, 1e18] and said[0].endswith("1e17, 1e18 FLOPs")
    with_budgets_chosen(request_of(open_spec(), tmp_path), BudgetsFor(flops=1e22), said.append)
    assert said[1].endswith("1e17, 1e18 FLOPs; 1e22 FLOPs choose nothing any more, `extend --budget` adds a budget")
    assert read_spec(tmp_path / "sweep.yaml").budgets == again.spec.budgets


def test_a_spec_says_itself_what_it_may_cost_and_then_how_its_budgets_were_chosen(tmp_path: Path) -> None:
    said: list[str] = []
    chosen = with_budgets_chosen(request_of(open_spec(flops=1e20), tmp_path), None, said.append).spec
    found = chosen.budgets_for
    assert found is not None and found.flops == 1e20 and found.why is not None
    assert said == [f"budgets: {', '.join(fmt.flops(b.flops) for b in chosen.budgets)} FLOPs, {found.why}"]
    assert found.why.startswith("as much as 1e20 FLOPs allow: about 9.")
    # What is recorded opens again, and the same limit is not spoken of
    (tmp_path / "sweep.yaml").write_text(dump_spec(chosen))
    assert read_spec(tmp_path / "sweep.yaml") == chosen
    again = with_budgets_chosen(request_of(open_spec(flops=1e20), tmp_path), None, said.append).spec
    assert again == chosen and said[-1].endswith(" FLOPs")
    with pytest.raises(SpecError, match="budgets: must have one of minutes, hours and flops .got minutes and hours"):
        open_spec(minutes=1, hours=1)
    content = adaptive_spec().model_dump(mode="json") | {"budgets_for": {"minutes": 3}}
    with pytest.raises(SpecError, match="budgets_for: is how budgets were chosen; write budgets: {minutes: 30}"):
        make_spec(content, "sweep.yaml")


def test_without_a_speed_the_least_is_planned_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    least = with_budgets_chosen(request_of(open_spec(minutes=5), tmp_path), None, said.append, measure_speed=False)
    assert least.spec.budgets[-1].flops == pytest.approx(10 * least.spec.budgets[0].flops, rel=0.02)
    assert said == ["budgets: the least; as wide as 5 min 00 s allow once a speed is measured, by `check` or `run`"]


def test_synthetic_losses_have_no_speed(tmp_path: Path) -> None:
    spec = open_spec().model_copy(update={"loss": SYNTHETIC_LOSS})
    with pytest.raises(SpecError, match="synthetic take no time"):
        with_budgets_chosen(request_of(spec, tmp_path), BudgetsFor(minutes=9), lambda line: None)
