"""Fence around code and data that somebody else names: only what lies in chosen directories, and is defined there.

A spec calls what it names with arguments of its own, so `subprocess:run` would be a shell, and so would an attribute of
anything that a module holds. A name must be bound by `def` or `class` in a file of those directories: in its source,
which is parsed before anything is imported, and then on the object itself.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import SpecError

ENVIRONMENT = "FLOPS_FIT_RAY_FENCE"  # directories, separated as in PATH, of a process that must not leave them
MAX_REEXPORTS = 8  # in a row
WILDCARDS = "*?["
NEVER_ENTERED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)  # what they bind is their own


@dataclass(frozen=True)
class Definition:
    """Place of a `def` or `class`."""

    file: Path
    name: str  # with the classes that it stands in, as `__qualname__`


@dataclass(frozen=True)
class Fence:
    """Directories that code and data may come from."""

    roots: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        """Return what puts a process behind this fence."""
        return {ENVIRONMENT: os.pathsep.join(map(str, self.roots))}

    def holds(self, place: Path) -> bool:
        """Return True if a path, with its links resolved, lies in one of the directories."""
        try:
            real = place.resolve()
        except (OSError, RuntimeError, ValueError):  # a circle of links, a null character
            return False
        return any(real.is_relative_to(root.resolve()) for root in self.roots)

    def target_fault(self, target: str, base: Path) -> str | None:
        """Return why `module:attribute` must not be imported from `base`; None if it may be. Runs no code."""
        found = self._definition(target, base)
        return found if isinstance(found, str) else None

    def object_fault(self, target: str, base: Path, found: Any) -> str | None:
        """Return why an imported object is not what the source of its module defines; None if it is."""
        wanted = self._definition(target, base)
        if isinstance(wanted, str):
            return wanted
        module = sys.modules.get(str(getattr(found, "__module__", None)))
        file = getattr(module, "__file__", None)
        same_file = file is not None and Path(file).resolve() == wanted.file.resolve()
        if same_file and getattr(found, "__qualname__", None) == wanted.name:
            return None
        return f"{target!r} is not the def or class of that name in {wanted.file}, but another object; name its own"

    def data_fault(self, named: str, base: Path) -> str | None:
        """Return why data files must not be read; None if all that the path or pattern finds now lie inside."""
        if named.startswith(("~", "file:")) or "$" in named or "://" in named:  # the reader decides what it means
            return f"{named!r} is outside of the --code directories, and this service reads no other files"
        parts = Path(named).parts
        wild = next((i for i, part in enumerate(parts) if any(mark in part for mark in WILDCARDS)), len(parts))
        if ".." in parts[wild:] or parts[wild:].count("**") > 1:
            return f"{named!r} has '..' behind a wildcard, or more than one '**'; write the directory itself"
        start = base.joinpath(*parts[:wild])
        found = [start, *start.glob(str(Path(*parts[wild:])))] if wild < len(parts) and self.holds(start) else [start]
        if all(map(self.holds, found)):
            return None
        return f"{named!r} is outside of the --code directories, and this service reads no other files"

    def _definition(self, target: str, base: Path) -> Definition | str:
        """Return where a target is defined, or why that cannot be."""
        module, _, attribute = target.partition(":")
        names = attribute.split(".")
        if not all(name.isidentifier() and not name.startswith("_") for name in (*module.split("."), *names)):
            return f"{target!r} has a part that begins with '_' or is no name, and this service calls no such thing"
        file = self._file_of(module, base)
        if file is None:
            return f"{target!r} names no module in {base}, and this service runs no other code"
        found = self._defined(file, names, base, MAX_REEXPORTS)
        if found is None:
            shown, whole = repr(names[0]), "" if len(names) == 1 else f" with {attribute!r} inside"
            fault = f"{module!r} does not define {shown} itself{whole}, by def or class"
            return f"{fault}, and this service calls nothing that a module imports or holds"
        return found

    def _file_of(self, module: str, base: Path) -> Path | None:
        """Return the source file that `import module` would load from `base`."""
        parts = module.split(".")
        if not all(part.isidentifier() for part in parts) or parts[0] in sys.stdlib_module_names:
            return None
        place = base.joinpath(*parts)
        file = next((f for f in (place / "__init__.py", place.with_name(f"{parts[-1]}.py")) if f.is_file()), None)
        return file if file is not None and self.holds(file) else None

    def _defined(self, file: Path, names: Sequence[str], base: Path, depth: int) -> Definition | None:
        """Return where a module defines names inside of each other, or a module that it imports the first one from."""
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        if _is_defined(tree.body, names):
            return Definition(file, ".".join(names))
        bindings = list(_bindings(tree.body, names[0]))
        if depth and len(bindings) == 1 and isinstance(node := bindings[0], ast.ImportFrom) and node in tree.body:
            alias = next(alias for alias in node.names if (alias.asname or alias.name) == names[0])
            source = self._source_of(node, file, base)
            if source is not None:
                return self._defined(source, [alias.name, *names[1:]], base, depth - 1)
        return None

    def _source_of(self, node: ast.ImportFrom, file: Path, base: Path) -> Path | None:
        if not node.level:
            return self._file_of(node.module or "", base)
        package = file.parent
        for _ in range(node.level - 1):
            package = package.parent
        if not package.is_relative_to(base):
            return None
        parts = [*package.relative_to(base).parts, *(node.module or "").split(".")]
        return self._file_of(".".join(part for part in parts if part), base)


def fence_of(environment: Mapping[str, str] = os.environ) -> Fence | None:
    """Return the fence of this process; None where there is none."""
    named = environment.get(ENVIRONMENT)
    return None if named is None else Fence(tuple(Path(root).resolve() for root in named.split(os.pathsep) if root))


def judged_files(files: Sequence[Path], key: str) -> list[Path]:
    """Return data files as they are to be opened: behind a fence by the paths that were judged, links resolved.

    Raises:
        SpecError: one lies outside.
    """
    fence = fence_of()
    if fence is None:
        return list(files)
    real = [file.resolve() for file in files]
    outside = next((named for named, file in zip(files, real, strict=True) if not fence.holds(file)), None)
    if outside is not None:
        raise SpecError(
            "spec", [f"{key}: {outside} is outside of the --code directories of the service that runs this"]
        )
    return real


def _is_defined(body: Sequence[ast.stmt], names: Sequence[str]) -> bool:
    """Return True if def or class alone bind the first name in a body, and the others inside of it."""
    bindings = list(_bindings(body, names[0]))
    if not bindings or not all(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in bindings):
        return False
    last = bindings[-1]
    if last not in body:
        return False
    return len(names) == 1 or (isinstance(last, ast.ClassDef) and _is_defined(last.body, names[1:]))


def _bindings(body: Sequence[ast.AST], name: str) -> Iterator[ast.AST]:
    """Yield what binds a name in a body, wherever it stands there: def, class, import, assignment, loop, with."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            yield node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any((alias.asname or alias.name.partition(".")[0]) == name for alias in node.names):
                yield node
        elif isinstance(node, ast.Name):
            if node.id == name and not isinstance(node.ctx, ast.Load):
                yield node
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name == name:
            yield node
        if not isinstance(node, NEVER_ENTERED):
            yield from _bindings(list(ast.iter_child_nodes(node)), name)
