"""`python -m tests.mutants [--count 60] [--seed 0] [--paths FILE ...]`: do the tests notice a wrong line?

A mutant is the package with one small fault: `<` for `<=`, `+` for `-`, a call that is left out. Mutants are drawn at
random and written into a copy of the repository, and the tests that call the mutated function run there, the nearest
and quickest first. A mutant that fails a test, or hangs, is killed; one that passes them all has survived. A survivor
is a missing assertion, unless the mutant means the same as the original.

Which test calls what is measured once (`tests/call_map.py`) and kept in `.mutants.json`; a test file is measured again
when it changes, and all of them with `--remap`. Tests marked `ray`, `slow` or `gpu` are left out.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mutations import Mutant, mutants_in

ROOT = Path(__file__).parent.parent
PACKAGE = "flops_fit_ray"
PATHS = ("analysis", "planning", "training", "ledger", "sweep", "spec", "tables", "engine/dispatch.py")
PYTEST = (
    "-m",
    "pytest",
    "-q",
    "-x",
    "-p",
    "xdist.plugin",
    "-p",
    "no:cacheprovider",
    "-m",
    "not ray and not slow and not gpu",
)
HANGS = 3  # a mutant has this many times the seconds that its tests took when they were measured, and START_SECONDS
START_SECONDS = 60.0
Tests = Mapping[str, Mapping[str, Any]]  # by test: {"seconds": float, "calls": [function], "imports": [parts]}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the tests said of one mutant."""

    mutant: Mutant
    killed_by: str | None  # the first test that failed, or "time limit"; None: it survived
    ran: int  # tests chosen
    covering: int  # tests that call the mutated function
    seconds: float

    def __str__(self) -> str:
        said = f"{self.ran} of {self.covering} tests that call it ran" if not self.killed_by else f"by {self.killed_by}"
        return f"{'killed' if self.killed_by else 'SURVIVED':8}  {self.seconds:5.1f} s  {self.mutant}  ({said})"


