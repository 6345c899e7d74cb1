"""Check of the code that a spec names: it must lie in the --code directories of the service.

A spec calls what it names with arguments of its own, so naming `subprocess:run` would be a shell. A module must be a
file in those directories and must define the name itself, not import it from elsewhere. No code is run for the check.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flops_fit_ray.errors import SpecError
from flops_fit_ray.spec import SweepSpec, is_data_path

MAX_REEXPORTS = 8  # in a row


def check_allowed(spec: SweepSpec, code: Path, roots: Sequence[Path]) -> None:
    """Check that a spec names only allowed code, data and servers.

    Raises:
        SpecError: it does not; all faults at once.
    """
    if not _inside(code, roots):
        listed = ", ".join(map(str, roots)) or "none: start it with --code DIR"
        raise SpecError("spec", [f"code: {code} is not in the --code directories of this service ({listed})"])
    faults = list(_faults(spec, code.resolve(), roots))
    if faults:
        raise SpecError("spec", faults)


def _faults(spec: SweepSpec, code: Path, roots: Sequence[Path]) -> Iterator[str]:
    for key, named in _named(spec):
        if key in ("data.train", "data.eval") and (is_data_path(named) or ":" not in named):
            moved = named.startswith(("~", "file:")) or "$" in named  # what it means is the reader's to decide
            if moved or not _inside(Path(os.path.normpath(code / named.partition("*")[0])), roots):
                yield f"{key}: {named!r} is outside of the --code directories, and this service reads no other files"
        elif ":" in named or key == "model.target":
            yield from _target_faults(key, named, code, roots)
    mlflow = spec.trackers.mlflow
    if mlflow is not None and not (mlflow.tracking_uri or "http://").startswith(("http://", "https://")):
        yield f"trackers.mlflow.tracking_uri: {mlflow.tracking_uri!r} must begin with http:// or https:// here"


def _named(spec: SweepSpec) -> Iterator[tuple[str, str]]:
    one = {
        "model.target": spec.model.target,
        "model.flops_per_token": spec.model.flops_per_token,
        "data.train": spec.data.train,
        "data.eval": spec.data.eval,
        "data.count_tokens": spec.data.count_tokens,
        "loss": spec.loss,
        "train.optimizer": spec.train.optimizer,
        "train.schedule": spec.train.schedule,
        "train.lr": spec.train.lr,
        **{f"metrics.{name}": target for name, target in spec.metrics.items()},
    }
    for key, named in one.items():
        if isinstance(named, str):
            yield key, named


def _target_faults(key: str, target: str, code: Path, roots: Sequence[Path]) -> Iterator[str]:
    module, _, attribute = target.partition(":")
    name = attribute.partition(".")[0]
    file = _file_of(module, code, roots)
    if file is None:
        yield f"{key}: {target!r} names no module in {code}, and this service runs no other code"
    elif not _defines(file, name, code, roots, MAX_REEXPORTS):
        yield f"{key}: {module!r} does not define {name!r} itself, and this service calls nothing that is imported"


def _file_of(module: str, code: Path, roots: Sequence[Path]) -> Path | None:
    """Return the source file that `import module` would load from `code`."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts) or parts[0] in sys.stdlib_module_names:
        return None
    place = code.joinpath(*parts)
    file = next((f for f in (place / "__init__.py", place.with_name(f"{parts[-1]}.py")) if f.is_file()), None)
    return file if file is not None and _inside(file, roots) else None


def _defines(file: Path, name: str, code: Path, roots: Sequence[Path], depth: int) -> bool:
    """Return True if a module defines a name, or imports it from a module in `code` that does."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return False
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return True
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return True
        if isinstance(node, ast.ImportFrom) and depth:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    source = _source_of(node, file, code, roots)
                    return source is not None and _defines(source, alias.name, code, roots, depth - 1)
    return False


def _source_of(node: ast.ImportFrom, file: Path, code: Path, roots: Sequence[Path]) -> Path | None:
    if not node.level:
        return _file_of(node.module or "", code, roots)
    package = file.parent
    for _ in range(node.level - 1):
        package = package.parent
    if not package.is_relative_to(code):
        return None
    return _file_of(".".join([*package.relative_to(code).parts, *(node.module or "").split(".")]), code, roots)


def _inside(place: Path, roots: Sequence[Path]) -> bool:
    real = place.resolve()
    return any(real.is_relative_to(root.resolve()) for root in roots)
