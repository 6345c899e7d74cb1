"""Imports go down, never up; the package is light; what ships is what is declared."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flops_fit_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))

Fault = tuple[str, object]  # a module's path in the package, and what is wrong there: a failure lists all of them


def floors() -> dict[str, tuple[set[str], set[str]]]:
    """The table of CONTRIBUTING.md: what each room may import of the package, and which libraries."""
    rows = re.findall(r"^\| (`.+?) \| .*? \| (.*?) ?\| (.*?) ?\|$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M)
    found = {}
    for rooms, below, libraries in rows:
        for room in re.findall(r"`(\w+)`", rooms):
            found[room] = (set(re.findall(r"`(\w+)`", below)), set(libraries.replace(",", " ").split()))
    return found


FLOORS = floors()


def dotted(path: Path) -> str:
    """The name that a module is imported by."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path) for path in MODULES}


def room(name: str) -> str:
    """The room of a module: `__init__` for the package's own face."""
    return name.split(".")[1] if "." in name else "__init__"


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a module's source: each is parsed once."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@pytest.fixture(scope="module", autouse=True)
def _nodes_end() -> Iterator[None]:
    """Leave no half a million nodes to the tests that follow in this process."""
    yield
    nodes.cache_clear()


def short(path: Path) -> str:
    """A module's path in the package."""
    return str(path.relative_to(PACKAGE))


def imports(source: Iterable[ast.AST]) -> frozenset[str]:
    """Every module that a source imports, wherever the import stands; of the package the modules themselves."""
    found: set[str] = set()
    for node in source:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in NAMES else str(node.module))
    return frozenset(found)


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Every module that a module imports."""
    return imports(nodes(path))


def own_imports(path: Path) -> set[str]:
    """The package's modules that a module imports."""
    return {name for name in imported(path) if name.split(".")[0] == PACKAGE.name} - {dotted(path)}


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of two or more that reach one another (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(one: str) -> None:
        number[one] = low[one] = len(number)
        stack.append(one)
        for other in arrows.get(one, ()):
            if other not in number:
                visit(other)
                low[one] = min(low[one], low[other])
            elif other in stack:
                low[one] = min(low[one], number[other])
        if low[one] == number[one]:
            group = [stack.pop()]
            while group[-1] != one:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for one in arrows:
        if one not in number:
            visit(one)
    return found


def test_the_table_names_every_room_once_and_only_rooms_above_it() -> None:
    assert set(FLOORS) == {room(name) for name in NAMES}
    order = list(FLOORS)
    for i, name in enumerate(order):
        assert FLOORS[name][0] <= set(order[:i]), f"{name}: a row names rooms of earlier rows alone"


def test_imports_go_down() -> None:
    wrong: list[Fault] = []
    for path in MODULES:
        here = room(dotted(path))
        below = {room(name) for name in own_imports(path)} - {here} - FLOORS[here][0]
        wrong += [(short(path), f"{here} must not import {name}") for name in sorted(below)]
    assert wrong == []


def test_each_room_has_its_own_libraries() -> None:
    wrong: list[Fault] = []
    for path in MODULES:
        outside = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {PACKAGE.name}
        wrong += [(short(path), name) for name in sorted(outside - FLOORS[room(dotted(path))][1])]
    assert wrong == []


def test_there_are_no_circles_between_modules_nor_between_folders() -> None:
    arrows = {dotted(path): own_imports(path) for path in MODULES}
    assert circles(arrows) == []
    for depth in (2, 3):
        folders: dict[str, set[str]] = {}
        for one, others in arrows.items():
            here = ".".join(one.split(".")[:depth])
            folders.setdefault(here, set()).update(".".join(other.split(".")[:depth]) for other in others)
        assert circles({here: others - {here} for here, others in folders.items()}) == []


def test_a_planted_circle_and_a_bare_import_are_seen() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    assert imports(ast.walk(ast.parse("def f():\n    import flops_fit_ray\n"))) == {"flops_fit_ray"}
    assert "flops_fit_ray.ledger._store" in imports(ast.walk(ast.parse("from flops_fit_ray.ledger import _store")))


# Imported by users: through the package's face, from a spec, or by a program of their own
FOR_USERS = {"data.token_file", "service.client", "selftest.task"}


def test_a_module_is_private_exactly_if_its_own_folder_alone_imports_it() -> None:
    users: dict[str, set[str]] = {}
    for path in MODULES:
        for name in own_imports(path):
            users.setdefault(name, set()).add(dotted(path))
    wrong = []
    for path in MODULES:
        name, folder = dotted(path), dotted(path.parent / "__init__.py")
        if path.name == "__init__.py" or folder == PACKAGE.name or name.endswith(tuple(FOR_USERS)):
            continue
        inside = all(user == folder or user.rpartition(".")[0] == folder for user in users.get(name, ()))
        if path.name.startswith("_") != inside:
            wrong.append(name)
    assert wrong == []


# Openings that hide the verb: "Return True if ..." says more than "Whether ...", "Rows of ..." than "What ..."
RIDDLES = {"what", "whether", "that", "how", "who", "whom", "whose", "where", "when", "which", "why", "it", "they",
           "nothing", "nobody", "somebody", "if", "those", "this", "these"}  # fmt: skip


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wrong: list[Fault] = []
    for path in MODULES:
        for node in nodes(path):
            word = (ast.get_docstring(node) or "-").split()[0] if isinstance(node, documented) else "-"
            if word.strip(",.:;").lower() in RIDDLES:
                wrong.append((short(path), (getattr(node, "name", "module"), word)))
    assert wrong == []


# Commands, the functions that they call, and what pages and the REST API do by the same name
SAME_MEANING = {"check", "compare", "experiment", "extend", "main", "predict", "resume", "run", "serve", "stop"}


def test_a_public_name_is_defined_once() -> None:
    homes: dict[str, set[str]] = {}
    for path in MODULES:
        for node in cast("ast.Module", nodes(path)[0]).body:  # the walk begins with the module
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, set()).add(dotted(path))
    assert {name: where for name, where in homes.items() if len(where) > 1 and name not in SAME_MEANING} == {}


