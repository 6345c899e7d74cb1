"""Files of a sweep that were damaged, moved, protected or dated wrongly: never believed, never lost, said aloud."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit_ray import formatting as fmt
from flops_fit_ray.cli import main
from flops_fit_ray.cli._sources import Opened
from flops_fit_ray.console.fit_text import fit_text
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.console.status_text import status_text
from flops_fit_ray.errors import DirectoryError, PlanDamagedError, SpecError, StorageError
from flops_fit_ray.ledger import Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Rates
from flops_fit_ray.storage.atomic import MARK, SEAL, read_json, write_bytes, write_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.changes import recorded_in
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.extend import BegunSweep, begun_sweep, extend_spec
from flops_fit_ray.sweep.recorded import record_rates
from tests.killing import num_attempts, run_here
from tests.records import FAILURE, RESULT, recorded
from tests.sweeps import grow_sweep, make_sweep, reference_parts, reference_spec


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return run_here(tmp_path_factory.mktemp("done"))


@pytest.fixture
def copy(done: Sweep, tmp_path: Path) -> Sweep:
    shutil.copytree(local_path(done.paths.root), tmp_path / "copy")
    return open_sweep(tmp_path / "copy")


def test_any_damage_to_a_result_is_noticed(tmp_path_factory: pytest.TempPathFactory) -> None:
    ledger = Ledger(SweepPaths(tmp_path_factory.mktemp("ledger")))
    ledger.record_result(RESULT)
    path = ledger.paths.result("k1")
    good = path.read_bytes()

    @given(at=st.integers(0, len(good) - 1), bit=st.integers(0, 7))
    def flipped(at: int, bit: int) -> None:
        local_path(path).write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
        assert ledger.result("k1") in (None, RESULT)

    @given(length=st.integers(0, len(good) - 2))
    def torn(length: int) -> None:
        local_path(path).write_bytes(good[:length])
        assert ledger.result("k1") is None

    @given(st.binary(max_size=200))
    def garbage(content: bytes) -> None:
        local_path(path).write_bytes(content)
        assert ledger.result("k1") is None and ledger.outcomes(["k1"]) == []

    flipped()
    torn()
    garbage()


def without(path: Path, *names: str, **others: object) -> None:
    """Take fields of a JSON file away, and change others."""
    content = {name: value for name, value in json.loads(path.read_bytes()).items() if name not in names}
    path.write_text(json.dumps({**content, **others}, indent=1) + "\n")


@pytest.mark.parametrize("gone", [[SEAL], [MARK], [SEAL, MARK]], ids=str)
def test_a_result_without_its_seal_is_not_believed(tmp_path: Path, gone: list[str]) -> None:
    ledger = Ledger(SweepPaths(tmp_path))
    ledger.record_result(RESULT)
    without(local_path(ledger.paths.result("k1")), *gone, loss=0.5)
    assert ledger.result("k1") is None and ledger.is_damaged("k1")


@pytest.mark.parametrize("name", ["plan.json", "failure.json", "experiment.json", "cluster.json", "rates.json"])
def test_files_that_decide_are_not_believed_after_a_change(copy: Sweep, name: str) -> None:
    ledger, (key,) = Ledger(copy.paths), recorded(copy.paths.root)
    paths = {**dict.fromkeys([name], copy.paths.root / name), "failure.json": copy.paths.failure(key)}
    paths["experiment.json"] = copy.paths.planned(key)
    copy.paths.result(key).unlink()
    ledger.record_failure(replace(FAILURE, key=key, status="diverged"))
    ledger.record_cluster(Cluster(slots=2))
    record_rates(copy.paths, copy.plan.constants, Rates(step_seconds={"a": (1e3, 1e-3)}))
    path = local_path(paths[name])
    good, field = path.read_bytes(), next(name for name in json.loads(path.read_bytes()) if name != "schema_version")
    assert read_json(path) is not None
    for change in ({field: 7}, {"another": 1}):
        without(path, **change)
        assert read_json(path) is None
    path.write_bytes(good)
    without(path, SEAL)
    assert read_json(path) is None


def test_a_spec_is_not_believed_after_a_change(copy: Sweep) -> None:
    path = local_path(copy.paths.spec)
    lines = path.read_text().splitlines(keepends=True)
    assert lines[-1].startswith("# sealed_sha256: ")
    other = [line.replace("lr: 0.01", "lr: 0.02") for line in lines]
    assert other != lines
    for content in ("".join(other), "".join(lines[:-1]), "".join(other[:-1])):
        path.write_text(content)
        with pytest.raises(SpecError, match="was changed after it was written"):
            open_sweep(copy.paths.root)
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(DirectoryError, match="no sweep.yaml"):
        open_sweep(copy.paths.root)
    path.with_name("elsewhere").rename(path)
    write_json(copy.paths.plan, read_json(copy.paths.plan) or {})  # of a version that sealed neither
    assert open_sweep(copy.paths.root).spec.train.lr == 0.02


def test_a_damaged_result_is_said_wherever_a_fit_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = reference_spec(2)
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec))
    lost = sweep.plan.experiments[3]
    paths, path = sweep.paths, local_path(sweep.paths.result(lost.key))
    other = paths.result(sweep.plan.experiments[4].key).read_bytes()
    for content in (b"", path.read_bytes()[:-2], other):  # the last is whole, but another's
        path.write_bytes(content)
        now = open_sweep(paths.root)
        assert now.counts["damaged"] == 1 and now.counts["planned"] == 0 and now.counts["completed"] == 13
        assert list(now.to_frame().query("status == 'damaged'")["key"]) == [lost.key]
    said = f"damaged, and left out: C {fmt.flops(lost.budget)}, size {lost.size} ({lost.key}): what is in result.json"
    with pytest.raises(SystemExit):
        main(["status", str(paths.root)])
    assert said in capsys.readouterr().out
    fit = now.fitted(replace(now.fit_options, draws=0))
    assert said in fit_text(fit)
    assert Opened(fit, sweep=now).assumed == list(now.damage)  # what `predict` and `compare` say beside it


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_an_outcome_that_is_gone_is_missed(tmp_path: Path, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`ends.log` knows of it: as of one that is damaged it is said, and its experiment is trained again aloud."""
    paths, ledger = SweepPaths(tmp_path), Ledger(SweepPaths(tmp_path))
    run_here(tmp_path)
    (key,) = recorded(tmp_path)
    if end == "failed":
        paths.result(key).unlink()
        ledger.record_failure(replace(FAILURE, key=key, status="diverged"))
        assert run_here(tmp_path).counts["diverged"] == 1  # which is not tried again
    assert local_path(paths.ends).read_text().splitlines()[-1] == f"{key} {end}"
    file = paths.result(key) if end == "completed" else paths.failure(key)
    for lost in (file, paths.experiments / key):
        shutil.rmtree(local_path(lost)) if lost.is_dir() else local_path(lost).unlink()
        sweep = open_sweep(tmp_path)
        assert (sweep.counts["damaged"], sweep.counts["planned"]) == (1, 0)
        said = f"gone: C 3e4, size 4 ({key}): {end}, and {file.name} is not there any more; put it back"
        for command, code in (["status"], 0), (["fit", "--bootstrap", "0"], 1):
            with pytest.raises(SystemExit) as ended:
                main([*command, str(tmp_path)])
            assert said in capsys.readouterr().out and ended.value.code == code
        again = run_here(tmp_path)
        assert again.complete and again.counts["damaged"] == 0
        assert "it had ended, and its result or failure is gone or damaged: trained again" in aloud(paths, key)
        if end == "failed" and lost == file:
            paths.result(key).unlink()
            ledger.record_failure(replace(FAILURE, key=key, status="diverged"))
            assert run_here(tmp_path).counts["diverged"] == 1


