"""The effective speedup of one recipe over another, on surfaces where it is known in closed form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flops_fit_ray import compare as compare_by_name
from flops_fit_ray.analysis import (
    PUBLISHED,
    FitOptions,
    Points,
    SpeedupAt,
    SweepFit,
    compare,
    comparison_to_json,
    fit_minima,
    fit_sweep,
)
from flops_fit_ray.analysis._speedup import Compared, speedup
from flops_fit_ray.errors import SpecError
from flops_fit_ray.flags import Flag
from flops_fit_ray.planning.loss_surfaces import SURFACES, LossSurface
from tests.surfaces import BESIROGLU, BUDGETS, Surface, loss_of, optimum, sweep_about, sweep_on
from tests.test_cli import call

UNLIKE: Surface = (1.75, 440.0, 1200.0, 0.342, 0.335)
EXACT = FitOptions(draws=0, method="surface_huber")
FEW = FitOptions(draws=300)


def faster(surface: LossSurface, factor: float, noise: float = 0.0, seed: int = 0, **grid: float) -> Points:
    """A sweep of a recipe that is as good as another at `factor` times its compute: L_B(N, D) = L_A(N·√s, D·√s)."""
    root = math.sqrt(factor)
    centres = [surface.optimum(c * factor)[0] / root for c in BUDGETS]
    off, window, sizes = grid.get("off", 1.0), grid.get("window", 4.0), int(grid.get("sizes", 7))
    return sweep_about(lambda n, d: surface.loss(n * root, d * root), BUDGETS, [off * c for c in centres],
                       window=window, sizes=sizes, noise=noise, seed=seed)  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> SweepFit:
    return fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.003, seed=1), FEW)


@pytest.fixture(scope="module")
def better() -> SweepFit:
    return fit_sweep(faster(SURFACES["besiroglu"], 1.3, 0.003, seed=2), FEW)


def at(first: SweepFit, second: SweepFit, budget: float = 1e20) -> SpeedupAt:
    found = compare(first, second, budget).speedup
    assert found is not None
    return found.at


def test_without_noise_the_factors_are_those_of_the_closed_form() -> None:
    """Of the same E and exponents: K_B·C^-gamma = K_A·(s·C)^-gamma; with another E, s = C_A(L_B(C))/C."""
    e, a, b, alpha, beta = BESIROGLU
    gamma = alpha * beta / (alpha + beta)
    own = fit_sweep(sweep_on(BESIROGLU, BUDGETS), EXACT)
    for scale, floor in ((0.9, 0.0), (1.1, 0.0), (1.0, -0.02), (0.95, 0.02)):
        other: Surface = (e + floor, scale * a, scale * b, alpha, beta)
        found = compare(own, fit_sweep(sweep_on(other, BUDGETS), EXACT), 1e20).speedup
        assert found is not None and found.basis == "laws" and found.verdict == "no_interval"
        for one in found.curve:
            excess = (optimum(BESIROGLU, one.budget)[2] - e, scale * (optimum(BESIROGLU, one.budget)[2] - e) + floor)
            assert one.factor == pytest.approx((excess[1] / excess[0]) ** (-1 / gamma), rel=1e-4)
        # L_A(N, s·D) = L_B(N, D) at B's optimum
        n, d, loss = optimum(other, 1e20)
        assert found.tokens is not None and found.tokens.params == pytest.approx(n, rel=1e-4)
        assert loss_of(BESIROGLU)(n, found.tokens.factor * d) == pytest.approx(loss, rel=1e-6)


def test_matched_budgets_measure_the_factor_where_the_curve_misses_the_valley() -> None:
    for name, s in (("besiroglu", 1.3), ("bend", 1.1), ("cross", 0.8)):
        first, second = (fit_sweep(faster(SURFACES[name], x), FitOptions(draws=0)) for x in (1.0, s))
        found = compare(first, second, 1e20).speedup
        assert found is not None and found.basis == "matched_budgets" and found.matched == 5
        for one in found.curve:
            assert one.factor == pytest.approx(s, rel=0.005), name


def test_the_second_is_better_by_what_it_is(plain: SweepFit, better: SweepFit) -> None:
    found = compare(plain, better, 1e20).speedup
    assert found is not None and found.verdict == "better" and found.deciding is None
    assert found.at.interval is not None and found.at.interval.holds(1.3) and found.at.interval.low > 1.2
    assert found.paired and found.basis == "matched_budgets"
    assert found.words.startswith("the second is better: the first needs x1.") and "at C = 1e20" in found.words
    back = compare(better, plain, 1e20).speedup
    assert back is not None and back.verdict == "worse"
    assert back.at.factor == pytest.approx(1 / found.at.factor, rel=0.01)
    far, near = at(plain, better, 1e21).interval, found.at.interval
    assert far is not None and far.factor > near.factor  # the farther, the wider
    wide = compare(plain, fit_sweep(faster(SURFACES["besiroglu"], 1.3, 0.003, seed=2),
                                    replace(FEW, confidence=0.9)), 1e20)  # fmt: skip
    assert wide.confidence == 0.95  # of the first


def test_recipes_that_are_alike_are_not_told_apart_and_what_would_tell_is_said(plain: SweepFit) -> None:
    found = compare(plain, fit_sweep(faster(SURFACES["besiroglu"], 1.02, 0.003, seed=9), FEW), 1e20).speedup
    assert found is not None and found.verdict == "not_told_apart" and found.deciding is not None
    run = found.deciding
    assert run.half_width_after < run.half_width and run.recipe == "both"
    assert run.flops == pytest.approx(2 * run.budget, rel=1e-6) and run.budget in BUDGETS
    assert "one more of both recipes, of one seed, at C = " in run.words


def test_noise_that_pairs_share_leaves_the_difference() -> None:
    base = faster(SURFACES["besiroglu"], 1.0, 0.01, seed=4)
    rng = np.random.default_rng(0)
    second = replace(base, loss=base.loss - 0.004 + 0.001 * rng.standard_normal(len(base)))  # the same seeds and data
    other = faster(SURFACES["besiroglu"], 1.0, 0.01, seed=5)
    alone = replace(other, loss=other.loss - 0.004)
    first, shared, unrelated = (fit_sweep(points, FEW) for points in (base, second, alone))
    one, two = compare(first, shared, 1e20).speedup, compare(first, unrelated, 1e20).speedup
    assert one is not None and two is not None and one.pair_ratio < 0.05
    assert one.at.interval is not None and two.at.interval is not None
    assert np.log(one.at.interval.factor) < np.log(two.at.interval.factor) / 3
    assert one.verdict == "better" and two.verdict == "not_told_apart"
    assert "share noise" in one.basis_words


def side(points: Points) -> Compared:
    """The valleys of a sweep and their laws, without surfaces, which take longer."""
    fit = fit_minima(points, FitOptions(draws=300))
    assert fit.method.laws is not None
    n, d, loss = fit.method.laws
    return Compared(loss=loss, params=n, tokens=d, span=(BUDGETS[0], BUDGETS[-1]), fit=fit, surface=None,
                    surface_draws=None)  # fmt: skip


@pytest.mark.parametrize(("world", "noise"), [("besiroglu", 0.003), ("bend", 0.01)])
def test_intervals_hold_the_factor_and_alike_recipes_are_seldom_told(world: str, noise: float) -> None:
    """30 pairs of sweeps of factors 1 and 1.1, in the data and at ten times their C: .95 is promised."""
    held, told, pairs = 0, 0, 30
    for i in range(pairs):
        first = side(faster(SURFACES[world], 1.0, noise, seed=3 * i))
        for s in (1.0, 1.1):
            second = side(faster(SURFACES[world], s, noise, seed=3 * i + 1))
            for c in (1e19, 1e21):
                one = speedup(first, second, c, 0.95, points=2).at
                assert one.interval is not None
                held += one.interval.holds(s)
                told += s == 1.0 and one.told != 0
    assert held >= 0.9 * 4 * pairs and told <= 0.1 * 2 * pairs


def test_recipes_cross() -> None:
    """The second has a lower floor and a slower fall: worse with little compute, better with much."""
    e, a, b, alpha, beta = BESIROGLU
    gamma = alpha * beta / (alpha + beta)
    excess = optimum(BESIROGLU, 1e19)[2] - e
    # L_B = E - 0.05 + k·(L_A - E), equal at 1e19
    k = 1 + 0.05 / excess
    points = sweep_on((e - 0.05, k * a, k * b, alpha, beta), BUDGETS, noise=0.0005, seed=3)
    first = fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.0005, seed=1), FEW)
    found = compare(first, fit_sweep(points, FEW), 1e20).speedup
    assert found is not None and found.verdict == "crosses" and found.curve[0].told == -1 and found.curve[-1].told == 1
    assert found.crosses_at == pytest.approx(1e19, rel=0.2) and "they cross at C = " in found.words
    low = optimum(BESIROGLU, 1e18)[2] - e
    assert found.curve[0].factor == pytest.approx(((k * low - 0.05) / low) ** (-1 / gamma), rel=0.02)


def test_a_loss_that_the_first_never_reaches_is_incomparable() -> None:
    e, a, b, alpha, beta = BESIROGLU
    first, second = (fit_sweep(sweep_on((floor, a, b, alpha, beta), BUDGETS, noise=0.003, seed=i), FEW)
                     for i, floor in enumerate((e, e - 1.5)))  # fmt: skip
    comparison = compare(first, second, 1e20)
    found = comparison.speedup
    assert found is not None and found.verdict == "incomparable" and math.isinf(found.at.factor)
    assert "are both losses of the same data, tokenizer and unit?" in found.words
    content = json.loads(json.dumps(comparison_to_json(comparison), allow_nan=False))
    assert content["speedup"]["factor"] is None and content["speedup"]["verdict"] == "incomparable"
    known = [Flag("other_loss", "severe", "bits and nats")]
    other = compare(first, second, 1e20, known=known)
    assert other.speedup is None and other.warnings[0] == known[0]
    assert compare(first, PUBLISHED["llama3"], 1e20).speedup is None  # no loss is published


def test_other_budgets_and_windows_are_compared_with_more_doubt(plain: SweepFit) -> None:
    """Wide valleys off their centre have another bias of the curve: the interval holds the surfaces' answer, too."""
    other = fit_sweep(faster(SURFACES["besiroglu"], 1.0, 0.003, seed=7, off=1.6, window=6.0, sizes=9), FEW)
    found = compare(plain, other, 1e19).speedup
    assert found is not None and found.basis == "matched_budgets" and not found.paired
    assert found.at.interval is not None and found.at.interval.holds(1.0)
    assert not found.alike and "the interval holds the surfaces' answer, too" in found.basis_words
    # The same sizes about another optimum, and ln s far from a line: .86 at 1e18, .87 at 1e19, 1.03 at 1e21
    centres = [optimum(BESIROGLU, c)[0] for c in BUDGETS]
    unlike = sweep_about(loss_of(UNLIKE), BUDGETS, centres, noise=0.003, seed=3)
    third = compare(plain, fit_sweep(unlike, FEW), 1e21).speedup
    assert third is not None and third.paired and third.at.interval is not None
    reached = optimum(BESIROGLU, third.at.interval.low * 1e21)[2], optimum(BESIROGLU, third.at.interval.high * 1e21)[2]
    assert reached[1] < optimum(UNLIKE, 1e21)[2] < reached[0]
    apart = sweep_on(BESIROGLU, [1.7 * c for c in BUDGETS], noise=0.003, seed=8)
    by_laws = compare(plain, fit_sweep(apart, FEW), 1e20).speedup
    assert by_laws is not None and by_laws.basis == "laws" and by_laws.verdict == "not_told_apart"


