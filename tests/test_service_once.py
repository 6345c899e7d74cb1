"""What is asked for twice is done once; what is asked for in one call; what If-Match keeps from being done."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from flops_fit_ray.service.http.problem import TYPES
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.runs import _keys as keys
from flops_fit_ray.service.runs.queue import Runs
from flops_fit_ray.storage.atomic import read_json, write_json
from tests.hangs import HANG_SECONDS
from tests.serving import client_of
from tests.test_service_http import problem_of

YAML = {"Content-Type": "application/yaml"}


@pytest.fixture
def paths(tmp_path: Path) -> ServicePaths:
    return ServicePaths(tmp_path / "runs")


def with_key(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def stopped(client: TestClient, name: str) -> None:
    assert client.post(f"/api/v1/sweeps/{name}/stop").json()["state"] == "stopped"  # it waited


def test_a_spec_comes_with_its_start(client: TestClient, code: Path) -> None:
    """As YAML, as an object, as text: one call, the same spec, and the same sweep under the same key."""
    text = (code / "sweep.yaml").read_text()
    first = client.post("/api/v1/sweeps?name=a", content=text, headers={**YAML, **with_key("k")})
    assert first.status_code == 201 and first.json()["name"] == "a" and first.json()["state"] == "queued"
    stored = client.get("/api/v1/specs").json()["items"]
    assert [spec["text"] for spec in stored] == [text]
    for body in ({"text": text, "name": "a"}, {"spec": stored[0]["id"], "name": "a"}):
        again = client.post("/api/v1/sweeps", json=body, headers=with_key("k"))
        assert again.status_code == 200 and again.json() == first.json(), body
        assert again.headers["idempotency-replayed"] == "true"
    made = client.post("/api/v1/sweeps", json={"spec": yaml.safe_load(text), "name": "b"})
    assert made.status_code == 201
    assert client.post("/api/v1/specs", content=text, headers=YAML).json()["id"] == stored[0]["id"]
    assert client.post("/api/v1/specs/validate", content="bugets: 1", headers=YAML).json()["valid"] is False
    refused: list[tuple[dict[str, Any], str]] = [
        ({"json": {}}, "give one of"),
        ({"json": {"spec": stored[0]["id"], "text": text}}, "give one of"),
        ({"json": {"spec": stored[0]["id"], "code": str(code)}}, "give one of"),
        ({"json": {"spec": "nothing"}}, "spec"),
        ({"json": {"spec": {"bugets": [1]}}}, "did you mean 'budgets'"),
        ({"json": {"text": text, "code": "/etc"}}, "code"),
        ({"content": b"\xff", "headers": YAML}, "is not UTF-8"),
        ({"content": text, "headers": YAML, "params": {"nmae": "c"}}, "nmae"),
        ({"content": text, "headers": YAML, "params": {"slots": "many"}}, "slots"),
    ]
    for more, words in refused:
        answer = client.post("/api/v1/sweeps", **more)
        assert answer.status_code == 422 and words in str(problem_of(answer)), more
    assert {s["name"] for s in client.get("/api/v1/sweeps").json()["items"]} == {"a", "b"}


def test_a_key_resumes_extends_and_stops_once(client: TestClient, paths: ServicePaths, code: Path) -> None:
    text, place = (code / "sweep.yaml").read_text(), "/api/v1/sweeps/a"
    client.post("/api/v1/sweeps?name=a", content=text, headers=YAML)
    first = client.post(f"{place}/stop", headers=with_key("s"))
    assert first.json()["state"] == "stopped"
    again = client.post(f"{place}/stop", headers=with_key("s"))
    assert again.json() == first.json() and again.headers["idempotency-replayed"] == "true"
    assert client.post(f"{place}/stop", headers=with_key("other")).status_code == 409
    first = client.post(f"{place}/resume", headers=with_key("r"), json={"slots": 2})
    assert first.status_code == 200 and first.json()["run"] == 2 and "idempotency-replayed" not in first.headers
    stopped(client, "a")
    again = client.post(f"{place}/resume", headers=with_key("r"), json={"slots": 2})
    assert again.content == first.content and paths.num_starts("a") == 2  # though now it could be resumed
    for other in (
        client.post(f"{place}/resume", headers=with_key("r"), json={"slots": 3}),
        client.post(f"{place}/stop", headers=with_key("r")),
        client.post("/api/v1/sweeps/b/resume", headers=with_key("r"), json={"slots": 2}),
        client.post("/api/v1/sweeps", headers=with_key("r"), json={"text": text}),
    ):
        assert other.status_code == 422 and problem_of(other)["type"] == f"{TYPES}#key_reused"
    # a refusal is not recorded: there is no plan that could be extended yet, and then there is
    asked = {"headers": with_key("e"), "json": {"budgets": [5e9]}}
    assert client.post(f"{place}/extend", **asked).status_code == 409  # type: ignore[arg-type]
    assert client.post(f"{place}/extend", headers=with_key("e"), json={"budgets": [6e9]}).status_code == 409
    assert client.post(f"{place}/resume", headers={"Idempotency-Key": "x" * 201}).status_code == 422


def test_a_key_outlives_its_service_and_what_it_could_not_record(
    client: TestClient, paths: ServicePaths, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "/api/v1/sweeps/a"
    client.post("/api/v1/sweeps?name=a", content=(code / "sweep.yaml").read_text(), headers=YAML)
    stopped(client, "a")
    first = client.post(f"{place}/resume", headers=with_key("r"))
    with client_of(paths.root, code) as later:
        assert later.post(f"{place}/resume", headers=with_key("r")).content == first.content
        (note,) = (place for place in paths.keys.iterdir() if "resume" in str(read_json(place)))
        note.unlink()  # as if the service had ended before it was written
        again = later.post(f"{place}/resume", headers=with_key("r"))
        assert again.json()["run"] == 2 and paths.num_starts("a") == 2
        kept = read_json(note)
        assert kept is not None
        write_json(note, {**kept, "at": kept["at"] - keys.KEPT_SECONDS - 1})  # it has expired
        stopped(later, "a")
        assert later.post(f"{place}/resume", headers=with_key("r")).json()["run"] == 2  # it is that run's for ever
        monkeypatch.setattr(keys, "MAX_KEYS", 20)
        for number in range(60):
            later.post(f"{place}/stop", headers=with_key(f"many {number}"))
            runs: Runs = later.app.state.app_state.runs  # type: ignore[attr-defined]
            runs.keys.write(f"many {number}", {}, {})
        assert len(list(paths.keys.iterdir())) <= 20


def test_what_is_under_way_is_waited_for_or_refused(
    client: TestClient, paths: ServicePaths, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/api/v1/sweeps?name=a", content=(code / "sweep.yaml").read_text(), headers=YAML)
    stopped(client, "a")
    entered, gate, resume = threading.Event(), threading.Event(), Runs.resume

    def held(*given: Any) -> Any:
        entered.set()
        assert gate.wait(HANG_SECONDS)
        return resume(*given)

    monkeypatch.setattr(Runs, "resume", held)
    monkeypatch.setattr(keys, "IN_USE_SECONDS", 0.0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/api/v1/sweeps/a/resume", headers=with_key("r"))
        assert entered.wait(HANG_SECONDS)
        second = client.post("/api/v1/sweeps/a/resume", headers=with_key("r"))
        assert second.status_code == 409 and problem_of(second)["type"] == f"{TYPES}#key_in_use"
        assert second.headers["retry-after"] == "2"
        gate.set()
        assert first.result().status_code == 200
    assert client.post("/api/v1/sweeps/a/resume", headers=with_key("r")).content == first.result().content
    assert paths.num_starts("a") == 2


def test_if_match_changes_only_what_was_seen(client: TestClient, paths: ServicePaths, code: Path) -> None:
    text, place = (code / "sweep.yaml").read_text(), "/api/v1/sweeps/a"
    client.post("/api/v1/sweeps?name=a", content=text, headers=YAML)
    seen = client.get(place).headers["etag"]
    stopped(client, "a")
    for what in ("stop", "resume"):
        refused = client.post(f"{place}/{what}", headers={"If-Match": seen})
        assert refused.status_code == 412 and problem_of(refused)["type"] == f"{TYPES}#changed"
    assert client.post(f"{place}/extend", headers={"If-Match": seen}, json={}).status_code == 412
    assert paths.num_starts("a") == 1
    seen = client.get(place).headers["etag"]
    assert client.post(f"{place}/resume", headers={"If-Match": f'"x", {seen}'}).json()["run"] == 2
    spec = client.get("/api/v1/specs").json()["items"][0]["id"]
    assert client.delete(f"/api/v1/specs/{spec}", headers={"If-Match": '"x"'}).status_code == 412
    seen = client.get(f"/api/v1/specs/{spec}").headers["etag"]
    assert client.delete(f"/api/v1/specs/{spec}", headers={"If-Match": seen}).status_code == 204
