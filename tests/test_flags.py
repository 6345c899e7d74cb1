"""Each warning and each refusal has a code, and each code its section in docs/troubleshooting.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.markdown import ROOT, anchors
from flops_fit_ray.errors import REFUSALS, DirectoryError, FlopsFitError, ResourceError, SpecError, code_of, with_code
from flops_fit_ray.flags import CODES, Flag, warning
from flops_fit_ray.service.http.problem import KINDS
from flops_fit_ray.spec import SweepSpec, TrainSection
from flops_fit_ray.spec.arguments import known_arguments

TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
KINDS_OF_KEYS = {code for code in REFUSALS if code.startswith("wrong_")}


def test_every_code_has_its_section_and_every_section_its_code() -> None:
    codes = {*CODES, *REFUSALS, *KINDS}
    assert codes - anchors(TROUBLE) == set()
    assert set(re.findall(r'^### ([a-z_]+)$|<a id="([a-z_]+)">', TROUBLE, flags=re.M)) <= {
        pair for code in codes for pair in ((code, ""), ("", code))
    }


def test_every_code_of_a_warning_is_said_somewhere() -> None:
    said = "\n".join(path.read_text() for path in Path(ROOT / "flops_fit_ray").rglob("*.py") if path.name != "flags.py")
    made = re.compile("^(valley|surface|surface_huber|surface_squared|surface_coupled|envelope|curve)_|_left_out$")
    assert [code for code in sorted(CODES) if f'"{code}"' not in said and not made.search(code)] == []


def test_a_warning_ends_with_its_code() -> None:
    assert warning("one_lr", "too fast") == Flag("one_lr", "warning", "too fast")
    assert warning("one_lr", "too fast").text == "too fast [one_lr]"
    assert Flag("one_lr", "severe", "too fast").line == "WARNING: too fast [one_lr]"
    with pytest.raises(AssertionError, match="no_such_code"):
        warning("no_such_code", "...")


def test_every_key_and_argument_has_its_kind_of_refusal() -> None:
    keys = {*SweepSpec.model_fields, *(f"train.{key}" for key in TrainSection.model_fields), *known_arguments()}
    assert [key for key in sorted(keys) if code_of(f"{key}: no such value (got 3)") not in KINDS_OF_KEYS] == []
    assert (code_of("train.lr: x"), code_of("'train.lr': x"), code_of("data.context: x")) == (
        "wrong_train",
        "",
        "wrong_data",
    )


@pytest.mark.parametrize(
    "refusal",
    ["has no rows", "no row can be used", "--where lr=3: no row has that value", "is not a readable table; use .csv",
     "line 3: no number", "several columns could be the loss: 'a', 'b'; choose one"],
)  # fmt: skip
def test_a_tables_refusal_has_none(refusal: str) -> None:
    assert with_code(refusal) == refusal


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SpecError("s.yaml", ["name: x"]), "s.yaml: name: x [wrong_sweep]"),
        (
            SpecError("s.yaml", ["lr.x: y", "bugets: unknown key; did you mean 'budgets'?"]),
            "s.yaml: 2 faults\n  - lr.x: y [wrong_train]\n"
            "  - bugets: unknown key; did you mean 'budgets'? [unknown_key]",
        ),
        (SpecError("s.yaml", ["name: x [wrong_sweep]"]), "s.yaml: name: x [wrong_sweep]"),
        (SpecError("s.yaml", ["name: x [0, 1]"]), "s.yaml: name: x [0, 1] [wrong_sweep]"),
        (DirectoryError("runs: 7 on vm is writing here; wait"), "runs: 7 on vm is writing here; wait [in_use]"),
        (ResourceError("no port is free"), "no port is free"),
    ],
)
def test_a_refusal_ends_with_its_code(error: FlopsFitError, said: str) -> None:
    assert str(error) == said