def test_units_and_names_as_a_user_gives_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths: dict[str, Path] = {}
    for name, factor, column in (("a", 1.0, "loss"), ("b", 1.3, "loss"), ("bits", 1.3, "bpb")):
        points = faster(SURFACES["besiroglu"], factor, 0.003, seed=len(paths))
        scale = 1 / math.log(2) if column == "bpb" else 1.0
        frame = pd.DataFrame({"N": points.params, "D": points.tokens, column: scale * points.loss})
        paths[name] = tmp_path / f"{name}.csv"
        frame.to_csv(paths[name], index=False)
    ask = ["compare", paths["a"], paths["b"], "--draws", "300"]
    assert call(*ask, "--confidence", "0.9", "--figure", tmp_path / "both.svg") == 0
    said = capsys.readouterr().out
    assert "90 %: the second is better: the first needs x1." in said and "measured at the 5 budgets" in said
    assert "do not say which data, tokenizer and loss the runs have: taken to be the same in both" in said
    assert "of the tokens, at N = " in said and "speedup of the second" in (tmp_path / "both.svg").read_text()
    assert call("compare", paths["a"], paths["bits"], "--draws", "0") == 0
    said = capsys.readouterr().out
    assert "THE LOSSES ARE IN DIFFERENT UNITS: nats and bits" in said and "of the compute" not in said
    found = compare_by_name(paths["a"], str(paths["b"]), draws=300)
    assert found.speedup is not None and found.speedup.verdict == "better" and found.budget == pytest.approx(1e20)
    assert compare_by_name(paths["a"], "besiroglu2024", 1e20, draws=0).differences[2].difference == pytest.approx(
        1, abs=0.1
    )
    wrong: tuple[tuple[tuple[Any, ...], dict[str, Any], str], ...] = (
        ((paths["a"], "besiroglu2025"), {}, "did you mean 'besiroglu2024'"),
        ((paths["a"], tmp_path / "c.csv"), {}, "c.csv: no such file"),
        ((paths["a"], paths["b"], "1e20"), {}, "budget: must be a number of FLOPs"),
        ((paths["a"], 3), {}, "must be a result, an analysis, a path"),
        ((paths["a"], paths["b"]), {"drws": 3}, "drws: unknown option; did you mean 'draws'"),
    )
    for arguments, options, said in wrong:
        with pytest.raises(SpecError, match=said):
            compare_by_name(*arguments, **options)
