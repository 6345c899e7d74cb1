"""A mutant that a test notices is killed; one that no test notices is reported."""

import subprocess
from pathlib import Path

from tests.mutants import draw, hunt
from tests.mutations import mutants_in

SOURCE = """
def above(x: int, limit: int) -> bool:
    return x > limit


def untested(x: int) -> bool:
    return x > 3
"""
TESTS = """
from parcel.limits import above, untested


def test_above():
    assert above(2, 1) and not above(1, 1)


def test_untested():
    untested(4)
"""


def planted(root: Path) -> Path:
    for directory in ("parcel", "tests"):
        (root / directory).mkdir()
        (root / directory / "__init__.py").touch()
    (root / "parcel/limits.py").write_text(SOURCE)
    (root / "tests/test_limits.py").write_text(TESTS)
    subprocess.run(["git", "init", "-q", str(root)], check=True)  # noqa: S607
    return root


def changes(source: str) -> set[str]:
    return {mutant.after for mutant in mutants_in("m.py", source)}


def test_mutants_are_drawn_by_their_seed_and_are_python() -> None:
    here = Path(__file__).parent.parent
    first, again, other = (draw(here, "flops_fit_ray", ["console"], count=20, seed=seed) for seed in (1, 1, 2))
    assert first == again and first != other and len({(m.path, m.start, m.text) for m in first}) == 20
    for mutant in first:
        source = (here / mutant.path).read_text()
        assert mutant.applied(source) != source


def test_each_kind_of_fault_is_planted() -> None:
    assert changes("f(a < b)") == {"f((a <= b))", "pass"}
    assert changes("f(a - b)") == {"f((a + b))", "pass"}
    assert changes("f(a and not b)") == {"f((a or not b))", "f(a and (b))", "pass"}
    assert changes("return max(x, 1)") == {"return min(x, 1)", "return max(x, 0)", "return None"}
    assert changes("if x:\n    self.y = True") == {"if (not (x)):", "self.y = False", "pass"}
    assert changes("x: Literal[1] = 2  # é") == {"x: Literal[1] = 3 # é"}
    assert changes("raise E(f'{x + 1}', 3)\nassert x > 3\n__all__ = [1]") == set()


def test_the_function_of_a_mutant_is_named_as_python_names_it() -> None:
    source = "X = 2\nclass C:\n    y = 2\n    def f(self):\n        def g(): return 2\n        return g\n"
    assert [m.function for m in mutants_in("m.py", source) if m.text == "3"] == ["", "", "C.f.<locals>.g"]


def test_a_mutant_lives_where_nothing_is_asserted(tmp_path: Path) -> None:
    root = planted(tmp_path)
    faults = {m.function: m for m in draw(root, "parcel", ["limits.py"], count=9, seed=0) if "x >= " in m.after}
    drawn = [faults["above"], faults["untested"]]
    killed, lived = hunt(root, "parcel", drawn, tests=["tests/test_*.py"], limit=10)
    assert killed.killed_by == "tests/test_limits.py::test_above" and (killed.ran, killed.covering) == (1, 1)
    assert lived.killed_by is None and (lived.ran, lived.covering) == (1, 1)
    assert "SURVIVED" in str(lived) and "parcel/limits.py:7" in str(lived) and "- return x > 3" in str(lived)
    assert (root / "parcel/limits.py").read_text() == SOURCE
