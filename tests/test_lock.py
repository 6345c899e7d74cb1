"""One writer per directory, named; a dead one is recognised; readers never wait."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import filelock
import pytest

from flops_fit_ray.errors import DirectoryError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.storage._owner import this_process
from flops_fit_ray.storage.atomic import write_bytes, write_json
from flops_fit_ray.storage.lock import exclusive, hostname, living_owner, read_owner, refuse_second_writer
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import open_sweep
from tests.records import RESULT
from tests.sweeps import make_sweep, reference_parts, reference_spec

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom flops_fit_ray.storage.paths import SweepPaths\n"
    "from flops_fit_ray.storage.lock import exclusive\n"
    "with exclusive(SweepPaths(Path(sys.argv[1]))):\n    print('in', flush=True)\n    time.sleep(60)"
)


@contextmanager
def holder(root: Path, *inside: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that writes a directory, killed in the end."""
    other = subprocess.Popen([*inside, sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"in\n"
        yield other
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_one_writer_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "sweep")
    (tmp_path / "link").symlink_to(local_path(paths.root))
    refuse_second_writer(paths)  # nobody yet, and nothing is made
    assert not paths.root.exists()
    with holder(local_path(paths.root)) as other:
        for root in (paths.root, tmp_path / "link"):
            named = rf"{root}: process {other.pid} on {hostname()}, since 20..-..-.. ..:..:.. is writing here"
            with pytest.raises(DirectoryError, match=named), exclusive(SweepPaths(root)):
                pass
            with pytest.raises(DirectoryError, match=named):
                refuse_second_writer(SweepPaths(root))
        assert str(living_owner(paths)).startswith(f"process {other.pid} on {hostname()}")
    assert living_owner(paths) is None
    refuse_second_writer(paths)
    with exclusive(paths) as dead:
        assert str(dead).startswith(f"process {other.pid} on {hostname()}")
        assert json.loads(paths.lock_owner.read_bytes())["pid"] == os.getpid()
    with exclusive(paths) as dead:
        assert dead is None  # the one before ended as it should


def test_a_writer_on_another_machine_is_believed(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    write_json(paths.lock_owner, {"host": "elsewhere", "pid": os.getpid(), "started_at": 1e9})
    assert str(living_owner(paths)).startswith(f"process {os.getpid()} on elsewhere, since 2001-")
    local_path(paths.lock_owner).write_text("{torn")
    assert living_owner(paths) is None


def test_a_pid_of_another_container_or_start_of_the_machine_says_nothing(tmp_path: Path) -> None:
    paths, now = SweepPaths(tmp_path), time.time()
    here = this_process(hostname())
    with holder(tmp_path) as other:  # in this namespace
        found = read_owner(paths)
    assert found is not None and found.pid == other.pid and found.has_exited(hostname())
    for elsewhere in ({"pid_namespace": "pid:[1]"}, {"boot": "another"}, {"host": "elsewhere"}):
        write_json(paths.lock_owner, asdict(replace(found, **elsewhere)))  # type: ignore[arg-type]
        assert living_owner(paths) == str(replace(found, **elsewhere)), elsewhere  # type: ignore[arg-type]
        for age in (200.0, -200.0):
            write_json(paths.lock_owner, asdict(replace(found, **elsewhere, renewed_at=now - age)))  # type: ignore[arg-type]
            assert living_owner(paths) is None
    assert here.pid_ticks is not None and here.boot and here.pid_namespace  # Linux says all three
    for owner, lives in (
        (here, True),
        (replace(here, pid_ticks=here.pid_ticks - 1), False),
    ):  # the pid of a later process
        write_json(paths.lock_owner, asdict(owner))
        assert (living_owner(paths) is not None) == lives
    with exclusive(paths) as before:
        assert before is not None


UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc"]


def test_a_writer_in_another_pid_namespace_is_alive(tmp_path: Path) -> None:
    tried = shutil.which("unshare") and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    if not tried:
        pytest.skip("no PID namespaces can be made here")
    with holder(tmp_path, *UNSHARE):
        owner = read_owner(SweepPaths(tmp_path))
        assert owner is not None and owner.host == hostname() and owner.pid == 1
        assert living_owner(SweepPaths(tmp_path)) == str(owner)
        look = "import sys\nfrom pathlib import Path\nfrom flops_fit_ray.storage.lock import living_owner\n"
        look += "from flops_fit_ray.storage.paths import SweepPaths\nprint(living_owner(SweepPaths(Path(sys.argv[1]))))"
        for elsewhere in ([], UNSHARE):  # from here, and from a third namespace, where there is a process 1 too
            command = [*elsewhere, sys.executable, "-c", look, str(tmp_path)]
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{owner}\n"


def test_an_owner_renews_its_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit_ray.storage.lock.BEAT_SECONDS", 0.01)
    paths = SweepPaths(tmp_path)
    with exclusive(paths):
        first = read_owner(paths)
        for _ in range(1000):
            if read_owner(paths) != first:
                break
            time.sleep(0.01)
        last = read_owner(paths)
        assert first is not None and last is not None and (last.renewed_at or 0) > (first.renewed_at or 0)
        assert (last.pid, last.started_at, last.pid_ticks) == (first.pid, first.started_at, first.pid_ticks)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": "abc"}, {"pid": None}, {"pid": True}, {"pid": -1}, {"pid": 2**70}, {"host": 7}, {"host": ["h"]},
        {"started_at": "now"}, {"started_at": 1e300}, {"started_at": -1e300}, {"started_at": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_an_owner_of_wrong_types_is_no_owner(tmp_path: Path, wrong: dict[str, object]) -> None:
    paths = SweepPaths(tmp_path)
    owner = {"host": hostname(), "pid": os.getpid(), "started_at": 1e9}
    write_bytes(paths.lock_owner, json.dumps(owner).encode())
    assert living_owner(paths) is not None
    write_bytes(paths.lock_owner, json.dumps({**owner, **wrong}).encode())
    assert living_owner(paths) is None
    with exclusive(paths) as before:
        assert before is None


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    spec = reference_spec()
    make_sweep(tmp_path, spec, reference_parts(spec), only=1)
    with holder(tmp_path):
        assert open_sweep(tmp_path).counts["completed"] == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_has_a_lease(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock._unix.lock_fd_nonblocking", no_locks)
    paths = SweepPaths(tmp_path)
    with exclusive(paths):
        assert paths.lease.exists()
        with pytest.raises(DirectoryError, match=f"process {os.getpid()} on {hostname()}.* is writing here"):
            refuse_second_writer(paths)
        Ledger(paths).record_result(RESULT)
    assert not paths.lease.exists()

    # A dead process of this machine is recognised at once
    leased = (
        "import filelock\nfilelock.FileLock = None\nfrom flops_fit_ray.storage import lock\n"
        "lock._acquire = lambda paths: (l := filelock.SoftFileLease(paths.lease, lease_duration=30)).acquire() and l\n"
    )
    code = HOLD.replace("with exclusive", leased + "with exclusive")
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    with pytest.raises(DirectoryError, match=f"process {other.pid} on"), exclusive(paths):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with exclusive(paths) as dead:
        assert str(dead).startswith(f"process {other.pid} on")


def test_a_lease_of_a_silent_machine_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "filelock._unix.lock_fd_nonblocking", lambda _: (_ for _ in ()).throw(OSError(errno.ENOLCK, ""))
    )
    monkeypatch.setattr("flops_fit_ray.storage.lock.LEASE_SECONDS", 2.0)  # a busy machine may renew it a second late
    paths = SweepPaths(tmp_path)
    lease = filelock.SoftFileLease(local_path(paths.lease), lease_duration=2.0, heartbeat_interval=0.1)
    lease.acquire()
    try:
        marker = local_path(paths.lease).read_text()
        assert hostname() in marker
        begun = local_path(paths.lease).stat().st_mtime
        for _ in range(1200):
            if local_path(paths.lease).stat().st_mtime - begun > 2.0:
                break
            time.sleep(0.05)
        with pytest.raises(DirectoryError), exclusive(paths):  # it is renewed, so it holds
            pass
    finally:
        lease.release()
    # What a machine leaves that was switched off: a marker that nobody renews
    local_path(paths.lease).write_text(marker.replace(hostname(), "elsewhere"))
    os.utime(local_path(paths.lease), (time.time() - 3600, time.time() - 3600))
    with exclusive(paths):
        pass


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryError, match="cannot be written"), exclusive(SweepPaths(tmp_path / "file" / "x")):
        pass
