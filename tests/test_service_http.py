"""HTTP as its standards have it: problems, tags, conditions, HEAD, OPTIONS, ranges. In the test's own process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, TypeAdapter
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from docs.markdown import anchors
from flops_fit_ray.ledger import Failure, Ledger, Progress
from flops_fit_ray.service.http import guard, later
from flops_fit_ray.service.http.conditional import answered, asked_range, names_tag
from flops_fit_ray.service.http.problem import KINDS, MEDIA_TYPE, TYPES
from flops_fit_ray.service.rest._charts import Chart, DeviceSeries
from flops_fit_ray.service.rest._shapes import PendingOut
from flops_fit_ray.service.state.fits import FitWorker
from flops_fit_ray.storage.atomic import write_json
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from tests.chaos import make_project
from tests.hangs import HANG_SECONDS
from tests.serving import client_of, serving
from tests.sweeps import make_sweep, reference_parts, reference_spec

TROUBLE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"
FIELDS = {"type", "title", "status", "detail", "instance", "error", "faults"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("service") / "runs"
    spec = reference_spec()
    make_sweep(root / "known", spec, reference_parts(spec), only=14)
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    with client_of(root) as found:
        yield found


def problem_of(answer: Any) -> dict[str, Any]:
    """The problem that an answer is, checked."""
    assert answer.headers["content-type"] == MEDIA_TYPE, (answer.status_code, answer.headers)
    found: dict[str, Any] = answer.json()
    assert set(found) == FIELDS and found["status"] == answer.status_code
    assert found["detail"] == found["error"] and found["title"] and isinstance(found["faults"], list)
    page, _, kind = found["type"].partition("#")
    assert found["type"] == "about:blank" or (page == TYPES and kind in KINDS)
    assert answer.status_code not in (429, 503) or int(answer.headers["retry-after"]) > 0
    return found


def test_every_error_is_a_problem(client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the routes, of the framework, and of what stands before both."""
    text = {"Content-Type": "text/plain"}
    asked: list[tuple[int, str, str, str, dict[str, Any]]] = [
        (404, "", "GET", "/api/v1/sweeps/nothing", {}),
        (404, "", "GET", "/api/v1/nothing", {}),
        (404, "", "GET", "/api/v1/sweeps/a%2fb", {}),
        (405, "", "PUT", "/api/v1/sweeps/known", {}),
        (409, "", "POST", "/api/v1/sweeps/known/stop", {}),
        (409, "no_results", "GET", "/api/v1/sweeps/known/predict?budget=1e6&unique=1e3", {}),
        (422, "", "GET", "/api/v1/sweeps/known/predict?budget=x", {}),
        (422, "", "POST", "/api/v1/sweeps", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        (422, "spec", "POST", "/api/v1/specs", {"json": {"text": "bugets: [1]", "code": "/"}}),
        (422, "", "POST", "/api/v1/specs", {"content": b"text", "headers": text}),
        (413, "", "POST", "/api/v1/specs", {"content": b"x" * 3_000_000}),
        (421, "host", "GET", "/api/v1/sweeps", {"headers": {"Host": "evil.example"}}),
        (403, "token", "GET", "/api/v1/sweeps", {"headers": {"Authorization": "Bearer wrong"}}),
        (401, "token", "GET", "/api/v1/sweeps", {"headers": {"Authorization": None}}),
    ]
    for status, kind, method, path, more in asked:
        request = client.build_request(method, path, **{**more, "headers": {}})
        for name, value in more.get("headers", {}).items():
            request.headers.pop(name, None)
            if value is not None:
                request.headers[name] = value
        answer = client.send(request)
        assert answer.status_code == status, (path, answer.text)
        found = problem_of(answer)
        assert found["type"].partition("#")[2] == kind, (path, found)
        assert found["instance"] == path.partition("?")[0]

    def broken(*_: Any) -> None:
        raise ValueError("a fault of the service")

    monkeypatch.setattr("flops_fit_ray.service.app_state.AppState.sweeps", broken)
    answer = client.get("/api/v1/sweeps")
    assert answer.status_code == 500 and "ValueError" in problem_of(answer)["detail"]
    assert answer.headers["content-security-policy"] and answer.headers["cache-control"] == "no-store"
    monkeypatch.setattr(guard, "MAX_OPEN", 0)
    assert client.get("/api/v1/health").status_code == 503
    assert problem_of(client.get("/api/v1/health"))["type"] == f"{TYPES}#busy"


def test_what_is_no_http_is_a_problem_too(root: Path) -> None:
    with serving(root, at_once=0) as served:
        host, _, port = served.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"NONSENSE\r\n\r\n")
            head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and MEDIA_TYPE.encode() in head and set(json.loads(body)) == FIELDS


