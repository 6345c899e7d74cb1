"""The bin: nothing is lost, nothing that runs is moved, nothing is taken for what the next sweep of a name has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from flops_fit_ray.ledger import Ledger
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.storage.paths import SweepPaths
from tests.serving import client_of
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_service_http import problem_of

YAML = {"Content-Type": "application/yaml"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = reference_spec()
    root = tmp_path_factory.mktemp("made") / "known"
    make_sweep(root, spec, reference_parts(spec), only=3)
    return root


@pytest.fixture
def paths(tmp_path: Path, made: Path) -> ServicePaths:
    shutil.copytree(made, tmp_path / "runs/known")
    return ServicePaths(tmp_path / "runs")


def files_in(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def names_of(client: TestClient) -> list[str]:
    return [sweep["name"] for sweep in client.get("/api/v1/sweeps").json()["items"]]


def test_what_is_deleted_is_kept_and_comes_back(client: TestClient, paths: ServicePaths, code: Path) -> None:
    content, before = files_in(paths.root / "known"), client.get("/api/v1/sweeps/known")
    assert client.delete("/api/v1/sweeps/known", headers={"If-Match": '"x"'}).status_code == 412
    deleted = client.delete("/api/v1/sweeps/known", headers={"If-Match": before.headers["etag"]})
    assert deleted.status_code == 200 and deleted.json()["name"] == "known"
    where = Path(deleted.json()["directory"])
    assert files_in(where) == content
    for method, path in (("GET", "/known"), ("DELETE", "/known"), ("POST", "/known/resume"), ("GET", "/known/fit")):
        assert client.request(method, f"/api/v1/sweeps{path}").status_code == 404, path
    assert names_of(client) == []
    place = f"/api/v1/bin/{deleted.json()['id']}"
    assert client.get("/api/v1/bin").json() == {"items": [deleted.json()], "total": 1, "offset": 0, "next": None}
    assert client.get(place).json() == deleted.json()
    # another one of its name: nothing of the first is taken for it
    started = client.post("/api/v1/sweeps?name=known", content=(code / "sweep.yaml").read_text(), headers=YAML).json()
    assert (started["state"], started["run"], started["counts"]) == ("queued", 1, {})
    refused = client.post(f"{place}/restore")
    assert refused.status_code == 409 and "there is another known now" in problem_of(refused)["detail"]
    assert client.delete("/api/v1/sweeps/known").status_code == 409  # it waits
    client.post("/api/v1/sweeps/known/stop")
    second = client.delete("/api/v1/sweeps/known").json()
    assert second["directory"] is None  # it had made none yet
    assert [one["id"] for one in client.get("/api/v1/bin").json()["items"]] == [second["id"], deleted.json()["id"]]
    restored = client.post(f"{place}/restore")
    assert restored.status_code == 200 and restored.json() == before.json()
    assert files_in(paths.root / "known") == content and client.get(place).status_code == 404
    assert client.post(f"{place}/restore").status_code == 404
    assert client.delete("/api/v1/sweeps/known").status_code == 200
    back = client.post(f"/api/v1/bin/{second['id']}/restore").json()
    assert (back["state"], back["words"]) == ("stopped", "it was stopped while queued")
    for odd in ("known", "..", "known.", "known.0000000", ".bin", "%00", "a" * 200):
        assert (
            client.get(f"/api/v1/bin/{odd}").status_code == client.post(f"/api/v1/bin/{odd}/restore").status_code == 404
        )


def test_what_is_run_or_linked_is_not_moved(client: TestClient, paths: ServicePaths, tmp_path: Path) -> None:
    with Ledger(SweepPaths(paths.root / "known")).writer():
        refused = client.delete("/api/v1/sweeps/known")
        assert refused.status_code == 409 and "is run by" in problem_of(refused)["detail"]
        SweepPaths(paths.root / "known").lock_owner.unlink()
        refused = client.delete("/api/v1/sweeps/known")
        assert refused.status_code == 409 and "is writing here" in problem_of(refused)["detail"]
    shutil.copytree(paths.root / "known", tmp_path / "elsewhere")
    (paths.root / "linked").symlink_to(tmp_path / "elsewhere")
    assert client.delete("/api/v1/sweeps/linked").status_code == 404
    assert client.delete("/api/v1/sweeps/nothing").status_code == 404
    assert names_of(client) == ["known"] and client.get("/api/v1/bin").json()["items"] == []


def test_a_move_that_is_cut_short_is_finished_or_undone(
    client: TestClient, paths: ServicePaths, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of its steps the service is killed, or the disk fails, both ways: nothing is lost or doubled."""
    client.post("/api/v1/sweeps?name=both", content=(code / "sweep.yaml").read_text(), headers=YAML)
    client.post("/api/v1/sweeps/both/stop")
    shutil.copytree(paths.root / "known", paths.root / "both")
    before, rename = client.get("/api/v1/sweeps/both").json(), Path.rename
    moves: list[int] = []

    def fails_at(step: int, error: BaseException) -> Any:
        def renaming(self: Path, target: Path) -> Path:
            moves.append(1)
            if len(moves) == step:
                raise error
            return rename(self, target)

        moves.clear()
        return renaming

    for step in (1, 2):
        monkeypatch.setattr(Path, "rename", fails_at(step, OSError(18, "Invalid cross-device link")))
        refused = client.delete("/api/v1/sweeps/both")
        assert refused.status_code == 409 and "nothing was changed" in problem_of(refused)["detail"]
        assert client.get("/api/v1/bin").json()["items"] == [] and client.get("/api/v1/sweeps/both").json() == before
        monkeypatch.setattr(Path, "rename", fails_at(step, KeyboardInterrupt()))
        state: Any = client.app.state  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            state.app_state.bin.put("both")
        monkeypatch.setattr(Path, "rename", rename)
        with client_of(paths.root, code) as later:  # which finishes it
            (deleted,) = later.get("/api/v1/bin").json()["items"]
            assert names_of(later) == ["known"]
            monkeypatch.setattr(Path, "rename", fails_at(step, OSError(5, "Input/output error")))
            assert later.post(f"/api/v1/bin/{deleted['id']}/restore").status_code == 409
            assert later.get("/api/v1/bin").json()["items"] == [deleted] and names_of(later) == ["known"]
            monkeypatch.setattr(Path, "rename", fails_at(step, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                later.app.state.app_state.bin.restore(deleted["id"])  # type: ignore[attr-defined]
        monkeypatch.setattr(Path, "rename", rename)
        with client_of(paths.root, code) as later:
            assert later.get("/api/v1/sweeps/both").json() == before
            assert later.get("/api/v1/bin").json()["items"] == [] and not list(paths.bin.iterdir())
        state.app_state.runs.forget("both")
    assert list((paths.root / ".bin").iterdir()) == []
