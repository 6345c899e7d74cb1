"""Sources that a user names: a sweep directory, a table of runs, or a published law."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_ray.errors import SpecError
from flops_fit_ray.storage.storage_path import StoragePath, check_store_answers, storage_path

if TYPE_CHECKING:
    from flops_fit_ray.analysis import PublishedLaw


def is_table(source: StoragePath) -> bool:
    """Return True for the path of a table: a file with a suffix, there or not."""
    check_store_answers(source)
    return not source.is_dir() and bool(source.suffix)


def path_or_law(text: str) -> tuple[StoragePath, PublishedLaw | None]:
    """Return the path of a sweep or a table, and the published law of that name where no such path is there.

    Raises:
        SpecError: there is neither, and the word is nearly the name of a law.
    """
    path = storage_path(text)
    if "/" in text or path.suffix or path.exists():
        return path, None
    from flops_fit_ray.analysis import PUBLISHED
    from flops_fit_ray.formatting import did_you_mean

    if text not in PUBLISHED and (near := did_you_mean(text, PUBLISHED)):
        raise SpecError(text, [f"no such directory, and no published law; {near} (`flops-fit-ray laws` lists them)"])
    return path, PUBLISHED.get(text)


def shadowed(text: str) -> str:
    """Return a note where a path of this machine hides a published law of its name; else nothing."""
    from flops_fit_ray.analysis import PUBLISHED

    if text in PUBLISHED and storage_path(text).exists():
        return f"{text} is the one in this directory, not the published law of that name"
    return ""