def aloud(paths: SweepPaths, key: str) -> list[str]:
    """The warnings of an experiment's log."""
    return [event.message for event in Ledger(paths).events(key) if event.level == "warning"]


def test_notes_of_ends(tmp_path: Path) -> None:
    """The last line of an experiment stands; what is tried again has not ended; torn lines are none."""
    a, b, c, old = (letter * 16 for letter in "abc0")
    paths = SweepPaths(tmp_path)
    local_path(paths.completed).write_text(f"{old}\n{a}\n")  # of an earlier version
    ledger = Ledger(paths)
    ledger.note_ends({a: "completed", b: "failed", c: "failed"})
    ledger.note_ends({b: None, c: "completed"})
    lines = local_path(paths.ends).read_bytes()
    assert lines.decode().splitlines() == [f"{b} failed", f"{c} failed", f"{b} open", f"{c} completed"]
    ledger.note_ends({a: "completed"})
    assert local_path(paths.ends).read_bytes() == lines  # nothing new
    local_path(paths.ends).write_bytes(lines + b"\x00\xff nonsense\n" + b.encode()[:5])
    assert Ledger(paths).noted_ends == {old: "completed", a: "completed", c: "completed"}


def test_a_failure_that_is_tried_again_is_not_missed(copy: Sweep) -> None:
    """Neither while it is open, nor where the driver dies between its note and the failure's new name."""
    paths, (key,) = copy.paths, recorded(copy.paths.root)
    paths.result(key).unlink()
    Ledger(paths).record_failure(replace(FAILURE, key=key, status="infrastructure"))
    Ledger(paths).note_ends({key: "failed"})
    assert open_sweep(paths.root).counts["infrastructure"] == 1
    Ledger(paths).retry(key)
    sweep = open_sweep(paths.root)
    assert (sweep.counts["planned"], sweep.counts["damaged"]) == (1, 0)
    assert run_here(paths.root).complete and not aloud(paths, key)


