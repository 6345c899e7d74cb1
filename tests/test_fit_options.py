"""A setting of a fit has one default, one set of choices and one range, wherever it is given."""

import dataclasses
import math
from typing import Any

import click
import pytest

from flops_fit_ray.analysis._methods import METHODS
from flops_fit_ray.analysis.valley import MIN_DISTINCT_SIZES
from flops_fit_ray.cli._fit_commands import compare, fit
from flops_fit_ray.cli._predict_commands import predict
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.fit_options import CHOICES, FIT_DEFAULTS, LIMITS, PINS, FitOptions, Limits, SurfaceOptions
from flops_fit_ray.spec import FitSection, make_spec
from flops_fit_ray.sweep.directory import fit_options
from flops_fit_ray.sweep.stopping import stopping_rule_for

NAMES = {field.name for field in dataclasses.fields(FitOptions)}
GOOD: dict[str, Any] = {
    "model": {"target": "m:G", "size_param": "d", "sizes": [8, 16, 32]},
    "data": {"train": "d:t"},
    "budgets": [1e18, 3e18],
}
BAD: dict[str, list[Any]] = {name: ["magic"] for name in CHOICES}
BAD |= {"draws": [-1, 1_000_001, 2.5], "confidence": [0.5, 0.05, 1.0], "seed": [-1], "window": [2], "reach": [1.0, 0.5],
        "delta": [0.0, -1.0, math.inf, math.nan], "undertuned": [0.0, 1.01]}  # fmt: skip
EDGES: dict[str, list[Any]] = {name: list(choices) for name, choices in CHOICES.items()}
EDGES |= {"draws": [0, 1, 1_000_000], "confidence": [0.501, 0.999], "seed": [0, 2**40], "window": [3, 99],
          "reach": [1.01, 64.0], "delta": [1e-12, 1e6], "undertuned": [1e-6, 1.0]}  # fmt: skip


def section(**changes: Any) -> FitSection:
    return make_spec({**GOOD, "fit": changes}, "s").fit


def option(command: click.Command, name: str) -> click.Option:
    return next(p for p in command.params if isinstance(p, click.Option) and p.name == name)


def test_the_spec_has_the_settings_and_the_defaults_of_the_fit() -> None:
    assert set(FitSection.model_fields) == NAMES == {*CHOICES, *LIMITS, "pins"} == {*BAD, "pins"} == {*EDGES, "pins"}
    for name, value in FitSection():
        assert value is None or value == getattr(FIT_DEFAULTS, name)
    assert fit_options(make_spec(GOOD, "s")) == FIT_DEFAULTS
    assert SurfaceOptions() == FIT_DEFAULTS.surface("surface_huber")


@pytest.mark.parametrize("command", [fit, predict, compare], ids=lambda c: str(c.name))
def test_the_command_line_has_the_settings_of_the_fit_and_shows_its_defaults(command: click.Command) -> None:
    assert {p.name for p in command.params} >= NAMES
    assert option(command, "draws").opts == ["--draws", "--bootstrap"]
    for name in NAMES - {"window", "reach", "pins"}:
        default = getattr(FIT_DEFAULTS, name)
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        assert f"[default: {shown}" in str(option(command, name).help)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, many in BAD.items() for value in many])
def test_a_wrong_setting_is_refused_everywhere(name: str, value: Any) -> None:
    with pytest.raises(FitError, match=f"{name} must be "):
        FitOptions(**{name: value})
    with pytest.raises(SpecError, match=f"fit.{name}: must be "):
        section(**{name: value})
    if value not in (math.inf, math.nan):  # which click passes on, and `FitOptions` refuses
        with pytest.raises(click.BadParameter):
            option(fit, name).type.convert(str(value), None, None)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, many in EDGES.items() for value in many])
def test_a_setting_within_its_limits_is_taken_everywhere(name: str, value: Any) -> None:
    assert getattr(FitOptions(**{name: value}), name) == value
    assert getattr(section(**{name: value}), name) == value
    assert option(fit, name).type.convert(str(value), None, None) == value


@pytest.mark.parametrize("pins", [{"A": 1.0}, {"E": 0.0}, {"beta": math.inf}])
def test_wrong_pins_are_refused_everywhere(pins: dict[str, float]) -> None:
    for options in (FitOptions, SurfaceOptions):
        with pytest.raises(FitError, match="pinned"):
            options(pins=pins)
    with pytest.raises(SpecError, match="fit.pins"):
        section(pins=pins)
    good = dict.fromkeys(PINS, 0.5)
    assert section(pins=good).pins == FitOptions(pins=good).pins == good


def test_no_draws_cannot_stop_a_sweep_by_its_interval() -> None:
    model = {"target": "m:G", "size_param": "d"}
    with pytest.raises(SpecError, match="needs an interval of N_opt, but fit.draws is 0; set fit.draws"):
        stopping_rule_for(make_spec({**GOOD, "model": model, "fit": {"draws": 0}}, "s"), "ci=1.3@1e21")


def test_the_choices_are_those_of_the_fit() -> None:
    assert CHOICES["method"] == ("auto", *METHODS) and CHOICES["curve"] == ("auto", *MIN_DISTINCT_SIZES)
    assert LIMITS["window"].ge == MIN_DISTINCT_SIZES["parabola"]
    assert str(LIMITS["draws"]) == "a whole number at least 0 and at most 1,000,000"
    assert True not in Limits(ge=0) and "1" not in Limits(ge=0) and 1 in Limits(ge=1, le=1)
