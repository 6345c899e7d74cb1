"""Source files as Python reads them: a hash without comments, layout and docstrings, and the modules it imports."""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Import:
    """One import: `from ..package import name` is ("package", 2, "name"); `import a.b` is ("a.b", 0, "")."""

    module: str
    level: int = 0
    name: str = ""


# Names of modules that builds and version control write, each with another date or number
_VERSIONS = {"version", "_version", "__version__", "__about__", "_about", "build_info", "_build_info"}
_COMPUTING = (ast.Call, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.comprehension, ast.Await)


def read_source(source: bytes, module: str = "") -> tuple[str, list[Import]]:
    """Return the hash of a source file, and its imports wherever they stand; of anything else that of its bytes.

    Of a module that is named as a version (`_version.py`) and computes nothing, the names count, and no values.

    Args:
        module: name of the file, without its suffix.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the user's code, said when it is imported
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return digest_of(source.replace(b"\r\n", b"\n")), []
    if module in _VERSIONS and not any(isinstance(node, _COMPUTING) for node in ast.walk(tree)):
        named = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return digest_of(" ".join(sorted(named)).encode()), []
    hashed, imports = hashlib.sha256(), []
    for part in _parts(tree):
        if isinstance(part, str):
            hashed.update(part.encode(errors="surrogatepass"))
            hashed.update(b"\0")
        elif isinstance(part, ast.Import):
            imports += [Import(alias.name) for alias in part.names]
        elif isinstance(part, ast.ImportFrom):
            imports += [Import(part.module or "", part.level, alias.name) for alias in part.names]
    return hashed.hexdigest()[:16], imports


def digest_of(content: bytes) -> str:
    """Return 16 hex digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def _parts(tree: ast.AST) -> Iterator[str | ast.AST]:
    """Yield a syntax tree as words, each node before its words. What is empty is left out: Python versions differ."""
    left: list[object] = [tree]
    while left:
        here = left.pop()
        if isinstance(here, str):
            yield here
        elif isinstance(here, ast.Constant):
            yield f"{type(here.value).__name__} {here.value!r}"
        elif isinstance(here, ast.AST):
            yield here
            left.append(")")
            for name in reversed(here._fields):
                value = getattr(here, name, None)
                if value is not None and value != [] and name not in ("ctx", "type_comment"):
                    left += [value, name]
            yield type(here).__name__
        elif isinstance(here, list):
            left.append("]")
            left += [item for item in reversed(here) if not _is_docstring(item)]
        else:
            yield repr(here)


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
