"""F36, F37: values of the wrong type in any file of a sweep directory, and things that are no files in their places."""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flops_fit_ray.cli import main
from flops_fit_ray.console.status_text import status_text
from flops_fit_ray.engine._rounds import Round, restorable
from flops_fit_ray.errors import FlopsFitError
from flops_fit_ray.ledger import ExperimentResult, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster, Gpu, Machine
from flops_fit_ray.planning import Rates, SweepConstants
from flops_fit_ray.service.state.views import _checkpoints_in
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.lock import living_owner
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.changes import recorded_in
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.recorded import record_rates, recorded_constants, recorded_rates
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from tests.records import FAILURE
from tests.sweeps import make_sweep, reference_parts, reference_spec

ROUND = Round(root="/sweeps/one", slots=2, resources={"cpu": 1.0}, workers=1, versions={"ray": "2.60.0"})
ANY = {"size_kwargs", "kwargs"}  # what the user's model takes: any JSON
Where = tuple[str | int, ...]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A directory with a file of every kind: a result, a failure, a running experiment, a checkpoint, a round."""
    spec = reference_spec(2)
    sweep = make_sweep(tmp_path_factory.mktemp("wrong") / "whole", spec, reference_parts(spec), only=1)
    paths, ledger = sweep.paths, Ledger(sweep.paths)
    done, failed, runs = (e.key for e in sweep.plan.experiments[:3])
    ledger.begin_attempt(failed)
    ledger.record_death(failed)
    ledger.record_failure(replace(FAILURE, key=failed))
    machine = Machine(host="n", cpus=8, gpus=(Gpu(uuid="u", index=0, name="T4", power=70.0),), cuda="12.8")
    ledger.record_progress(
        Progress(key=runs, tokens_seen=4, tokens=8, train_loss=0.5, host="n", pid=1, updated_at=time.time() + 30,
                 started_at=1.0, lr=0.1, grad_norm=1.0, machine=machine, others=(machine,))
    )  # fmt: skip
    ledger.record_event(runs, "a line", level="warning")
    ledger.record_planned(sweep.plan.experiments[2])
    ledger.record_cluster(Cluster(slots=2, machines=(machine,)))
    record_rates(paths, sweep.plan.constants, Rates(step_seconds={"a": (1e3, 1e-3)}, peak_memory_bytes=1))
    write_json(paths.lock_owner, {"host": "elsewhere", "pid": 7, "started_at": 1.0})
    note = {"format": 1, "bytes": 3, "sha256": "0" * 64, "eval_loss": 1.5}
    for place in (paths.checkpoints(runs), paths.trunk(runs)):
        write_json(place.note(2), note)
        local_path(place.state(2)).write_bytes(b"pt")
    write_json(paths.tune / "round-1" / "round.json", {**ROUND.to_json(), "tuner_sha256": "0" * 64})
    for path in files_in(
        local_path(paths.root)
    ):  # as versions left them that sealed nothing, so that fields can be changed
        if path.suffix == ".json" and (content := read_json(path)) is not None:
            content.pop(ExperimentResult.sealed_since, None)
            write_json(path, content)
    assert len(ledger.results([done])) == len(ledger.outcomes([failed])) == 1
    assert ledger.progress(runs) is not None and ledger.planned(runs) and ledger.cluster() is not None
    assert recorded_rates(paths, sweep.plan.constants) is not None and living_owner(paths) is not None
    return open_sweep(paths.root)


@pytest.fixture
def damaged(whole: Sweep, tmp_path: Path) -> Sweep:
    """A copy, to be damaged."""
    shutil.copytree(local_path(whole.paths.root), tmp_path / "damaged")
    return open_sweep(tmp_path / "damaged")


def places_in(value: Any, here: Where = ()) -> Iterator[tuple[Where, Any]]:
    """Every field of a JSON value by its path; of a list the first element stands for all."""
    inner: Any = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list):
        inner = enumerate(value[:1])
    for name, content in inner:
        yield (*here, name), content
        if name not in ANY:
            yield from places_in(content, (*here, name))


def wrong_for(name: str | int, value: Any) -> list[Any]:
    """Values of other types than may stand there."""
    if name in ("size", "of", "parent"):  # a number or text, text or nothing
        return [True, [], {}]
    if value is None:
        return [[[]], {"a": []}, True]
    if isinstance(value, bool):
        return [1, "true", None]
    if isinstance(value, int | float):
        return [str(value), True, [], float("nan")]
    return [5, True, [5] if isinstance(value, str | Mapping) else "text"]


def changed(content: Any, where: Where, value: Any) -> str:
    """The text of a file with another value in one place."""
    whole = copy.deepcopy(content)
    here = whole
    for name in where[:-1]:
        here = here[name]
    here[where[-1]] = value
    return json.dumps(whole) + "\n"


def found_by(reader: Callable[[], object]) -> object:
    """What a reader finds; nothing where it refuses in words."""
    try:
        return reader()
    except FlopsFitError:
        return None


READERS: dict[str, Callable[[SweepPaths, str], object]] = {
    "result.json": lambda paths, key: Ledger(paths).result(key),
    "failure.json": lambda paths, key: Ledger(paths).failure(key),
    "progress.json": lambda paths, key: Ledger(paths).progress(key),
    "experiment.json": lambda paths, key: Ledger(paths).planned(key),
    "events.jsonl": lambda paths, key: Ledger(paths).events(key),
    "checkpoints": lambda paths, key: list(_checkpoints_in("checkpoint", key, paths.checkpoints(key))),
    "trunks": lambda paths, key: list(_checkpoints_in("trunk", key, paths.trunk(key))),
    "cluster.json": lambda paths, key: Ledger(paths).cluster(),
    "rates.json": lambda paths, key: recorded_rates(paths, constants_of(paths)),
    "plan.json": lambda paths, key: open_sweep(paths.root),
    "sweep.lock.json": lambda paths, key: living_owner(paths),
    "round.json": lambda paths, key: restorable(paths, ROUND, lambda _: True),
    "attempts": lambda paths, key: None,  # counted, never opened
}


def constants_of(paths: SweepPaths) -> SweepConstants:
    constants = recorded_constants(paths)
    assert constants is not None
    return constants


def kind_of(path: Path, root: Path) -> str:
    """The kind of a file: its name, or of a numbered one its directory's."""
    parts = path.relative_to(root).parts
    return path.name if path.name in READERS else next(part for part in parts[::-1] if part in READERS)


