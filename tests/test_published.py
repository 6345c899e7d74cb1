"""Published laws against numbers that their papers print, and the commands that take them by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flops_fit_ray.analysis import PUBLISHED, FitOptions, fit_sweep, predict_published, published_distance
from flops_fit_ray.analysis.repetition import PUBLISHED_PARAMS, PUBLISHED_TOKENS
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.planning.loss_surfaces import SURFACES, stated_surface
from tests.surfaces import BESIROGLU, BUDGETS, HOFFMANN, sweep_on
from tests.test_cli import call
from tests.test_cli_fits import table_at

PF_DAY = 8.64e19
# Rows of tables 3 and A3 of Hoffmann et al. 2022, (C, N, D), that no constant was taken from
TABLE_3 = [(1.21e20, 1e9, 20.2e9), (1.23e22, 1e10, 205.1e9), (3.85e24, 1.75e11, 3.7e12), (1.27e26, 1e12, 21.2e12)]
TABLE_A3_2 = [(1.20e20, 1e9, 20.0e9), (1.32e22, 1e10, 219.5e9), (1.18e25, 2.8e11, 7.1e12), (1.59e26, 1e12, 26.5e12)]
TABLE_A3_3 = [(2.21e19, 4e8, 9.2e9), (1.62e20, 1e9, 27.1e9), (2.46e22, 1e10, 410.1e9), (1.71e24, 6.7e10, 4.1e12)]


@pytest.mark.parametrize(
    ("name", "rows", "within"),
    # The table of approach 3 is at the FLOPs as the paper counts them, a few percent off 6·N·D
    [("hoffmann2022-1", TABLE_3, 0.012), ("hoffmann2022-2", TABLE_A3_2, 0.008), ("hoffmann2022", TABLE_A3_3, 0.05)],
)
def test_chinchillas_tables(name: str, rows: list[tuple[float, float, float]], within: float) -> None:
    for budget, params, tokens in rows:
        n, d, _ = PUBLISHED[name].optimum(budget)
        assert n == pytest.approx(params, rel=within) and d == pytest.approx(tokens, rel=within)


def test_chinchillas_2_86_billion_and_its_rounded_constants() -> None:
    """Section D.4: "from our approach 1, we estimate a 2.86 billion parameter model" at 1e21 FLOPs; and equation 10."""
    assert PUBLISHED["hoffmann2022-1"].optimum(1e21)[0] == pytest.approx(2.86e9, rel=0.002)
    full, printed = PUBLISHED["hoffmann2022"].constants, PUBLISHED["hoffmann2022-printed"].constants
    assert {name: round(full[name], 1 if value > 2 else 2) for name, value in printed.items()} == printed
    assert tuple(printed.values()) == HOFFMANN == SURFACES["hoffmann"].constants


def test_besiroglus_exponent_and_ratio() -> None:
    """a = beta / (alpha + beta) = 0.513, and about 20 tokens per parameter at Chinchilla's C (section 3)."""
    law = PUBLISHED["besiroglu2024"]
    assert law.laws[0].exponent == pytest.approx(0.513, abs=5e-4)
    n, d, loss = law.optimum(5.76e23)
    assert d / n == pytest.approx(20, rel=0.1)
    assert loss == pytest.approx(float(law.loss(n, d)[0]), rel=1e-12)
    assert tuple(law.constants.values()) == BESIROGLU == SURFACES["besiroglu"].constants


def test_kaplans_intersection() -> None:
    """Equation 6.8: N* = 1e12 and L* = 1.7 nats at C* = 1e4 PF-days, as an order of magnitude and two digits."""
    law = PUBLISHED["kaplan2020"]
    n, d, loss = law.optimum(1e4 * PF_DAY)
    assert n == pytest.approx(1e12, rel=0.1) and loss == pytest.approx(1.7, abs=0.05)
    assert law.optimum(PF_DAY) == pytest.approx((1.3e9, 2e10, 3.1e8**0.05), rel=1e-9)
    assert np.log(n / 1.3e9) / np.log(1e4) == pytest.approx(0.73) and d == pytest.approx(2e10 * 1e4**0.27)
    surface = PUBLISHED["kaplan2020-surface"]
    # With D without end the law is (N_c/N)^alpha_N, and with N without end (D_c/D)^alpha_D (equations 1.1 and 1.2)
    assert surface.loss(1e9, 1e300) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert surface.loss(1e300, 1e10) == pytest.approx((1.8e13 / 1e10) ** 0.103)
    assert SURFACES["kaplan"].loss(1e8, 1e9) == pytest.approx(float(surface.loss(1e8, 1e9)[0]), rel=1e-12)


