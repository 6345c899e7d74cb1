"""The source files behind the user's objects: found, hashed, and compared with those of another process.

A file is the user's if it was not installed: it does not lie in site-packages, and is not Python's, torch's, Ray's or
ours. Packages that pip installed from a directory or a repository are the user's too, and count by version and RECORD.
Others count by version alone. What code reads from other files is not looked at.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from flops_fit_ray.planning.code_facts import CodeFacts
from flops_fit_ray.spec import SweepSpec, is_data_path
from flops_fit_ray.training.user._by_value import hash_by_value, travels_by_value
from flops_fit_ray.training.user._loaded_files import note_loaded, refuse_stale
from flops_fit_ray.training.user._own_files import SourceWatch
from flops_fit_ray.training.user._syntax import Import, digest_of, read_source
from flops_fit_ray.training.user.installed import COMPILED, own_packages, package_content, version_of

if TYPE_CHECKING:
    from flops_fit_ray.training.user.parts import UserParts

FRAMEWORKS = {"flops_fit_ray", "torch", "ray"}  # whose versions are compared for every sweep
_SITES = {"site-packages", "dist-packages"}


def code_of_spec(spec: SweepSpec, base: Path) -> CodeFacts:
    """Return the code that a spec names, which this process has imported, relative to the directory `base`.

    Raises:
        SpecError: a file outside of `base` was edited after this process imported it.
    """
    watch = _watches.get(base)
    if watch is not None:
        watch.settle()
    found = _Collector(base, watch)
    for _, target in spec.named_code:
        if ":" in target and not is_data_path(target):
            found.add_module(target.partition(":")[0])
    found.add_loaded_from_base()
    return found.facts()


_watches: dict[Path, SourceWatch] = {}


def watch_sources(base: Path) -> None:
    """Note the source files of a directory before a run loads the user's code from it.

    What an earlier run of this process has imported from there is imported again if some of it was edited since.
    """
    known = _watches.get(base)
    if known is not None:
        inside, edited = _Collector(base), known.edited()
        loaded = [m for m in sys.modules.values() if isinstance(m, ModuleType) and inside.holds(m)]
        if not any((file := _file_of(module)) and file.resolve() in edited for module in loaded):
            return
        for module in loaded:
            sys.modules.pop(module.__name__, None)
    _watches[base] = SourceWatch(base)


def code_of_objects(user: UserParts) -> CodeFacts:
    """Return the code of the objects of a program.

    Raises:
        SpecError: one of their files was edited after this process imported it.
    """
    from flops_fit_ray.training.user.parts import HOOKS  # with torch, which whoever has objects has imported

    found = _Collector(None)
    hooks = [getattr(user, name) for name in HOOKS]
    data = [type(_innermost(one)) for one in (user.train_data, user.eval_data) if one is not None]
    for part in (user.model, user.loss, *hooks, *user.metrics.values(), *data):
        if part is not None:
            found.add_root(part)
    return found.facts()


def code_differences(code: CodeFacts, base: Path | None) -> list[str]:
    """Compare code with what this machine has, before it is imported here.

    Args:
        base: the directory that relative paths lie in; None where objects travel.

    Returns:
        What differs: `parts.py is another one`, `helpers.py is missing`. A file outside of `base` that is not found is
        no difference: importing it, if that is ever done, will say so.
    """
    found = []
    if base is not None and code.files and not base.is_dir():
        return [f"{base} is missing"]
    for name, expected in code.files.items():
        module = code.elsewhere.get(name)
        place = _located(name, module, base)
        if place is None:
            if module is None:
                found.append(f"{name} is missing")
        elif _read(place) != expected:
            found.append(f"{name} is another one")
    for name, expected in code.packages.items():
        here = package_content(name)
        if here is None:
            found.append(f"the package {name} is missing")
        elif here != expected:
            found.append(f"the package {name} is another one ({version_of(here)}, not {version_of(expected)})")
    return found


class _Collector:
    """Files that are reached from some objects and modules, by imports and by what modules hold."""

    def __init__(self, base: Path | None, watch: SourceWatch | None = None) -> None:
        self._watch = watch
        self._written: set[str] = set()  # files that the code writes itself
        self._stale: set[str] = set()  # files that are not what this process has loaded
        self._bases = () if base is None else (base.absolute(), base.resolve())  # as modules may name their files
        self._files: dict[str, str] = {}  # hash by name
        self._elsewhere: dict[str, str] = {}  # module by name of a file that is not in the directory
        self._objects: dict[str, str] = {}
        self._packages: dict[str, str] = {}
        self._libraries: set[str] = set()
        self._seen: set[Path] = set()
        self._left: list[tuple[str, Path]] = []  # modules with their files, to be read

    def facts(self) -> CodeFacts:
        """Read every file that is reached.

        Raises:
            SpecError: one was edited after this process imported it.
        """
        while self._left:
            self._read_file(*self._left.pop())
        refuse_stale(sorted(self._stale))
        return CodeFacts(
            files=dict(sorted(self._files.items())),
            packages=dict(sorted(self._packages.items())),
            objects=dict(sorted(self._objects.items())),
            python=".".join(platform.python_version_tuple()[:2]) if self._objects else "",
            libraries=tuple(sorted(self._libraries)),
            elsewhere=self._elsewhere,
            written=tuple(sorted(self._written)),
        )

    def add_module(self, name: str) -> None:
        """Add a loaded module; its packages are those of `name`."""
        words = name.split(".")
        for count in range(1, len(words) + 1):
            module = sys.modules.get(".".join(words[:count]))
            if module is not None:
                self._add_loaded(module)

    def add_loaded_from_base(self) -> None:
        """Add every loaded module of the directory, however it was imported."""
        for module in [m for m in sys.modules.values() if isinstance(m, ModuleType)]:
            file = _file_of(module)
            if file is not None and self._in_base(file) is not None:
                self._add(module.__name__, file)

    def holds(self, module: ModuleType) -> bool:
        """Tell whether a module lies in the directory, and is the user's."""
        file, top = _file_of(module), module.__name__.partition(".")[0]
        return file is not None and top not in {*FRAMEWORKS, "__main__"} and self._in_base(file) is not None

    def add_root(self, part: Any) -> None:
        """Add what a part of the user's is made of: a function, a class, a bound method, an instance."""
        state: list[Any] = []
        while isinstance(part, functools.partial):
            state += [*part.args, *(value for pair in sorted(part.keywords.items()) for value in pair)]
            part = part.func
        function = getattr(part, "__func__", part)
        if not isinstance(function, FunctionType | type):
            function = type(part)
            state += [value for pair in sorted(getattr(part, "__dict__", {}).items()) for value in pair]
        if state:
            self._add_object(f"arguments of {function.__qualname__}", tuple(state))
        if travels_by_value(function):
            self._add_object(function.__qualname__, function)
            return
        self._add_behind(function)
        for kind in function.__mro__[1:] if isinstance(function, type) else ():
            self._add_behind(kind)

    def _add_object(self, name: str, value: Any) -> None:
        count = sum(known == name or known.startswith(f"{name} (") for known in self._objects)  # lambdas share theirs
        self._objects[f"{name} ({count + 1})" if count else name] = hash_by_value(value, self._add_behind)

    def _add_behind(self, value: Any) -> None:
        """Add the module that an object comes from."""
        if isinstance(value, ModuleType):
            self._add_loaded(value)
            return
        name = getattr(value, "__module__", None)
        module = sys.modules.get(name) if isinstance(name, str) else None
        functions = [value, *vars(value).values()] if isinstance(value, type) else [value]
        file = next((Path(f.__code__.co_filename) for f in functions if isinstance(f, FunctionType)), None)
        if module is not None and module.__name__ != "__main__":
            self._add_loaded(module)
        elif file is not None and file.is_file():  # a module that was loaded from its path
            self._add(str(name), file)

    def _add_loaded(self, module: ModuleType) -> None:
        file = _file_of(module)
        if file is not None:
            self._add(module.__name__, file)

    def _add(self, name: str, file: Path) -> None:
        top = name.partition(".")[0]
        if top in FRAMEWORKS or name == "__main__" or file in self._seen:
            return
        self._seen.add(file)
        if _SITES.intersection(file.parts):
            self._add_package(top, file)
        elif not _in_python(file):
            self._left.append((name, file))

    def _add_package(self, top: str, file: Path) -> None:
        site = Path(*file.parts[: 1 + max(i for i, part in enumerate(file.parts) if part in _SITES)])
        own = own_packages(site).get(top)
        if own is None:
            self._libraries.add(top)
        else:
            self._packages[own] = package_content(own) or "?"

    def _in_base(self, file: Path) -> str | None:
        """Return the path of one of the user's files in the base directory; None for any other."""
        if _SITES.intersection(file.parts):
            return None
        for base in self._bases:
            if file.is_relative_to(base) and not _in_python(file):
                return file.relative_to(base).as_posix()
        return None

    def _name_of(self, module: str, file: Path) -> str | None:
        """Name a file so that another machine finds it; None where none could."""
        inside = self._in_base(file)
        if inside is not None:
            return inside
        root = _import_root(module, file)
        if file.name.endswith(COMPILED):  # outside of the directory it is built by each machine
            return None
        if root is not None:
            return file.relative_to(root).as_posix()
        return None if file.is_relative_to(tempfile.gettempdir()) else file.as_posix()

    def _read_file(self, module: str, file: Path) -> None:
        name = self._name_of(module, file)
        holder = _existing(file)
        if name is None or holder is None:
            return
        if holder != file:  # an archive, which counts as a whole
            name = self._name_of("", holder) or holder.name
        try:
            content = holder.read_bytes()
        except OSError:
            return
        hashed, imports = read_source(content, holder.stem) if holder.suffix == ".py" else (digest_of(content), [])
        if self._watch is not None and self._watch.was_written(holder):
            self._written.add(name)
        else:
            self._files[name] = hashed
            if holder.suffix == ".py" and note_loaded(module, file, content, hashed):
                self._stale.add(name)
            if self._in_base(holder) is None:
                self._elsewhere[name] = module
        self._follow(module, file, imports)

    def _follow(self, name: str, file: Path, imports: Sequence[Import]) -> None:
        """Add the modules that a file imports, loaded or not, and those that its own module holds."""
        package = name if file.stem == "__init__" else name.rpartition(".")[0]
        root = _import_root(name, file) or file.parent
        for found in imports:
            wanted = found.module
            if found.level:
                above = package.split(".")[: len(package.split(".")) - found.level + 1]
                wanted = ".".join(filter(None, [*above, found.module]))
            for module in (*_with_packages(wanted), f"{wanted}.{found.name}" if found.name else ""):
                loaded = sys.modules.get(module)
                here = _file_of(loaded) if loaded is not None else _source_of(module, root)
                if module and here is not None:
                    self._add(module, here)
        held = sys.modules.get(name)
        if held is not None and _file_of(held) == file:
            for value in list(vars(held).values()):
                if isinstance(value, ModuleType) and value.__name__.startswith(f"{name}."):
                    continue  # a package holds all of its modules that anybody has imported
                if isinstance(value, ModuleType | FunctionType | type):
                    self._add_behind(value)


