"""File names of a sweep directory. No other module spells them."""

from __future__ import annotations

import contextlib
import functools
import itertools
from dataclasses import dataclass

from flops_fit_ray.storage._claims import remove_dead_claims
from flops_fit_ray.storage.atomic import remove_strays
from flops_fit_ray.storage.object_store import ObjectPath
from flops_fit_ray.storage.storage_path import StoragePath, names_in

SCHEMA_VERSION = 1  # of every JSON file, every table and every `--json` object


def file_name(text: str) -> str:
    """Return a file name for any text, another for each; words without `/` and `%` stay as they are."""
    quoted = text.replace("%", "%25").replace("/", "%2F")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


@dataclass(frozen=True)
class ReportPaths:
    """Files of a report. `root` is absolute."""

    root: StoragePath

    @property
    def analysis(self) -> StoragePath:
        """Fits, intervals, verdicts."""
        return self.root / "analysis.json"

    @property
    def report(self) -> StoragePath:
        """The page."""
        return self.root / "report.html"

    @property
    def report_markdown(self) -> StoragePath:
        """The same in Markdown, without its long tables."""
        return self.root / "report.md"

    @property
    def summary(self) -> StoragePath:
        """The same as JSON."""
        return self.root / "summary.json"

    def figure(self, name: str, suffix: str) -> StoragePath:
        """A figure of the report, such as `figure("valleys", "svg")`."""
        return self.root / "figures" / f"{name}.{suffix}"


