"""Everything around a fit: the panel, the verdict, hold-outs, wall-clock budgets, comparisons, and the JSON."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flops_fit_ray.analysis import (
    FitOptions,
    Points,
    SweepFit,
    analyse,
    analysis_to_json,
    compare,
    fit_sweep,
    isotime,
    predict,
    predict_for_time,
    sensitivity,
)
from flops_fit_ray.analysis._extrapolation import hold_outs, loss_hold_out
from flops_fit_ray.analysis._methods import surface_method
from flops_fit_ray.analysis._sensitivity import method_agreement, valley_bias
from flops_fit_ray.analysis.surface import fit_surface
from flops_fit_ray.errors import FitError
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.recommend import recommend
from flops_fit_ray.sweep.validity import validity_card, worst_residual
from tests.surfaces import BESIROGLU, BUDGETS, HOFFMANN, SYMMETRIC, joined, optimum, sweep_on
from tests.sweeps import make_sweep, reference_parts, reference_spec

QUICK = FitOptions(draws=0)
SOME = FitOptions(draws=300)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    spec = reference_spec()
    return make_sweep(tmp_path_factory.mktemp("known"), spec, reference_parts(spec))


def test_without_noise_no_choice_moves_the_answer_but_the_definitions() -> None:
    points = sweep_on(SYMMETRIC, BUDGETS)
    points = replace(points, flops_as={"half of it": points.flops / 2}, params_as={"twice N": 2 * points.params})
    panel = sensitivity(fit_sweep(points, QUICK), 1e21)
    assert panel is not None
    truth = optimum(SYMMETRIC, 1e21)[0]
    for row in panel.rows:
        if row.lever == "the FLOP definition":
            assert row.params == pytest.approx(truth * math.sqrt(2), rel=1e-6)  # C is twice what this count says
        elif row.lever not in ("the curve", "one run left out"):  # interpolations are near, as are lopsided sizes
            assert row.params == pytest.approx(truth, rel=1e-6), row
    (twice,) = [row for row in panel.rows if row.lever == "the N definition"]
    assert twice.own_params == pytest.approx(2 * truth, rel=1e-6)
    lever, factor = panel.levers[0]
    assert lever == "the FLOP definition" and factor == pytest.approx(math.sqrt(2), rel=1e-6)
    assert panel.sentence.endswith("the largest lever is the FLOP definition (x1.41).")


def test_the_panel_finds_the_bad_run_and_the_bad_budget() -> None:
    points = sweep_on(SYMMETRIC, BUDGETS)
    loss = points.loss.copy()
    loss[0] += 0.1
    # All minima weigh the same: by precision the bad budget hardly counts, and leaving it out changes nothing
    panel = sensitivity(fit_sweep(replace(points, loss=loss), replace(QUICK, law_weights="equal")), 1e21)
    assert panel is not None
    base = panel.rows[0].params
    assert base is not None
    left = [row for row in panel.rows if row.lever == "one run left out" and row.params is not None]
    farthest = max(left, key=lambda row: abs(math.log((row.params or 1) / base)))
    assert farthest.choice == f"without N = {points.params[0] / 1e6:.3g}M at C = 1e18"
    budgets = {row.choice: row.params for row in panel.rows if row.lever == "one budget left out"}
    assert len(budgets) == 5
    assert budgets["without C = 1e18"] == pytest.approx(optimum(SYMMETRIC, 1e21)[0], rel=1e-6)


def test_the_panel_of_a_surface_leaves_runs_out_exactly() -> None:
    points = sweep_on(BESIROGLU, BUDGETS, noise=0.01)
    options = FitOptions(draws=0, method="surface_huber")
    panel = sensitivity(fit_sweep(points, options), 1e21)
    assert panel is not None
    answers = []
    for i in range(len(points)):
        without = fit_surface(points.pick(np.arange(len(points)) != i), options.surface("surface_huber"))
        law = surface_method(without).params_opt
        assert law is not None
        answers.append(law.at(1e21))
    left = [row.params for row in panel.rows if row.lever == "one run left out"]
    assert left == pytest.approx([min(answers), max(answers)], rel=1e-3)


def test_agreement_and_disagreement_of_valleys_and_surface() -> None:
    calm = fit_sweep(sweep_on(SYMMETRIC, BUDGETS, noise=0.001), SOME)
    agreed = method_agreement(calm, 1e21)
    assert agreed is not None and agreed.code == "methods_agree"
    apart = with_valleys_at(calm, 3.0)
    disagreed = method_agreement(apart, 1e21)
    assert disagreed is not None and disagreed.code == "methods_disagree" and disagreed.severity == "warning"
    assert "their intervals do not overlap, and the interval that is given is the union of both" in str(disagreed)
    one, two = predict(apart, 1e21), predict(calm, 1e21, "surface_huber")
    assert one.params_interval is not None and two.params_interval is not None
    assert one.params_interval.holds(one.params) and one.params_interval.holds(two.params)
    assert one.params_interval.low == two.params_interval.low < two.params_interval.high < one.params_interval.high
    alone = predict(apart, 1e21, "valley").params_interval  # a method that is asked for speaks for itself
    assert alone is not None and not alone.holds(two.params)


def with_valleys_at(fit: SweepFit, factor: float) -> SweepFit:
    """A fit whose valleys say so many times their N_opt."""
    valley = fit.methods["valley"]
    law = valley.params_opt
    assert law is not None and law.draws is not None
    up = math.log10(factor)
    draws = replace(law.draws, log10_coefficient=law.draws.log10_coefficient + up)
    moved = replace(law, log10_coefficient=law.log10_coefficient + up, draws=draws)
    return replace(fit, methods={**fit.methods, "valley": replace(valley, params_opt=moved)})


def drifting_windows() -> Points:
    """Windows that drift with the budget bend the exponent of parabolas."""
    return joined(*(sweep_on(HOFFMANN, [c], window=16, sizes=15, off_centre=3**i / 9) for i, c in enumerate(BUDGETS)))


def exchanged(fit: SweepFit) -> SweepFit:
    """A fit whose valleys say what its surface said, and the other way round."""
    valley, surface = fit.methods["valley"], fit.methods["surface_huber"]
    methods = dict(fit.methods)
    methods["valley"] = replace(valley, params_opt=surface.params_opt)
    methods["surface_huber"] = replace(surface, params_opt=valley.params_opt)
    return replace(fit, methods=methods)


def test_either_intervals_apart_or_a_large_ratio_is_a_disagreement() -> None:
    points = drifting_windows()

    def said(fit: SweepFit, budget: float) -> str:
        flag = method_agreement(fit, budget)
        assert flag is not None
        return f"{flag.code} {flag.message}"

    exact = fit_sweep(points, QUICK)  # nothing but the ratio
    assert said(exact, 1e20).startswith("methods_agree") and "(x1.2)" in said(exact, 1e20)
    assert said(exact, 1e24).startswith("methods_disagree") and "(the intervals are unknown)" in said(exact, 1e24)
    rng = np.random.default_rng(0)
    calm = fit_sweep(sweep_on(SYMMETRIC, BUDGETS, noise=0.0005), SOME)
    for fit in (with_valleys_at(calm, 1.2), exchanged(with_valleys_at(calm, 1.2))):  # above the other, and below it
        assert said(fit, 1e20).startswith("methods_disagree") and "the union of both" in said(fit, 1e20)
    loose = replace(with_valleys_at(calm, 1.2), default="surface_huber", points=replace(calm.points, labelled=False))
    assert "(the intervals do not overlap); report both" in said(loose, 1e20)  # valleys of such budgets join no union
    blunt = fit_sweep(replace(points, loss=points.loss + 0.05 * rng.standard_normal(len(points))), SOME)
    assert "they disagree (the intervals overlap)" in said(blunt, 1e24)


def test_the_bias_of_parabolas_is_worked_out_from_the_surface() -> None:
    wide = fit_sweep(sweep_on(HOFFMANN, BUDGETS, window=16, sizes=15), QUICK)
    flag = valley_bias(wide, 1e24)
    truth = predict(wide, 1e24).params / optimum(HOFFMANN, 1e24)[0]
    assert flag is not None and f"by x{truth:.3g}" in str(flag)
    assert valley_bias(fit_sweep(sweep_on(SYMMETRIC, BUDGETS), QUICK), 1e24) is None


@pytest.mark.parametrize(("apart", "method"), [(11, "valley"), (12, "surface_huber")])
def test_scattered_runs_are_fitted_by_valleys_where_three_quarters_lie_in_one(apart: int, method: str) -> None:
    """35 runs in five valleys, and runs at budgets of their own: 35/46 = 0.76 and 35/47 = 0.74 of them."""
    alone = sweep_on(SYMMETRIC, [1e21 * 2**i for i in range(apart)], sizes=1, window=1)
    points = replace(joined(sweep_on(SYMMETRIC, BUDGETS), alone), labelled=False)
    assert fit_sweep(points, QUICK).default == method


def test_hold_outs_are_exact_where_the_law_is() -> None:
    exact = hold_outs(fit_sweep(sweep_on(SYMMETRIC, BUDGETS), QUICK))
    assert [(h.fitted, h.budget) for h in exact] == [
        (cut, c) for cut in (2, 3, 4) for c in BUDGETS[cut:]
    ]  # fmt: skip
    assert all(h.factor == pytest.approx(1, abs=1e-9) for h in exact)
    assert exact[0].extrapolation == pytest.approx(1e19 / 3e18)
    noisy = fit_sweep(sweep_on(SYMMETRIC, BUDGETS, noise=0.003, sizes=9), SOME)
    assert np.mean([h.interval is not None and h.interval.holds(h.observed) for h in hold_outs(noisy)]) >= 0.5
    losses = loss_hold_out(fit_sweep(sweep_on(BESIROGLU, BUDGETS), QUICK))
    assert losses is not None and losses.points == 7 and losses.rms < 1e-6
    assert [h.fitted for h in analyse(noisy).top_hold_outs] == [2, 3, 4]


def with_seconds(points: Points, exponent: float = 0.8) -> Points:
    return replace(points, seconds=3e-15 * points.params**exponent * points.tokens)


def test_a_wall_clock_budget_has_its_own_optimum() -> None:
    """Small models are slow for their size: with time ~ N^0.8·D the optimum for a time is larger than 6·N·D says."""
    fit = fit_sweep(with_seconds(sweep_on(BESIROGLU, BUDGETS)), FitOptions(draws=0))
    timed = isotime(fit)
    assert timed is not None and timed.cost.n_exponent == pytest.approx(0.8, abs=1e-9)
    seconds = 3600.0
    n = np.geomspace(1e7, 1e13, 600_001)
    e, a, b, alpha, beta = BESIROGLU
    loss = e + a / n**alpha + b / (seconds / 3e-15 / n**0.8) ** beta
    answer = predict_for_time(timed, seconds, 0.95)
    assert answer.params == pytest.approx(n[loss.argmin()], rel=1e-3)
    assert answer.loss == pytest.approx(loss.min(), rel=1e-6)
    assert answer.tokens == pytest.approx(seconds / 3e-15 / answer.params**0.8, rel=1e-6)
    longest = float(timed.points.seconds.max()) if timed.points.seconds is not None else 0.0
    far = predict_for_time(timed, 50 * longest, 0.95)
    assert far.extrapolation == pytest.approx(50) and "extrapolation by 50x: time is 50x larger" in str(far.warnings[0])
    assert "extrapolation factor 50 in time (N " in str(far)
    with pytest.raises(FitError, match="positive number of seconds"):
        predict_for_time(timed, -1.0, 0.95)
    assert isotime(fit_sweep(sweep_on(BESIROGLU, BUDGETS), QUICK)) is None


def test_two_sweeps_differ_where_they_do() -> None:
    one = fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.003, seed=1), SOME)
    again = fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.003, seed=2), SOME)
    other = fit_sweep(sweep_on(HOFFMANN, BUDGETS, noise=0.003, seed=3), SOME)
    same, different = compare(one, again, 1e20), compare(one, other, 1e20)
    assert not any(d.differs for d in same.differences)
    named = {d.name: d for d in different.differences}
    assert [d.name for d in same.differences] == list(named) and {"N_opt", "exponent of N_opt"} <= named.keys()
    truth = optimum(HOFFMANN, 1e20)[0] / optimum(BESIROGLU, 1e20)[0]
    ratio = named["N_opt"]
    assert ratio.differs and ratio.interval is not None and ratio.interval.holds(truth)
    assert named["exponent of N_opt"].interval is not None
    assert named["exponent of N_opt"].interval.holds(0.28 / 0.62 - BESIROGLU[4] / (BESIROGLU[3] + BESIROGLU[4]))
    twin = compare(one, one, 1e20)  # one seed for both must not make their draws one
    assert len(twin.differences) == len(named)
    assert all(d.interval is not None and d.interval.low < d.neutral < d.interval.high for d in twin.differences)
    with pytest.raises(FitError, match="has no scaling law from method valley"):
        compare(one, fit_sweep(sweep_on(BESIROGLU, [1e18]), QUICK), 1e20)


def test_a_new_run_is_less_certain_than_the_law() -> None:
    fit = fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.01, sizes=9), SOME)
    answer = predict(fit, 1e20)
    assert answer.loss_interval is not None and answer.run_interval is not None
    assert answer.run_interval.low < answer.loss_interval.low < answer.loss_interval.high < answer.run_interval.high
    assert answer.run_interval.high - answer.run_interval.low > 2 * 1.6 * 0.01


def test_the_loss_law_of_valleys_has_its_irreducible_term() -> None:
    fit = fit_sweep(sweep_on(SYMMETRIC, BUDGETS, sizes=15, window=2), QUICK)
    assert fit.loss_opt is not None
    assert fit.loss_opt.offset == pytest.approx(1.69, abs=0.003)
    assert fit.loss_opt.exponent == pytest.approx(-0.31 / 2, abs=0.002)
    assert predict(fit, 1e22).loss == pytest.approx(optimum(SYMMETRIC, 1e22)[2], abs=1e-3)
    three = fit_sweep(sweep_on(SYMMETRIC, BUDGETS[:3]), QUICK)
    assert three.loss_opt is not None and 0 < three.loss_opt.offset < 2
    assert "loss_law" in {flag.code for flag in predict(three, 1e22).warnings}


def test_the_json_is_what_the_contract_says() -> None:
    fit = fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.003), SOME)
    content = json.loads(json.dumps(analysis_to_json(analyse(fit, [1e21, 1e23])), allow_nan=False))
    for name in ("n_opt", "d_opt", "l_opt"):
        law = content[name]
        assert {"method", "exponent", "coefficient", "exponent_ci95"} <= law.keys()
        assert law == content["methods"]["valley"][name]
        assert law["exponent_ci95"][0] < law["exponent"] < law["exponent_ci95"][1]
        for method in ("surface_huber", "surface_squared"):
            assert content["methods"][method][name]["method"] == method
    for method in ("surface_huber", "surface_squared"):
        surface = content["methods"][method]
        assert {"E", "A", "B", "alpha", "beta", "objective", "status"} <= surface.keys()
        assert surface["status"] == "converged"
        assert surface["ci95"]["alpha"][0] < surface["alpha"] < surface["ci95"]["alpha"][1]
    assert [v["status"] for v in content["valleys"]] == ["interior"] * 5
    assert {"budget", "params_opt", "tokens_opt", "loss_opt", "status"} <= content["valleys"][0].keys()
    assert all({"code", "severity", "message"} == w.keys() for w in content["warnings"])
    assert "extrapolation" in {w["code"] for w in content["warnings"]}
    assert content["sensitivity"]["budget"] == 1e21
    rows = content["sensitivity"]["rows"]
    found = [row for row in rows if row["params"] is not None]
    assert len(found) > 10 and rows[0]["ratio"] == 1
    assert [row["ratio"] for row in found] == [row["params"] / rows[0]["params"] for row in found]
    assert content["sensitivity"]["sentence"].startswith("N_opt(1e21) lies")
    assert [p["budget"] for p in content["predictions"]] == [1e21, 1e23]
    assert content["n_opt"]["exponent"] == fit.params_opt.exponent  # type: ignore[union-attr]  # full precision
    nothing = analysis_to_json(analyse(fit_sweep(sweep_on(BESIROGLU, [1e18]), QUICK), [1e21]))
    assert nothing["predictions"] == []
    assert nothing["sensitivity"] is None and nothing["n_opt"]["exponent"] is None and nothing["n_opt"]["reason"]


def test_the_card_of_points_knows_what_points_can_tell() -> None:
    good = fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.003), QUICK)
    card = {line.item: line for line in validity_card(good)}
    assert len(card) == 15
    assert [name for name, line in card.items() if line.verdict == "UNKNOWN"] == [
        "schedule ends at D", "warmup", "learning rate", "batch and steps", "data", "evaluation", "shape", "provenance",
    ]  # fmt: skip
    assert card["grid"].verdict == card["bracketing"].verdict == card["FLOPs"].verdict == "PASS"
    assert card["outliers"].verdict == card["noise"].verdict == "PASS"
    points = sweep_on(BESIROGLU, BUDGETS, noise=0.003)
    loss = points.loss.copy()
    loss[17] += 0.1
    bad = joined(replace(points, loss=loss), sweep_on(BESIROGLU, [3e20], off_centre=30))
    card = {line.item: line for line in validity_card(fit_sweep(bad, QUICK))}
    assert card["outliers"].verdict == "WARN" and card["bracketing"].verdict == "WARN"
    assert "5 of 6 budgets" in card["bracketing"].words


def test_an_outlier_is_measured_without_itself() -> None:
    points = sweep_on(SYMMETRIC, BUDGETS, noise=0.003, sizes=9, seed=4)
    calm = worst_residual(fit_sweep(points, QUICK))
    loss = points.loss.copy()
    loss[22] += 0.03  # ten standard deviations
    wild = worst_residual(fit_sweep(replace(points, loss=loss), QUICK))
    assert calm is not None and wild is not None
    assert calm < 4 < 7 < wild


def test_the_card_of_a_sweep_answers_all(sweep: Sweep) -> None:
    card = {line.item: line for line in validity_card(sweep.fit, sweep)}
    assert {line.verdict for line in card.values()} <= {"PASS", "WARN", "FAIL"}
    assert card["schedule ends at D"].verdict == "PASS"
    assert card["bracketing"].words.startswith("3 of 3")
    assert card["grid"].verdict == "WARN"  # three budgets over 16x
    fewest = min(e.steps for e in sweep.plan.experiments)
    assert f"{fewest} steps in the shortest run" in card["batch and steps"].words
    assert str(Path(__file__).parent) not in json.dumps([line.to_json() for line in card.values()])


def test_a_recommended_run_adds_up(sweep: Sweep) -> None:
    """The reference task has 6·N FLOPs a token, one token a sample, and one learning rate for all sizes."""
    answer = predict(sweep.fit, 6.4e6)
    run = recommend(sweep, sweep.fit, answer)
    assert run.size == round(answer.params) and run.params == pytest.approx(run.size)
    assert run.tokens == pytest.approx(6.4e6 / (6 * run.params))
    assert run.batch_size == 4 and run.steps == round(run.tokens / 4)
    assert run.lr == pytest.approx(0.04)
    assert run.epochs == pytest.approx(run.tokens / (sweep.plan.measurements.data.tokens_per_epoch or 0))
    assert not any("was not run" in note for note in run.notes)
    far = recommend(sweep, sweep.fit, predict(sweep.fit, 6.4e8))
    assert f"size {far.size} was not run: its N is extrapolated from the sizes that were" in far.notes


def test_the_spec_says_how_it_is_fitted(tmp_path: Path) -> None:
    spec = reference_spec()
    wanted = spec.fit.model_copy(update={"curve": "cubic", "window": 5, "pins": {"alpha": 1.0}})
    spec = spec.model_copy(update={"fit": wanted})
    made = make_sweep(tmp_path, spec, reference_parts(spec))
    assert {v.curve for v in made.fit.valleys} == {"cubic"}
    assert {int(v.used.sum()) for v in made.fit.valleys} == {5}
    surface = made.fit.methods["surface_huber"].surface
    assert surface is not None and surface.surface is not None and surface.surface.alpha[0] == pytest.approx(1.0)
    assert made.fit_options.draws == 200 and made.fit_options.law_weights == "precision"
