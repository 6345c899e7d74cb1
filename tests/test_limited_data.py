"""The best N and D where only so many distinct tokens exist: told by a brute-force search, covered, refused without."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flops_fit_ray.analysis import FitOptions, Points, SweepFit, fit_sweep, predict, predict_limited
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.console.simulation_text import simulation_text
from flops_fit_ray.errors import FitError
from flops_fit_ray.planning import Measurements, Planner
from flops_fit_ray.planning.loss_surfaces import SURFACES
from flops_fit_ray.spec import make_spec
from flops_fit_ray.sweep.simulate import Simulation, simulate_spec
from tests.surfaces import BESIROGLU, BUDGETS, optimum, sweep_on
from tests.test_cli import call
from tests.test_repetition import repeated
from tests.worlds import DATA, SIZES, adaptive_spec, size


def searched(budget: float, unique: float, params_scale: float) -> tuple[float, float, float]:
    """N, D and L at the minimum over a fine grid, by equations 5 and 6 of Muennighoff et al. 2023 with R_D* = 15."""
    e, a, b, alpha, beta = BESIROGLU
    n = np.geomspace(1e7, 1e11, 200_001)
    d = budget / 6 / n
    u = np.minimum(d, unique)
    seen = u * (1 + 15 * (1 - np.exp((1 - d / u) / 15)))
    counted: Floats = n
    if np.isfinite(params_scale):
        best = np.minimum((alpha * a / (beta * b)) ** (1 / alpha) * u ** (beta / alpha), n)
        counted = best * (1 + params_scale * (1 - np.exp((1 - n / best) / params_scale)))
    loss = e + a / counted**alpha + b / seen**beta
    i = int(np.argmin(loss))
    return float(n[i]), float(d[i]), float(loss[i])


@pytest.mark.parametrize("params_scale", [np.inf, 5.31], ids=["tokens", "tokens and params"])
def test_the_optimum_is_the_one_that_a_search_finds(params_scale: float) -> None:
    fit = fit_sweep(repeated(params_scale=params_scale), FitOptions(draws=0))
    for budget, unique in ((1e20, 3e9), (1e21, 1e10)):
        found = predict_limited(fit, budget, unique)
        n, d, loss = searched(budget, unique, params_scale)
        assert found.params == pytest.approx(n, rel=1e-3) and found.tokens == pytest.approx(d, rel=1e-3)
        assert found.loss == pytest.approx(loss, abs=1e-5)
        assert found.epochs == pytest.approx(d / unique, rel=1e-3) and found.params_interval is None
        more = searched(budget, 2 * unique, params_scale)[2]
        assert found.more_data.loss == pytest.approx(more, abs=1e-5)
        assert found.more_data.gain == pytest.approx(loss - more, abs=1e-5)
        factor = found.more_data.compute_factor
        assert factor is not None and searched(budget * factor, unique, params_scale)[2] == pytest.approx(
            more, abs=2e-4
        )
    enough = predict_limited(fit, 1e21, 1e12)
    assert (enough.more_data.gain, enough.more_data.compute_factor) == (0.0, 1.0)
    new = predict(fit, 1e21)
    assert (enough.params, enough.tokens, enough.loss, enough.epochs) == (new.params, new.tokens, new.loss, 1.0)
    assert enough.params == pytest.approx(optimum(BESIROGLU, 1e21)[0], rel=1e-3)


@pytest.fixture(scope="module")
def noisy() -> SweepFit:
    return fit_sweep(repeated(noise=0.003), FitOptions(draws=200))


def test_intervals_hold_the_optimum_and_are_those_of_new_data_where_there_is_enough(noisy: SweepFit) -> None:
    found = predict_limited(noisy, 1e21, 1e10)
    for within, value in zip(
        (found.params_interval, found.tokens_interval, found.loss_interval), searched(1e21, 1e10, np.inf), strict=True
    ):
        assert within is not None and within.holds(value) and within.factor < 1.2
    gain = searched(1e21, 1e10, np.inf)[2] - searched(1e21, 2e10, np.inf)[2]
    assert found.more_data.gain_interval is not None and found.more_data.gain_interval.holds(gain)
    assert found.run_interval is not None and found.loss_interval is not None
    assert found.run_interval.low < found.loss_interval.low
    enough, new = predict_limited(noisy, 1e21, 1e12), predict(noisy, 1e21)
    assert (enough.params_interval, enough.loss_interval) == (new.params_interval, new.loss_interval)


def test_epochs_beyond_those_of_the_runs_are_an_extrapolation() -> None:
    few = fit_sweep(repeated(4e10), FitOptions(draws=0))
    assert few.repetition is not None
    far = predict_limited(few, 1e18, 1e6)
    beyond = far.epochs / few.repetition.max_epochs
    assert beyond > 20
    (flag,) = [flag for flag in far.warnings if flag.code == "extrapolation"]
    assert str(flag).startswith(f"extrapolation by {beyond:.3g}x: D/U is {beyond:.3g}x larger than any run; ")
    with pytest.raises(FitError, match=r"10 distinct tokens are so few for C = 1e20 that no N is the best"):
        predict_limited(fit_sweep(repeated(params_scale=5.31), FitOptions(draws=0)), 1e20, 10)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (sweep_on(BESIROGLU, BUDGETS), "not known; give a column unique_tokens or epochs"),
        (repeated(1e15), "none of them saw its data more than once"),
        (repeated().pick(np.arange(7)), "7 of data seen more than once|the runs do not tell what that costs"),
    ],
    ids=["unknown", "new", "few"],
)
def test_runs_that_do_not_show_what_repeats_cost_are_no_answer(points: Points, words: str) -> None:
    with pytest.raises(FitError, match=f"do not show what repeated tokens are worth: .*({words})"):
        predict_limited(fit_sweep(points, FitOptions(draws=0)), 1e21, 1e9)


def test_wrong_numbers_and_methods_are_refused(noisy: SweepFit) -> None:
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(FitError, match="U must be a positive number of distinct tokens"):
            predict_limited(noisy, 1e21, wrong)
    with pytest.raises(FitError, match="only a surface tells the optimum, and the method is valley"):
        predict_limited(noisy, 1e21, 1e9, "valley")


def test_a_table_is_asked_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = repeated()
    assert points.unique is not None
    rows = [points.params, points.tokens, points.loss, points.unique]
    text = "\n".join(",".join(repr(float(x)) for x in row) for row in zip(*rows, strict=True))
    path = tmp_path / "runs.csv"
    path.write_text(f"params,tokens,loss,unique_tokens\n{text}\n")
    ask: list[str | Path] = ["predict", "1e21", path, "--unique", "1e10", "--draws", "0"]
    assert call(*ask, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["params"] == pytest.approx(searched(1e21, 1e10, np.inf)[0], rel=2e-3)
    assert said["unique_tokens"] == 1e10 and said["epochs"] == pytest.approx(said["tokens"] / 1e10)
    assert call(*ask) == 0
    out = capsys.readouterr().out
    assert (
        "C = 1e21 FLOPs, 10B distinct tokens (no intervals)" in out
        and "with twice the distinct tokens L is lower by" in out
        and "note: 5.02 epochs, in which a token" in out
    )
    for more, words in (("--seal", "--unique and --seal are"), ("--hours", "--hours and --unique are")):
        wrong = ["predict", *([] if more == "--hours" else ["1e21"]), path, "--unique", "1e10", more]
        assert call(*wrong, *(["8"] if more == "--hours" else [])) == 2
        assert words in capsys.readouterr().err


def simulated(tokens: int, epochs: float, *, noise: float = 0.0) -> Simulation:
    spec = adaptive_spec(data={"train": "m:t", "max_epochs": epochs}, grid={"lr_check": "none", "seeds": 0})
    planner = Planner(spec, Measurements(sizes=SIZES, data=replace(DATA, train_samples=tokens)))
    surface = SURFACES["hoffmann"]
    return simulate_spec(spec, planner.plan(), surface=surface, noise=noise, sweeps=1, slots=(2,))


def test_a_sweep_that_repeats_its_data_is_simulated_so() -> None:
    found = simulated(10**9, 50.0, noise=1e-4)
    assert found.max_epochs > 20 and dict(found.methods) == {"surface_huber": 1}
    assert abs(found.bias) < 0.02 and found.coverage == 1.0
    said = simulation_text(found)
    assert f"data are seen up to {found.max_epochs:.3g} times, and seen again they count for less" in said
    assert "the true N_opt is that of new data; answered by surface_huber in 1" in said
    often = simulated(10**10, 4.0)
    assert 1 < often.max_epochs < 4 and dict(often.methods) == {"valley": 1}
    fresh = simulated(10**13, 1.0)
    assert fresh.max_epochs == 1 and often.bias > fresh.bias + 0.01  # less data than there seem to be: larger models
    assert "seen again" not in simulation_text(fresh)


def test_laws_without_an_interval_are_no_misses() -> None:
    sizes = [[round(3e6 * 10 ** (0.5 * i)) for i in range(k, k + 3)] for k in range(2)]
    budgets = [{"flops": c, "sizes": s} for c, s in zip((1e17, 1e18), sizes, strict=True)]
    base = adaptive_spec().model_dump(mode="json")
    spec = make_spec({**base, "budgets": budgets, "grid": {"lr_check": "none", "seeds": 0}}, "test")
    models = tuple(size(n) for n in sorted({*sizes[0], *sizes[1]}))
    plan = Planner(spec, Measurements(sizes=models, data=DATA)).plan()
    found = simulate_spec(spec, plan, surface=SURFACES["hoffmann"], noise=0.001, sweeps=2, slots=(2,))
    assert (found.answered, found.no_interval) == (2, 2) and math.isnan(found.coverage)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["coverage"] is None
    said = simulation_text(found)
    assert "no interval in 2 of 2; the loss at" in said and "nan" not in said
