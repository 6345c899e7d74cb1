"""Settings of torch in a program, which workers take over: they decide what the same code computes.

A script or notebook sets them before it calls us, and none of its lines runs in a worker. What a module sets that a
worker imports is set there once more.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

Settings = Mapping[str, Any]

DEFAULTS: Settings = {
    "default_dtype": "float32",
    "float32_matmul_precision": "highest",
    "backends.cudnn.allow_tf32": True,
    "backends.cudnn.benchmark": False,
    "backends.cudnn.deterministic": False,
    "deterministic_algorithms": "off",
}
# Since torch 2.9; who sets one of these can no longer read the two above
OWN_PRECISIONS = tuple(
    f"backends.{place}fp32_precision"
    for place in (
        "",
        "cuda.matmul.",
        "cudnn.",
        "cudnn.conv.",
        "cudnn.rnn.",
        "mkldnn.",
        "mkldnn.matmul.",
        "mkldnn.conv.",
    )
)
VARIABLES = ("CUBLAS_WORKSPACE_CONFIG",)  # without it torch refuses deterministic algorithms on a GPU


def torch_settings() -> Settings:
    """Return the settings of this process; none where torch is not imported, so that nothing can have set any."""
    if "torch" not in sys.modules:
        return {}
    found = {name: _read(name) for name in DEFAULTS}
    if None in found.values():
        found |= {name: _read(name) for name in OWN_PRECISIONS}
    known = {name: value for name, value in found.items() if value is not None}
    return known | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def apply_settings(settings: Settings) -> None:
    """Let this process have the settings of another one."""
    for name, value in settings.items():
        if name in VARIABLES:
            os.environ.setdefault(name, value)
        elif _read(name) != value:
            _write(name, value)


def changed_words(settings: Settings) -> str:
    """Return the settings that are not torch's defaults, `name = value`; the dtype is said with the precision."""
    changed = {name: value for name, value in settings.items() if value not in (DEFAULTS.get(name, "none"), "none")}
    changed.pop("default_dtype", None)
    return ", ".join(f"{name} = {value}" for name, value in changed.items())


def _read(name: str) -> Any:
    """Return a setting; None where this torch has none of this name, or lets nobody read it any more."""
    import torch

    try:
        if name in _READ:
            return _READ[name]()
        return operator.attrgetter(name)(torch)
    except (AttributeError, RuntimeError):
        return None


def _write(name: str, value: Any) -> None:
    import torch

    if name in _WRITE:
        _WRITE[name](value)
    else:
        place, _, last = name.rpartition(".")
        setattr(operator.attrgetter(place)(torch), last, value)


def _dtype() -> str:
    import torch

    return str(torch.get_default_dtype()).removeprefix("torch.")


def _set_dtype(name: str) -> None:
    import torch

    torch.set_default_dtype(getattr(torch, name))


def _matmul_precision() -> str:
    import torch

    return torch.get_float32_matmul_precision()


def _set_matmul_precision(value: str) -> None:
    import torch

    torch.set_float32_matmul_precision(value)


def _deterministic() -> str:
    import torch

    if not torch.are_deterministic_algorithms_enabled():
        return "off"
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else "on"


def _set_deterministic(value: str) -> None:
    import torch

    torch.use_deterministic_algorithms(value != "off", warn_only=value == "warn")


_READ: dict[str, Callable[[], str]] = {
    "default_dtype": _dtype,
    "float32_matmul_precision": _matmul_precision,
    "deterministic_algorithms": _deterministic,
}
_WRITE: dict[str, Callable[[str], None]] = {
    "default_dtype": _set_dtype,
    "float32_matmul_precision": _set_matmul_precision,
    "deterministic_algorithms": _set_deterministic,
}
