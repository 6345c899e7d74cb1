"""Surfaces of simulated sweeps: optima against closed forms, and functions of the user's own, used or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flops_fit_ray.console.simulation_text import simulation_text
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Measurements
from flops_fit_ray.planning.loss_surfaces import ADDITIVE, SURFACES, LossSurface, stated_surface
from flops_fit_ray.sweep.simulate import _Truth, simulate_spec
from flops_fit_ray.training.user.loss_surface import load_surface
from tests.surfaces import optimum
from tests.worlds import DATA, SIZES, adaptive_spec, planner_of

C = 1e20


@pytest.mark.parametrize("name", ADDITIVE)
def test_the_optimum_of_an_additive_surface_is_that_of_the_closed_form(name: str) -> None:
    surface = SURFACES[name]
    assert surface.constants is not None
    for budget in (1e9, 1e20, 1e28):  # N_opt far outside of where the search begins, and inside
        assert surface.optimum(budget) == pytest.approx(optimum(surface.constants, budget), rel=1e-6)


def test_the_optimum_at_another_cost_of_a_token() -> None:
    """FLOPs per token k·N^c: alpha·A/N^alpha = c·beta·B/D^beta (Hoffmann et al. 2022, eq. 4, for any c)."""
    surface = SURFACES["hoffmann"]
    assert surface.constants is not None
    _, a, b, alpha, beta = surface.constants
    n, d, loss = surface.optimum(C, lambda params: 20 * params**0.9)
    assert 20 * n**0.9 * d == pytest.approx(C, rel=1e-12)
    assert alpha * a / n**alpha == pytest.approx(0.9 * beta * b / d**beta, rel=1e-5)
    assert loss == pytest.approx(surface.loss(n, d), rel=1e-12)


def test_the_optimum_of_kaplans_surface() -> None:
    """With D = C/6N, p/N^r + q·N is smallest at N^(r+1) = r·p/q, p = 6.4e13^r, q = 6·1.8e13/C."""
    r = 0.076 / 0.103
    n = (r * 6.4e13**r / (6 * 1.8e13 / C)) ** (1 / (r + 1))
    loss = ((6.4e13 / n) ** r + 6 * n * 1.8e13 / C) ** 0.103
    assert SURFACES["kaplan"].optimum(C) == pytest.approx((n, C / 6 / n, loss), rel=1e-6)


def test_a_term_of_the_budget_alone_moves_no_optimum() -> None:
    n, d, loss = SURFACES["besiroglu"].optimum(C)
    assert SURFACES["cross"].optimum(C) == pytest.approx((n, d, loss + 3e4 * (C / 6) ** -0.27), rel=1e-6)


def test_the_other_worlds_leave_besiroglus_where_they_say() -> None:
    base, (n, d) = SURFACES["besiroglu"].loss, (1e8, 2e9)
    assert SURFACES["bend"].loss(n, d) == pytest.approx(base(n, d))  # the same at N = 1e8, and its exponent there
    below, above = np.exp([-0.01, 0.01]) * n
    term = [SURFACES["bend"].loss(m, 1e300) - 1.8172 for m in (below, above)]
    assert np.log(term[0] / term[1]) / 0.02 == pytest.approx(0.3478)
    assert SURFACES["small"].loss(2e7, d) == pytest.approx(base(2e7, d) + 482.01 / 2e7**0.3478)
    assert SURFACES["odd"].loss(n, 20 * n) == pytest.approx(base(n, 20 * n))
    assert SURFACES["odd"].loss(n, 20 * np.e**3 * n) == pytest.approx(base(n, 20 * np.e**3 * n) + 0.036)


def test_five_numbers_are_a_surface_and_others_are_refused() -> None:
    assert stated_surface("1.5,10,30,0.3,0.35").loss(1e6, 1e8) == 1.5 + 10 / 1e6**0.3 + 30 / 1e8**0.35
    for text in ("steep", "1,2,3,4", "1.5,10,30,0.3,-1", "1.5,10,nan,0.3,0.35"):
        with pytest.raises(
            SpecError, match="is neither hoffmann, .*, odd nor a published law .* nor five positive numbers"
        ):
            stated_surface(text)


def users(tmp_path: Path, body: str) -> LossSurface:
    (tmp_path / "own_losses.py").write_text(f"import math, numpy as np\ndef mine(params, tokens):\n    {body}\n")
    return load_surface("own_losses:mine", tmp_path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "return 2 + 9 / math.sqrt(params) + 9 / tokens**.3",
            "raised TypeError.*called with two numpy arrays, N and D",
        ),
        ("raise SystemExit(0)", "raised SystemExit"),
        ("return 2.0", r"returned an array of shape \(\) for 801 sizes"),
        ("return [list(params), list(tokens)]", r"returned an array of shape \(2, 801\)"),
        ("return -2 - params**-.3 - tokens**-.3", "returned -2.* at N = .*finite and positive"),
        ("return np.where(params > 1e9, np.nan, 2 + params**-.3 + tokens**-.3)", "returned nan at N = 1.0.*e\\+09"),
        ("return ['2.0'] * len(params)", "returned values of type <U3"),
        ("return 2 + 0j + params**-.3", "returned values of type complex128"),
        ("return 2 + 9 / params**.3", "has no minimum at C = 1e20: the loss is lowest where the search ends"),
        ("return 2 + 9 / tokens**.3", "has no minimum at C = 1e20: the loss is lowest where the search ends"),
        ("return 0 * params + 2", "has no minimum at C = 1e20"),
    ],
)
def test_a_function_that_is_no_loss_is_refused(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as refusal:
        users(tmp_path, body).optimum(C)
    assert str(refusal.value).startswith("--surface: 'own_losses:mine' ") and "\n" not in str(refusal.value)


def test_a_function_with_noise_of_its_own_is_refused(tmp_path: Path) -> None:
    body = "return 2 + 400 / params**.3 + 400 / tokens**.3 + 1e-3 * np.random.default_rng().random(len(params))"
    with pytest.raises(SpecError, match="returns other losses .* when called again; leave noise to --noise"):
        _Truth(users(tmp_path, body), adaptive_spec(), Measurements(sizes=SIZES, data=DATA), C)


def test_sizes_without_a_minimum_are_no_answer_and_say_so() -> None:
    model = {"target": "m:G", "size_param": "width", "sizes": [s.params for s in SIZES[:12:4]]}
    spec = adaptive_spec(budgets=[1e17, 1e18], model=model)
    found = simulate_spec(spec, planner_of(spec).plan(), surface=SURFACES["small"], noise=0.001, sweeps=1, slots=(2,))
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert said["answered"] == 0 and said["bias"] is None and said["surface_name"] == "small"
    assert "gave a law of N_opt: 0 budgets have an optimum, and a law needs 2 (C = " in simulation_text(found)
    assert "nan" not in simulation_text(found)


def test_a_function_takes_arrays_and_its_own_copies(tmp_path: Path) -> None:
    body = "params **= -.3; return 2 + 400 * params + 400 / tokens**.3"
    surface, built_in = users(tmp_path, body), stated_surface("2,400,400,0.3,0.3")
    assert surface.optimum(C) == built_in.optimum(C)
    assert surface.loss(10**7, 10**9) == pytest.approx(built_in.loss(10**7, 10**9), rel=1e-12)


@pytest.mark.parametrize("target", ["own_losses:nothing", "no_such_module:f", "own_losses:"])
def test_a_function_that_is_not_there_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "own_losses.py").write_text("mine = 3\n")
    with pytest.raises(SpecError, match=f"^--surface: .*{target.partition(':')[0]}"):
        load_surface(target, tmp_path)
