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
        return _FUNCTIONS[name][0](torch) if name in _FUNCTIONS else operator.attrgetter(name)(torch)
    except (AttributeError, RuntimeError):
        return None


def _write(name: str, value: Any) -> None:
    import torch

    if name in _FUNCTIONS:
        _FUNCTIONS[name][1](torch, value)
    else:
        place, _, last = name.rpartition(".")
        setattr(operator.attrgetter(place)(torch), last, value)


_MODES = ("off", "warn", "on")  # torch's deterministic debug modes
# Settings that are no attributes: how torch, which is imported late, is asked for one, and how it is set
_FUNCTIONS: dict[str, tuple[Callable[[Any], str], Callable[[Any, str], object]]] = {
    "default_dtype": (
        lambda torch: str(torch.get_default_dtype()).removeprefix("torch."),
        lambda torch, name: torch.set_default_dtype(getattr(torch, name)),
    ),
    "float32_matmul_precision": (
        lambda torch: str(torch.get_float32_matmul_precision()),
        lambda torch, value: torch.set_float32_matmul_precision(value),
    ),
    "deterministic_algorithms": (
        lambda torch: _MODES[torch.get_deterministic_debug_mode()],
        lambda torch, mode: torch.set_deterministic_debug_mode(_MODES.index(mode)),
    ),
}
