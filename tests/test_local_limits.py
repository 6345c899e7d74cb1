"""Limits of this machine that Ray does not know of."""

import math
import os
from pathlib import Path

import pytest

from flops_fit_ray.engine import _local_limits
from flops_fit_ray.engine._local_limits import RAY_ADDS_BYTES, SOCKET_BYTES, cpu_quota, short_temporary, usable_cores
from flops_fit_ray.errors import ResourceError

V2 = "0::/user.slice/job"
V1 = "4:memory:/docker/x\n1:cpu,cpuacct:/docker/x"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        (V2, {"user.slice/job/cpu.max": "max 100000", "user.slice/cpu.max": "150000 100000"}, 1.5),  # of a parent
        (V2, {"user.slice/job/cpu.max": "400000 100000", "cpu.max": "800000 100000"}, 4),
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),  # in a container
        ("0::/../..", {"cpu.max": "200000 100000"}, 2),  # of a namespace that starts further in
        (
            V1,
            {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"},
            3,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        (V2, {"cpu.max": "max 100000"}, math.inf),
        (V2, {"cpu.max": "who knows"}, math.inf),
        ("nonsense", {}, math.inf),
    ],
)
def test_the_quota_is_the_smallest_of_all_groups_around(
    membership: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "self").write_text(f"{membership}\n")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "self") == cores


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None)])
def test_cores_are_whole_and_never_none(
    quota: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    (tmp_path / "self").write_text("0::/\n")
    monkeypatch.setattr(_local_limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(_local_limits, "MEMBERSHIP", tmp_path / "self")
    assert usable_cores() == (len(os.sched_getaffinity(0)) if cores is None else cores)


def test_cores_that_are_not_ours_do_not_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})  # as taskset and Slurm do
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_sockets_of_ray_fit_into_the_temporary_directory(tmp_path: Path) -> None:
    """The longest path that Ray makes below the longest directory that is left to it."""
    longest = Path("/" + "t" * (SOCKET_BYTES - RAY_ADDS_BYTES - 1))
    socket = longest / "ray" / "session_2026-01-31_12-59-59_123456_4194304" / "sockets" / "plasma_store"
    assert len(os.fsencode(socket)) == SOCKET_BYTES
    own = Path("/var/tmp")  # noqa: S108 - nothing is written there
    assert short_temporary(own) == (own, "")
    room = tmp_path / "room"
    room.mkdir()
    long = tmp_path / ("x" * 60)
    moved, reason = short_temporary(long, (Path("/dev/null"), room))
    assert moved == room
    assert (
        reason == f"{long} has {len(str(long))} bytes, and Ray's sockets allow 39: Ray's temporary files go to {room}"
    )
    umlauts = Path("/mnt/" + "ü" * 18)  # 23 letters, 41 bytes
    assert "has 41 bytes" in short_temporary(umlauts, (room,))[1]


def test_a_directory_that_cannot_be_written_is_not_taken(tmp_path: Path) -> None:
    nowhere = Path("/dev/null/x")  # permissions do not stop root, a file does
    assert short_temporary(nowhere, (tmp_path,))[1].startswith("/dev/null/x cannot be written: Ray's temporary files")
    with pytest.raises(ResourceError, match="cannot be written; set RAY_TMPDIR to a short directory"):
        short_temporary(nowhere, (Path("/dev/null"),))
