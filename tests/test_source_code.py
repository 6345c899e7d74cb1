"""The code that trains is the code that was planned: what belongs to it, and what counts as another."""

import importlib.util
import shutil
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning.code_facts import CodeFacts
from flops_fit_ray.storage.codec import value_of
from flops_fit_ray.training.user._by_value import hash_by_value
from flops_fit_ray.training.user._syntax import read_source
from flops_fit_ray.training.user._targets import load_target
from flops_fit_ray.training.user.installed import library_versions, own_packages
from flops_fit_ray.training.user.source_code import code_differences, code_of_objects, code_of_spec, watch_sources
from tests.parts import spec_of, user_parts_of

FILES = {
    "ours_parts.py": '''
        """Parts."""
        import importlib
        import importlib.util
        import pathlib
        import sys

        import yaml

        from ours_package import layers
        import ours_namespace.deep

        here = pathlib.Path(__file__).parent
        sys.path.insert(0, str(here / "ours.zip"))
        import ours_zipped

        spec = importlib.util.spec_from_file_location("by_path", here / "elsewhere" / "ours_by_path.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = module.function  # `module` is in no sys.modules
        importlib.import_module("ours_" + "dynamic")
        exec("def generated(): return 1")

        class Net:
            """A model."""

            def forward(self):
                from ours_lazy import constant  # imported when it trains

                return constant * RATE

        RATE = 0.5
    ''',
    "ours_package/__init__.py": "from ._version import version",
    "ours_package/layers.py": "from .inner import *",
    "ours_package/inner.py": "x = 1",
    "ours_namespace/deep.py": "y = 2",
    "elsewhere/ours_by_path.py": "def function():\n    return 3",
    "ours_dynamic.py": "z = 4",
    "ours_lazy.py": "constant = 5",
    "ours_package/_version.py": "__version__ = version = '0.1.dev3+g1a2b3c'\nversion_tuple = (0, 1, 'dev3')",
    "unused.py": "nobody = 'imports this'",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(textwrap.dedent(text))
    with zipfile.ZipFile(base / "ours.zip", "w") as archive:
        archive.writestr("ours_zipped.py", "w = 6")
    return base


def code_in(base: Path, module: str = "ours_parts") -> CodeFacts:
    load_target(f"{module}:Net", base, "model.target")
    model = {"target": f"{module}:Net", "size_param": "width", "sizes": [4, 8, 16]}
    return code_of_spec(spec_of(model=model, data={"train": f"{module}:data"}), base)


def test_code_is_all_that_the_parts_import_however_they_do(project: Path, planned: CodeFacts) -> None:
    code = planned
    assert set(code.files) == set(FILES) - {"unused.py"} | {"ours.zip"}
    assert code.libraries == ("yaml",) and not code.packages and not code.elsewhere
    assert value_of(CodeFacts, {**vars(code), "libraries": ["yaml"]}) == code
    assert code_differences(code, project) == []


@pytest.fixture(autouse=True)
def own_imports(planned: CodeFacts) -> Iterator[None]:
    """Forget what a test imports."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("ours_"):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture(scope="module")
def planned(project: Path) -> CodeFacts:
    return code_in(project)


def edit(base: Path, name: str, before: str, after: str) -> None:
    text = (base / name).read_text()
    assert before in text
    (base / name).write_text(text.replace(before, after))


VERSION = "ours_package/_version.py"


def with_line_ends(base: Path, ends: str) -> None:
    """As a checkout on another system has them, in strings of several lines, too."""
    for file in base.rglob("*.py"):
        file.write_bytes(file.read_bytes().replace(b"\n", ends.encode()))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda b: edit(b, "ours_parts.py", "RATE = 0.5", "RATE = 0.5  # as published\n\n"), None),
        (lambda b: edit(b, "ours_parts.py", '"""A model."""', '"""The model."""'), None),
        (lambda b: edit(b, "ours_parts.py", "constant * RATE", "(constant\n * RATE)"), None),
        (lambda b: edit(b, "unused.py", "nobody", "somebody"), None),
        (lambda b: with_line_ends(b, "\r\n"), None),
        (lambda b: edit(b, "ours_package/_version.py", "'0.1.dev3+g1a2b3c'", "'0.1.dev3+g1a2b3c.d20261130'"), None),
        (lambda b: edit(b, VERSION, "'0.1.dev3+g1a2b3c'", "str(1)"), f"{VERSION} is another one"),
        (lambda b: edit(b, VERSION, "version_tuple", "versions"), f"{VERSION} is another one"),
        (lambda b: edit(b, "ours_parts.py", "RATE = 0.5", "RATE = 0.25"), "ours_parts.py is another one"),
        (lambda b: edit(b, "ours_parts.py", "RATE = 0.5", "RATE = '0.5'"), "ours_parts.py is another one"),
        (lambda b: edit(b, "ours_parts.py", "constant * RATE", "constant + RATE"), "ours_parts.py is another one"),
        (lambda b: edit(b, "ours_package/inner.py", "1", "2"), "ours_package/inner.py is another one"),
        (lambda b: edit(b, "ours_package/inner.py", "x = 1", "x = ("), "ours_package/inner.py is another one"),
        (lambda b: edit(b, "ours_lazy.py", "5", "6"), "ours_lazy.py is another one"),
        (lambda b: edit(b, "elsewhere/ours_by_path.py", "3", "4"), "elsewhere/ours_by_path.py is another one"),
        (lambda b: (b / "ours_dynamic.py").unlink(), "ours_dynamic.py is missing"),
        (lambda b: (b / "ours.zip").write_bytes(b"other"), "ours.zip is another one"),
    ],
)
def test_what_is_another_code_and_what_is_not(
    project: Path, planned: CodeFacts, change: Callable[[Path], object], difference: str | None, tmp_path: Path
) -> None:
    other = tmp_path / "another node"
    shutil.copytree(project, other)
    change(other)
    assert code_differences(planned, other) == ([] if difference is None else [difference])


def test_a_file_that_the_code_writes_itself_is_not_compared(tmp_path: Path) -> None:
    """Beside its code: a stamp that is imported, a log, a cache. What nobody writes counts as ever."""
    (tmp_path / "ours_stamping.py").write_text(
        "import pathlib, time\nhere = pathlib.Path(__file__).parent\n(here / 'run.log').write_text('loaded')\n"
        "(here / 'ours_stamp.py').write_text(f'import ours_held\\nAT = {time.time_ns()}')\nimport ours_stamp\n"
        "class Net: pass\n"
    )
    (tmp_path / "ours_held.py").write_text("x = 1")
    watch_sources(tmp_path)
    code = code_in(tmp_path, "ours_stamping")
    assert set(code.files) == {"ours_stamping.py", "ours_held.py"} and code.written == ("ours_stamp.py",)
    (tmp_path / "ours_stamp.py").write_text("AT = 0")  # as every other process does
    assert code_differences(code, tmp_path) == []
    edit(tmp_path, "ours_held.py", "1", "2")
    assert code_differences(code, tmp_path) == ["ours_held.py is another one"]
    assert code.digest == replace(code, written=()).digest


def test_an_edit_between_two_runs_of_a_process_is_an_edit(tmp_path: Path) -> None:
    """The second run imports what is there now; a stamp that the code writes itself stays one."""
    (tmp_path / "ours_twice.py").write_text(
        "import pathlib, time\nhere = pathlib.Path(__file__).parent\n"
        "(here / 'ours_mark.py').write_text(f'AT = {time.time_ns()}')\nimport ours_mark\nfrom ours_size import WIDTH\n"
        "class Net:\n    width = WIDTH\n"
    )
    (tmp_path / "ours_size.py").write_text("WIDTH = 4\n")

    def a_run() -> tuple[CodeFacts, Any]:
        watch_sources(tmp_path)
        code = code_in(tmp_path, "ours_twice")
        return code, sys.modules["ours_twice"]

    first, module = a_run()
    assert a_run() == (first, module) and first.written == ("ours_mark.py",)  # nothing was edited, nothing is reloaded
    edit(tmp_path, "ours_size.py", "4", "16")
    second, module = a_run()
    assert first.changes_to(second) == ["ours_size.py was edited"] and second.written == ("ours_mark.py",)
    assert module.Net.width == 16
    third, again = a_run()
    assert third == second and again is module
    (tmp_path / "unrelated.py").write_text("x = 1")
    assert a_run() == (third, module)


def test_objects_whose_file_was_edited_since_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook would plan by the class that it holds, and workers would import the other one."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ours_notebook.py").write_text("import ours_helper\nclass Net:\n    def f(self):\n        return 1\n")
    (tmp_path / "ours_helper.py").write_text("WIDTH = 4\n")
    user, module = user_parts_of(spec_of()), importlib.import_module("ours_notebook")

    def code() -> CodeFacts:
        return code_of_objects(replace(user, model=module.Net))

    edit(tmp_path, "ours_notebook.py", "return 1", "return 2")  # before anybody has looked
    with pytest.raises(SpecError, match="ours_notebook.py: edited after"):
        code()
    edit(tmp_path, "ours_notebook.py", "return 2", '"""One."""\n        # again\n        return 1')
    before = code()
    assert code() == before
    edit(tmp_path, "ours_helper.py", "WIDTH", "# a comment\nWIDTH")
    assert code() == before
    edit(tmp_path, "ours_helper.py", "4", "16")
    for _ in range(2):
        with pytest.raises(SpecError, match="ours_helper.py: edited after this process imported it: .* restart it"):
            code()
    importlib.reload(sys.modules["ours_helper"])
    assert before.changes_to(code()) == ["ours_helper.py was edited"]
    edit(tmp_path, "ours_helper.py", "16", "32")
    with pytest.raises(SpecError, match="ours_helper.py: edited after"):
        code()


def test_an_extension_counts_by_its_bytes(tmp_path: Path) -> None:
    found = importlib.util.find_spec("markupsafe._speedups")  # it imports nothing
    assert found is not None and found.origin is not None
    here, there, name = tmp_path / "here", tmp_path / "there", Path(found.origin).name
    here.mkdir()
    shutil.copy(found.origin, here)
    (here / "ours_parts.py").write_text("import _speedups\nclass Net: pass\n")
    code = code_in(here)
    assert set(code.files) == {"ours_parts.py", name}
    shutil.copytree(here, there)
    assert code_differences(code, there) == []
    (there / name).write_bytes(b"other")
    assert code_differences(code, there) == [f"{name} is another one"]


def test_a_package_outside_of_the_directory_is_read_where_it_lies(tmp_path: Path) -> None:
    """As one that is installed in editable mode."""
    source, base = tmp_path / "source", tmp_path / "project"
    for name, text in {"ours_library/__init__.py": "", "ours_library/block.py": "depth = 2"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    base.mkdir()
    (base / "ours_parts.py").write_text("from ours_library.block import depth\nclass Net: pass\n")
    sys.path.append(str(source))
    code = code_in(base)
    assert set(code.files) == {"ours_parts.py", "ours_library/__init__.py", "ours_library/block.py"}
    assert code_differences(code, base) == []
    (source / "ours_library/block.py").write_text("depth = 3")
    assert code_differences(code, base) == ["ours_library/block.py is another one"]
    sys.path.remove(str(source))
    del sys.modules["ours_library.block"], sys.modules["ours_library"]
    assert code_differences(code, base) == []  # the import will say so, if it ever comes to that


def install(site: Path, name: str, version: str, text: str, *, from_directory: bool) -> None:
    """What pip leaves of a package with one module."""
    note = site / f"{name}-{version}.dist-info"
    note.mkdir(parents=True)
    (note / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (site / f"{name}_module.py").write_text(text)
    digest = read_source(text.encode())[0]
    (note / "RECORD").write_text(f"{name}_module.py,sha256={digest},{len(text)}\n{note.name}/RECORD,,\n")
    if from_directory:
        (note / "direct_url.json").write_text('{"url": "file:///somewhere", "dir_info": {}}')


def test_packages_that_were_installed_from_a_directory_count_with_their_content(tmp_path: Path) -> None:
    own_packages.cache_clear()
    site, base = tmp_path / "site-packages", tmp_path / "project"
    install(site, "ours_own", "0.1.0", "depth = 2", from_directory=True)
    install(site, "ours_index", "4.0", "width = 2", from_directory=False)
    base.mkdir()
    (base / "ours_parts.py").write_text("import ours_own_module, ours_index_module\nclass Net: pass\n")
    sys.path.append(str(site))
    code = code_in(base)
    assert set(code.packages) == {"ours_own"} and code.libraries == ("ours_index_module",)
    assert code_differences(code, base) == [] and library_versions(["ours_index", "not_installed"]) == {
        "ours_index": "4.0"
    }
    with_line_ends(site, "\r\n")
    assert code_differences(code, base) == []
    shutil.rmtree(site)
    install(site, "ours_own", "0.1.0", "depth = 3", from_directory=True)  # the same version of other sources
    assert code_differences(code, base) == ["the package ours_own is another one (0.1.0, not 0.1.0)"]
    shutil.rmtree(site)
    assert code_differences(code, base) == ["the package ours_own is missing"]


SCRIPT = """
RATE = {rate}
NAMES = ("a", "b")

def scaled(x):
    return RATE * x

class Base:
    def forward(self, x):
        return {operation}

class Net(Base):
    {comment}
    width = {width}

    def forward(self, x):
        return [scaled(y) for y in super().forward(x)]

budgets = {budgets}
"""


def script(**changes: Any) -> str:
    """The hash of a class of a script."""
    values = {"rate": 0.5, "operation": "x + 1", "comment": "", "width": 4, "budgets": [1e5]} | changes
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SCRIPT.format(**values), "<script>", "exec"), space)  # noqa: S102 - as a notebook does
    return hash_by_value(space["Net"], lambda _: None)


def test_what_travels_by_value_counts_with_all_that_it_names_and_without_the_rest_of_its_script() -> None:
    assert script() == script(budgets=[1e5, 2e5]) == script(comment="# another line\n")
    changes: list[dict[str, Any]] = [{"rate": 0.25}, {"operation": "x - 1"}, {"width": 8}]
    assert len({script(), *(script(**change) for change in changes)}) == 4


class Scaled:
    """A loss with a setting."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * (outputs - targets).square().mean()


def constant(lr: float) -> Callable[..., float]:
    return lambda params: lr


def test_objects_of_a_program_count_by_their_modules_or_by_value_with_their_settings() -> None:
    code = code_of_objects(user_parts_of(spec_of()))
    assert set(code.files) == {"tests/parts.py"} and code.elsewhere == {"tests/parts.py": "tests.parts"}
    assert code_differences(code, None) == []
    own = [
        code_of_objects(replace(user_parts_of(spec_of()), loss=loss, lr=constant(lr)))
        for loss, lr in [(Scaled(1.0), 0.1), (Scaled(2.0), 0.1), (Scaled(1.0), 0.2)]
    ]
    assert len({c.digest for c in own}) == 3 and own[0].python
    assert "tests/test_source_code.py" in own[0].files and "arguments of Scaled" in own[0].objects
    two = code_of_objects(replace(user_parts_of(spec_of()), lr=lambda params: 0.1, schedule=lambda step, steps: 1.0))
    assert sum("<lambda>" in name for name in two.objects) == 2


def test_changes_are_named() -> None:
    before = CodeFacts(files={"a.py": "1", "b.py": "1"}, objects={"Net": "1"}, python="3.11")
    now = CodeFacts(files={"a.py": "2", "c.py": "1"}, objects={"Net": "2"}, python="3.11")
    assert before.changes_to(now) == ["a.py was edited", "b.py is not used any more", "c.py is new", "Net was edited"]
    assert before.changes_to(before) == []
    assert before.changes_to(CodeFacts(files=before.files, objects={"Net": "2"}, python="3.12")) == []