def test_llama_3s_flagship() -> None:
    """402B parameters on 16.55T tokens at 3.8e25 FLOPs, within what three digits of the exponent leave open."""
    n, d, loss = PUBLISHED["llama3"].optimum(3.8e25)
    assert d == pytest.approx(16.55e12, rel=0.03) and n == pytest.approx(402e9, rel=0.04) and loss is None
    assert 6 * n * d == pytest.approx(3.8e25)


def test_deepseeks_cost_is_m_times_d() -> None:
    """C = M·D, the definition of M (equation 2), holds of the printed laws; and the exponents of table 4."""
    n, d, _ = PUBLISHED["deepseek2024"].optimum(1e20)
    assert 6 * n * d == pytest.approx(1e20, rel=2e-4)
    assert [round(law.exponent, 3) for law in PUBLISHED["deepseek2024"].laws[:2] if law] == [0.524, 0.476]


def test_porians_answer_at_chinchillas_compute() -> None:
    """77B at 5.88e23 FLOPs and a = 0.497."""
    law = PUBLISHED["porian2024"]
    assert law.optimum(5.88e23)[0] == pytest.approx(77e9, rel=0.005)
    assert round(law.laws[0].exponent, 3) == 0.497


def test_muennighoffs_repeated_data() -> None:
    """L = 1.87 + 521/N^.353 + 1488/D^.353, and U_N = 0.051·U_D (appendix A)."""
    law = PUBLISHED["muennighoff2023"]
    c = law.constants
    printed = {"E": (1.87, 2), "A": (521, 0), "B": (1488, 0), "alpha": (0.353, 3), "R_D": (15.387756, 6)}
    assert all(round(c[name], digits) == value for name, (value, digits) in printed.items())
    assert (PUBLISHED_TOKENS, PUBLISHED_PARAMS) == (c["R_D"], c["R_N"]) == (15.387756, 5.309743)
    unique = 1e9
    n = 0.05098651765 * unique  # N that is optimal for so many tokens: nothing of it is in excess
    assert float(n / unique) == pytest.approx(0.051, abs=5e-5)
    assert law.loss(n, unique, unique) == pytest.approx(float(law.loss(n, unique)[0]), rel=1e-9)
    # However often they are repeated, tokens are worth 1 + R_D of their number (section 3.1)
    assert law.loss(n, 1e15, unique) == pytest.approx(float(law.loss(n, (1 + 15.387756) * unique)[0]), rel=1e-9)
    four = float(law.loss(n, 4 * unique, unique)[0]) - float(law.loss(n, 4 * unique)[0])
    assert 0 < four < 0.01 * float(law.loss(n, 4 * unique)[0])  # up to four epochs cost next to nothing (abstract)
    with pytest.raises(FitError, match="muennighoff2023 does"):
        PUBLISHED["besiroglu2024"].loss(1e9, 1e10, 1e9)
    with pytest.raises(FitError, match="llama3 is a law of optima"):
        PUBLISHED["llama3"].loss(1e9, 1e10)


@pytest.mark.parametrize("name", [name for name, law in PUBLISHED.items() if law.surface is not None])
def test_the_optimum_is_the_minimum_of_the_surface(name: str) -> None:
    law, world = PUBLISHED[name], stated_surface(name)
    for budget in (1e15, 1e21):
        assert law.optimum(budget) == pytest.approx(world.optimum(budget), rel=1e-6)


def test_a_law_of_optima_is_no_world() -> None:
    with pytest.raises(SpecError, match="llama3 is a law of optima, without losses at other sizes; take hoffmann2022,"):
        stated_surface("llama3")