def test_a_damaged_failure_is_kept_aside(copy: Sweep) -> None:
    paths, (key,) = copy.paths, recorded(copy.paths.root)
    paths.result(key).unlink()
    for again in (lambda: run_here(paths.root), lambda: Ledger(paths).record_failure(replace(FAILURE, key=key))):
        write_bytes(paths.failure(key), b"{")
        again()
    assert [p.read_bytes() for p in (paths.experiments / key).glob("failure.json.unreadable-*")] == [b"{", b"{"]
    assert (
        len([words for words in aloud(paths, key) if words.startswith("its failure could not be read: kept as")]) == 2
    )


def test_a_curve_that_is_damaged_or_gone_is_said(tmp_path: Path) -> None:
    """Its loss stands; the envelope is made of the others."""
    spec = reference_spec(2)
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec))
    whole, lost = sweep.curves, sweep.plan.experiments[3]
    options = replace(sweep.fit_options, draws=0)
    assert whole is not None and not [w for w in sweep.fitted(options).warnings if w.code == "damaged"]
    path = local_path(sweep.paths.curve(lost.key))
    good = path.read_bytes()
    places = [good.find(struct.pack("<d", loss)) for loss in Ledger(sweep.paths).curve(lost.key)[1]]
    at = next(place for place in places if place > 0) + 3  # compression leaves some as they are
    flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]  # without checksums of pages another loss
    for content in (flipped, good[:-9], b"", None):
        path.unlink() if content is None else path.write_bytes(content)
        now = open_sweep(sweep.paths.root)
        (flag,) = [w for w in now.fitted(options).warnings if w.code == "damaged"]
        assert f"curve.parquet is gone or damaged: C {fmt.flops(lost.budget)}, size {lost.size}" in flag.message
        assert now.complete and now.curves is not None
        assert np.array_equal(np.unique(now.curves.params), np.unique(whole.params[whole.run != 3]))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("result.json", errno.EIO),
        ("result.json", errno.EMFILE),
        ("failure.json", errno.ESTALE),
        ("plan.json", errno.EACCES),
        ("sweep.yaml", errno.EIO),
        ("curve.parquet", errno.EIO),
    ],
)
def test_a_file_that_cannot_be_read_now_is_not_damaged(
    copy: Sweep, code: int, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that fails for a moment says nothing of the file: nothing is put aside, nothing is trained again."""
    paths, (key,) = copy.paths, recorded(copy.paths.root)
    if name == "failure.json":
        paths.result(key).unlink()
        Ledger(paths).record_failure(replace(FAILURE, key=key, status="diverged"))
    (path,) = [p for p in local_path(paths.root).rglob(name) if "tune" not in p.parts]
    before, real = path.stat().st_mtime_ns, os.open

    def failing(where: object, *arguments: int, **more: int) -> int:
        if str(where) == str(path):
            raise OSError(code, os.strerror(code), str(path))
        return real(where, *arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        with pytest.raises(SystemExit) as ended:
            main(["fit" if name == "curve.parquet" else "status", str(paths.root)])
        words = capsys.readouterr().err.splitlines()[0]
        assert ended.value.code == 4 and words.startswith(
            f"error: {path}: cannot be read: {os.strerror(code)}; fix that"
        )
        if name != "curve.parquet":  # which no run reads
            with pytest.raises(StorageError, match=f"{name}: cannot be read: {os.strerror(code)}"):
                _recorded(paths) if name == "sweep.yaml" else run_here(paths.root)
    assert path.stat().st_mtime_ns == before
    assert not list(local_path(paths.root).rglob("*.unreadable-*")) and num_attempts(paths.root, [key]) == {key: 1}


def _recorded(paths: SweepPaths) -> None:
    assert recorded_in(paths).spec is None  # as a run reads it, before it writes it


def test_a_damaged_plan_of_an_extended_sweep_is_made_again_with_the_same_keys(tmp_path: Path) -> None:
    """What its keys rest on lies beside it: a smaller budget that was added later does not decide it anew."""
    listed = reference_spec(2)
    budgets = [b.model_copy(update={"sizes": [34, 48, 68]}) for b in listed.budgets]
    train = listed.train.model_copy(update={"warmup_tokens": "auto"})
    listed = listed.model_copy(update={"budgets": budgets, "train": train})
    user = reference_parts(listed)
    first = grow_sweep(tmp_path, listed, user)
    wider = extend_spec(first.spec, budgets=[5e4], sizes=[34, 48, 68])
    both = grow_sweep(tmp_path, wider, user)
    keys = [e.key for e in both.plan.experiments]
    assert both.complete and {e.key for e in first.plan.experiments} < set(keys) and len(keys) == 9
    local_path(both.paths.plan).write_bytes(b"{")
    with pytest.raises(PlanDamagedError, match="written again by what resumes the sweep: flops-fit-ray run somewhere"):
        open_sweep(tmp_path)
    begun = begun_sweep(tmp_path)
    assert begun == BegunSweep(spec=both.spec, base=tmp_path)
    before = recorded(tmp_path)
    again = grow_sweep(tmp_path, begun.spec, user)
    assert [e.key for e in again.plan.experiments] == keys and recorded(tmp_path) == before
    local_path(both.paths.plan).write_bytes(b"{")
    both.paths.origin.unlink()  # as in a directory of an earlier version
    with pytest.raises(PlanDamagedError, match="is written again by `flops-fit-ray run`"):
        begun_sweep(tmp_path)


DAMAGE = {"0 %": 0.0, "1 %": 0.01, "25 %": 0.25, "50 %": 0.5, "99 %": 0.99, "a flipped bit": None}


@pytest.mark.parametrize("share", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", ["result.json", "experiment.json", "attempts/0001.json", "curve.parquet"])
def test_f15_a_damaged_file_of_an_experiment(copy: Sweep, name: str, share: float | None) -> None:
    paths, (key,) = copy.paths, recorded(copy.paths.root)
    path = paths.experiments / key / name
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    local_path(path).write_bytes(flipped if share is None else content[: int(share * len(content))])
    damaged = name == "result.json"
    assert open_sweep(paths.root).complete != damaged  # readers take it as it is
    again = run_here(paths.root)
    assert again.complete and again.results_sha256 == copy.results_sha256
    assert num_attempts(paths.root, [key]) == {key: 2 if damaged else 1}
    aside = list(path.parent.glob("result.json.unreadable-*"))
    assert len(aside) == damaged
    aloud = [event.message for event in Ledger(paths).events(key) if event.level == "warning"]
    said = ["it had ended, and its result or failure is gone", "its result could not be read: kept as result.json.unre"]
    assert (
        [words[: len(start)] for words, start in zip(aloud, said, strict=False)] == said * damaged == said[: len(aloud)]
    )


@pytest.mark.parametrize("name", ["plan.json", "sweep.yaml"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"{}"])
def test_a_damaged_plan_is_refused_by_readers_and_made_again_by_a_run(copy: Sweep, name: str, content: bytes) -> None:
    local_path(copy.paths.root / name).write_bytes(content)
    with pytest.raises((DirectoryError, SpecError), match=name):
        open_sweep(copy.paths.root)
    again = run_here(copy.paths.root)
    assert again.complete and again.results_sha256 == copy.results_sha256
    assert set(num_attempts(copy.paths.root, recorded(copy.paths.root)).values()) == {1}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff"])
def test_a_damaged_lock_or_progress_is_nobody(copy: Sweep, content: bytes) -> None:
    paths = copy.paths
    (key,) = recorded(paths.root)
    paths.result(key).unlink()
    local_path(paths.lock_owner).write_bytes(content)
    local_path(paths.lock).write_bytes(content)
    local_path(paths.progress(key)).write_bytes(content)
    sweep = open_sweep(paths.root)
    assert sweep.running == () and sweep.counts["damaged"] == 1
    assert run_here(paths.root).complete


def test_f18_clocks(copy: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, (key,) = copy.paths, recorded(copy.paths.root)
    real = time.time
    for shift in (-3600.0, 86400.0, -86400.0 * 365):
        monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
        again = run_here(paths.root)
        assert again.complete and num_attempts(paths.root, [key]) == {key: 1}
    for zone in ("America/St_Johns", "Asia/Kolkata"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert open_sweep(paths.root).results_sha256 == copy.results_sha256
    monkeypatch.delenv("TZ")
    time.tzset()


def test_a_sign_of_life_from_another_time_is_none(copy: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(copy.paths)
    now = time.time()
    for age, alive in ((0.0, True), (30.0, True), (120.0, False), (-120.0, False), (-86400.0, False)):
        ledger.record_progress(
            Progress(key="k", tokens_seen=1, tokens=2, train_loss=None, host="h", pid=1, updated_at=now - age)
        )
        assert (ledger.progress("k") is not None) == alive, age


def test_f22_a_moved_directory_goes_on(copy: Sweep, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "sweep"
    moved.parent.mkdir()
    before = recorded(copy.paths.root)
    copy.paths.root.rename(moved)
    assert open_sweep(moved).complete
    assert run_here(moved).complete and recorded(moved) == before


def test_f22_a_read_only_directory_can_be_read(copy: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy.paths.root

    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", str(root))

    with monkeypatch.context() as patch:  # permissions do not stop root, who runs many test suites
        for name in ("mkdir", "unlink", "replace", "rename", "link", "fsync"):
            patch.setattr(os, name, denied)
        assert "1 completed" in status_text(open_sweep(root))
    if os.getuid() != 0:
        for path in (root, root / "experiments"):
            local_path(path).chmod(0o555)
        with pytest.raises(DirectoryError, match="cannot be written: Permission denied; choose another --output"):
            run_here(root)
        for path in (root, root / "experiments"):
            local_path(path).chmod(0o755)


def test_readers_execute_nothing(copy: Sweep, tmp_path: Path) -> None:
    """G9: pickles that would leave a mark, under every name that a reader might open."""
    mark = tmp_path / "executed"
    poison = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    root = copy.paths.root
    (key,) = recorded(root)
    names = ["tune/round-1/tuner.pkl", "tune/round-1/experiment_state-2026-01-01_00-00-00.json", "rates.json"]
    names += [
        f"experiments/{key}/{name}" for name in ("curve.parquet", "failure.json", "progress.json", "events.jsonl")
    ]
    names += [f"experiments/{key}/checkpoints/0000000002.pt", f"trunks/{key}/0000000014.pt", "analysis.json"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        local_path(root / name).write_bytes(poison)
    for command in (["status"], ["fit", "--bootstrap", "0"], ["report"], ["predict", "1e5"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(root)])
        assert ended.value.code in (0, 1)
    assert not mark.exists()


def test_a_status_of_all_states(copy: Sweep) -> None:
    paths = copy.paths
    plan = read_json(paths.plan)
    assert plan is not None
    (one,) = plan["experiments"]
    states = [
        "completed",
        "diverged",
        "out_of_memory",
        "stalled",
        "failed",
        "infrastructure",
        "running",
        "damaged",
        "planned",
    ]
    keys = [f"{i:016x}" for i in range(len(states))]
    children = [{**one, "key": "f" * 16, "parent": keys[-1], "start_step": 2}]
    experiments = [{**one, "key": key} for key in keys]
    write_json(paths.plan, {**plan, "experiments": [*experiments, *children]}, sealed=True)
    ledger = Ledger(paths)
    for key, state in zip(keys, states, strict=True):
        ledger.begin_attempt(key)
        if state == "completed":
            ledger.record_result(replace(RESULT, key=key, deaths=2, attempts=3))
        elif state == "running":
            ledger.record_progress(
                Progress(key=key, tokens_seen=1, tokens=4, train_loss=None, host="node7", pid=42,
                         updated_at=time.time(), started_at=1e9, attempt=2)
            )  # fmt: skip
        elif state == "damaged":
            write_bytes(paths.result(key), b"")
        elif state != "planned":
            ledger.record_failure(replace(FAILURE, key=key, status=state, deaths=4 * (state == "infrastructure")))  # type: ignore[arg-type]
    sweep = open_sweep(paths.root)
    assert sweep.counts == {**dict.fromkeys(states, 1), "waiting": 1}
    said = status_text(sweep)
    for words in (
        "1 completed, 1 diverged, 1 out of memory, 1 stalled, 1 failed (user), 1 failed (infrastructure), 1 running, "
        "1 damaged, 1 waiting for its parent, 1 planned of 10",
        "size 4: 25 % on node7 (process 42), since 2001-09-",
        ", attempt 2",
        "retries: 6 after a worker or node died",
        "writer: none",
    ):
        assert words in said, said
    assert list(sweep.to_frame()["status"]) == [*states, "waiting"]
    (_, progress), *_ = sweep.running
    assert progress.seconds == pytest.approx(time.time() - 1e9, abs=60)
    assert replace(progress, started_at=progress.updated_at + 3600).seconds == 0.0


def test_a_closed_pipe_stops_nothing(copy: Sweep) -> None:
    code = "from flops_fit_ray.cli import main\nmain(['status', __import__('sys').argv[1]])"
    command = [sys.executable, "-c", code, str(copy.paths.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout is not None and reader.stderr is not None
        reader.stdout.close()
        assert b"Traceback" not in reader.stderr.read()
    closed = open(os.devnull, "w")  # noqa: PTH123, SIM115 - to be closed at once
    closed.close()
    PlainConsole(closed).say("nobody hears this")
