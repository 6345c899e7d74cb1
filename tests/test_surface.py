"""The surface comes back from points on it, by both losses; what cannot be told is refused with its reason."""

import math
from dataclasses import replace

import numpy as np
import pytest

from flops_fit_ray.analysis import (
    FitOptions,
    Points,
    analyse,
    analysis_to_json,
    fit_minima,
    fit_sweep,
    predict,
    sensitivity,
)
from flops_fit_ray.analysis._law_choice import choose
from flops_fit_ray.analysis._sweep_fit import _surface
from flops_fit_ray.analysis.surface import (
    SurfaceOptions,
    bootstrap_surface,
    fit_cost_law,
    fit_surface,
    fit_token_cost,
    refit_surfaces,
)
from flops_fit_ray.analysis.surface._cost import fit_cost_curve
from flops_fit_ray.analysis.surface._estimate import _status
from flops_fit_ray.analysis.surface._huber import LOWER, UPPER, HuberProblem, derivatives
from flops_fit_ray.analysis.surface._search import scaled_problem
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import MethodName
from tests.surfaces import (
    BESIROGLU,
    BUDGETS,
    HOFFMANN,
    LOPSIDED,
    SYMMETRIC,
    Surface,
    optimum,
    points_from,
    scattered,
    sweep_on,
)

