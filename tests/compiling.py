"""Shared libraries that tests build with the system's compiler, which is optional."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMPILERS = {".c": ("cc", "gcc", "clang"), ".cpp": ("c++", "g++", "clang++")}


def compiled(source: Path, library: Path, options: Sequence[str] = (), links: Sequence[str] = ()) -> Path | None:
    """Compile a source file into a shared library. Returns it; None where there is no compiler."""
    compiler = next(filter(None, map(shutil.which, COMPILERS[source.suffix])), None)
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", *options, source, "-o", library, *links], check=True)
    return library
