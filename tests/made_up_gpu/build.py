"""Build the hooks, which are loaded before torch (after it torch asks nobody), and the driver's library."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from tests.compiling import compiled

NAME = "made_up_hooks"
DRIVER = "libnvidia-ml.so.1"


def build(directory: Path) -> Path | None:
    """Compile the hooks into a directory. Returns the library; None where there is no C++ compiler."""
    torch, source = _torch(), Path(__file__).with_name("hooks.cpp")
    include = [torch / "include", torch / "include/torch/csrc/api/include", sysconfig.get_paths()["include"]]
    options = ["-std=c++20", *(f"-I{place}" for place in include)]
    return compiled(source, directory / f"{NAME}.so", options, [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"])


def build_driver(directory: Path) -> Path | None:
    """Compile nvml.c into a directory as the driver's library. Returns it; None where there is no C compiler."""
    options = ["-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{DRIVER}"]
    return compiled(Path(__file__).with_name("nvml.c"), directory / DRIVER, options)


def load(library: Path) -> None:
    """Load the hooks.

    Raises:
        RuntimeError: torch was imported before.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already, and has looked for CUDA")
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch() / "lib" / name), ctypes.RTLD_GLOBAL)
    _module(library).add_device()


def _module(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _torch() -> Path:
    """The directory of torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