def test_each_type_of_a_problem_leads_to_its_place_in_the_docs(client: TestClient) -> None:
    shown, written = client.get(TYPES).text, TROUBLE.read_text()
    for kind, (means, next_step) in KINDS.items():
        assert f'<h2 id="{kind}">' in shown
        assert kind in anchors(written) and means in written and next_step in written, kind


def paths_of(client: TestClient, only: str = "") -> list[str]:
    """Every route of GET that ends, its blanks filled in with what is there."""
    key = client.get("/api/v1/sweeps/known/experiments?limit=1").json()["items"][0]["key"]
    one = client.get("/api/v1/sweeps/known/checkpoints?limit=1").json()["items"][0]["id"]
    app: Any = client.app
    found = [path for path, item in app.openapi()["paths"].items() if "get" in item and not path.endswith("/events")]
    known = {"name": "known", "key": key, "checkpoint_id": one, "figure": "valleys", "chart": "laws", "other": "known"}
    filled = [
        path.format(**known) for path in found if not {"{spec_id}", "{answer_id}", "{bin_id}"} & set(path.split("/"))
    ]
    return [path + ("?budget=1e6" if path.endswith("/predict") else "") for path in filled if only in path]


def test_head_is_get_without_a_body_and_options_names_the_methods(client: TestClient) -> None:
    for path in [*paths_of(client), "/", "/sweeps/known", "/new", "/static/style.css", "/login"]:
        whole, head = client.get(path), client.head(path)
        assert (whole.status_code, head.status_code, head.content) == (200, 200, b""), path
        if path in ("/api/v1/server", "/", "/sweeps/known"):  # those have readings, or a fit that comes, in them
            assert whole.headers.keys() == head.headers.keys()
        else:
            same = whole.headers.keys() - ({"etag"} if path == "/new" else set())  # a fresh key is in it
            assert {name: whole.headers[name] for name in same} == {name: head.headers.get(name) for name in same}, path
        allowed = client.options(path)
        assert allowed.status_code == 204 and {"GET", "HEAD", "OPTIONS"} <= set(allowed.headers["allow"].split(", "))
        assert not any(name.startswith("access-control") for name in allowed.headers)
    assert client.options("/api/v1/specs/0123456789abcdef").headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    assert "lists them all" in problem_of(client.get("/api/v1/nothing"))["detail"]
    refused = client.put("/api/v1/specs/0123456789abcdef")
    assert problem_of(refused)["detail"].endswith("use one of DELETE, GET, HEAD, OPTIONS")
    assert refused.status_code == 405 and refused.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    assert client.options("/api/v1/nothing").status_code == client.head("/api/v1/nothing").status_code == 404
    assert client.head("/api/v1/sweeps/known/stop").headers["allow"] == "OPTIONS, POST"
    assert client.options("/api/v1/sweeps", headers={"Authorization": "Bearer x"}).status_code == 403
    for stream in ("/api/v1/events", "/api/v1/sweeps/known/events"):  # which have no end
        head = client.head(stream)
        assert head.status_code == 200 and head.headers["content-type"].startswith("text/event-stream")


def test_what_is_known_already_is_not_sent_again(client: TestClient) -> None:
    for path in paths_of(client, "/sweeps"):
        first = client.get(path)
        tag = first.headers["etag"]
        assert tag.startswith('"'), path  # a strong one
        for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = client.get(path, headers={"If-None-Match": given})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), (path, given)
            assert "content-type" not in again.headers and "content-length" not in again.headers
            assert again.headers["cache-control"] == "no-store"
        assert client.head(path, headers={"If-None-Match": tag}).status_code == 304
        for given in ('"other"', tag.strip('"'), ""):
            assert client.get(path, headers={"If-None-Match": given}).content == first.content
        assert client.get(path, headers={"If-Match": tag}).status_code == 200
        refused = client.get(path, headers={"If-Match": f'W/{tag}, "other"'})
        assert refused.status_code == 412 and problem_of(refused)["type"] == f"{TYPES}#changed"