def key_of(path: Path, root: Path) -> str:
    return next((part for part in path.relative_to(root).parts if len(part) == 16), "")


def files_in(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.json*") if path.suffix in (".json", ".jsonl"))


def test_there_is_a_file_of_every_kind_and_it_is_read(whole: Sweep) -> None:
    root, found = local_path(whole.paths.root), {}
    for path in files_in(root):
        kind = kind_of(path, root)
        found[kind] = READERS[kind](whole.paths, key_of(path, root))
    assert set(found) == set(READERS)
    assert {kind for kind, value in found.items() if not value} == {"attempts", "round.json"}  # there is no tuner.pkl


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind not in ("attempts", "round.json")])
def test_f36_a_field_of_a_wrong_type_makes_a_file_unreadable(damaged: Sweep, kind: str) -> None:
    paths, root = damaged.paths, local_path(damaged.paths.root)
    path = next(path for path in files_in(root) if kind_of(path, root) == kind)
    key, content = key_of(path, root), json.loads(path.read_bytes())
    used = [(where, value) for where, value in places_in(content) if not unread(kind, where)]
    assert len(used) >= 3
    for where, value in used:
        for wrong in wrong_for(where[-1], value):
            path.write_text(changed(content, where, wrong))
            assert not found_by(lambda: READERS[kind](paths, key)), (where, wrong)


def unread(kind: str, where: Where) -> bool:
    """Whether nobody reads a field: it is there for people and programs, and worked out again."""
    derived = where[-1] in ("seed", "flops_executed", "flops_per_token_6n") and "recipe" not in where
    whole = where in (("flops",), ("schema_version",))
    return {
        "plan.json": whole or derived,
        "experiment.json": derived,
        "checkpoints": where[0] in ("format", "step"),
        "trunks": where[0] in ("format", "step"),
    }.get(kind, False)


def test_f36_no_reader_ends_in_a_traceback(damaged: Sweep) -> None:
    paths = damaged.paths
    for path in files_in(local_path(paths.root)):
        raw = path.read_bytes()
        content = json.loads(raw)
        for name, value in content.items():
            path.write_text(changed(content, (name,), wrong_for(name, value)[0]))
            found_by(lambda: everything(paths))
        path.write_bytes(raw)
    assert everything(paths)


def everything(paths: SweepPaths) -> bool:
    """What commands read of a directory, but for fits."""
    recorded_in(paths)
    recorded_constants(paths)
    restorable(paths, ROUND, lambda _: True)
    for key in paths.begun_keys():
        for name in ("progress.json", "events.jsonl", "checkpoints", "trunks"):
            READERS[name](paths, key)
        for place in (paths.checkpoints(key), paths.trunk(key)):
            CheckpointStore(place.directory, key=key, keep=1).newest()
    living_owner(paths)
    Ledger(paths).cluster()
    sweep = open_sweep(paths.root)
    return bool(status_text(sweep) and len(sweep.to_frame()) and sweep.counts)


@pytest.mark.parametrize("name", ["plan.json", "sweep.yaml", "cluster.json", "rates.json", "sweep.lock.json",
                                  "result.json", "progress.json", "events.jsonl", "curve.parquet"])  # fmt: skip
def test_f37_what_is_no_file_is_not_waited_for(whole: Sweep, tmp_path: Path, name: str) -> None:
    def pipe(path: Path) -> None:
        os.mkfifo(path)

    def endless(path: Path) -> None:
        path.symlink_to("/dev/zero")

    def itself(path: Path) -> None:
        path.symlink_to(path)

    for make in (pipe, endless, itself, Path.mkdir):
        root = tmp_path / make.__name__
        shutil.copytree(local_path(whole.paths.root), root)
        path = next(root.rglob(name))
        path.unlink()
        make(path)
        for command in (["status", str(root)], ["status", str(root), "--json"], ["fit", str(root), "--bootstrap", "0"]):
            with pytest.raises(SystemExit) as ended:
                main(command)
            assert ended.value.code in ((2,) if name in ("plan.json", "sweep.yaml") else (0, 1))
        Ledger(SweepPaths(root)).record_event(key_of(path, root) or "k", "a line", level="info")  # nor is it written
