"""Installed packages that the user's code imports: their versions, and what pip has installed from a directory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from flops_fit_ray.training.user._syntax import digest_of, read_source

COMPILED = (".so", ".pyd")


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages that are installed here."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@functools.cache
def own_packages(site: Path) -> dict[str, str]:
    """Return the packages in a site that pip installed from a directory or a repository, by the modules they hold."""
    found = {}
    for note in site.glob("*.dist-info/direct_url.json"):
        with contextlib.suppress(OSError, KeyError):
            distribution = metadata.PathDistribution(note.parent)
            name = distribution.metadata["Name"]
            for file in distribution.files or ():
                top = file.parts[0].partition(".")[0]
                if file.suffix in (".py", *COMPILED):
                    found[top] = name
    return found


def package_content(name: str) -> str | None:
    """Return version and hash of an installed package; None where it is not installed."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    sources = sorted(str(file) for file in distribution.files or () if file.suffix == ".py")
    read = [f"{name} {_content(Path(str(distribution.locate_file(name))))}" for name in sources]
    return f"{distribution.version} {digest_of(chr(10).join(read).encode())}"


def _content(file: Path) -> str:
    try:
        return read_source(file.read_bytes(), file.stem)[0]
    except OSError:
        return "missing"


def version_of(package: str) -> str:
    """Return the version in what `package_content` returned."""
    return package.partition(" ")[0]
