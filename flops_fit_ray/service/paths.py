"""The only speller of file names of the service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flops_fit_ray.storage.paths import SweepPaths


@dataclass(frozen=True)
class ServicePaths:
    """What the service keeps beside the sweep directories of `root`, which is absolute."""

    root: Path

    @property
    def home(self) -> Path:
        """All of it."""
        return self.root / ".service"

    @property
    def token(self) -> Path:
        """What whoever asks must show; for the owner's eyes alone."""
        return self.home / "token"

    @property
    def lock(self) -> Path:
        """Held by the one service of this root."""
        return self.home / "service.lock"

    @property
    def specs(self) -> Path:
        """One file per spec, named by its id."""
        return self.home / "specs"

    def spec(self, spec_id: str) -> Path:
        """A spec with the directory of its code."""
        return self.specs / f"{spec_id}.json"

    def key(self, digest: str) -> Path:
        """What was asked for with one idempotency key."""
        return self.home / f"keys/{digest}.json"

    @property
    def started(self) -> Path:
        """One directory per sweep that was started here."""
        return self.home / "sweeps"

    def resolved(self, name: str) -> Path:
        """The spec that a sweep was started with."""
        return self.started / f"{name}/sweep.yaml"

    def log(self, name: str) -> Path:
        """What its runs have said, one after the other."""
        return self.started / f"{name}/log.txt"

    def start(self, name: str, number: int) -> StartPaths:
        """One of its runs, counted from 1."""
        return StartPaths(self.started / f"{name}/{number:04d}")

    def num_starts(self, name: str) -> int:
        """How many there were."""
        return sum(1 for _ in (self.started / name).glob("[0-9][0-9][0-9][0-9]/asked.json"))

    def sweep(self, name: str) -> SweepPaths:
        """The sweep directory itself."""
        return SweepPaths(self.root / name)


@dataclass(frozen=True)
class StartPaths:
    """One run of a sweep that the service was asked for. Each file is written once."""

    directory: Path

    @property
    def asked(self) -> Path:
        """What is to be run; until the next file is there, it waits."""
        return self.directory / "asked.json"

    @property
    def begun(self) -> Path:
        """That it was handed over, and to whom."""
        return self.directory / "begun.json"

    @property
    def process(self) -> Path:
        """The local process."""
        return self.directory / "process.json"

    @property
    def stop(self) -> Path:
        """That it was asked to end."""
        return self.directory / "stop.json"

    @property
    def ended(self) -> Path:
        """How it ended."""
        return self.directory / "ended.json"
