"""File names of the service. No other module spells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flops_fit_ray.storage.paths import SweepPaths


@dataclass(frozen=True)
class ServicePaths:
    """Files of the service, in `root` (absolute) beside the sweep directories."""

    root: Path

    @property
    def home(self) -> Path:
        """Directory of all files of the service."""
        return self.root / ".service"

    @property
    def token(self) -> Path:
        """Token that requests must send; readable by its owner only."""
        return self.home / "token"

    @property
    def lock(self) -> Path:
        """Lock held by the one service of this root."""
        return self.home / "service.lock"

    @property
    def specs(self) -> Path:
        """Directory with one file per spec, named by its id."""
        return self.home / "specs"

    def spec(self, spec_id: str) -> Path:
        """File of a spec and the directory of its code."""
        return self.specs / f"{spec_id}.json"

    @property
    def keys(self) -> Path:
        """Directory with one file per idempotency key."""
        return self.home / "keys"

    def key(self, digest: str) -> Path:
        """Request that was made with an idempotency key, and its answer."""
        return self.keys / f"{digest}.json"

    @property
    def started(self) -> Path:
        """Directory with one directory per sweep that was started here."""
        return self.home / "sweeps"

    def resolved(self, name: str) -> Path:
        """Spec that a sweep was started with."""
        return self.started / f"{name}/sweep.yaml"

    def log(self, name: str) -> Path:
        """Log of all its runs, one after the other."""
        return self.started / f"{name}/log.txt"

    def devices(self, name: str) -> Path:
        """Readings of the devices of a sweep, a line each."""
        return self.home / f"devices/{name}.jsonl"

    def start(self, name: str, number: int) -> StartPaths:
        """Files of one of its runs, counted from 1."""
        return StartPaths(self.started / f"{name}/{number:04d}")

    def num_starts(self, name: str) -> int:
        """Return the number of its runs."""
        return sum(1 for _ in (self.started / name).glob("[0-9][0-9][0-9][0-9]/asked.json"))

    @property
    def bin(self) -> Path:
        """Directory with one directory per deleted sweep, named by its id."""
        return self.home / "bin"

    def bin_note(self, bin_id: str) -> Path:
        """Note of a deleted sweep."""
        return self.bin / f"{bin_id}/deleted.json"

    def binned_runs(self, bin_id: str) -> Path:
        """Directory of the runs of a deleted sweep."""
        return self.bin / f"{bin_id}/runs"

    def binned(self, bin_id: str) -> Path:
        """Directory of a deleted sweep itself; no name of a sweep begins with a dot."""
        return self.root / ".bin" / bin_id

    def sweep(self, name: str) -> SweepPaths:
        """Files of the sweep directory itself."""
        return SweepPaths(self.root / name)


@dataclass(frozen=True)
class StartPaths:
    """Files of one run of a sweep. Each is written once."""

    directory: Path

    @property
    def asked(self) -> Path:
        """Request; without the next file, the run waits in the queue."""
        return self.directory / "asked.json"

    @property
    def begun(self) -> Path:
        """Note that it was launched, and as what."""
        return self.directory / "begun.json"

    @property
    def process(self) -> Path:
        """Pids of the local run and its supervisor."""
        return self.directory / "process.json"

    @property
    def stop(self) -> Path:
        """Note that a stop was requested."""
        return self.directory / "stop.json"

    @property
    def ended(self) -> Path:
        """Exit code, once it has ended."""
        return self.directory / "ended.json"