def test_no_two_modules_share_a_file_name() -> None:
    names = [path.name for path in MODULES if path.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == ["paths.py"]  # of sweeps, and of the service


def test_modules_stay_small() -> None:
    lines = {short(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: number for name, number in lines.items() if number > 400} == {}


def test_import_is_light() -> None:
    heavy = "{'torch', 'ray', 'pandas', 'scipy', 'numpy', 'pydantic', 'matplotlib'}"
    code = f"import flops_fit_ray, sys; print(*{heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code]).split() == []


def test_help_is_light() -> None:
    heavy = "{'torch', 'ray', 'pandas', 'scipy', 'numpy', 'pydantic', 'matplotlib'}"
    code = (
        "import sys\nfrom flops_fit_ray.cli import main\n"
        f"try: main(['--help'])\nexcept SystemExit: print('LOADED', *{heavy} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.splitlines()[-1].split() == ["LOADED"]


def test_status_loads_no_fits_and_no_arrays() -> None:
    heavy = (
        "{'torch', 'ray', 'pandas', 'scipy', 'numpy', 'yaml', 'flops_fit_ray.planning.grid', 'flops_fit_ray.tables'}"
    )
    code = (
        f"import sys, flops_fit_ray.cli._status, flops_fit_ray.console.status_text; print(*{heavy} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code]).split() == []


@pytest.mark.parametrize("package", ["flops_fit_ray.analysis", "flops_fit_ray.planning"])
def test_names_that_are_loaded_on_first_use_are_there(package: str) -> None:
    loaded = importlib.import_module(package)
    for name in loaded.__all__:
        assert not isinstance(getattr(loaded, name), ModuleType), f"{package}.{name} is hidden by a module"
    with pytest.raises(AttributeError, match=f"{package}' has no attribute 'nothing'"):
        _ = loaded.nothing


def test_run_defines_nothing() -> None:
    assert not [n for n in nodes(PACKAGE / "run.py") if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Assign)]


def test_every_promise_of_reliability_has_its_test() -> None:
    promised = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(promised) >= 12
    assert [name for name in promised if f"def {name}(" not in tests] == []


def test_public_names_exist() -> None:
    import flops_fit_ray

    assert all(getattr(flops_fit_ray, name) for name in flops_fit_ray.__all__)
    assert "run" not in flops_fit_ray.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flops_fit_ray.nothing


def test_every_dependency_is_pinned_and_torch_is_the_tested_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    assert pins["torch"] == "2.13.0"
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.split(r"[\[<>=]", requirement)[0].lower()
        assert name in pins or name.replace("-", "_") in pins, f"{name} has no pin in constraints.txt"


def test_a_wheel_carries_the_demo_and_the_template(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    demo = {f"flops_fit_ray/demo/{name}" for name in ("sweep.yaml", "model.py", "data.py")}
    templates = {f"flops_fit_ray/report/templates/{name}.html.j2" for name in ("report", "table", "fit", "style")}
    served = {
        f"flops_fit_ray/service/{name}"
        for name in ("static/page.js", "static/style.css", "static/uplot/LICENSE", "templates/base.html.j2")
    }
    assert names >= demo | templates | served | {"flops_fit_ray/py.typed"}