def test_whatever_changes_an_answer_changes_its_tag(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment that begins, moves, fails, is tried again, ends; a plan that grows; a service that starts again."""
    monkeypatch.setattr("flops_fit_ray.service.state.cache.FRESH_SECONDS", -1.0)
    for wait in ("SLOW_SECONDS", "MAX_WAIT_SECONDS"):  # neither is reached, however busy the machine is
        monkeypatch.setattr(f"flops_fit_ray.service.state.cache.{wait}", HANG_SECONDS)
    shutil.copytree(root / "known", tmp_path / "runs/known")
    paths, ledger = SweepPaths(tmp_path / "runs/known"), Ledger(SweepPaths(tmp_path / "runs/known"))
    spec = reference_spec()
    last = make_sweep(tmp_path / "runs/known", spec, reference_parts(spec), only=0).plan.experiments[-1]

    def progress(tokens: int) -> None:
        alive = Progress(key=last.key, tokens_seen=tokens, tokens=last.tokens, train_loss=None, host=hostname(),
                         pid=os.getpid(), updated_at=time.time())  # fmt: skip
        write_json(paths.progress(last.key), {"schema_version": 1, **vars(alive)})

    def fails() -> None:
        failure = Failure(key=last.key, status="failed", error="ValueError: odd", traceback="", tokens_seen=0,
                          seconds=1, attempts=1, host="h", finished_at=1.0)  # fmt: skip
        ledger.record_failure(failure)

    steps: list[Callable[[], Any]] = [
        lambda: ledger.begin_attempt(last.key),
        lambda: progress(1),
        lambda: progress(2),
        fails,
        lambda: ledger.retry(last.key),
        lambda: make_sweep(tmp_path / "runs/known", spec, reference_parts(spec), only=15),
        lambda: make_sweep(tmp_path / "runs/known", spec, reference_parts(spec), only=16),
    ]
    watched = ["/api/v1/sweeps", "/api/v1/sweeps/known", "/api/v1/sweeps/known/experiments",
               f"/api/v1/sweeps/known/experiments/{last.key}", "/api/v1/sweeps/known/results"]  # fmt: skip
    known: dict[str, dict[str, bytes]] = {path: {} for path in watched}  # every body by its tag
    for step in [lambda: None, *steps]:
        step()
        for _ in range(2):  # the second time by a service that knows nothing of before
            with client_of(tmp_path / "runs") as client:
                for path in watched:
                    answer = client.get(path)
                    assert known[path].setdefault(answer.headers["etag"], answer.content) == answer.content
                    others = ", ".join(known[path].keys() - {answer.headers["etag"]}) or '"none"'
                    assert client.get(path, headers={"If-None-Match": others}).content == answer.content
        assert client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    # what has begun says nothing yet, and what is tried again is as it was before it failed
    assert [len(bodies) for bodies in known.values()] == [6, 6, 6, 4, 6]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=0-0", range(0, 1)),
        ("bytes=2-", range(2, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-30", range(0, 10)),
        ("BYTES= 8-30 ", range(8, 10)),
        (f"bytes=0-{'9' * 5000}", range(0, 10)),
        ("bytes=10-", range(10, 10)),
        (f"bytes={'9' * 5000}-", range(0)),
        ("bytes=-0", range(10, 10)),
        ("bytes=3-2", None),  # what cannot be read, and several, are the whole
        ("bytes=0-1,4-5", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=+1-2", None),
        ("bytes=٣-٤", None),
        (None, None),
    ],
)
def test_a_range_is_read_as_the_standard_has_it(header: str | None, found: range | None) -> None:
    read = asked_range(header, 10)
    assert (read is None) == (found is None)
    assert read is None or list(read) == list(found or ())


def test_a_file_comes_in_parts(client: TestClient, root: Path) -> None:
    one = client.get("/api/v1/sweeps/known/checkpoints?limit=1").json()["items"][0]
    for path in (f"/api/v1/sweeps/known/checkpoints/{one['id']}/file", "/api/v1/sweeps/known/results?format=csv"):
        whole = client.get(path)
        content, tag = whole.content, whole.headers["etag"]
        assert whole.headers["accept-ranges"] == "bytes" and len(content) > 100

        def part(asked: str, where: str = path, **more: str) -> Any:
            return client.get(where, headers={"Range": asked, **more})

        for asked, found in (("bytes=0-9", content[:10]), ("bytes=10-", content[10:]), ("bytes=-7", content[-7:])):
            answer = part(asked)
            begin = content.index(found) if asked != "bytes=-7" else len(content) - 7
            assert (answer.status_code, answer.content) == (206, found)
            assert answer.headers["content-range"] == f"bytes {begin}-{begin + len(found) - 1}/{len(content)}"
            assert int(answer.headers["content-length"]) == len(found) and answer.headers["etag"] == tag
        assert part("bytes=0-9", **{"If-Range": tag}).status_code == 206
        for other in ('"other"', f"W/{tag}", "Sun, 06 Nov 1994 08:49:37 GMT"):
            assert part("bytes=0-9", **{"If-Range": other}).content == content
        assert part("bytes=0-1,3-4").content == content
        beyond = part(f"bytes={len(content)}-")
        assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{len(content)}"
        problem_of(beyond)
        assert part("bytes=0-9", **{"If-None-Match": tag}).status_code == 304
        assert part("bytes=0-9", **{"If-Match": '"other"'}).status_code == 412
        head = client.head(path, headers={"Range": "bytes=0-9"})
        assert head.status_code == 200 and int(head.headers["content-length"]) == len(content)
    assert "accept-ranges" not in client.get("/api/v1/sweeps/known").headers
    state = local_path(SweepPaths(root / "known").trunk(one["key"]).state(one["step"]))
    kept = state.read_bytes()
    try:
        state.write_bytes(kept[:-1])
        damaged = client.get(f"/api/v1/sweeps/known/checkpoints/{one['id']}/file", headers={"Range": "bytes=0-9"})
        assert damaged.status_code == 409 and "is damaged" in problem_of(damaged)["detail"]
    finally:
        state.write_bytes(kept)


def test_a_tag_is_compared_as_the_standard_has_it() -> None:
    assert names_tag(['"a"', '"b,c"'], '"b,c"') and not names_tag(['"a", b'], '"b"') and not names_tag([], '"a"')
    assert not names_tag(['W/"a"'], '"a"') and names_tag(['W/"a"'], '"a"', weak=True)
    both = Headers({"if-match": '"a"', "if-none-match": '"a"', "range": "bytes=0-1"})
    assert answered(both, '"a"', 10, ranges=True)[0] == 304  # RFC 9110, 13.2.2: the range comes last
    assert answered(both, '"b"', 10, ranges=True)[0] == 412


def test_a_slow_answer_comes_later_as_it_would_have_come(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pending, then the same answer with the same tag, or the same refusal; at most so many, and for a while."""
    gate, path = threading.Event(), "/api/v1/sweeps/known/fit"
    fits = FitWorker.answer

    async def held(self: FitWorker, *asked: Any, **more: Any) -> bytes:
        await asyncio.to_thread(gate.wait, 60)
        return await fits(self, *asked, **more)

    def there(place: str) -> Any:
        while (found := client.get(place)).status_code == 202:
            time.sleep(0.01)
        return found

    monkeypatch.setattr(FitWorker, "answer", held)
    later_please = {"Prefer": "respond-async"}
    accepted = client.get(path, headers=later_please)
    place = accepted.headers["location"]
    assert accepted.status_code == 202 and accepted.headers["preference-applied"] == "respond-async"
    pending = client.get(place)
    assert pending.status_code == 202 and pending.json() == accepted.json()
    assert {"state": "pending", "asked_for": path}.items() <= pending.json().items()
    assert int(accepted.headers["retry-after"]) > 0 and int(pending.headers["retry-after"]) > 0
    refused = client.get("/api/v1/sweeps/known/predict?budget=1e6&unique=1e3", headers=later_please)
    monkeypatch.setattr(later, "MAX_ANSWERS", 2)
    assert problem_of(client.get(path, headers=later_please))["type"] == f"{TYPES}#busy"  # two are awaited
    gate.set()
    found = there(place)
    whole = client.get(path)
    assert found.content == whole.content and found.headers["content-type"] == "application/json"
    assert found.headers["etag"] == whole.headers["etag"] and "location" not in whole.headers
    assert client.get(place, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    found = there(refused.headers["location"])
    assert found.status_code == 409 and problem_of(found)["type"] == f"{TYPES}#no_results"
    assert problem_of(client.get("/api/v1/sweeps/none/fit", headers=later_please))["status"] == 404  # at once
    waited = client.get(path, headers={"Prefer": 'wait="20", respond-async'})
    assert waited.content == whole.content and "location" not in waited.headers
    assert client.get("/api/v1/sweeps/known", headers=later_please).status_code == 200  # that is never slow
    assert client.get(place, headers={"Authorization": "Bearer x"}).status_code == 403
    monkeypatch.setattr(later, "KEPT_SECONDS", -1.0)
    assert problem_of(client.get(place))["status"] == 404
    monkeypatch.setattr(FitWorker, "answer", None)  # a fault of the service
    assert problem_of(client.get(path, headers={"Prefer": "respond-async, wait=20"}))["status"] == 500


def test_a_preference_is_read_as_the_standard_has_it() -> None:
    for given, wait in (
        (["respond-async"], 0.0),
        (["Respond-Async; wait=3"], 3.0),
        (["wait=10", "respond-async"], 10.0),
        (["respond-async, wait=999999999"], later.MAX_WAIT_SECONDS),
        (["respond-async, wait=x"], 0.0),
        (["wait=10"], None),
        (["return=minimal"], None),
        ([], None),
    ):
        assert later.asked_wait(given) == wait, given


OPERATIONS = """
add_note compare_sweeps create_spec delete_spec delete_sweep download_checkpoint extend_sweep get_answer get_chart
get_checkpoint get_comparison_figure get_curve get_curves get_curves_figure get_deleted get_experiment
get_experiment_curves get_experiment_figure get_figure get_fit get_health get_latest_checkpoint get_metrics
get_prediction get_report get_results get_server get_spec get_summary get_sweep get_sweep_log get_throughput
list_checkpoints list_deleted list_device_history list_devices list_experiment_checkpoints list_experiment_events
list_experiments list_history list_notes list_specs list_sweeps restore_sweep resume_sweep start_sweep stop_sweep
validate_spec watch_sweep watch_sweeps
"""


def test_operations_keep_their_names_and_have_types(client: TestClient) -> None:
    """A generated client calls them by these names: they may be added to, and never renamed."""
    app: Any = client.app
    routes = [route for item in app.openapi()["paths"].values() for route in item.values()]
    assert sorted(route["operationId"] for route in routes) == OPERATIONS.split()
    for route in routes:
        for status, answer in route["responses"].items():
            for kind, content in answer.get("content", {}).items():
                assert content.get("schema") or kind not in ("application/json", MEDIA_TYPE), (route, status)


def unknown_fields(value: Any, where: str = "") -> Iterator[str]:
    """Yield the fields of an answer that its type does not name."""
    if isinstance(value, BaseModel) and not isinstance(value, Chart | DeviceSeries):  # columns, which have no end
        yield from (f"{where}.{name}" for name in value.model_extra or {})
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name), f"{where}.{name}")
    for item in value if isinstance(value, list) else ():
        yield from unknown_fields(item, where)