LOSSES = ("huber", "squared")
SURFACES = {"hoffmann": HOFFMANN, "besiroglu": BESIROGLU, "symmetric": SYMMETRIC}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_a_surface_without_noise_comes_back(surface: Surface, loss: str) -> None:
    for points in (sweep_on(surface, BUDGETS), scattered(surface, 40)):
        fit = fit_surface(points, SurfaceOptions(loss=loss))  # type: ignore[arg-type]
        assert fit.status == "converged" and fit.surface is not None
        e, a, b, alpha, beta = surface
        assert fit.surface.alpha[0] == pytest.approx(alpha, abs=1e-6)
        assert fit.surface.beta[0] == pytest.approx(beta, abs=1e-6)
        assert np.exp(fit.surface.log_e[0]) == pytest.approx(e, rel=1e-6)
        assert np.exp(fit.surface.log_a[0]) == pytest.approx(a, rel=1e-4)
        assert np.exp(fit.surface.log_b[0]) == pytest.approx(b, rel=1e-4)
        assert fit.cost is not None
        assert fit.surface.params_exponent(fit.cost)[0] == pytest.approx(beta / (alpha + beta), abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_its_laws_are_those_of_the_closed_form(loss: str) -> None:
    fit = fit_sweep(sweep_on(HOFFMANN, BUDGETS), FitOptions(draws=0, method=f"surface_{loss}"))  # type: ignore[arg-type]
    for budget in (1e18, 1e21, 5.76e23):
        answer = predict(fit, budget)
        n, d, value = optimum(HOFFMANN, budget)
        assert (answer.params, answer.tokens, answer.loss) == pytest.approx((n, d, value), rel=1e-5)
    law = fit.loss_opt
    assert law is not None and law.offset == pytest.approx(1.69, rel=1e-6)
    assert law.exponent == pytest.approx(-0.34 * 0.28 / 0.62, abs=1e-6)  # -alpha·beta / (alpha + beta)


def _ladder(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N and FLOPs per token of four blocks of width d, 256 symbols and 256 positions: 3 to 1.05 times 6·N."""
    params = 4 * 12 * widths**2 + 2 * 256 * widths
    return params, 6 * (params - 256 * widths) + 12 * 4 * 256 * widths


@pytest.mark.parametrize("surface", [HOFFMANN, BESIROGLU, LOPSIDED])
def test_the_optimum_follows_the_cost_of_a_token(surface: Surface) -> None:
    """With the cost taken for a power of N, N_opt is 5 to 12 % too high from the largest budget on."""
    e, a, b, alpha, beta = surface

    def loss(width: np.ndarray, budget: float) -> np.ndarray:
        n, per_token = _ladder(width)
        return np.asarray(e + a / n**alpha + b / (budget / per_token) ** beta)

    def best(budget: float) -> float:  # by brute force
        widths = np.geomspace(4, 1e6, 100_001)
        return float(widths[loss(widths, budget).argmin()])

    ladder, rows = np.geomspace(8, 4096, 22).round(), []
    for budget in np.geomspace(1e15, 1e18, 5):
        near = ladder[np.argsort(np.abs(np.log(ladder / best(budget))))[:7]]
        n, per_token = _ladder(near)
        rows.append(np.stack([np.full(7, budget), np.full(7, budget), n, budget / per_token, loss(near, budget)]))
    points = points_from(*np.concatenate(rows, axis=1))
    for measured in (None, _ladder(ladder)):
        fit = fit_sweep(replace(points, token_cost=measured), FitOptions(draws=20, method="surface_huber"))
        law = fit.params_opt
        assert law is not None and "curved as FLOPs per token are no power of N" in law.formula
        for budget in (1e15, 1e18, 1e19, 1e20):
            width, answer = best(budget), predict(fit, budget)
            n, per_token = _ladder(np.array([width]))
            assert answer.params == pytest.approx(n[0], rel=1e-3)
            assert answer.tokens == pytest.approx(budget / per_token[0], rel=2e-3)
            assert answer.loss == pytest.approx(loss(np.array([width]), budget)[0], rel=1e-4)
            interval = law.interval(budget, 0.95)
            assert interval is not None and interval.low == pytest.approx(answer.params, rel=1e-6)  # there is no noise
        panel = sensitivity(fit, 1e19)
        assert panel is not None and panel.rows[0].params is not None
        straight = next(row for row in panel.rows if row.lever == "the cost of a token")
        assert straight.params is not None and 1.05 < straight.params / panel.rows[0].params < 1.12
        chord = math.log(law.at(1e18) / law.at(1e15)) / math.log(1e3)
        assert law.exponent == pytest.approx(chord, rel=1e-9)
        assert law.coefficient * 1e15**law.exponent == pytest.approx(law.at(1e15), rel=1e-9)


def test_a_cost_that_is_a_power_of_n_stays_one() -> None:
    n = np.geomspace(1e6, 1e9, 12)
    noisy = 6 * n * np.exp(0.03 * np.random.default_rng(0).standard_normal(12))
    nearly = 6 * n * (1 + 8e-4 * np.sin(n))
    for per_token in (6 * n, 50 * n**0.9, nearly, noisy):
        assert fit_cost_curve(n, per_token) is None
    few = _ladder(np.array([8.0, 64.0, 512.0, 4096.0]))
    assert fit_cost_curve(*few) is None  # four sizes say nothing of a curve


def test_the_cost_of_a_token_is_known_beyond_the_sizes_too() -> None:
    """And its derivatives, which place the optimum, are those of the curve."""
    curve = fit_cost_curve(*_ladder(np.geomspace(16, 256, 10)))
    assert curve is not None
    n, per_token = _ladder(np.array([8.0, 100.0, 1024.0, 8192.0]))
    value, slope, bend = curve.at(np.log(n))
    assert np.exp(value[1:]) == pytest.approx(per_token[1:], rel=1e-3) and slope[-1] == pytest.approx(1, abs=5e-3)
    step, inside = 1e-5, np.log(n[1:3])
    up, down = curve.at(inside + step), curve.at(inside - step)
    assert (up[0] - down[0]) / (2 * step) == pytest.approx(slope[1:3], rel=1e-6)
    assert (up[1] - down[1]) / (2 * step) == pytest.approx(bend[1:3], rel=1e-4)
    other = fit_cost_law(n, np.ones(4), 1.5 * per_token)  # a sweep that counted its FLOPs by another rule
    assert fit_token_cost(n, np.ones(4), 1.5 * per_token, _ladder(np.geomspace(16, 256, 10))).log_k == other.log_k


def test_c_is_what_the_points_say_and_not_6nd() -> None:
    points = scattered(BESIROGLU, 60)
    spent = replace(points, flops=50 * points.params**0.9 * points.tokens)
    cost = fit_cost_law(spent.params, spent.tokens, spent.flops)
    assert (math.exp(cost.log_k), cost.n_exponent) == pytest.approx((50, 0.9), rel=1e-9)
    fit = fit_sweep(spent, FitOptions(draws=0, method="surface_huber"))
    assert fit.params_opt is not None and fit.tokens_opt is not None
    alpha, beta = BESIROGLU[3:]
    a, b = fit.params_opt.exponent, fit.tokens_opt.exponent
    assert a == pytest.approx(beta / (alpha + 0.9 * beta), abs=1e-6)
    assert 0.9 * a + b == pytest.approx(1, abs=1e-9)
    budget = 1e21  # the minimum along C = 50·N^0.9·D, by brute force
    n = np.geomspace(1e7, 1e12, 400_001)
    e, big_a, big_b, alpha, beta = BESIROGLU
    loss = e + big_a / n**alpha + big_b / (budget / 50 / n**0.9) ** beta
    assert predict(fit, budget).params == pytest.approx(n[loss.argmin()], rel=1e-4)
    assert predict(fit, budget).loss == pytest.approx(loss.min(), rel=1e-9)


@pytest.mark.parametrize("size", [5, 6])
def test_gradient_and_hessian_are_those_of_the_objective(size: int) -> None:
    points = scattered(BESIROGLU, 30, noise=0.02)
    x, y = np.log(points.params), np.log(points.tokens)
    x, y = x - x.mean(), y - y.mean()
    theta = np.array([[-1.0, 0.3, -1.2, 0.35, 0.6, -0.4][:size]])  # the last is ln k of the coupled law
    problem = HuberProblem(x=x, y=y, delta=0.01, undertuned=0.4, free=np.ones(size, dtype=bool))
    rng = np.random.default_rng(0)
    log_loss, w = np.log(points.loss)[None, :], rng.uniform(0.5, 2, (1, 30))
    _, gradient, hessian, majoriser = derivatives(problem, theta, log_loss, w)
    step = 1e-6
    for i in range(size):
        up, down = theta.copy(), theta.copy()
        up[0, i] += step
        down[0, i] -= step
        above, below = derivatives(problem, up, log_loss, w), derivatives(problem, down, log_loss, w)
        assert (above[0] - below[0])[0] / (2 * step) == pytest.approx(gradient[0, i], rel=1e-6, abs=1e-9)
        assert (above[1] - below[1])[0] / (2 * step) == pytest.approx(hessian[0, i], rel=1e-4, abs=1e-5)
    assert np.linalg.eigvalsh(majoriser[0]).min() > 0


def test_the_huber_loss_bears_outliers_and_squared_error_does_not() -> None:
    points = scattered(BESIROGLU, 100, noise=0.002)
    loss = points.loss.copy()
    loss[::25] += 0.3
    bad = replace(points, loss=loss)
    truth = BESIROGLU[4] / (BESIROGLU[3] + BESIROGLU[4])
    errors = []
    for kind in LOSSES:
        fit = fit_surface(bad, SurfaceOptions(loss=kind))  # type: ignore[arg-type]
        assert fit.surface is not None and fit.cost is not None
        errors.append(abs(fit.surface.params_exponent(fit.cost)[0] - truth))
    assert errors[0] < 0.01 < errors[1]


def test_undertuned_runs_pull_less() -> None:
    points = scattered(BESIROGLU, 100, noise=0.001)
    loss = points.loss.copy()
    loss[::3] += 0.1  # a third of the runs could be better
    bad = replace(points, loss=loss)
    below = []
    for weight in (1.0, 0.1):
        fit = fit_surface(bad, SurfaceOptions(loss="huber", delta=0.05, undertuned=weight))
        below.append(float(np.mean(fit.residuals < -0.002)))
    assert below[1] < 0.5 * below[0]  # the good runs lie on the surface, not below it


@pytest.mark.parametrize("loss", LOSSES)
def test_pins_hold(loss: str) -> None:
    points = scattered(BESIROGLU, 60, noise=0.01)
    free = fit_surface(points, SurfaceOptions(loss=loss))  # type: ignore[arg-type]
    for pins in ({"E": 1.8172}, {"alpha": 0.3478}, {"beta": 0.3658}, {"E": 1.8172, "alpha": 0.3478, "beta": 0.3658}):
        fit = fit_surface(points, SurfaceOptions(loss=loss, pins=pins))  # type: ignore[arg-type]
        assert fit.usable and fit.surface is not None
        found = {"E": np.exp(fit.surface.log_e[0]), "alpha": fit.surface.alpha[0], "beta": fit.surface.beta[0]}
        assert {name: found[name] for name in pins} == pytest.approx(pins, rel=1e-12)
        assert fit.objective is not None and free.objective is not None and fit.objective >= free.objective
    for wrong, words in (({"A": 1.0}, "only E, alpha and beta"), ({"E": -1.0}, "must be a number above 0")):
        with pytest.raises(FitError, match=words):
            SurfaceOptions(loss=loss, pins=wrong)  # type: ignore[arg-type]


def test_a_true_pin_narrows_the_answer() -> None:
    points = scattered(BESIROGLU, 60, noise=0.02)
    widths = []
    for pins in ({}, {"alpha": 0.3478}):
        fit = fit_sweep(points, FitOptions(draws=400, method="surface_squared", pins=pins))
        assert fit.params_opt is not None
        interval = fit.params_opt.exponent_interval(0.95)
        assert interval is not None
        widths.append(interval.high - interval.low)
    assert widths[1] < 0.8 * widths[0]


def test_what_cannot_be_told_is_unidentified_and_says_why() -> None:
    points = scattered(BESIROGLU, 40)
    one_budget = sweep_on(BESIROGLU, [1e20], sizes=9)
    fixed_ratio = replace(points, tokens=20 * points.params)
    same_tokens = replace(points, tokens=np.full(40, 1e10))
    rising = replace(points, loss=10 - points.loss)
    cases = [
        (points.pick(np.arange(40) < 5), "5 points for 5 parameters"),
        (one_budget, "one budget"),
        (fixed_ratio, "D/N is fixed"),
        (same_tokens, "1 different values of D"),
        (rising, ""),
    ]
    for bad, words in cases:
        for kind in LOSSES:
            fit = fit_surface(bad, SurfaceOptions(loss=kind))  # type: ignore[arg-type]
            assert fit.status in ("unidentified", "at_bound", "ill_conditioned", "not_converged"), (words, kind)
            if words:
                assert fit.status == "unidentified" and words in fit.reason
                assert fit.surface is None and not fit.usable
            else:
                assert not fit.usable, kind


@pytest.mark.parametrize("loss", LOSSES)
def test_no_unit_changes_the_answer(loss: str) -> None:
    points, options = scattered(BESIROGLU, 60, noise=0.02), SurfaceOptions(loss=loss)  # type: ignore[arg-type]
    answers = []
    for s, n, d in ((1.0, 1.0, 1.0), (1e5, 1e-6, 1e9), (1e-6, 1e3, 1e-9)):
        scaled = replace(points, loss=s * points.loss, params=n * points.params, tokens=d * points.tokens)
        rng = np.random.default_rng(0)
        fit = bootstrap_surface(fit_surface(scaled, options), scaled, options, 50, rng)
        assert fit.status == "converged" and fit.surface is not None and fit.draws is not None and fit.lost_draws == 0
        s0, drawn = fit.surface, fit.draws
        answers.append([np.concatenate([v.alpha, v.beta, np.exp(v.log_e) / s]) for v in (s0, drawn)])
    for values, others in ((answers[0], answers[1]), (answers[0], answers[2])):
        assert others[0] == pytest.approx(values[0], rel=1e-9)
        assert others[1] == pytest.approx(values[1], rel=1e-7)  # draws are searched less far


def _huber(points: Points, theta: np.ndarray, e: float = 0.0) -> float:
    log_a, alpha, log_b, beta = theta
    n, d = np.log(points.params), np.log(points.tokens)
    size = np.abs(np.log(np.exp(log_a - alpha * n) + np.exp(log_b - beta * d) + e) - np.log(points.loss))
    return float(np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum())


def test_where_e_is_zero_the_rest_is_at_its_minimum() -> None:
    """ln E has no end at E = 0, so a search over it alone stops on the way: a ten-thousandth above the minimum."""
    points = scattered((0.0, 482.01, 2085.43, 0.3478, 0.3658), 17, noise=0.01, seed=1)
    fit = fit_surface(points, SurfaceOptions())
    assert fit.status == "at_bound" and "E was fitted as 0" in fit.reason and fit.surface is not None
    s, lowest = fit.surface, fit.objective
    assert lowest is not None and np.exp(s.log_e[0]) == 0.0
    best = np.array([s.log_a[0], s.alpha[0], s.log_b[0], s.beta[0]])
    assert lowest == pytest.approx(_huber(points, best), rel=1e-9)
    towards = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0] * 1e-4
    assert all(_huber(points, best + sign * step) > lowest for step in towards for sign in (-1, 1))
    assert _huber(points, best, e=1e-4) > lowest
    drawn = bootstrap_surface(fit, points, SurfaceOptions(), 100, np.random.default_rng(0)).draws
    assert drawn is not None and 0.3 < np.mean(np.exp(drawn.log_e) == 0) < 0.7  # as far above 0 as below it


def test_no_interval_where_the_design_cannot_bear_one() -> None:
    rng = np.random.default_rng(0)
    e, a, b, alpha, beta = BESIROGLU

    def runs(n: np.ndarray, d: np.ndarray, steep: float = alpha) -> Points:
        loss = e + a * 1e8 ** (steep - alpha) / n**steep + b / d**beta + 0.01 * rng.standard_normal(len(n))
        return points_from(6 * n * d, 6 * n * d, n, d, loss, labelled=False)

    n, d = 10 ** rng.uniform(7, 10, 40), np.geomspace(1e9, 1e12, 8)
    sizes = [np.repeat(1e8 * np.geomspace(1, span, 4), 8) for span in (1.03, 1.8, 30)]
    budgets = sweep_on(BESIROGLU, [1e18, 1.1e18], noise=0.01)
    cases = [
        (runs(n, 20 * n * np.exp(0.1 * rng.standard_normal(40))), "ill_conditioned", "(correlation 0.99"),
        (budgets, "ill_conditioned", "the budgets hardly differ"),
        (runs(sizes[0], np.tile(d, 4)), "unidentified", "1 different values of N (4 within x1.03)"),
        (runs(sizes[1], np.tile(d, 4)), "ill_conditioned", "N varies by x1.8 only"),
        (runs(sizes[2], np.tile(d, 4), steep=2.6), "unidentified", "the loss would fall as N^-2."),
        (
            runs(n / 30, 1e4 * n * np.exp(rng.standard_normal(40))),
            "ill_conditioned",
            "is larger than any N that was run",
        ),
    ]
    for points, status, words in cases:
        for kind in LOSSES:
            options = SurfaceOptions(loss=kind)  # type: ignore[arg-type]
            fit = bootstrap_surface(fit_surface(points, options), points, options, 20, rng)
            assert (fit.status, fit.draws) == (status, None) and words in fit.reason, (words, kind, fit.reason)


def test_no_irreducible_loss_is_named_a_bound() -> None:
    points = scattered((1e-9, 482.01, 2085.43, 0.3478, 0.3658), 60)
    for kind in LOSSES:
        fit = fit_surface(points, SurfaceOptions(loss=kind))  # type: ignore[arg-type]
        assert fit.usable and fit.surface is not None
        assert fit.surface.alpha[0] == pytest.approx(0.3478, abs=1e-3)
        assert float(np.exp(fit.surface.log_e[0])) < 1e-3


def test_a_loss_below_the_power_laws_has_an_irreducible_loss_of_zero() -> None:
    points = scattered((-0.1, 482.01, 2085.43, 0.3478, 0.3658), 60)  # squared error alone would put E at -0.1
    assert points.loss.min() > 0
    fit = fit_surface(points, SurfaceOptions(loss="squared"))
    assert fit.surface is not None and float(np.exp(fit.surface.log_e[0])) == 0.0


def test_starts_are_counted() -> None:
    fit = fit_surface(scattered(BESIROGLU, 60, noise=0.01), SurfaceOptions(loss="huber"))
    assert fit.starts is not None
    assert 1 <= fit.starts.arrived <= fit.starts.total == 9
    assert fit.starts.exponent_low <= fit.starts.exponent_high


def test_refits_are_what_a_fit_of_their_own_would_be() -> None:
    """Every bootstrap draw sits in a minimum as good as a full multi-start search finds for the same weights."""
    points = scattered(BESIROGLU, 40, noise=0.01)
    options = SurfaceOptions(loss="huber")
    fit = fit_surface(points, options)
    rng = np.random.default_rng(1)
    weights = np.stack([np.bincount(rng.integers(0, 40, 40), minlength=40) for _ in range(20)]).astype(float)
    found = refit_surfaces(fit, points, options, loss=points.loss, weights=weights)
    for i in range(20):
        alone = fit_surface(points, options, weights=weights[i])
        fitted = np.log(found.at(i).loss(points.params, points.tokens)) - np.log(points.loss)
        size = np.abs(fitted)
        value = weights[i] @ np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4))
        assert alone.objective is not None
        assert value <= alone.objective * (1 + 1e-4)


def test_runs_are_drawn_whole() -> None:
    """Ten copies of each run are no ten runs: the interval must not shrink."""
    one = scattered(BESIROGLU, 120, noise=0.02)
    many = points_from(
        *(np.tile(getattr(one, f), 10) for f in ("budget", "flops", "params", "tokens", "loss")), labelled=False
    )
    clustered = replace(many, run=np.tile(np.arange(120), 10))
    widths = []
    for points in (one, clustered, many):
        options = SurfaceOptions(loss="squared")
        fit = bootstrap_surface(fit_surface(points, options), points, options, 400, np.random.default_rng(0))
        assert fit.draws is not None and fit.lost_draws == 0 and "with replacement" in fit.resampled
        widths.append(float(np.std(fit.draws.alpha)))
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] == pytest.approx(widths[0] / math.sqrt(10), rel=0.15)


@pytest.mark.parametrize(("noise", "name", "width"), [(0.003, "surface_squared", 1.25), (0.01, "surface_huber", 1.7)])
def test_intervals_of_surfaces_cover_what_they_say(noise: float, name: MethodName, width: float) -> None:
    """95 % intervals of a and of N at ten times the data hold the truth, and are no wider than measured.

    A bend that the budgets do not rule out is in them, and on an exact law there is none.
    """
    truth = optimum(BESIROGLU, 1e21)[0]
    a = BESIROGLU[4] / (BESIROGLU[3] + BESIROGLU[4])
    held, factors = [], []
    for seed in range(80):
        points = sweep_on(BESIROGLU, BUDGETS, sizes=5, noise=noise, seed=seed)
        options = FitOptions(draws=200, seed=seed)
        law = _surface(points, options, name, 200, fit_minima(points, options), None).params_opt
        assert law is not None
        interval, answer = law.exponent_interval(0.95), law.interval(1e21, 0.95)
        assert interval is not None and answer is not None
        held.append([interval.holds(a), answer.holds(truth)])
        factors.append(answer.factor)
    assert np.all(np.mean(held, axis=0) > 0.9), np.mean(held, axis=0)
    assert np.median(factors) < width, np.median(factors)


def test_every_status_has_its_case() -> None:
    points = scattered(BESIROGLU, 40, noise=0.01)
    options = SurfaceOptions(loss="huber")
    frame, ones = scaled_problem(points, options), np.ones(40)
    start = np.array([-1.0, 0.3, -1.0, 0.3, 0.5])
    assert _status(frame, start, start, False, ones)[0] == "did_not_move"
    assert _status(frame, start + 0.1, start, False, ones)[0] == "not_converged"
    assert _status(frame, start, start - 1, True, ones)[0] == "converged"
    bound = start.copy()
    bound[4] = LOWER[4]
    assert _status(frame, bound, start, True, ones)[0] == "at_bound"
    ran = start.copy()
    ran[1] = UPPER[1]
    assert _status(frame, ran, start, True, ones)[0] == "unidentified"
    assert _status(frame, np.full(5, np.nan), start, True, ones)[0] == "unidentified"
    line = np.linspace(-1, 1, 40)  # nearly one line: only a ten-thousandth tells N from D
    thin = replace(frame, x=line, y=line * (1 + 1e-7))
    assert _status(thin, np.array([-1.0, 0.3, -1.0, 0.3, 0.5]), start - 1, True, ones)[0] == "ill_conditioned"


def _coupled_losses(points: Points, k: float, noise: float = 0.0, seed: int = 0) -> Points:
    """L = 1.2 + (2000/N^0.5 + 8000/D^0.45)^k."""
    inner = 2000 / points.params**0.5 + 8000 / points.tokens**0.45
    scatter = noise * np.random.default_rng(seed).standard_normal(len(points))
    return replace(points, loss=1.2 + inner**k + scatter)


@pytest.mark.parametrize("k", [0.4, 1.0, 1.6])
def test_the_coupled_law_comes_back(k: float) -> None:
    fit = fit_sweep(_coupled_losses(scattered(BESIROGLU, 60), k), FitOptions(draws=0, method="surface_coupled"))
    surface = fit.answer.surface
    assert surface is not None and surface.status == "converged" and surface.surface is not None
    s = surface.surface
    found = [np.exp(s.log_e[0]), s.alpha[0], s.beta[0], s.k[0]]
    assert found == pytest.approx([1.2, 0.5, 0.45, k], abs=1e-5)
    n, d, inner = optimum((0.0, 2000, 8000, 0.5, 0.45), 1e21)  # N_opt is that of the inner sum, whatever k
    answer = predict(fit, 1e21)
    assert (answer.params, answer.tokens, answer.loss) == pytest.approx((n, d, 1.2 + inner**k), rel=1e-4)
    assert fit.loss_opt is not None and fit.loss_opt.exponent == pytest.approx(-k * 0.5 * 0.45 / 0.95, abs=1e-5)


def test_a_k_that_is_not_told_from_1_is_named() -> None:
    options = SurfaceOptions(form="coupled")
    for points, status in (
        (scattered(BESIROGLU, 60, noise=0.02), "same_as_additive"),
        (_coupled_losses(scattered(BESIROGLU, 60), 0.5, noise=0.005), "converged"),
    ):
        fit = bootstrap_surface(fit_surface(points, options), points, options, 200, np.random.default_rng(0))
        assert fit.status == status and fit.usable and fit.draws is not None
        assert ("not told from 1" in fit.reason) == (status == "same_as_additive")
        low, high = np.nanquantile(fit.draws.k, [0.025, 0.975])
        assert low < (1.0 if status == "same_as_additive" else 0.5) < high and (high < 1) == (status == "converged")


def test_the_law_is_chosen_by_losses_that_it_has_not_seen() -> None:
    options, rate = FitOptions(draws=0), 0
    coupled = fit_sweep(_coupled_losses(scattered(BESIROGLU, 60), 0.5, noise=0.005), options)
    assert coupled.default == "surface_coupled" and coupled.choices[0].blocks == 3
    errors = coupled.choices[0].errors
    assert errors["coupled"] is not None and errors["additive"] is not None
    assert errors["coupled"] < 0.8 * errors["additive"] and any(f.code == "surface_chosen" for f in coupled.warnings)
    for seed in range(6):  # one more parameter always fits better, and must not be chosen for that
        rate += fit_sweep(scattered(BESIROGLU, 60, noise=0.01, seed=seed), options).default == "surface_coupled"
    assert rate <= 1
    asked = fit_sweep(_coupled_losses(scattered(BESIROGLU, 60), 0.5), FitOptions(draws=0, method="surface_huber"))
    assert asked.default == "surface_huber" and not asked.choices


def test_the_surface_beside_valleys_is_chosen_too() -> None:
    fit = fit_sweep(_coupled_losses(sweep_on(BESIROGLU, BUDGETS), 0.5, noise=0.001), FitOptions(draws=0))
    assert fit.default == "valley" and fit.surface.name == "surface_coupled"
    made = analyse(fit)
    assert sum("surface: coupled, because it predicts clearly better" in str(flag) for flag in made.warnings) == 1
    assert made.agreement is not None and "surface, coupled law" in made.agreement.message
    content = analysis_to_json(made)["choices"]
    assert [(one["what"], one["chosen"], one["base"]) for one in content] == [("surface", "coupled", "additive")]


def test_a_choice_needs_most_blocks_and_a_clear_margin() -> None:
    base = np.array([4.0, 4.0, 4.0])
    others = {"clear": [1.0, 1.0, 4.1], "narrow": [3.0, 3.0, 3.0], "once": [0.1, 4.1, 4.1], "lost": [0.1, np.nan, 0.1]}
    chosen = {n: choose("law", {"base": base, n: np.array(e)}, "base").chosen for n, e in others.items()}
    assert chosen == {"clear": "clear", "narrow": "base", "once": "base", "lost": "base"}
    every = choose("law", {"base": base, **{n: np.array(e) for n, e in others.items()}}, "base")
    assert every.errors["base"] == 2.0 and every.errors["lost"] is None and "base 2e+02 %" in every.sentence
