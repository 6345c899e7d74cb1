"""Repeated data: the law of new data comes back from runs that saw theirs many times, and the runs are named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flops_fit_ray.analysis import FitOptions, Points, fit_minima, fit_sweep, fit_to_json, predict
from flops_fit_ray.analysis._methods import Method, surface_method
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.repetition import fit_repetition
from flops_fit_ray.analysis.surface import bootstrap_cases, fit_surface
from flops_fit_ray.errors import SpecError
from flops_fit_ray.fit_options import SurfaceOptions
from flops_fit_ray.sweep.validity import validity_card
from flops_fit_ray.tables import Table
from flops_fit_ray.tables._columns import TableOptions
from flops_fit_ray.tables._read import read_table
from tests.surfaces import BESIROGLU, BUDGETS, optimum, points_from, sweep_on

TRUE = BESIROGLU[4] / (BESIROGLU[3] + BESIROGLU[4])  # the exponent of N_opt for new data


def repeated(
    distinct: float = 3e9, *, scale: float = 15.0, params_scale: float = np.inf, noise: float = 0.0, seed: int = 0
) -> Points:
    """A sweep with `distinct` tokens at most, by equations 5 and 6 of Muennighoff et al. 2023."""
    points = sweep_on(BESIROGLU, BUDGETS)
    e, a, b, alpha, beta = BESIROGLU
    unique = np.minimum(points.tokens, distinct)
    best = np.minimum((alpha * a / (beta * b)) ** (1 / alpha) * unique ** (beta / alpha), points.params)
    d = unique * (1 + scale * (1 - np.exp((1 - points.tokens / unique) / scale)))
    n = points.params
    if np.isfinite(params_scale):
        n = best * (1 + params_scale * (1 - np.exp((1 - n / best) / params_scale)))
    loss = e + a / n**alpha + b / d**beta + noise * np.random.default_rng(seed).standard_normal(len(points))
    return replace(points, loss=loss, unique=unique)


@pytest.mark.parametrize("params_scale", [np.inf, 5.31], ids=["tokens", "tokens and params"])
def test_what_repeats_are_worth_comes_back(params_scale: float) -> None:
    points = repeated(params_scale=params_scale)
    found = fit_repetition(points, SurfaceOptions())
    assert found is not None and found.tokens_scale == pytest.approx(15, rel=1e-5)
    if np.isfinite(params_scale):
        assert found.params_scale == pytest.approx(params_scale, rel=1e-4)
    assert found.max_epochs == pytest.approx(points.tokens.max() / 3e9)
    fit = fit_sweep(points, FitOptions(draws=0))
    assert fit.default == "surface_huber" and fit.params_opt is not None
    assert fit.params_opt.exponent == pytest.approx(TRUE, abs=1e-5)
    assert predict(fit, 1e21).params == pytest.approx(optimum(BESIROGLU, 1e21)[0], rel=1e-3)


def test_the_law_of_new_data_is_inside_of_the_interval_and_outside_of_that_of_valleys() -> None:
    wanted, inside, ignored, scales = SurfaceOptions(), 0, 0, 0
    for seed in range(4):
        points, rng = repeated(1e9, noise=0.003, seed=seed), np.random.default_rng(seed)
        found = fit_repetition(points, wanted)
        assert found is not None and found.tokens_interval is not None
        scales += found.tokens_interval.holds(15)
        known = bootstrap_cases(fit_surface(found.fresh, wanted), found.cases, wanted, 60, rng)
        inside += covers(surface_method(known))
        ignored += covers(fit_minima(points, FitOptions(draws=200)).method)
    assert (inside, ignored) == (4, 0) and scales >= 3


def covers(method: Method) -> bool:
    within = None if method.params_opt is None else method.params_opt.exponent_interval(0.95)
    return within is not None and within.holds(TRUE)


def test_repeated_data_are_named_with_their_number_and_cost() -> None:
    points = repeated()
    fit = fit_sweep(points, FitOptions(draws=0))
    (flag,) = [flag for flag in fit.warnings if flag.code == "repeated_data"]
    often, twice = int((points.tokens > 4 * 3e9).sum()), int((points.tokens > 3e9).sum())
    assert flag.severity == "warning"
    assert str(flag).startswith(f"{twice} of 35 losses are of data seen more than once, up to 26 epochs ({often} more")
    top = int(np.argmax(points.flops))
    e, a, b, alpha, beta = BESIROGLU
    new = e + a / points.params[top] ** alpha + b / points.tokens[top] ** beta
    assert f"the loss at the largest C is {100 * (points.loss[top] / new - 1):.2g} % higher" in str(flag)
    content = fit_to_json(fit)["repetition"]
    assert content["tokens_scale"] == pytest.approx(15, rel=1e-5) and len(content["effective_tokens"]) == 35
    few = fit_sweep(repeated(4e10), FitOptions(draws=0))
    assert few.default == "valley"
    assert [flag.severity for flag in few.warnings if flag.code == "repeated_data"] == ["info"]


def test_tokens_seen_once_change_nothing() -> None:
    points = sweep_on(BESIROGLU, BUDGETS, noise=0.003)
    once = replace(points, unique=points.tokens.copy())
    assert fit_to_json(fit_sweep(once, FitOptions(draws=50))) == fit_to_json(fit_sweep(points, FitOptions(draws=50)))


def table(path: Path, points: Points, **columns: Floats) -> Path:
    named = {"params": points.params, "tokens": points.tokens, "flops": points.flops, "loss": points.loss, **columns}
    rows = ["\n".join(",".join(repr(float(x)) for x in row) for row in zip(*named.values(), strict=True))]
    path.write_text("\n".join([",".join(named), *rows]) + "\n")
    return path


def test_columns_of_distinct_tokens_and_of_epochs_say_the_same(tmp_path: Path) -> None:
    points = repeated()
    assert points.unique is not None
    epochs = points.tokens / points.unique
    read: list[Table] = [
        read_table(table(tmp_path / "unique.csv", points, unique_tokens=np.full(35, 3e9))),
        read_table(table(tmp_path / "epochs.csv", points, epochs=np.where(epochs > 1, epochs, 0.5))),
        read_table(table(tmp_path / "both.csv", points, unique_tokens_b=points.unique / 1e9, num_epochs=epochs)),
    ]
    for one in read:
        assert one.points.unique == pytest.approx(read[0].points.unique)
    assert read[0].points.unique is not None and read[0].points.unique.max() == 3e9
    assert read_table(table(tmp_path / "none.csv", points)).points.unique is None
    card = {item.item: item for item in validity_card(fit_sweep(read[0].points, FitOptions(draws=0)), table=read[0])}
    assert card["data"].verdict == "FAIL" and card["data"].words.startswith("at most 26 epochs; ")


def test_columns_that_contradict_each_other_or_cannot_be_are_refused(tmp_path: Path) -> None:
    points = repeated()
    both = table(tmp_path / "both.csv", points, unique_tokens=np.full(35, 3e9), epochs=np.ones(35))
    with pytest.raises(SpecError, match=r"'unique_tokens' and 'epochs' contradict each other in \d+ rows"):
        read_table(both)
    assert read_table(both, TableOptions(columns={"epochs": "none"})).points.unique is not None
    wrong = table(tmp_path / "wrong.csv", points, unique_tokens=np.full(35, 3.0))
    with pytest.raises(SpecError, match="--unit unique_tokens=B"):
        read_table(wrong)
    right = read_table(wrong, TableOptions(units={"unique_tokens": "B"})).points.unique
    assert right is not None and right.max() == 3e9


def test_losses_of_other_data_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    first, second = repeated(3e9), repeated(1e9)
    names = ("budget", "flops", "params", "tokens", "loss")
    budget, *rest = (np.concatenate([getattr(first, name), getattr(second, name)]) for name in names)
    unique = np.concatenate([first.tokens.clip(max=3e9), second.tokens.clip(max=1e9)])
    both = points_from(budget, *rest, unique=unique)
    different = int((unique[:35] != unique[35:]).sum())
    seeds = fit_sweep(both, FitOptions(draws=0)).seeds
    assert seeds is not None and (seeds.df, seeds.sigma) == (35 - different, 0)  # those that both saw once
    path = table(tmp_path / "two.csv", both, unique_tokens=unique, lr=np.repeat([0.1, 0.2], 35))
    assert len(read_table(path).points) == 35 + different  # the learning rate of one (N, D) and data: the best
