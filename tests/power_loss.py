"""`python -m tests.power_loss DIRECTORY [SEED [NUMBER]]`: a sweep whose power is lost at every fsync, and gone on with.

`power_loss.c`, preloaded, records every change of a file in a sweep that nothing happens to. From its log follow the
directories that a loss of power could have left: what was not fsynced is dropped, torn or kept, the content of files
and the names in directories each by their own rule. With a seed some of them are drawn, of every kind; with a number
so many, of a sweep of several runs.

That nothing is missing in the log is checked: all of it, replayed, makes the very directory that the sweep left.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from flops_fit_ray.errors import FlopsFitError
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.training.step.device import device_name, peak_flops
from tests.compiling import compiled
from tests.killing import in_a_child, num_attempts, one_run, wrong_in_the_end
from tests.parts import spec_of, user_parts_of
from tests.records import recorded
from tests.sweeps import grow_sweep

OPEN, WRITE, TRUNCATE, RENAME, LINK, UNLINK, MKDIR, RMDIR, SYMLINK, SYNC, MARK = range(1, 12)  # as in power_loss.c
HEAD = struct.Struct("=iiiqq")
DRAWN = 12  # states, of hundreds


@dataclass(frozen=True)
class Operation:
    """One record of the log."""

    kind: int
    path: str
    other: str
    offset: int
    data: bytes


@dataclass(eq=False)
class File:
    """What a file holds now, and what it held when it was last fsynced."""

    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)  # since then


@dataclass(eq=False)
class Directory:
    """The names in a directory now, and those when it was last fsynced."""

    now: dict[str, File | Directory | str] = field(default_factory=dict)  # a text is the target of a link
    durable: dict[str, File | Directory | str] = field(default_factory=dict)


Names = Mapping[str, File | Directory | str]


def read_log(path: Path) -> list[Operation]:
    """Return the operations of a log, in their order."""
    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        kind, n, m, offset, length = HEAD.unpack_from(content, at)
        at += HEAD.size
        path_end, other_end, end = at + n, at + n + m, at + n + m + length
        texts = content[at:path_end].decode(), content[path_end:other_end].decode()
        found.append(Operation(kind, *texts, offset, content[other_end:end]))
        at = end
    return found


class Disk:
    """The directory of a sweep directory, as the operations of a log make it."""

    def __init__(self, root: Path) -> None:
        self.top, self._parent = Directory(), str(root.parent)

    def _find(self, path: str) -> tuple[Directory, str]:
        here, *names = self.top, *Path(path.removeprefix(self._parent).lstrip("/")).parts
        for name in names[:-1]:
            inner = here.now[name]
            assert isinstance(inner, Directory)
            here = inner
        return here, names[-1]

    def _file(self, path: str) -> File | None:
        where, name = self._find(path)
        found = where.now.get(name)
        return found if isinstance(found, File) else None

    def apply(self, operation: Operation) -> None:  # noqa: C901 - a case for each operation
        """Do what an operation did."""
        if operation.kind == MARK or operation.path.endswith(" (deleted)"):
            return
        if operation.path == self._parent:
            assert operation.kind == SYNC
            self.top.durable = dict(self.top.now)
            return
        where, name = self._find(operation.path)
        file = where.now.get(name)
        match operation.kind:
            case 1:  # open
                if file is None:
                    where.now[name] = File()
                elif isinstance(file, File) and operation.offset:
                    _resize(file, 0)
            case 2:  # write
                assert isinstance(file, File)
                end = operation.offset + len(operation.data)
                file.now.extend(bytes(max(0, end - len(file.now))))
                file.now[operation.offset : end] = operation.data
                file.writes.append((operation.offset, operation.data))
            case 3:  # truncate
                assert isinstance(file, File)
                _resize(file, operation.offset)
            case 4:  # rename
                target, new = self._find(operation.other)
                target.now[new] = where.now.pop(name)
            case 5:  # link
                target, new = self._find(operation.other)
                target.now[new] = where.now[name]
            case 6 | 8:  # unlink, rmdir
                del where.now[name]
            case 7:  # mkdir
                where.now[name] = Directory()
            case 9:  # symlink
                where.now[name] = operation.other
            case 10:  # fsync
                if isinstance(file, Directory):
                    file.durable = dict(file.now)
                elif isinstance(file, File):
                    file.durable, file.writes = bytes(file.now), []
            case _:
                raise AssertionError(operation)


def _resize(file: File, length: int) -> None:
    file.now[:] = file.now[:length] + bytes(max(0, length - len(file.now)))
    file.writes = []


def _torn(file: File) -> bytes:
    """The durable content, with the first half of the bytes that were written since."""
    content, left = bytearray(file.durable), sum(len(data) for _, data in file.writes) // 2
    for offset, data in file.writes:
        part = data[:left]
        content.extend(bytes(max(0, offset + len(part) - len(content))))
        content[offset : offset + len(part)] = part
        left -= len(part)
    return bytes(content)


@dataclass(frozen=True)
class Loss:
    """One way in which what was not fsynced is lost."""

    names: Callable[[Directory], Names]
    content: Callable[[File], bytes]


def _durable_but_for_removed(directory: Directory) -> Names:
    return {name: inner for name, inner in directory.durable.items() if name in directory.now}


def losses(dice: random.Random) -> dict[str, Loss]:
    """Return the ways by name; `dice` decide the last one."""
    return {
        "all of it": Loss(lambda d: d.durable, lambda f: f.durable),
        "content, but no names": Loss(lambda d: d.now, lambda f: f.durable),
        "half of the content, but no names": Loss(lambda d: d.now, _torn),
        "names, but no content": Loss(lambda d: d.durable, lambda f: bytes(f.now)),
        "new names, but no removals": Loss(_durable_but_for_removed, lambda f: f.durable),
        "some of it": Loss(
            lambda d: dice.choice([d.now, d.durable]), lambda f: dice.choice([bytes(f.now), f.durable, _torn(f)])
        ),
    }


def _tree(directory: Directory, loss: Loss, here: str = "") -> Iterator[tuple[str, bytes | str | None]]:
    """The files (bytes), links (text) and directories (None) that are left."""
    for name, inner in sorted(loss.names(directory).items()):
        path = f"{here}{name}"
        if isinstance(inner, Directory):
            yield path, None
            yield from _tree(inner, loss, f"{path}/")
        else:
            yield path, loss.content(inner) if isinstance(inner, File) else inner


def _make(tree: list[tuple[str, bytes | str | None]], where: Path) -> None:
    where.mkdir(parents=True)
    for path, content in tree:
        if content is None:
            (where / path).mkdir()
        elif isinstance(content, str):
            (where / path).symlink_to(content)
        else:
            (where / path).write_bytes(content)


def library(where: Path) -> Path | None:
    """Compile power_loss.c; None where there is no compiler."""
    return compiled(Path(__file__).with_suffix(".c"), where / "power_loss.so", links=["-ldl", "-lpthread"])


def several_runs() -> SweepSpec:
    """A sweep of two budgets and three sizes, where the larger runs begin at the trunks of the smaller."""
    train = {"batch_size": 8, "lr": 1e-2, "schedule": "wsd"}
    budgets = [{"flops": c, "sizes": [4, 6, 8]} for c in (3e4, 6e4)]
    return spec_of(budgets=budgets, checkpoint={"steps": 6}, train=train, grid={"trunk": True})


def _run(root: Path, spec: SweepSpec) -> Sweep:
    """What `run` does, but for Ray and the report."""
    with Ledger(SweepPaths(root)).writer():
        SweepPaths(root).remove_strays()
        return grow_sweep(root, spec, user_parts_of(spec))


def _record(root: Path, spec: SweepSpec) -> None:
    """Run a sweep, and mark in the log when a result is announced."""
    mark = ctypes.CDLL(None).power_loss_mark
    record_result = Ledger.record_result

    def announced(self: Ledger, result: ExperimentResult) -> ExperimentResult:
        found = record_result(self, result)
        mark(result.key.encode())
        return found

    Ledger.record_result = announced  # type: ignore[method-assign] # in a child that ends with it
    assert _run(root, spec).complete


@dataclass(frozen=True)
class State:
    """A directory that a loss of power may leave."""

    point: int  # number of operations before it
    where: str  # the fsync that did not happen any more
    loss: str
    tree: list[tuple[str, bytes | str | None]]
    announced: frozenset[str]  # keys of results


def states_of(operations: list[Operation], root: Path, dice: random.Random) -> Iterator[State]:
    """Every different directory, at every fsync and at the end, in every way."""
    disk, announced, seen = Disk(root), set[str](), set[bytes]()
    for n, operation in enumerate([*operations, None]):
        if operation is None or operation.kind == SYNC:
            where = "the end" if operation is None else f"fsync {operation.path.removeprefix(str(root))}"
            for name, loss in losses(dice).items():
                tree = list(_tree(disk.top, loss))
                digest = hashlib.sha256(repr((tree, sorted(announced))).encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield State(n, where, name, tree, frozenset(announced))
        if operation is None:
            return
        disk.apply(operation)
        if operation.kind == MARK:
            announced.add(operation.path)


def _wrong_at_once(
    state: State, paths: SweepPaths, before: Mapping[str, bytes], true: Mapping[str, bytes]
) -> list[str]:
    """Say what does not hold of what a loss of power left; `before` are the results that are believed."""
    found = []
    if lost := state.announced - before.keys():
        found.append(f"lost: {sorted(lost)}")
    if wrong := [key for key, content in before.items() if content != true[key]]:
        found.append(f"believed: {wrong}")
    if paths.plan.exists() and paths.spec.exists():
        try:
            if open_sweep(paths.root).counts["completed"] != len(before):
                found.append("a reader finds other results than the ledger")
        except FlopsFitError as e:
            found.append(f"a reader fails: {e}")
    return found


def _wrong(state: State, root: Path, spec: SweepSpec, true: Mapping[str, bytes], sha256: str) -> list[str]:
    """Go on with a sweep after a loss of power, and say what did not hold."""
    _make(state.tree, root.parent)
    ledger = Ledger(SweepPaths(root))
    before = {key: ledger.paths.result(key).read_bytes() for key in true if ledger.result(key) is not None}
    found = _wrong_at_once(state, ledger.paths, before, true)
    attempts = num_attempts(root, before)
    if in_a_child(lambda: _run(root, spec)) != 0:
        return [*found, "does not go on"]
    return [*found, *wrong_in_the_end(root, sha256, before, attempts)]


def _drawn(states: list[State]) -> list[State]:
    """The first of each way of loss, and of some of the files."""
    seen, drawn = set[str](), []
    for state in states:
        kinds = {state.loss, re.sub(r"\b\d+\b", "N", re.sub(r"\b[0-9a-f]{16}\b", "KEY", state.where))}
        if kinds - seen:
            seen |= kinds
            drawn.append(state)
    return drawn[:DRAWN]


def _main(directory: Path, seed: int | None = None, number: int = 0) -> dict[str, Any]:
    for name in ("filelock", "pyarrow.parquet", "torch._dynamo"):  # once here, instead of in every child
        importlib.import_module(name)
    pd.DataFrame({"a": [1]}).to_parquet(io.BytesIO())
    torch.set_num_threads(1)  # threads do not survive a fork
    peak_flops(device_name(torch.device("cpu")), "cpu", "fp32", 1)
    gc.collect()
    gc.freeze()
    spec = several_runs() if seed is None or number else one_run()
    root = Path(os.environ["POWER_LOSS_ROOT"]) / "sweep"
    assert in_a_child(lambda: _record(root, spec)) == 0
    operations, dice = read_log(Path(os.environ["POWER_LOSS_LOG"])), random.Random(seed or 0)
    disk = Disk(root)
    for operation in operations:
        disk.apply(operation)
    left = dict(_tree(disk.top, Loss(lambda d: d.now, lambda f: bytes(f.now))))
    really = {str(p.relative_to(root.parent)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}
    missing = sorted(path for path in left.keys() | really.keys() if left.get(path, "") != really.get(path, ""))
    true, sha256 = recorded(root), open_sweep(root).results_sha256
    states = list(states_of(operations, root, dice))
    violations = [f"not in the log: {missing}"] if missing != [root.name] else []
    if seed is not None:
        dice.shuffle(states)
        states = states[:number] or _drawn(states)
    for n, state in enumerate(states):
        place = directory / str(n)
        said = _wrong(state, place / root.name, spec, true, sha256)
        violations += [f"{state.point} {state.where}, lost {state.loss}: {words}" for words in said]
        shutil.rmtree(place)
    syncs = sum(operation.kind == SYNC for operation in operations)
    return {"operations": len(operations), "fsyncs": syncs, "states": len(states), "violations": violations}


def tried(directory: Path, *draw: int) -> dict[str, Any] | None:
    """Try it in a process of its own, and return what it found; None where there is no compiler.

    Args:
        draw: seed and number of the states; by default all of them.
    """
    preloaded = library(directory)
    if preloaded is None:
        return None
    (directory / "whole").mkdir()
    environment = {
        **os.environ,
        "LD_PRELOAD": str(preloaded),
        "POWER_LOSS_ROOT": str(directory / "whole"),
        "POWER_LOSS_LOG": str(directory / "log"),
    }
    command = [sys.executable, "-m", "tests.power_loss", str(directory), *map(str, draw)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    found: dict[str, Any] = json.loads(said)
    return found


if __name__ == "__main__":
    print(json.dumps(_main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:]))))  # noqa: T201 - its output
