"""The plan: exact token counts, stable keys, refusals before anything is spent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit_ray.errors import SpecError
from flops_fit_ray.flags import Flagged
from flops_fit_ray.planning import (
    DataFacts,
    Measurements,
    ModelSize,
    Plan,
    auto_candidates,
    auto_range,
    expected_optimum,
    make_plan,
    next_experiments,
    plan_from_json,
)
from flops_fit_ray.planning._disk import checkpoint_bytes
from flops_fit_ray.planning._plan_text import tables_words
from flops_fit_ray.planning.grid import cell_warnings
from flops_fit_ray.planning.lr_probes import missing_factors, probed_sizes
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.save_policy import SavePolicy
from tests.parts import planned, spec_of, user_parts_of

DATA = DataFacts(
    train_samples=10**7, eval_samples=100, tokens_per_sample=4, token_unit="t", eval_source="e", fingerprint="f"
)


def size(params: int, label: int | str = 0) -> ModelSize:
    return ModelSize(
        size=label or params,
        kwargs={"width": label or params},
        params=params,
        params_total=params,
        params_non_embedding=params,
        params_source="test",
        flops_per_token=6.0 * params,
        flops_source="test",
    )


def plan_of(spec: SweepSpec | None = None, data: DataFacts = DATA, sizes: tuple[int, ...] = (4, 8, 16)) -> Plan:
    return make_plan(spec or spec_of(), Measurements(sizes=tuple(map(size, sizes)), data=data))


def test_a_frozen_plan() -> None:
    spec = spec_of(budgets=[1e6, 4e6], train={"batch_size": 8, "lr": {"base": 0.1, "at": 4, "exponent": -0.5}})
    rows = [
        (e.budget, e.params, e.tokens, e.steps, e.recipe.warmup_steps, e.recipe.lr) for e in plan_of(spec).experiments
    ]
    # tokens = 32 · round(C / (6·N·32)); warmup = min(N, D_min / 10) / 32 steps, D_min = 10,432 (C = 1e6, N = 16)
    assert rows == [
        (1e6, 4, 41664, 1302, 0, 0.1),
        (1e6, 8, 20832, 651, 0, pytest.approx(0.1 / 2**0.5)),
        (1e6, 16, 10432, 326, 0, 0.05),
        (4e6, 4, 166656, 5208, 0, 0.1),
        (4e6, 8, 83328, 2604, 0, pytest.approx(0.1 / 2**0.5)),
        (4e6, 16, 41664, 1302, 0, 0.05),
    ]


@given(
    budget=st.floats(1e7, 1e15),
    params=st.integers(3, 10**5),
    batch=st.integers(1, 512),
    per_sample=st.integers(1, 2048),
)
def test_tokens_are_whole_batches_within_half_a_batch_of_the_budget(
    budget: float, params: int, batch: int, per_sample: int
) -> None:
    spec = spec_of(
        budgets=[budget, 2 * budget],
        model={"target": "m:G", "size_param": "width", "sizes": [params, 2 * params, 3 * params]},
        train={"batch_size": batch, "lr": 0.1},
    )
    data = replace(DATA, tokens_per_sample=per_sample, train_samples=10**18)
    try:
        plan = plan_of(spec, data, (params, 2 * params, 3 * params))
    except SpecError as refusal:
        assert "less than one batch" in str(refusal)
        return
    for e in plan.experiments:
        assert e.tokens == e.steps * batch * per_sample
        assert abs(e.flops - e.budget) <= e.flops_per_token * batch * per_sample * 0.5000001
        assert e.flops == e.tokens * e.flops_per_token


def test_warmup_is_counted_in_tokens_and_bounded_by_n_and_the_smallest_d() -> None:
    def spec(sizes: list[int]) -> SweepSpec:
        model = {"target": "m:G", "size_param": "width", "sizes": sizes}
        return spec_of(budgets=[1e9, 1e10], train={"batch_size": 1, "lr": 0.1}, model=model)

    data = replace(DATA, tokens_per_sample=1, train_samples=10**12)
    plan = plan_of(spec([1000, 2000, 50_000]), data, (1000, 2000, 50_000))
    smallest = min(e.tokens for e in plan.experiments)
    assert smallest == 3333
    assert [e.recipe.warmup_steps for e in plan.experiments] == [333] * 6
    small = plan_of(spec([100, 200, 5000]), data, (100, 200, 5000))
    assert [e.recipe.warmup_steps for e in small.experiments] == [100, 200, 3333] * 2


def test_a_constant_schedule_is_constant() -> None:
    plan = plan_of(spec_of(train={"batch_size": 8, "lr": 0.1, "schedule": "constant", "optimizer": "sgd"}))
    assert {e.recipe.warmup_steps for e in plan.experiments} == {0}


def keys(spec: SweepSpec, data: DataFacts = DATA) -> set[str]:
    return {e.key for e in plan_of(spec, data).experiments}


def test_keys_are_content() -> None:
    base = spec_of(budgets=[1e6, 2e6])
    assert len(keys(base)) == 6
    # Adding a larger budget renames nothing
    assert keys(base) < keys(spec_of(budgets=[1e6, 2e6, 4e6]))
    # What only changes how it is run renames nothing
    assert keys(base) == keys(spec_of(budgets=[1e6, 2e6], resources_per_trial={"gpu": 0.5}, output="x", name="y"))
    assert keys(base) == keys(spec_of(budgets=[1e6, 2e6], fit={"draws": 500}))


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"batch_size": 8, "lr": 2e-2}},
        {"train": {"batch_size": 8, "lr": 1e-2, "seed": 1}},
        {"train": {"batch_size": 16, "lr": 1e-2}},
        {"train": {"batch_size": 8, "lr": 1e-2, "schedule": "cosine"}},
        {"loss": "cross_entropy"},
        {"data": {"train": "tests.parts:text"}},
        {"data": {"train": "tests.parts:regression", "kwargs": {"samples": 5}}},
        {"model": {"target": "tests.parts:Other", "size_param": "width", "sizes": [4, 8, 16]}},
        {"model": {"target": "tests.parts:Mlp", "size_param": "width", "sizes": [4, 8, 16], "kwargs": {"inputs": 9}}},
    ],
    ids=str,
)
def test_what_changes_a_result_changes_every_key(change: dict[str, Any]) -> None:
    assert not keys(spec_of()) & keys(spec_of(**change))


def test_other_data_changes_every_key() -> None:
    assert not keys(spec_of()) & keys(spec_of(), replace(DATA, fingerprint="g"))


def test_next_experiments_are_open_ones_that_wait_for_nobody_longest_way_first() -> None:
    plan = plan_of(spec_of(budgets=[1e6, 2e6], grid={"trunk": False}))
    done = {plan.experiments[0].key, plan.experiments[4].key}
    todo = next_experiments(plan, done)
    assert {e.key for e in todo} == {e.key for e in plan.experiments} - done
    assert [e.flops for e in todo] == sorted((e.flops for e in todo), reverse=True)
    assert next_experiments(plan, {e.key for e in plan.experiments}) == ()

    plan = plan_of(spec_of(budgets=[1e6, 2e6]))
    small, large = plan.experiments[:3], plan.experiments[3:]
    assert [e.parent for e in large] == [e.key for e in small]
    assert sorted(e.params for e in next_experiments(plan, ())) == [4, 8, 16]  # the others wait for their trunks
    assert {e.budget for e in next_experiments(plan, ())} == {1e6}
    assert sorted(e.params for e in next_experiments(plan, (), running={small[0].key})) == [8, 16]
    assert large[0] in next_experiments(plan, {small[0].key})  # whatever came of the parent
    assert large[1] in next_experiments(plan, (), has_trunk=lambda key: key == small[1].key)


def test_a_plan_survives_json() -> None:
    plan = plan_of(spec_of(budgets=[1e6, 2e6]))
    content = json.loads(json.dumps(plan.to_json()))
    assert plan_from_json(content) == plan
    contract = {"key", "budget", "size", "params", "tokens", "flops", "parent", "seed"}
    assert content["schema_version"] == 1
    assert all(contract <= e.keys() for e in content["experiments"])


REFUSED = [
    ({"budgets": [10.0, 1e6]}, DATA, (4, 8, 16), "covers less than one batch"),
    ({}, replace(DATA, train_samples=50), (4, 8, 16), "experiments need more data than there is"),
    ({}, DATA, (4, 8), "has 2 sizes \\[4, 8\\]; a valley needs at least 3"),
    ({}, DATA, (4, 4, 16), "both have N = 4; check that width changes the model"),
]


@pytest.mark.parametrize(("change", "data", "sizes", "message"), REFUSED)
def test_refusals(change: dict[str, Any], data: DataFacts, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan_of(spec_of(**change), data, sizes)


def test_more_epochs_only_when_asked_for_and_said() -> None:
    few = replace(DATA, train_samples=2000)
    asked = spec_of(data={"train": "tests.parts:regression", "max_epochs": 5})
    plan = plan_of(asked, few)
    assert max(e.epochs or 0 for e in plan.experiments) > 1
    assert any("max_epochs is 5" in w for w in plan.warnings)
    often = [replace(e, epochs=8.0) for e in plan.experiments]
    words = f"{len(often)} of {len(often)} experiments see their data more than 4 times, up to 8"
    assert any(flag.message.startswith(words) for flag in cell_warnings(often))
    assert not any("more than 4 times" in w for w in plan.warnings)


def test_warnings() -> None:
    plan = plan_of(spec_of(train={"batch_size": 64}))
    text = "\n".join(plan.warnings)
    for expected in (
        "2 budgets over a range of 2x is not trustworthy",
        "train.lr is a general rule",
        "fewer than 300 optimizer steps",
        "has 3 sizes",
        "rounding to whole batches",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("total", "tables", "said"),
    [
        (lambda n: 5 * n, ((100, 8),), ", which hold 80 % of them"),
        (lambda n: 2 * n + 100, ((100, 8),), ", which hold 53 to 61 % of them"),  # 1,000 of 1,900, 270 of 440
        (lambda n: 2 * n, ((100, 8),), ""),  # half of them
        (lambda n: 5 * n, (), ""),  # a num_params() that counts little
    ],
)
def test_a_model_of_lookup_tables_is_said_to_be_one(total: Any, tables: Any, said: str) -> None:
    plan = plan_of()
    sizes = [
        replace(s, params=n, params_total=total(n), tables=tables)
        for s, n in zip(plan.sizes, (170, 400, 900), strict=True)
    ]
    line = tables_words(sizes)
    assert line.startswith(said) and bool(line) == bool(said)
    assert "lookup" not in str(plan)


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ((1.0, 1.02, 0.985), "size 8 by +2.0 %"),
        ((1.005, 1.0, 0.97), "size 16 by -3.0 %"),
        ((1.009, 0.991, 1.0), None),  # within a hundredth
    ],
)
def test_the_budget_that_whole_batches_move_most_is_named(factors: tuple[float, ...], said: str | None) -> None:
    cells = plan_of(spec_of(budgets=[1e6, 2e6])).experiments[:3]
    moved = [replace(e, flops=f * e.budget) for e, f in zip(cells, factors, strict=True)]
    warnings = [str(flag) for flag in cell_warnings(moved) if flag.code == "rounded_budget"]
    fix = "lower train.batch_size or raise the budget"
    assert warnings == ([] if said is None else [f"rounding to whole batches changes C = 1e6, {said}: {fix}"])


def test_a_notebook_shows_notes_and_warnings_of_a_plan() -> None:
    plan = replace(plan_of(), notes=("N < D",), warnings=(Flagged("B & C"), Flagged("more")))
    shown = plan._repr_html_()
    assert shown.count("<p>") == 6  # name, experiments, FLOPs, and these
    assert f"<p>{len(plan.experiments)} experiments</p><p>{plan.flops:.3g} FLOPs</p>" in shown
    assert "<p>N &lt; D</p><p>warning: B &amp; C</p><p>warning: more</p>" in shown
    assert "<th>lr</th>" in shown and "<th>key</th>" not in shown and "<th>decided</th>" not in shown


def test_rates_are_probed_at_two_sizes_that_lie_apart() -> None:
    sizes = [size(n) for n in (1, 2, 3, 4, 5)]
    assert [s.params for s in probed_sizes(sizes)] == [2, 4]  # the ends of a valley are no place for it
    assert [s.params for s in probed_sizes(sizes[:4])] == [2, 3]
    assert [s.params for s in probed_sizes(sizes[:3])] == [1, 3]


def test_probes_go_on_by_factors_of_two_until_the_best_is_inside() -> None:
    assert missing_factors({}) == [0.5, 1, 2, 4] and missing_factors({1.0: 3.0}) == [0.5, 2, 4]
    assert missing_factors({0.5: 1, 1: 2, 2: 3, 4: 4}) == [0.25]
    assert missing_factors({0.5: 4, 1: 3, 2: 2, 4: 1}) == [8]
    assert missing_factors({0.5: 2, 1: 1, 2: 2, 4: 3}) == []
    assert missing_factors({2.0**k: -k for k in range(-1, 7)}) == []  # eight are enough
    assert missing_factors({2.0**k: -k for k in range(-1, 6)}) == [64]


def test_auto_lr_falls_with_size() -> None:
    rates = [e.recipe.lr for e in plan_of(spec_of(train={"batch_size": 8})).experiments[:3]]
    assert rates == [pytest.approx(1e-3 * (n / 1e7) ** -0.25) for n in (4, 8, 16)]


def test_auto_sizes() -> None:
    low, high = auto_range(expected_optimum(1.2e14))
    assert low * high == pytest.approx(1e12)  # sqrt(C / 120) squared
    candidates = auto_candidates()
    assert [next(candidates) for _ in range(10)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def test_the_disk_in_the_plan_is_what_checkpoints_take(tmp_path: Path) -> None:
    for train in ({"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9}):
        spec = spec_of(
            model={"target": "tests.parts:Mlp", "size_param": "width", "sizes": [10_000, 20_000, 40_000]},
            budgets=[3.5e8, 7e8],
            train={"batch_size": 8, "lr": 1e-4, **train},
            checkpoint={"keep": 3, "weights": True},
        )
        user = user_parts_of(spec)
        plan = planned(spec, user)
        experiment = plan.experiments[2]
        store = CheckpointStore(tmp_path / str(train), key=experiment.key)
        train_experiment(
            experiment, user, eval_samples=8, policy=SavePolicy(store=store, checkpoint_steps=experiment.steps - 1)
        )
        (saved,) = (tmp_path / str(train)).glob("*.pt")
        assert saved.stat().st_size == pytest.approx(checkpoint_bytes(experiment), rel=0.05)
        assert plan.disk.per_running == 4 * checkpoint_bytes(experiment)
        trunks = sum(checkpoint_bytes(e) for e in plan.experiments[:3])  # one of each size
        assert plan.disk.in_the_end == 4 * sum(e.params_total for e in plan.experiments) + trunks
