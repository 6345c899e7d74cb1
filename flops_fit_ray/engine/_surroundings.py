"""The user's program around its objects, taken over by workers: directory, search path, arguments, torch's settings.

Workers of a cluster start where their node was started, and with Ray's own arguments. Code that opens `data/x.npy` or
parses its arguments would find another file and other arguments there than in the driver, which planned with them. And
what a notebook puts on `sys.path` while it runs, Ray does not hand on: its modules would not be found.
"""

from __future__ import annotations

import contextlib
import functools
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flops_fit_ray.engine._torch_settings import Settings, apply_settings, torch_settings
from flops_fit_ray.engine.jobs import upload_of


@dataclass(frozen=True)
class SearchPath:
    """Entries that a program has put on `sys.path`: before Python's own library, which they hide, and behind it.

    Relative entries are of the working directory, or of the upload of a job.
    """

    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()

    def taken_over(self, path: Sequence[str]) -> list[str]:
        """Return the search path of another process with these entries, as far as it has their files."""
        before, behind = ([_absolute(p) for p in part if Path(p).exists()] for part in (self.before, self.behind))
        return [*before, *(p for p in path if _absolute(p) not in {*before, *behind}), *behind]


@dataclass(frozen=True)
class Surroundings:
    """Surroundings of the driver. A worker takes them over as it unpickles them.

    Whatever is unpickled after them may import the user's modules, which read files and arguments at once.
    """

    directory: Path | None  # None: each node has its own, as in a job's upload
    arguments: tuple[str, ...]
    search: SearchPath = SearchPath()
    torch: Settings = field(default_factory=dict)

    def __reduce__(self) -> tuple[Callable[..., Surroundings], tuple[object, ...]]:
        return _take_over, (self.directory, self.arguments, self.search, self.torch)


def surroundings_of_driver() -> Surroundings:
    """Return those of this process."""
    here = None
    with contextlib.suppress(FileNotFoundError):  # it was removed, and nothing can be relative to it
        here = Path.cwd()
    directory = None if here is None or upload_of(here) is not None else here
    return Surroundings(directory, tuple(sys.argv), search_path(sys.path), torch_settings())


def search_path(path: Sequence[str]) -> SearchPath:
    """Return what a program has put on a search path: all that is not of its Python and what is installed there."""
    own = [_absolute(p) for p in path]
    first = next((i for i, p in enumerate(own) if _is_installed(p)), len(own))
    kept = [(i, str(_in_job(Path(p)))) for i, p in enumerate(own) if not _is_installed(p)]
    return SearchPath(tuple(p for i, p in kept if i < first), tuple(p for i, p in kept if i > first))


def _take_over(
    directory: Path | None, arguments: tuple[str, ...], search: SearchPath, settings: Settings
) -> Surroundings:
    import ray

    if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:  # the context would start Ray
        with contextlib.suppress(OSError):  # a node without it; code that needs it says so
            if directory is not None:
                os.chdir(directory)
        sys.argv = list(arguments)
        sys.path[:] = search.taken_over(sys.path)
        apply_settings(settings)
    return Surroundings(directory, arguments, search, settings)


def _absolute(entry: str) -> str:
    return str(Path(entry).absolute())  # "" is the working directory; links stay: modules know their files by them


def _is_installed(entry: str) -> bool:
    return any(Path(entry).is_relative_to(place) for place in _places_of_python())


@functools.cache
def _places_of_python() -> tuple[str, ...]:
    paths, version = sysconfig.get_paths(), sysconfig.get_config_var("py_version_nodot")
    own = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    archive = str(Path(paths["stdlib"]).with_name(f"python{version}.zip"))
    return (*own, archive, *site.getsitepackages(), site.getusersitepackages())


def _in_job(entry: Path) -> Path:
    upload = upload_of(entry)
    return entry if upload is None else entry.relative_to(upload)