class Copy:
    """A copy of the repository's files, where mutants are written and tests run."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.root, self.directory = root, directory
        self._written = 0
        git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(git, cwd=root, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            if (root / name).is_file():
                self._copy(root / name, name)
        for helper in ("call_map.py", "mutations.py"):  # a repository without them can be tested too
            self._copy(Path(__file__).with_name(helper), f"tests/{helper}")

    def _copy(self, source: Path, name: str) -> None:
        target = self.directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)

    def write(self, mutant: Mutant) -> None:
        """Write the mutated file. Each has a time of its own, so that no older bytecode is taken for it."""
        path = self.directory / mutant.path
        path.write_text(mutant.applied(path.read_text()))
        self._written += 1
        os.utime(path, (self._written, self._written))

    def restore(self, mutant: Mutant) -> None:
        """Write the original file again."""
        self._copy(self.root / mutant.path, mutant.path)

    def pytest(
        self, arguments: Sequence[str], *, limit: float | None = None, environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run pytest there; its exit status and output. TimeoutExpired past `limit` seconds, with no process left."""
        own = {
            "PYTHONPATH": str(self.directory),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }  # others take a second to load
        child = subprocess.Popen(
            [sys.executable, *PYTEST, *arguments],
            cwd=self.directory,
            env={**os.environ, **own, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = child.communicate(timeout=limit)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
        return child.returncode, output


def measure_tests(copy: Copy, package: str, globs: Iterable[str], file: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Calls and seconds by test, of the test files that match; `known` is completed and written to `file`.

    A test file that has not changed is not run again.
    """
    found = sorted({path for pattern in globs for path in copy.directory.glob(pattern)})
    names = [path.relative_to(copy.directory).as_posix() for path in found]
    for path, name in zip(found, names, strict=True):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if known.get(name, {}).get("digest") != digest:
            known[name] = {"digest": digest, "tests": _measured(copy, package, name)}
            file.write_text(json.dumps(known))
    return {
        test: {**seen, "imports": _imports(path)}
        for path, name in zip(found, names, strict=True)
        for test, seen in known[name]["tests"].items()
    }


def _imports(path: Path) -> list[tuple[str, ...]]:
    """The modules, and the names in them, that a file imports from somewhere, each as the parts of its dotted name."""
    froms = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    return [(*str(node.module).split("."), alias.name) for node in froms for alias in node.names]


def _measured(copy: Copy, package: str, name: str) -> dict[str, Any]:
    began = time.monotonic()
    file = copy.directory / ".call_map.json"
    file.unlink(missing_ok=True)
    where = {"CALL_MAP_PACKAGE": str(copy.directory / package), "CALL_MAP_FILE": str(file)}
    all_of_them = "--maxfail=1000000"  # takes back -x: a file with a failure has other tests
    _, output = copy.pytest(["-p", "tests.call_map", all_of_them, name], environment=where)
    _say(f"measured  {time.monotonic() - began:5.1f} s  {name}: {output.strip().splitlines()[-1]}")
    tests: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return tests


def tests_for(mutant: Mutant, tests: Tests) -> list[str]:
    """The tests that call the mutated function; all that call its module, for a line outside of functions.

    Those come first whose file imports the mutated module, or one near to it, and of these the quickest.
    """
    module = f"{mutant.path}:"
    if mutant.function:
        calling = [test for test, seen in tests.items() if module + mutant.function in seen["calls"]]
    else:
        calling = [test for test, seen in tests.items() if any(call.startswith(module) for call in seen["calls"])]
    parts = tuple(mutant.path.removesuffix(".py").split("/"))
    return sorted(calling, key=lambda test: (-_nearness(parts, tests[test]["imports"]), tests[test]["seconds"], test))


def _nearness(module: tuple[str, ...], imports: Iterable[tuple[str, ...]]) -> int:
    """How many leading parts of its dotted name the module shares with the nearest import."""
    shared = (sum(1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], zip(module, i))) for i in imports)  # noqa: B905
    return max(shared, default=0)


def within(chosen: Sequence[str], tests: Tests, limit: float) -> list[str]:
    """As many of the first tests as fit into `limit` seconds, at least one; those of a file stand together."""
    fitting, spent = list[str](), 0.0
    for test in chosen:
        spent += tests[test]["seconds"]
        if fitting and spent > limit:
            break
        fitting.append(test)
    files = dict.fromkeys(test.split("::")[0] for test in fitting)
    return [test for file in files for test in fitting if test.split("::")[0] == file]


def judge(mutant: Mutant, copy: Copy, tests: Tests, limit: float) -> Verdict:
    """Run the tests of one mutant."""
    began = time.monotonic()
    covering = tests_for(mutant, tests)
    chosen = within(covering, tests, limit)
    killed_by = None
    if chosen:
        copy.write(mutant)
        try:
            patience = HANGS * sum(tests[test]["seconds"] for test in chosen) + START_SECONDS
            status, output = copy.pytest(chosen, limit=patience)
            if status == pytest.ExitCode.INTERNAL_ERROR:
                raise SystemExit(f"pytest itself fails, which says nothing of the mutant:\n{output}")
            killed_by = _first_failure(output) if status else None
        except subprocess.TimeoutExpired:
            killed_by = "time limit"
        finally:
            copy.restore(mutant)
    seconds = time.monotonic() - began
    return Verdict(mutant=mutant, killed_by=killed_by, ran=len(chosen), covering=len(covering), seconds=seconds)


def _first_failure(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" - ")[0].split(" ", 1)[1] if lines else "pytest: " + output.strip().splitlines()[-1]


def hunt(
    root: Path, package: str, drawn: Iterable[Mutant], *, tests: Iterable[str], limit: float, remap: bool = False
) -> Iterator[Verdict]:
    """Verdicts on mutants of a repository, by the test files that match the globs `tests`; `limit` is of one mutant."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        copy = Copy(root, Path(directory).resolve())
        file = root / ".mutants.json"
        known = json.loads(file.read_text()) if file.exists() and not remap else {}
        seen = measure_tests(copy, package, tests, file, known)
        for mutant in drawn:
            yield judge(mutant, copy, seen, limit)


def draw(root: Path, package: str, paths: Iterable[str], *, count: int, seed: int) -> list[Mutant]:
    """Mutants of the package's sources under `paths`, drawn at random by `seed`."""
    everything = [mutant for path in paths for mutant in mutants_under(root, package, path)]
    random.Random(seed).shuffle(everything)
    return list(itertools.islice(filter(lambda mutant: _is_python(root, mutant), everything), count))


def mutants_under(root: Path, package: str, path: str) -> Iterator[Mutant]:
    """All mutants of a file, of one of its lines (`FILE:LINE`), or of the files in a directory, in a fixed order."""
    name, _, line = path.partition(":")
    place = root / package / name
    if not place.exists():
        raise SystemExit(f"{package}/{name} does not exist: give --paths relative to {package}/")
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        for mutant in mutants_in(file.relative_to(root).as_posix(), file.read_text()):
            if not line or mutant.start[0] == int(line):
                yield mutant


def _is_python(root: Path, mutant: Mutant) -> bool:
    try:
        mutant.applied((root / mutant.path).read_text())
    except SyntaxError:
        return False
    return True


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - its output


def main() -> int:
    """The command; exit status 1 if a mutant survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="mutants to draw (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (%(default)s)")
    parser.add_argument("--paths", nargs="+", default=PATHS, help=f"FILE, FILE:LINE or DIRECTORY in {PACKAGE}/")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds of tests for one mutant (%(default)s)")
    parser.add_argument("--remap", action="store_true", help="measure all tests again")
    parser.add_argument("--tests", nargs="+", default=["tests/test_*.py"], help="test files to use (all)")
    given = parser.parse_args()
    verdicts = []
    drawn = draw(ROOT, PACKAGE, given.paths, count=given.count, seed=given.seed)
    for verdict in hunt(ROOT, PACKAGE, drawn, tests=given.tests, limit=given.limit, remap=given.remap):
        verdicts.append(verdict)
        _say(str(verdict))
    survived = [v for v in verdicts if not v.killed_by]
    hung = sum(v.killed_by == "time limit" for v in verdicts)
    untested = sum(v.covering == 0 for v in verdicts)
    killed = len(verdicts) - len(survived)
    _say(f"{len(verdicts)} mutants: {killed} killed ({hung} of them by the time limit), {len(survived)} survived")
    _say(f"of the survivors, {untested} are called by no test; seed {given.seed}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
