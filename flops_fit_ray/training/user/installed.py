"""Installed packages that the user's code imports: their versions, and what pip has installed from a directory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from flops_fit_ray.training.user._syntax import digest_of

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
    record = distribution.read_text("RECORD") or ""
    sources = sorted(line for line in record.splitlines() if line.partition(",")[0].endswith(".py"))
    return f"{distribution.version} {digest_of(chr(10).join(sources).encode())}"


def version_of(package: str) -> str:
    """Return the version in what `package_content` returned."""
    return package.partition(" ")[0]