def _innermost(data: Any) -> Any:
    while hasattr(data, "dataset"):
        data = data.dataset
    return data


def _with_packages(name: str) -> Iterator[str]:
    words = name.split(".")
    for count in range(1, len(words) + 1):
        yield ".".join(words[:count])


def _file_of(module: ModuleType) -> Path | None:
    """Return the file of a loaded module; None of one that has none, such as a namespace package."""
    own = vars(module)  # and not what a `__getattr__` of the module's own would compute
    file = own.get("__file__")
    return Path(file).absolute() if isinstance(file, str) else None


def _source_of(module: str, root: Path) -> Path | None:
    """Find the file of a module that was not imported yet, beside the one that imports it."""
    if not module:
        return None
    place = root.joinpath(*module.split("."))
    return next((f for f in (place.with_name(f"{place.name}.py"), place / "__init__.py") if f.is_file()), None)


def _import_root(module: str, file: Path) -> Path | None:
    """Return the directory that a module of this name is imported from; None if the file has another name."""
    words = module.split(".")
    inside = [*words, "__init__"] if file.name.partition(".")[0] == "__init__" else words
    if not module or [*file.parts[-len(inside) : -1], file.name.partition(".")[0]] != inside:
        return None
    return file.parents[len(inside) - 1]


def _existing(file: Path) -> Path | None:
    """Return the file, or the archive that it lies in."""
    return next((place for place in (file, *file.parents) if place.is_file()), None)


def _in_python(file: Path) -> bool:
    ours = Path(__file__).parents[2]
    return any(file.is_relative_to(place) for place in (*_python_places(), str(ours)))


@functools.cache
def _python_places() -> tuple[str, ...]:
    return tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")})


def _located(name: str, module: str | None, base: Path | None) -> Path | None:
    """Find a file of another process on this machine.

    Args:
        module: of a file outside of `base`.
    """
    if module is None or PurePath(name).is_absolute():
        places = [Path(name) if base is None else base / name]  # an absolute name stays as it is
    else:
        places = []
        spec = None
        with contextlib.suppress(ImportError, ValueError, AttributeError):
            spec = importlib.util.find_spec(module.partition(".")[0])
        if spec is not None and spec.submodule_search_locations:
            inside = PurePath(name).parts[1:]
            places = [Path(directory).joinpath(*inside) for directory in spec.submodule_search_locations]
        elif spec is not None and spec.origin:
            places = [Path(spec.origin)]
    return next((place for place in places if place.is_file()), None)


def _read(file: Path) -> str | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return read_source(content, file.stem)[0] if file.suffix == ".py" else digest_of(content)
