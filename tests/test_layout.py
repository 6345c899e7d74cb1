"""Files are written whole or not at all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flops_fit_ray.errors import StorageError
from flops_fit_ray.storage.atomic import read_json, write_bytes, write_json


def test_round_trip_makes_directories(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": 1.5, "y": None})
    assert read_json(path) == {"x": 1.5, "y": None}
    assert list(path.parent.iterdir()) == [path]


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"x": 1}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    owner: object = os if step == "fsync" else Path
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(StorageError, match="cannot be written: No space left on device; fix that"):
        write_json(path, {"x": 2})
    assert read_json(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"[1]", b"\xff", b"null"])
def test_torn_files_read_as_missing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert read_json(path) is None
    assert read_json(tmp_path / "none.json") is None
    assert read_json(tmp_path) is None


def test_sigkill_of_a_busy_writer_never_leaves_a_torn_file(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom flops_fit_ray.storage.atomic import write_json\n"
        "i = 0\nwhile True:\n    i += 1\n    write_json(Path(sys.argv[1]), {'i': i, 'pad': 'x' * 20000})"
    )
    path = tmp_path / "a.json"
    for attempt in range(30):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            assert writer.poll() is None, "the writer cannot even begin"
            time.sleep(0.001)
        time.sleep(0.003 * (attempt % 10))
        writer.kill()
        writer.wait()
        assert len(json.loads(path.read_bytes())["pad"]) == 20000
    write_bytes(path, b"{}")
    assert read_json(path) == {}
