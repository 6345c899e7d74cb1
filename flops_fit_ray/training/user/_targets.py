"""Objects of the user's modules by name, `module:attribute`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import did_you_mean
from flops_fit_ray.training.fence import fence_of
from flops_fit_ray.training.user.user_code import command_line_of, user_code
from flops_fit_ray.waiting import waiting


def load_target(target: str, base: Path, key: str) -> Any:
    """Import the object that `module:attribute` names; modules in `base` come first.

    Raises:
        SpecError: it cannot be imported, does not exist, lies outside of this process's fence, or is neither callable
            nor, for data, a dataset.
    """
    module_name, _, attribute = target.partition(":")
    if not (module_name and attribute):
        raise SpecError("spec", [f"{key}: {target!r} must be written module:attribute, for example model:GPT"])
    fence = fence_of()
    if fence is not None and (fault := fence.target_fault(target, base)) is not None:
        raise SpecError("spec", [f"{key}: {fault}"])
    module = _import(module_name, base, key)
    found: Any = module
    for part in attribute.split("."):
        with user_code(f"{key}: {target!r} raised"):  # a module or class may compute its attributes
            present = hasattr(found, part)
        if not present:
            fault = f"{key}: {module_name!r} has no attribute {part!r}"
            hint = did_you_mean(part, dir(found))
            raise SpecError("spec", [f"{fault}; {hint}" if hint else fault])
        found = getattr(found, part)
    if fence is not None and (fault := fence.object_fault(target, base, found)) is not None:
        raise SpecError("spec", [f"{key}: {fault}"])
    is_data = key in ("data.train", "data.eval") and (hasattr(found, "__getitem__") or hasattr(found, "__iter__"))
    if not (callable(found) or is_data):
        raise SpecError(
            "spec",
            [f"{key}: {target!r} is of type {type(found).__name__}; name a class, a function or, for data, a dataset"],
        )
    return found


def _import(name: str, base: Path, key: str) -> Any:
    root = name.partition(".")[0]
    local = next((p for p in (base / f"{root}.py", base / root) if p.exists()), None)
    if local is not None:
        _forget_other(root, base)
    path = str(base)
    if sys.path[:1] != [path]:
        sys.path[:] = [path, *(p for p in sys.path if p != path)]
    importlib.invalidate_caches()
    with waiting(f"importing {name} ({key})"), command_line_of(str(local or name)):
        try:
            with user_code(f"{key}: importing {name!r} raised", but=ModuleNotFoundError):
                return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name is not None and (name == e.name or name.startswith(f"{e.name}.")):
                fault = f"{key}: no module {name!r} in {base} or among the installed packages"
            else:
                fault = f"{key}: importing {name!r} needs the module {e.name!r}, which is missing"
            raise SpecError("spec", [fault]) from e


def _forget_other(root: str, base: Path) -> None:
    """Remove a module of the same name, imported from another directory, from sys.modules."""
    loaded = sys.modules.get(root)
    if loaded is None:
        return
    own = vars(loaded)  # and not what a `__getattr__` of the module's own would compute
    origins = [own.get("__file__"), *own.get("__path__", [])]
    if any(origin and Path(origin).is_relative_to(base) for origin in origins):
        return
    for module in [m for m in sys.modules if m == root or m.startswith(f"{root}.")]:
        del sys.modules[module]