@dataclass(frozen=True)
class SweepPaths(ReportPaths):
    """Files of one sweep directory. `root` is absolute."""

    @property
    def spec(self) -> StoragePath:
        """The resolved spec."""
        return self.root / "sweep.yaml"

    @property
    def plan(self) -> StoragePath:
        """Experiments with keys and reasons."""
        return self.root / "plan.json"

    @property
    def origin(self) -> StoragePath:
        """Facts of the plan that nothing else holds."""
        return self.root / "origin.json"

    def code(self, digest: str) -> StoragePath:
        """Hashes of the files of the user's code that experiments were trained by."""
        return self.root / "code" / f"{digest}.json"

    @property
    def ends(self) -> StoragePath:
        """Ends of experiments as they were seen, a line each; the last line of an experiment stands."""
        return self.root / "ends.log"

    @property
    def completed(self) -> StoragePath:
        """The same of earlier versions: keys of completed experiments."""
        return self.root / "completed.log"

    @property
    def finished(self) -> StoragePath:
        """Words of the run that completed the sweep."""
        return self.root / "finished.json"

    @property
    def notes(self) -> StoragePath:
        """Notes that people wrote on the page of the service, a line each."""
        return self.root / "notes.jsonl"

    @property
    def lock(self) -> StoragePath:
        """Locked by the one writer of this directory."""
        return self.root / "sweep.lock"

    @property
    def lease(self) -> StoragePath:
        """Lease of the one writer where the file system has no locks; renewed every few seconds."""
        return self.root / "sweep.lease"

    @property
    def lock_owner(self) -> StoragePath:
        """Host, pid and start time of the process that holds `lock`."""
        return self.root / "sweep.lock.json"

    @property
    def stop(self) -> StoragePath:
        """Marker: stop requested. Running experiments look for it when they report progress."""
        return self.root / "stop"

    @functools.cached_property
    def experiments(self) -> StoragePath:
        """One directory per experiment, named by its key."""
        return self.root / "experiments"

    @property
    def tune(self) -> StoragePath:
        """Ray Tune's own files; checked before they are used."""
        return self.root / "tune"

    def newest_round(self) -> StoragePath | None:
        """Return the directory of the last start of Ray Tune."""
        names = [name for name in names_in(self.tune) if name.startswith("round-")]
        return self.tune / max(names) if names else None

    def round_note(self, directory: StoragePath) -> StoragePath:
        """Settings of one start of Ray Tune."""
        return directory / "round.json"

    @property
    def results_parquet(self) -> StoragePath:
        """Derived table, one row per experiment."""
        return self.root / "results.parquet"

    @property
    def results_csv(self) -> StoragePath:
        """The same table as text."""
        return self.root / "results.csv"

    @property
    def results_json(self) -> StoragePath:
        """The runs that the fit is of and those that failed, as flops-fit writes them."""
        return self.root / "results.json"

    def plot(self, name: str) -> StoragePath:
        """A figure that `Result.plot(show=...)` drew."""
        return self.root / "plots" / f"{name}.png"

    def result(self, key: str) -> StoragePath:
        """Result of one completed experiment."""
        return self.experiments / f"{key}/result.json"

    def recorded_keys(self) -> set[str]:
        """Return the keys of experiments, of this plan or another, that have a result file."""
        return {key for key in self.begun_keys() if self.result(key).exists()}

    def begun_keys(self) -> set[str]:
        """Return the keys of experiments, of this plan or another, that have a directory."""
        return set(names_in(self.experiments))

    def remove_strays(self) -> None:
        """Remove temporary files of writers that were killed. Only for the one writer of this directory."""
        if isinstance(self.root, ObjectPath) and isinstance(self.lock_owner, ObjectPath):
            with contextlib.suppress(OSError):  # an object is never half-written: there are claims alone
                remove_dead_claims(self.root, self.lock_owner)
            return
        for directory in (self.root, *(self.experiments / key for key in self.begun_keys())):
            remove_strays(directory)
            remove_strays(directory / "attempts")
        for key in self.trunk_keys():
            remove_strays(self.trunk(key).directory)
        for directory in (self.forecasts, self.scored_runs):
            remove_strays(directory)

    def planned(self, key: str) -> StoragePath:
        """One experiment as it was last started."""
        return self.experiments / f"{key}/experiment.json"

    def trunk(self, key: str) -> CheckpointPaths:
        """Trunk that one experiment left for larger budgets of its size."""
        return CheckpointPaths(self.root / "trunks" / key)

    def trunk_keys(self) -> set[str]:
        """Return the keys of experiments that left a trunk, finished or not."""
        return set(names_in(self.root / "trunks"))

    @property
    def tensorboard(self) -> StoragePath:
        """TensorBoard's event files, a directory per experiment."""
        return self.root / "tensorboard"

    def tracked(self, tracker: str) -> StoragePath:
        """Steps up to which a tracker was told of the experiments that are not completed."""
        return self.root / "trackers" / f"{tracker.lower().replace('&', '')}.json"

    @property
    def wandb(self) -> StoragePath:
        """W&B's own files."""
        return self.root / "wandb"

    @property
    def cluster(self) -> StoragePath:
        """Machines that the sweep runs on, or ran on last."""
        return self.root / "cluster.json"

    @property
    def forecasts(self) -> StoragePath:
        """Sealed forecasts, a file each."""
        return self.root / "forecasts"

    def forecast_names(self) -> list[str]:
        """Return the names of the forecasts' files, oldest first: they begin with the time."""
        return sorted(name for name in names_in(self.forecasts) if name.endswith(".json") and name[0] != ".")

    @property
    def scored_runs(self) -> StoragePath:
        """Runs from elsewhere that score forecasts, a file for each table or sweep."""
        return self.forecasts / "runs"

    @property
    def rates(self) -> StoragePath:
        """Speed that `check` measured."""
        return self.root / "rates.json"

    def failure(self, key: str) -> StoragePath:
        """Failure of one experiment."""
        return self.experiments / f"{key}/failure.json"

    def progress(self, key: str) -> StoragePath:
        """Progress of a running experiment; overwritten about once a second."""
        return self.experiments / f"{key}/progress.json"

    def crash(self, key: str, rank: int = 0) -> StoragePath:
        """Stack of a process of a running experiment, by its rank, if a signal or a hang ended it."""
        return self.experiments / f"{key}/crash{f'-{rank}' if rank else ''}.txt"

    def crashes(self, key: str) -> list[StoragePath]:
        """The stacks that are there, of the first worker first."""
        return sorted((self.experiments / key).glob("crash*.txt"), key=lambda path: (len(path.name), path.name))

    def events(self, key: str) -> StoragePath:
        """Events of one experiment, a JSON object per line."""
        return self.experiments / f"{key}/events.jsonl"

    def curve(self, key: str) -> StoragePath:
        """Loss, learning rate and speed along one experiment."""
        return self.experiments / f"{key}/curve.parquet"

    def checkpoints(self, key: str) -> CheckpointPaths:
        """Checkpoints that an unfinished experiment resumes from."""
        return CheckpointPaths(self.experiments / f"{key}/checkpoints")

    def set_aside(self, key: str) -> list[CheckpointPaths]:
        """Checkpoints that were moved out of the way by going back to an earlier one, those moved last first."""
        place = self.experiments / f"{key}/set-aside"
        numbers = sorted((int(name) for name in names_in(place) if name.isdecimal()), reverse=True)
        return [CheckpointPaths(place / str(number)) for number in numbers]

    def new_set_aside(self, key: str) -> CheckpointPaths:
        """Place to be made, for checkpoints that are moved out of the way."""
        number = len(self.set_aside(key)) + 1
        return CheckpointPaths(self.experiments / f"{key}/set-aside/{number}")

    def weights(self, key: str) -> StoragePath:
        """Final weights, if the spec asks for them."""
        return self.experiments / f"{key}/weights.safetensors"

    def attempts(self, key: str) -> StoragePath:
        """One file per start of the experiment, and one per failure before a later start."""
        return self.experiments / f"{key}/attempts"

    def attempt(self, key: str, number: int) -> StoragePath:
        """One start, counted from 1."""
        return self.attempts(key) / f"{number:04d}.json"

    def num_attempts(self, key: str) -> int:
        """Count the starts."""
        return sum(1 for _ in self.attempts(key).glob("[0-9][0-9][0-9][0-9].json"))

    def new_death(self, key: str, number: int) -> StoragePath:
        """Marker to be made: the worker or node of that start died, or one after it before it could begin."""
        return self._unused(key, number, "died")

    def num_deaths(self, key: str) -> int:
        """Count the starts whose worker or node died."""
        return sum(1 for _ in self.attempts(key).glob("*-died.json"))

    def num_early_deaths(self, key: str) -> int:
        """Count the deaths that belong to no start: the first after a start is its own."""
        numbers = [path.name[:4] for path in self.attempts(key).glob("*-died.json")]
        return len(numbers) - len(set(numbers) - {"0000"})

    def new_past_failure(self, key: str, number: int) -> StoragePath:
        """Failure of that start, to be moved here by the next one."""
        return self._unused(key, number, "failure")

    def _unused(self, key: str, number: int, kind: str) -> StoragePath:
        """A note of that start that is not there yet: several workers may end before one of them begins."""
        names = (f"{number:04d}{f'-{i}' if i else ''}-{kind}.json" for i in itertools.count())
        return next(path for path in (self.attempts(key) / name for name in names) if not path.exists())


@dataclass(frozen=True)
class CheckpointPaths:
    """Checkpoints of one experiment: a state file each and, written after it, a note."""

    directory: StoragePath

    def state(self, step: int) -> StoragePath:
        """State of the training after a step."""
        return self.directory / f"{step:010d}.pt"

    def note(self, step: int) -> StoragePath:
        """Size and digest of the state; without it the state is incomplete."""
        return self.directory / f"{step:010d}.json"

    def started(self) -> list[int]:
        """Return the steps that have a state file, complete or not."""
        return sorted(int(path.stem) for path in self.directory.glob("[0-9]*.pt"))

    def finished(self) -> list[int]:
        """Return the steps that can be resumed from."""
        return [step for step in self.started() if self.note(step).exists()]