def test_how_far_a_sweep_is_from_chinchilla() -> None:
    """A sweep on Besiroglu's own surface is where it is; one on another is off by what the formulas say."""
    own = published_distance(fit_sweep(sweep_on(BESIROGLU, BUDGETS), FitOptions(draws=0, method="surface_huber")))
    assert own is not None and own.params_ratio == pytest.approx(1, rel=1e-4) and own.extrapolation == 1
    fit = fit_sweep(sweep_on(HOFFMANN, BUDGETS), FitOptions(draws=0, method="surface_huber"))
    other = published_distance(fit)
    assert other is not None
    n, d, _ = PUBLISHED["hoffmann2022-printed"].optimum(1e20)
    theirs = PUBLISHED["besiroglu2024"].optimum(1e20)
    assert other.params_ratio == pytest.approx(n / theirs[0], rel=1e-4)
    assert other.tokens_per_param == pytest.approx(d / n, rel=1e-3)
    assert other.words == (
        f"Besiroglu et al. 2024 (Chinchilla's runs) at C = 1e20: N_opt x{n / theirs[0]:.2g} of theirs, D/N "
        f"{d / n:.3g} against {theirs[1] / theirs[0]:.3g}; their data and tokenizer are others"
    )


def test_an_answer_says_how_far_it_is_from_the_papers_runs() -> None:
    near, far = (predict_published(PUBLISHED["llama3"], c) for c in (1e21, 3.8e25))
    assert near.extrapolation == 1 and far.extrapolation == pytest.approx(3.8e3)
    assert [flag.severity for flag in near.warnings] == ["info"]
    assert any(flag.severity == "severe" and "EXTRAPOLATION BY 3.8e+03x" in str(flag) for flag in far.warnings)
    assert predict_published(PUBLISHED["kaplan2020"], 1e21).extrapolation is None
    with pytest.raises(FitError, match="must be a positive number"):
        predict_published(PUBLISHED["llama3"], -1.0)


def test_laws_are_listed_and_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("laws") == 0
    said = capsys.readouterr().out
    assert all(f"{name}: {law.label}" in said and law.source in said for name, law in PUBLISHED.items())
    assert call("laws", "besiroglu2024", "--json") == 0
    (law,) = json.loads(capsys.readouterr().out)["laws"]
    assert law["constants"]["B"] == 2085.43 and law["stderr"]["alpha"] == 0.02 and law["l_opt"]["offset"] == 1.8172
    assert call("laws", "besirogle2024") == 2
    assert "did you mean 'besiroglu2024'?" in capsys.readouterr().err
    assert call("predict", "3.8e25", "llama3") == 0
    said = capsys.readouterr().out
    assert "N  389B" in said and "D  16.3T" in said and "none published" in said and "no intervals" in said
    assert call("predict", "1e21", "besiroglu2024", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["params"] == pytest.approx(2.778e9, rel=1e-3) and content["params_interval"] is None
    for options, wrong in (
        (["--draws", "10"], "--draws is for tables and sweeps, and llama3 is a published law"),
        (["--unique", "1e9"], "llama3 is a published law, and answers for a BUDGET in FLOPs alone"),
    ):
        assert call("predict", "1e21", "llama3", *options) == 2
        assert wrong in capsys.readouterr().err
    assert call("predict", "1e21", "lama3") == 2
    assert "no such directory, and no published law; did you mean 'llama3'?" in capsys.readouterr().err


def test_a_table_beside_a_published_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_at(tmp_path / "runs.csv")  # on Besiroglu's surface
    ask = ["compare", table, "besiroglu2024", "--draws", "400"]
    assert call(*ask, "--figure", tmp_path / "both.png") == 0
    said = capsys.readouterr().out
    assert "intervals hold the noise of the sweep alone" in said and "no significant difference" in said
    assert call(*ask, "--method", "surface_huber", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["budget"] == pytest.approx(1e20)  # the largest C that both have
    assert not any(d["differs"] for d in content["differences"]) and len(content["differences"]) == 5
    assert call("compare", "llama3", table, "--draws", "0", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [d["name"] for d in content["differences"]][-1] == "D_opt"  # no loss is published
    assert call("compare", "kaplan2020", "muennighoff2023") == 2
    assert "choose one by --at C" in capsys.readouterr().err
    assert call("compare", "kaplan2020", "muennighoff2023", "--at", "1e21", "--figure", tmp_path / "two.png") == 0
    assert "there are no intervals" in capsys.readouterr().out


def test_a_law_beside_itself_is_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("compare", "besiroglu2024", "besiroglu2024") == 0
    assert capsys.readouterr().out.count("warning: besiroglu2024 is of MassiveText") == 1


def test_a_path_of_the_same_name_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama3").mkdir()
    assert call("predict", "1e21", "llama3") == 2  # an empty directory, which is no sweep
    assert "llama3" in capsys.readouterr().err
