"""F21: whatever is wrong in a spec is said with its key, its value and the way out, before anything is started."""

import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit_ray.cli import main
from flops_fit_ray.errors import REFUSALS, SpecError, code_of
from flops_fit_ray.spec import SweepSpec, dump_spec, make_spec, parse_yaml
from tests.bad_values import BAD, GOOD, WORKS, Case, prepare

CODED = re.compile(rf" \[({'|'.join(REFUSALS)})\]$")  # as each line of a refusal ends


def faults_in(said: str) -> list[str]:
    """The lines that name a fault: the first, or those below it; an unknown option is click's own."""
    lines = said.strip().splitlines()
    listed = [line for line in lines if line.startswith("  - ")]
    return listed or [line for line in lines if line.startswith("error: ") and "p/" in line]


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_a_bad_value_is_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", started)
    arguments = prepare(case, tmp_path / "p")
    before = sorted(p.name for p in (tmp_path / "p").iterdir())
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert all(words in said for words in case.words), said
    assert "Traceback" not in said
    assert all(CODED.search(line) for line in faults_in(said)), said
    assert sorted(p.name for p in (tmp_path / "p").iterdir() if p.name != "__pycache__") == before  # nothing written


@pytest.mark.parametrize("changes", WORKS.values(), ids=WORKS.keys())
def test_what_looks_odd_and_is_right(changes: dict[str, Any]) -> None:
    assert isinstance(make_spec({**GOOD, **changes}, "s"), SweepSpec)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdesz_", max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(section=st.sampled_from(sorted(SweepSpec.model_fields)), value=PLAIN)
def test_any_value_anywhere_is_a_spec_or_a_spec_error(section: str, value: Any) -> None:
    try:
        spec = make_spec({**GOOD, section: value}, "s")
    except SpecError as e:
        assert e.faults and all(section in fault or fault.startswith("spec: ") for fault in e.faults)
        assert all(map(code_of, e.faults)), e
        return
    assert make_spec(parse_yaml(dump_spec(spec), "s"), "s") == spec


@given(
    st.sampled_from(["model", "data", "train", "grid", "fit", "checkpoint"]),
    st.text("abcdesz_", min_size=1)
    | st.text("abcdeLR_-()[].:= ", min_size=1)
    | st.sampled_from(["[key]", "list", "auto"]),
    PLAIN,
)
def test_any_key_in_a_section_is_known_or_named(section: str, key: str, value: Any) -> None:
    content = {**GOOD, section: {**GOOD.get(section, {}), key: value}}
    known = SweepSpec.model_fields[section].annotation.model_fields  # type: ignore[union-attr] # a section
    try:
        make_spec(content, "s")
    except SpecError as e:
        written = key if re.fullmatch(r"[\w-]+", key) else repr(key)
        named = [fault for fault in e.faults if fault.startswith(f"{section}.{written}: unknown key; ")]
        assert len(named) == (key not in known) and all(section in fault for fault in e.faults)
        assert [code_of(fault) for fault in named] == ["unknown_key"] * len(named) and all(map(code_of, e.faults))
    else:
        assert key in known


TAGS = [
    "!!int",
    "!!float",
    "!!bool",
    "!!timestamp",
    "!!binary",
    "!!set",
    "!!omap",
    "!!pairs",
    "!!null",
    "!!python/name:os",
]


@given(
    st.text(max_size=60)
    | st.text("{}[]:,&*!|>'\"%@`#-? \n\tab1", max_size=60)
    | st.from_regex(r"\A[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}\Z")
    | st.tuples(st.sampled_from(TAGS), st.text("0x_:-.e[{a", max_size=9)).map(" ".join)
    | st.sampled_from([1, 60, 2000]).map(lambda n: "[" * n)  # past Python's limit of recursion
    | st.sampled_from([4300, 4301]).map(lambda n: "9" * n)  # around its limit of digits
)
def test_any_text_is_yaml_or_a_spec_error(text: str) -> None:
    try:
        parse_yaml(text, "s")
    except SpecError as e:
        assert str(e).startswith("s: ") and CODED.search(str(e)), e
