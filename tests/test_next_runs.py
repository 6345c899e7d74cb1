"""The next runs: designs whose best places are known, and what is chosen and refused for tables and sweeps."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flops_fit_ray import next_runs
from flops_fit_ray.analysis import FitOptions, Place, Points, SweepFit, expected_factors, fit_sweep
from flops_fit_ray.analysis._design import LinearLaw, coarse_cells
from flops_fit_ray.analysis._design_search import SetSearch, WeighedLaw
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import FitError, SpecError
from tests.surfaces import BESIROGLU, BUDGETS, optimum, scattered, sweep_on
from tests.test_cli import call
from tests.test_cli_fits import table_at

GOLDEN = Path(__file__).parent / "golden"
X = np.linspace(-1, 1, 21)


def linear(candidates: Floats, wanted: Sequence[float], runs: Floats | None = None, **more: object) -> LinearLaw:
    """A law with one cell, unit noise and a vague prior."""
    size = candidates.shape[1]
    there = np.zeros((0, size)) if runs is None else runs
    content: dict[str, object] = {
        "probability": np.ones(1),
        "prior": np.full((1, size), 1e-6),
        "wanted": np.array(wanted),
        "runs": there,
        "noise": np.ones(len(there)),
        "bias": np.zeros(len(there)),
        "candidates": candidates,
        "candidate_noise": np.ones(len(candidates)),
        "candidate_bias": np.zeros(len(candidates)),
        "skew": 0.0,
        "df": math.inf,
        "informs": np.zeros(len(candidates)),
        "confidence": 0.95,
    }
    return LinearLaw(**(content | more))  # type: ignore[arg-type]


def best(law: LinearLaw, count: int, prices: Floats | None = None) -> list[float]:
    """X of the best runs, where each costs the same and nothing was spent on others that counts."""
    search = SetSearch(
        laws=[WeighedLaw(law=law, weight=1.0, now=1.0)],
        moves=[(i,) for i in range(len(X))],
        allowed=lambda chosen: True,
        price=lambda chosen: float(len(chosen) if prices is None else prices[list(chosen)].sum()),
        spent=1e9,
        at_most=math.inf,
    )
    return sorted(round(float(X[i]), 6) for i in search.best(count))


def test_the_slope_of_a_line_is_told_at_its_ends() -> None:
    line = np.stack([np.ones_like(X), X], axis=1)
    assert best(linear(line, [0.0, 1.0]), 2) == [-1.0, 1.0]
    assert best(linear(line, [0.0, 1.0]), 6) == [-1.0] * 3 + [1.0] * 3


def test_a_line_is_extrapolated_from_both_ends_the_near_one_more() -> None:
    """At x0 beyond [-1, 1] the best shares are (x0 - 1) / 2·x0 at -1 and (x0 + 1) / 2·x0 at 1."""
    line = np.stack([np.ones_like(X), X], axis=1)
    assert best(linear(line, [1.0, 2.0]), 8) == [-1.0] * 2 + [1.0] * 6


def test_the_vertex_of_a_parabola_is_told_on_both_sides_of_it() -> None:
    """L = m + h·(z - v)²: at v = 0 the derivatives are 1, z² and -2hz, and v is the slope there."""
    parabola = np.stack([np.ones_like(X), X**2, -2 * X], axis=1)
    assert best(linear(parabola, [0.0, 0.0, 1.0]), 4) == [-1.0, -1.0, 1.0, 1.0]


def test_a_parabola_that_is_not_true_far_out_is_asked_nearer() -> None:
    """A skew adds s·z³, which no repetition averages out: a vertex by runs at -w and w is off by s·w²/2."""
    parabola = np.stack([np.ones_like(X), X**2, -2 * X], axis=1)
    law = linear(parabola, [0.0, 0.0, 1.0], candidate_bias=X**3, skew=1.0)
    pairs = np.array([[i, i, 20 - i, 20 - i] for i in range(10)])
    # 4 runs: variance 1 / (16 w²) and squared bias s²·w⁴ / 4, least where w⁶ = 1/8
    w = -X[:10]
    half_widths = 1.959964 * np.sqrt(1 / (16 * w**2) + w**4 / 4)
    assert law.half_width(pairs) == pytest.approx(half_widths, rel=1e-4)
    assert w[int(np.argmin(law.half_width(pairs)))] == pytest.approx((1 / 8) ** (1 / 6), abs=0.01)


def test_a_set_of_runs_counts_as_a_refit_with_them() -> None:
    rng = np.random.default_rng(0)
    rows, more, wanted = rng.normal(size=(9, 4)), rng.normal(size=(6, 4)), rng.normal(size=4)
    noise, added = rng.uniform(1, 2, 9), rng.uniform(1, 2, 6)
    bias, biased = rng.normal(size=9), rng.normal(size=6)
    prior = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]])
    law = linear(
        more, list(wanted), rows, probability=np.array([0.5, 0.5]), prior=prior, noise=noise, bias=bias,
        candidate_noise=added, candidate_bias=biased, skew=0.3,
    )  # fmt: skip
    chosen = [4, 1, 1]  # one of them twice
    whole, v, c = np.vstack([rows, more[chosen]]), np.r_[noise, added[chosen]], np.r_[bias, biased[chosen]]
    for cell in range(2):
        k = np.linalg.inv((whole.T / v) @ whole + np.diag(prior[cell]))
        moved = wanted @ k @ (whole.T @ (c / v))
        assert law.variances(np.array(chosen))[cell] == pytest.approx(wanted @ k @ wanted + 0.3 * moved**2, rel=1e-10)


def test_a_mixture_is_as_wide_as_its_quantile_and_noise_known_by_few_runs_wider() -> None:
    one = linear(np.eye(1), [1.0], prior=np.array([[1.0]]))
    none = np.empty((1, 0), dtype=np.int64)
    assert one.half_width(none)[0] == pytest.approx(1.959964, abs=1e-5)
    two = linear(np.eye(1), [1.0], probability=np.array([0.9, 0.1]), prior=np.array([[1.0], [0.01]]))
    w = two.half_width(none)[0]
    phi = [0.5 * math.erfc(-w / sd / math.sqrt(2)) for sd in (1.0, 10.0)]
    assert 0.9 * phi[0] + 0.1 * phi[1] == pytest.approx(0.975, abs=1e-6)
    few = linear(np.eye(1), [1.0], np.eye(1), df=3.0, prior=np.array([[1e-9]]), informs=np.ones(1))
    assert few.half_width(none)[0] == pytest.approx(3.182446, abs=1e-4)  # Student's t, 3 degrees of freedom
    assert few.half_width(np.array([[0]]))[0] == pytest.approx(2.776445 / math.sqrt(2), abs=1e-4)  # 4, and two runs


def test_a_grid_is_joined_without_losing_probability_or_squares() -> None:
    scale = np.array([0.0, 1.0, 2.0, 3.0])
    p = np.arange(1.0, 17.0).reshape(4, 4) / 136
    joined, first, second = coarse_cells(p, scale, scale, step=2)
    assert len(joined) == 9 and joined.sum() == pytest.approx(1)
    assert joined @ first == pytest.approx((p.sum(axis=1) * scale**2).sum())
    assert joined @ second == pytest.approx((p.sum(axis=0) * scale**2).sum())


def test_a_dear_run_is_taken_only_where_it_tells_more() -> None:
    line = np.stack([np.ones_like(X), X], axis=1)
    prices = np.where(X > 0.75, 1e9, 1e6)  # 1.7 times as far out, and as dear as all before
    assert max(best(linear(line, [0.0, 1.0]), 2, prices)) == 0.7


@pytest.fixture(scope="module")
def fit() -> SweepFit:
    return fit_sweep(sweep_on(BESIROGLU, BUDGETS, sizes=5, noise=0.01, seed=3), FitOptions(draws=300))


def bracketed(points: Points, runs: Sequence[Place], surface: tuple[float, ...]) -> bool:
    """Whether every budget has three sizes or more, some on either side of its true minimum."""
    for budget in {run.budget for run in runs}:
        sizes = {*points.params[points.budget == budget], *(run.params for run in runs if run.budget == budget)}
        n = optimum(surface, budget)[0]  # type: ignore[arg-type]
        if len(sizes) < 3 or not min(sizes) < n < max(sizes):
            return False
    return True


def test_the_list_narrows_step_by_step_and_leaves_no_valley_open(fit: SweepFit) -> None:
    chosen = next_runs(fit, 4, 1e21)
    assert len(chosen.runs) == 4 and chosen.flops <= 2 * chosen.spent == 2 * fit.points.flops.sum()
    law = fit.params_opt
    assert law is not None and (within := law.interval(1e21, 0.95)) is not None
    assert chosen.factor == pytest.approx(max(within.high / law.at(1e21), law.at(1e21) / within.low))
    factors = [chosen.factor, *(run.factor for run in chosen.runs)]
    assert all(b <= a * 1.001 for a, b in itertools.pairwise(factors)) and factors[-1] < 0.97 * factors[0]
    places = [Place(budget=run.budget, params=run.params, tokens=run.tokens) for run in chosen.runs]
    assert bracketed(fit.points, places, BESIROGLU)
    assert expected_factors(fit, 1e21, places)["valley"] == pytest.approx(factors[-1])
    assert sum(chosen.weights.values()) == pytest.approx(1) and chosen.weights["valley"] >= 0.5
    assert next_runs(fit, 4, 1e21) == chosen  # the same again


def test_less_may_be_spent(fit: SweepFit) -> None:
    chosen = next_runs(fit, 3, 1e21, at_most=5e18)
    assert len(chosen.runs) == 3 and chosen.flops <= 5e18
    with pytest.raises(FitError, match=r"at most 1e17 FLOPs: the cheapest costs 1e18; raise --at-most"):
        next_runs(fit, 3, 1e21, at_most=1e17)


def test_a_valley_without_a_minimum_is_only_touched_if_it_is_bracketed() -> None:
    points = sweep_on(BESIROGLU, BUDGETS, sizes=5, noise=0.002, seed=0)
    larger = points.params > 0.9 * optimum(BESIROGLU, 1e19)[0]
    open_one = points.pick((points.budget != 1e19) | larger)
    fit = fit_sweep(open_one, FitOptions(draws=200))
    assert [v.status for v in fit.valleys if v.budget == 1e19] != ["interior"]
    chosen = next_runs(fit, 4, 1e21)
    runs = [Place(budget=run.budget, params=run.params, tokens=run.tokens) for run in chosen.runs]
    assert bracketed(open_one, runs, BESIROGLU)
    assert any(run.kind == "bracket" and run.budget == 1e19 for run in chosen.runs)  # one run gives a whole valley


def test_where_no_valley_has_a_minimum_a_surface_asks_for_one() -> None:
    points = sweep_on(BESIROGLU, BUDGETS, noise=0.002, seed=0)
    larger = np.array([1.2 * optimum(BESIROGLU, c)[0] for c in points.budget])
    fit = fit_sweep(points.pick(points.params > larger), FitOptions(draws=200))
    assert not fit.optima and fit.default == "surface_huber"
    places = [Place(budget=run.budget, params=run.params, tokens=run.tokens) for run in next_runs(fit, 3, 1e21).runs]
    assert len(places) == 3 and bracketed(fit.points, places, BESIROGLU)
    with pytest.raises(FitError, match=r"with its minimum between its sizes; ask for 3 runs$"):
        next_runs(fit, 1, 1e21)


def test_scattered_runs_are_asked_for_any_n_and_d() -> None:
    fit = fit_sweep(scattered(BESIROGLU, 60, noise=0.01, seed=1), FitOptions(draws=200))
    assert fit.default == "surface_huber"
    chosen = next_runs(fit, 3, 1e24)
    assert {run.kind for run in chosen.runs} == {"scattered"} and "valley" not in chosen.factors
    assert chosen.runs[-1].factor < chosen.factor


def cut(keep: object) -> SweepFit:
    points = sweep_on(BESIROGLU, BUDGETS[:3], sizes=5, noise=0.002)
    return fit_sweep(points.pick(keep(points)), FitOptions(draws=100))  # type: ignore[operator]


def test_what_cannot_be_narrowed_says_which_runs_would_help(fit: SweepFit) -> None:
    with pytest.raises(FitError, match=r"one more budget gives one: C = 3.16e18 with N = "):
        next_runs(cut(lambda p: p.budget == 1e18), 3)
    with pytest.raises(FitError, match=r"C = 3.16e18 with N = .*, and sizes that may bracket C = 1e18 with N = "):
        next_runs(cut(lambda p: (p.budget == 1e18) & (p.params < optimum(BESIROGLU, 1e18)[0] / 1.5)), 3)
    larger = {c: 1.1 * optimum(BESIROGLU, c)[0] for c in BUDGETS}
    with pytest.raises(FitError, match=r"may bracket its minima: C = 1e18 with N = .* and .*; C = 3e18"):
        next_runs(cut(lambda p: p.params > np.array([larger[c] for c in p.budget])), 3)
    with pytest.raises(FitError, match=r"the noise of the losses is not known.* run C = 1e18, N = .* two more seeds"):
        next_runs(fit_sweep(sweep_on(BESIROGLU, BUDGETS[:3], sizes=3), FitOptions(draws=100)), 3)
    with pytest.raises(FitError, match="draws is 0"):
        next_runs(fit_sweep(fit.points, FitOptions(draws=0)), 3)
    with pytest.raises(SpecError, match=r"--target: C = 1e19 is not beyond the budgets, which reach 1e20.* e.g. 1e21"):
        next_runs(fit, 3, 1e19)
    with pytest.raises(SpecError, match="--next: must be a number of runs"):
        next_runs(fit, 0)
    with pytest.raises(SpecError, match="--at-most: must be a positive number"):
        next_runs(fit, 1, at_most=0.0)


def test_the_command_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_at(tmp_path / "runs.csv", noise=0.01)
    assert call("fit", table, "--draws", "200", "--next", "3", "--target", "5e20") == 0
    out = capsys.readouterr().out
    assert "next runs for N_opt at C = 5e20, now known within x/÷" in out and "% of those spent so far" in out
    assert call("fit", table, "--draws", "200", "--next", "2", "--at", "1e21", "--at-most", "1e19", "--json") == 0
    content = json.loads(capsys.readouterr().out)["next_runs"]
    assert content["target"] == 1e21 and content["flops"] <= 1e19 and 1 <= len(content["runs"]) <= 2
    assert set(content["runs"][0]) >= {"budget", "params", "tokens", "flops", "seconds", "factor", "reason"}
    assert call("fit", table, "--draws", "200", "--next", "2", "--target", "1e19") == 2
    assert "--target: C = 1e19 is not beyond the budgets" in capsys.readouterr().err
    assert call("fit", table, "--target", "1e21") == 2
    assert "--target belongs to --next RUNS" in capsys.readouterr().err
    optima = tmp_path / "optima.csv"
    optima.write_text("C,n_opt\n1e18,1e8\n1e19,3e8\n1e20,1e9\n")
    assert call("fit", optima, "--next", "2") == 2
    assert "--next needs a table of runs, and this is one of optima" in capsys.readouterr().err
