"""File names of a sweep directory. No other module spells them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from flops_fit_ray.storage.atomic import remove_strays
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, names_in

SCHEMA_VERSION = 1  # of every JSON file, every table and every `--json` object


@dataclass(frozen=True)
class ReportPaths:
    """Where a report and what belongs to it are. `root` is absolute."""

    root: StoragePath

    @property
    def analysis(self) -> StoragePath:
        """Fits, intervals, verdicts."""
        return self.root / "analysis.json"

    @property
    def report(self) -> StoragePath:
        """The one file to look at."""
        return self.root / "report.html"

    @property
    def report_markdown(self) -> StoragePath:
        """The same without its long tables, for places that show Markdown."""
        return self.root / "report.md"

    @property
    def summary(self) -> StoragePath:
        """The same for programs."""
        return self.root / "summary.json"

    def figure(self, name: str, suffix: str) -> StoragePath:
        """A drawing of the report, such as `figure("valleys", "svg")`."""
        return self.root / "figures" / f"{name}.{suffix}"


@dataclass(frozen=True)
class SweepPaths(ReportPaths):
    """Where things are in one sweep directory. `root` is absolute."""

    @property
    def spec(self) -> StoragePath:
        """The resolved spec."""
        return self.root / "sweep.yaml"

    @property
    def plan(self) -> StoragePath:
        """Experiments with keys and reasons."""
        return self.root / "plan.json"

    @property
    def lock(self) -> StoragePath:
        """Held by the one writer of this directory."""
        return self.root / "sweep.lock"

    @property
    def lease(self) -> StoragePath:
        """The same where the file system has no locks; renewed every few seconds."""
        return self.root / "sweep.lease"

    @property
    def lock_owner(self) -> StoragePath:
        """Host, pid and start time of the one who holds `lock`."""
        return self.root / "sweep.lock.json"

    @property
    def stop(self) -> StoragePath:
        """Its presence asks running experiments to end at their next sign of life."""
        return self.root / "stop"

    @functools.cached_property
    def experiments(self) -> StoragePath:
        """One directory per experiment, named by its key."""
        return self.root / "experiments"

    @property
    def tune(self) -> StoragePath:
        """Ray Tune's own files; nothing in there is ever trusted."""
        return self.root / "tune"

    def newest_round(self) -> StoragePath | None:
        """The directory of the last start of Ray Tune."""
        names = [name for name in names_in(self.tune) if name.startswith("round-")]
        return self.tune / max(names) if names else None

    def round_note(self, directory: StoragePath) -> StoragePath:
        """What one start of Ray Tune was made for."""
        return directory / "round.json"

    @property
    def results_parquet(self) -> StoragePath:
        """Derived table, one row per experiment."""
        return self.root / "results.parquet"

    @property
    def results_csv(self) -> StoragePath:
        """The same table for people."""
        return self.root / "results.csv"

    def result(self, key: str) -> StoragePath:
        """The truth about one completed experiment."""
        return self.experiments / f"{key}/result.json"

    def recorded_keys(self) -> set[str]:
        """The experiments, of this plan or another, that have a result file."""
        return {key for key in self.begun_keys() if self.result(key).exists()}

    def begun_keys(self) -> set[str]:
        """The experiments, of this plan or another, that have a directory."""
        return set(names_in(self.experiments))

    def remove_strays(self) -> None:
        """Remove what killed writers left half-written. For the one writer of this directory."""
        if is_remote(self.root):
            return  # there nothing is ever half-written
        for directory in (self.root, *(self.experiments / key for key in self.begun_keys())):
            remove_strays(directory)
            remove_strays(directory / "attempts")
        for key in self.trunk_keys():
            remove_strays(self.trunk(key).directory)

    def planned(self, key: str) -> StoragePath:
        """The experiment as it was last handed out."""
        return self.experiments / f"{key}/experiment.json"

    def trunk(self, key: str) -> CheckpointPaths:
        """The trunk that one experiment left for larger budgets of its size."""
        return CheckpointPaths(self.root / "trunks" / key)

    def trunk_keys(self) -> set[str]:
        """The experiments that left a trunk, finished or not."""
        return set(names_in(self.root / "trunks"))

    @property
    def tensorboard(self) -> StoragePath:
        """Event files, a directory per experiment."""
        return self.root / "tensorboard"

    @property
    def wandb(self) -> StoragePath:
        """W&B's own files."""
        return self.root / "wandb"

    @property
    def cluster(self) -> StoragePath:
        """Where the sweep runs, or ran last."""
        return self.root / "cluster.json"

    @property
    def rates(self) -> StoragePath:
        """What `check` measured of the speed."""
        return self.root / "rates.json"

    def failure(self, key: str) -> StoragePath:
        """Why one experiment has no result."""
        return self.experiments / f"{key}/failure.json"

    def progress(self, key: str) -> StoragePath:
        """How far a running experiment is; overwritten about once a second."""
        return self.experiments / f"{key}/progress.json"

    def events(self, key: str) -> StoragePath:
        """What happened to one experiment, a line each."""
        return self.experiments / f"{key}/events.jsonl"

    def curve(self, key: str) -> StoragePath:
        """Loss, learning rate and speed along one experiment."""
        return self.experiments / f"{key}/curve.parquet"

    def checkpoints(self, key: str) -> CheckpointPaths:
        """What an open experiment goes on from."""
        return CheckpointPaths(self.experiments / f"{key}/checkpoints")

    def weights(self, key: str) -> StoragePath:
        """The final weights, where they were asked for."""
        return self.experiments / f"{key}/weights.safetensors"

    def attempts(self, key: str) -> StoragePath:
        """One file per start of the experiment, and one per failure that a later start put aside."""
        return self.experiments / f"{key}/attempts"

    def attempt(self, key: str, number: int) -> StoragePath:
        """The note of one start, counted from 1."""
        return self.attempts(key) / f"{number:04d}.json"

    def num_attempts(self, key: str) -> int:
        """How many starts are noted."""
        return sum(1 for _ in self.attempts(key).glob("[0-9][0-9][0-9][0-9].json"))

    def death(self, key: str, number: int) -> StoragePath:
        """That the worker or node of that start died."""
        return self.attempts(key) / f"{number:04d}-died.json"

    def num_deaths(self, key: str) -> int:
        """How many starts ended so."""
        return sum(1 for _ in self.attempts(key).glob("*-died.json"))

    def past_failure(self, key: str, number: int) -> StoragePath:
        """How that start ended, once another has been made."""
        return self.attempts(key) / f"{number:04d}-failure.json"


@dataclass(frozen=True)
class CheckpointPaths:
    """The checkpoints of one experiment: a state file each and, written after it, a note."""

    directory: StoragePath

    def state(self, step: int) -> StoragePath:
        """What going on needs."""
        return self.directory / f"{step:010d}.pt"

    def note(self, step: int) -> StoragePath:
        """Size and digest of the state; without it the state was never finished."""
        return self.directory / f"{step:010d}.json"

    def started(self) -> list[int]:
        """The steps that have a state file, finished or not."""
        return sorted(int(path.stem) for path in self.directory.glob("[0-9]*.pt"))

    def finished(self) -> list[int]:
        """The steps that can be gone on from."""
        return [step for step in self.started() if self.note(step).exists()]
