"""Imports go down, never up; the package is light; what ships is what is declared."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flops_fit_ray"

# Within floor 0 the order is errors, text < layout < spec, analysis < planning, ledger < tables, sweep < recommend.
FLOORS = {
    "errors": 0,
    "text": 0,
    "way": 0,
    "values": 0,
    "places": 0,
    "files": 0,
    "layout": 0,
    "lease": 0,
    "lock": 0,
    "hardware": 0,
    "spec": 0,
    "analysis": 0,
    "planning": 0,
    "ledger": 0,
    "changes": 0,
    "sweep": 0,
    "tables": 0,
    "validity": 0,
    "recommend": 0,
    "stopping": 0,
    "extension": 0,
    "simulate": 0,
    "watch": 0,
    "training": 1,
    "engine": 2,
    "console": 3,
    "report": 3,
    "trackers": 3,
    "arguments": 4,
    "pipeline": 4,
    "api": 4,
    "service": 4,
    "selftest": 5,
    "cli": 5,
    "run": 6,
    "__main__": 6,
    "__init__": 6,
}
ALLOWED_OUTSIDE = {
    0: {"numpy", "scipy", "pydantic", "pydantic_core", "yaml", "pandas", "filelock", "pyarrow", "pynvml"},
    1: {"numpy", "torch", "safetensors"},
    2: {"torch", "ray"},
    3: {"numpy", "matplotlib", "jinja2", "markupsafe", "rich", "tensorboardX", "wandb", "mlflow"},
    4: {"pandas", "matplotlib", "numpy", "jinja2", "filelock", "pydantic", "fastapi", "starlette", "uvicorn"},
    5: {"click"},
    6: set(),
}
ORDER_ON_FLOOR_0 = [
    "errors",
    "text",
    "way",
    "values",
    "places",
    "files",
    "layout",
    "lease",
    "lock",
    "hardware",
    "spec",
    "analysis",
    "planning",
    "ledger",
    "changes",
    "tables",
    "sweep",
    "validity",
    "recommend",
    "stopping",
    "extension",
    "simulate",
    "watch",
]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "flops_fit_ray":
                found |= {f"flops_fit_ray.{alias.name}" for alias in node.names}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    own = {name.split(".")[1] for name in imports(path) if name.startswith("flops_fit_ray.")} - {here}
    allowed = {other for other, floor in FLOORS.items() if floor <= FLOORS[here]}
    if FLOORS[here] == 3:  # views see floor 0 alone: not torch, not Ray, not one another
        allowed = {other for other, floor in FLOORS.items() if floor == 0}
    if FLOORS[here] == 0:
        allowed &= set(ORDER_ON_FLOOR_0[: ORDER_ON_FLOOR_0.index(here)])
    assert own <= allowed, f"{here} must not import {own - allowed}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_floor_has_its_own_libraries(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"flops_fit_ray", ""}
    assert outside <= ALLOWED_OUTSIDE[FLOORS[room(path)]]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


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


def test_run_defines_nothing() -> None:
    tree = ast.parse((PACKAGE / "run.py").read_text())
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Assign)]


def test_every_promise_of_the_readme_has_its_test() -> None:
    promised = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text()))
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


@pytest.mark.slow
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
        f"flops_fit_ray/service/{name}" for name in ("static/page.js", "static/style.css", "templates/base.html.j2")
    }
    assert names >= demo | templates | served | {"flops_fit_ray/py.typed"}
