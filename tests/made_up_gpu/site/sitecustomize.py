"""On the PYTHONPATH of a process and of all that it starts: each that imports torch has the made-up GPUs."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any


class _Torch(MetaPathFinder):
    """Brings the hooks before torch, and the driver's answers after it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        from tests.made_up_gpu import build

        build.load(Path(os.environ["MADE_UP_GPU"]))
        spec: Any = find_spec("torch")
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            from tests.made_up_gpu.driver import install

            install()

        spec.loader.exec_module = exec_module
        return spec


if "MADE_UP_GPU" in os.environ:
    sys.meta_path.insert(0, _Torch())