def test_every_answer_is_as_its_type_says(
    client: TestClient, root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of a sweep with results, of one with failures and events, of a spec with a price: no field without a type."""
    shutil.copytree(root / "known", root / "failed")
    request.addfinalizer(lambda: shutil.rmtree(root / "failed"))
    ledger = Ledger(SweepPaths(root / "failed"))
    key = client.get("/api/v1/sweeps/failed/experiments").json()["items"][-1]["key"]
    failure = Failure(key=key, status="failed", error="ValueError: odd", traceback="", tokens_seen=0,
                      seconds=1, attempts=1, host="h", finished_at=1.0)  # fmt: skip
    ledger.record_failure(failure)
    for number in range(150):
        ledger.record_event(key, f"event {number}", level="warning")
    make_project(tmp_path / "code")
    text = (tmp_path / "code/sweep.yaml").read_text()
    with client_of(root, tmp_path / "code") as starting:
        made = starting.post("/api/v1/specs", json={"text": text})
        asked = [("POST", "/api/v1/specs/validate", starting.post("/api/v1/specs/validate", json={"text": text}))]
        asked += [("POST", "/api/v1/specs/validate", starting.post("/api/v1/specs/validate", json={"text": "a: 1"}))]
        asked += [("GET", path, starting.get(path)) for path in ("/api/v1/specs", f"/api/v1/specs/{made.json()['id']}")]
        started = starting.post("/api/v1/sweeps", json={"text": text, "name": "queued"})
        asked += [("POST", "/api/v1/specs", made), ("POST", "/api/v1/sweeps", started)]
        asked += [("POST", "/api/v1/sweeps/queued/stop", starting.post("/api/v1/sweeps/queued/stop"))]
        deleted = starting.delete("/api/v1/sweeps/queued")
        asked += [("DELETE", "/api/v1/sweeps/queued", deleted)]
        places = ("/api/v1/bin", f"/api/v1/bin/{deleted.json()['id']}")
        asked += [("GET", path, starting.get(path)) for path in places]
        asked += [
            ("GET", "/api/v1/answers/x", starting.get("/api/v1/sweeps/known/fit", headers={"Prefer": "respond-async"}))
        ]
    asked += [("GET", path, client.get(path)) for path in paths_of(client)]
    failed = f"/api/v1/sweeps/failed/experiments/{key}"
    asked += [
        ("GET", path, client.get(path)) for path in (failed, f"{failed}/log", f"{failed}/metrics", f"{failed}/curve")
    ]
    app: Any = client.app
    for method, path, answer in asked:
        assert answer.is_success, (path, answer.text)
        if answer.headers["content-type"] != "application/json" or path.endswith("openapi.json"):
            continue
        here = path.partition("?")[0]
        found = [r for r in iter_route_contexts(app.routes) if r.path_regex.match(here) and method in (r.methods or ())]
        (route,) = found
        kind: Any = PendingOut if answer.status_code == 202 else route.response_model
        read = TypeAdapter(kind).validate_json(answer.content)
        assert not list(unknown_fields(read)), path


def test_lists_come_in_pages(client: TestClient, root: Path) -> None:
    """By `next` where they are objects, by Link where they are plain lists; each item once, the newest events first."""
    ledger, key = (
        Ledger(SweepPaths(root / "known")),
        client.get("/api/v1/sweeps/known/experiments").json()["items"][0]["key"],
    )
    for number in range(25):
        ledger.record_event(key, f"event {number}", level="info")
    place = f"/api/v1/sweeps/known/experiments/{key}/log?limit=10"
    pages = []
    while place:
        page = client.get(place)
        assert page.headers["x-total-count"] == "25"
        pages.append([event["words"] for event in page.json()])
        place = page.links.get("next", {}).get("url", "")
    assert [words for page in pages[::-1] for words in page] == [f"event {number}" for number in range(25)]
    assert [len(page) for page in pages] == [10, 10, 5]
    first = client.get("/api/v1/sweeps/known/experiments?status=completed&limit=9")
    assert first.headers["x-total-count"] == "14"
    rest = client.get(first.links["next"]["url"]).json()
    assert (len(first.json()["items"]), len(rest["items"]), rest["next"]) == (9, 5, None)
    for path in ("checkpoints", "devices", f"experiments/{key}/checkpoints", f"experiments/{key}/history", "results"):
        whole = client.get(f"/api/v1/sweeps/known/{path}")
        assert int(whole.headers["x-total-count"]) >= len(whole.json() if isinstance(whole.json(), list) else [])
        assert client.get(f"/api/v1/sweeps/known/{path}?limit=0").status_code == 422
