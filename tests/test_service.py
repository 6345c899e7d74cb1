"""What the service says of a directory: the same as the directory, as it changes, for programs and for people."""

from __future__ import annotations

import asyncio
import hashlib
import html.parser
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fastapi.sse import ServerSentEvent
from hypothesis import HealthCheck, given, settings

from flops_fit_ray.analysis import Question, Serving, answer, json_value, predict, prediction_to_json
from flops_fit_ray.engine._ledger_observer import LedgerObserver
from flops_fit_ray.ledger import Failure, Ledger, Progress
from flops_fit_ray.service.client import ServiceError
from flops_fit_ray.service.rest.feeds import Feeds
from flops_fit_ray.service.state._fit_answers import NICE
from flops_fit_ray.service.state.cache import SweepCache
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.validity import analysis_document, validity_card
from flops_fit_ray.training.loop.meter import CurvePoint
from tests.hangs import HANG_SECONDS
from tests.serving import Served, serving
from tests.sweeps import make_sweep, reference_parts, reference_spec

PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "</pre><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "javascript:alert(1)",
    "{{7*7}}{% raw %}",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href=javascript:alert(1)>x</a>",
    "<style>*{display:none}</style>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<math><mtext></table><script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u2028alert(1)\u2029",
    "<input autofocus onfocus=alert(1)>",
    "<!--<script>alert(1)</script>-->",
    "]]><script>alert(1)</script>",
    "<base href=//evil.example>",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sweep; one with a failure and something that runs; nothing that trains."""
    root = tmp_path_factory.mktemp("service") / "runs"
    spec = reference_spec()
    make_sweep(root / "whole", spec, reference_parts(spec))
    partial = make_sweep(root / "partial", spec, reference_parts(spec), only=12)
    _fail(partial, "diverged at\n<b>step</b> 3")
    return root


def _fail(sweep: Sweep, error: str) -> str:
    key = sweep.plan.experiments[-1].key
    failure = Failure(
        key=key,
        status="failed",
        error=f"ValueError: {error}",
        traceback=f"Traceback\n  {error}",
        tokens_seen=3,
        seconds=1.5,
        attempts=1,
        host="node",
        finished_at=time.time(),
    )
    Ledger(sweep.paths).record_failure(failure)
    return key


@pytest.fixture(scope="module")
def served(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(root, (tmp_path_factory.mktemp("code"),), at_once=0) as found:
        yield found


def text_of(served: Served, path: str) -> str:
    client = served.client
    client._url = served.url
    with client.request("GET", path, **{"Content-Type": "text/plain"}) as answer:
        return str(answer.read().decode())


def test_a_status_is_that_of_the_directory(served: Served, root: Path) -> None:
    whole, partial = served.client.sweep("whole"), served.client.sweep("partial")
    assert whole["state"] == "completed" and whole["share"] == 1 and whole["counts"] == {"completed": 21}
    sweep = open_sweep(root / "partial")
    assert partial["state"] == "stopped" and partial["total"] == 21
    assert partial["counts"] == {status: n for status, n in sweep.counts.items() if n}
    assert partial["flops_done"] == sweep.flops_spent and partial["flops_planned"] == sweep.plan.flops
    assert partial["can"] == {"stop": False, "resume": True, "extend": True}
    assert [s["name"] for s in served.client.pages("/sweeps", state="completed")] == ["whole"]
    server = served.client.ask("GET", "/server")
    assert server["states"]["completed"] == 1 and server["states"]["stopped"] == 1 and server["queue"] == []
    assert server["machine"]["cpus"] == os.cpu_count() and server["machine"]["memory_total"] > 0


def test_pages_hold_every_experiment_once(served: Served, root: Path) -> None:
    keys = [e.key for e in open_sweep(root / "partial").plan.experiments]
    found: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = served.client.ask("GET", f"/sweeps/partial/experiments?limit=4&offset={offset}")
        found += [row["key"] for row in page["items"]]
        offset = page["next"]
    assert found == keys
    rows = list(served.client.pages("/sweeps/partial/experiments", sort="loss", order="desc"))
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    assert losses == sorted(losses, reverse=True) and len(losses) == 12 and rows[-1]["loss"] is None
    failed = list(served.client.pages("/sweeps/partial/experiments", status="failed"))
    assert [row["error"] for row in failed] == ["ValueError: diverged at"]
    assert {row["budget"] for row in served.client.pages("/sweeps/partial/experiments", budget=4e5)} == {4e5}
    for query in ("sort=password", "limit=0", "limit=1001", "offset=-1", "budget=nan", "order=up"):
        with pytest.raises(ServiceError) as caught:
            served.client.ask("GET", f"/sweeps/partial/experiments?{query}")
        assert caught.value.status == 422, query


def test_an_experiment_is_what_the_ledger_holds(served: Served, root: Path) -> None:
    sweep = open_sweep(root / "partial")
    first, last = sweep.results[0], sweep.failures[0]
    base = f"/sweeps/partial/experiments/{first.key}"
    one = served.client.ask("GET", base)
    assert one["outcome"]["loss"] == first.loss and one["planned"]["key"] == first.key and one["advice"] is None
    rows = Ledger(sweep.paths).curve_rows(first.key)
    assert list(served.client.pages(f"{base}/history")) == json_value(rows)
    curve = served.client.ask("GET", f"{base}/curve?points=5")
    assert 2 <= len(curve["tokens"]) <= 5 and curve["tokens"][-1] == rows[-1]["tokens"] == first.tokens_seen
    assert served.client.ask("GET", f"{base}/metrics")["loss"] == first.loss
    speed = served.client.ask("GET", f"{base}/throughput")
    assert speed["tokens_per_second"] == first.tokens_per_second and first.tokens_per_second
    assert speed["steps_per_second"] == pytest.approx(first.tokens_per_second * first.steps / first.tokens)
    assert speed["samples_per_second"] == pytest.approx(speed["steps_per_second"] * sweep.spec.train.batch_size)
    failed = served.client.ask("GET", f"/sweeps/partial/experiments/{last.key}")
    assert failed["outcome"]["traceback"] == last.traceback and "the same command tries it again" in failed["advice"]
    with pytest.raises(ServiceError, match="no such experiment"):
        served.client.ask("GET", "/sweeps/partial/experiments/0123456789abcdef")


def test_the_curve_of_what_runs_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit_ray.engine._ledger_observer.CURVE_SECONDS", 0.2)
    spec = reference_spec()
    sweep = make_sweep(tmp_path / "runs" / "x", spec, reference_parts(spec), only=0)
    e = sweep.plan.experiments[0]
    observer = LedgerObserver(Ledger(sweep.paths), e, 1, 0)
    with serving(tmp_path / "runs", at_once=0) as served, observer.watched(timeout=30.0):
        observer.curve = [
            CurvePoint(
                step=i, tokens=100 * i, train_loss=1 / i, lr=0.1, grad_norm=None, eval_loss=None, seconds=0.5 * i
            )
            for i in range(1, 5)
        ]
        observer.progress(400, 0.25)
        base = f"/sweeps/x/experiments/{e.key}"
        deadline = time.monotonic() + 20
        while not (points := list(served.client.pages(f"{base}/history"))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [point["tokens"] for point in points] == [100, 200, 300, 400]
        along = served.client.ask("GET", f"{base}/throughput")["along"]
        assert along["tokens_per_second"] == [200.0] * 4
        assert text_of(served, f"/api/v1{base}/figure").startswith("<svg")
        assert served.client.ask("GET", f"{base}/metrics")["train_loss"] == 0.25


def test_results_are_those_of_the_commands(served: Served, root: Path) -> None:
    sweep = open_sweep(root / "whole")
    raw = served.client.request("GET", "/sweeps/whole/results?format=parquet").read()
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(raw)), sweep.to_frame())
    raw = served.client.request("GET", "/sweeps/whole/results?format=csv").read()
    assert raw.decode() == sweep.to_frame().to_csv(index=False)
    assert [row["loss"] for row in served.client.pages("/sweeps/whole/results")] == [r.loss for r in sweep.results]
    assert served.client.ask("GET", "/sweeps/whole/fit") == json.loads(
        json.dumps(analysis_document(sweep.analysis, validity_card(sweep.fit, sweep)))
    )
    with pytest.raises(ServiceError, match="do not show what repeated tokens are worth"):
        served.client.ask("GET", "/sweeps/whole/predict?budget=5e6&unique=1e3")
    loss = sweep.fit.laws[2][1].at(3e6)
    for asked, question in (
        ("budget=1e7&served=1e4&price=2", Question(budget=1e7, serving=Serving(tokens=1e4, price=2.0))),
        ("as_good_as=5e6&served=1e4", Question(as_good_as=5e6, serving=Serving(tokens=1e4))),
        (f"loss={loss!r}", Question(loss=loss)),
    ):
        said = served.client.ask("GET", f"/sweeps/whole/predict?{asked}")
        expected = prediction_to_json(answer(sweep.fit, question), sweep.fit.options.confidence)
        assert {name: said[name] for name in expected} == expected
    for wrong in ("", "budget=1e7&loss=2", "loss=2&unique=1e3", "budget=1e7&price=2", "as_good_as=1e7"):
        with pytest.raises(ServiceError, match="go with|goes with|give one of"):
            served.client.ask("GET", f"/sweeps/whole/predict?{wrong}")
    with pytest.raises(ServiceError, match="the runs have no metric 'bleu'; they have"):
        served.client.ask("GET", "/sweeps/whole/predict?budget=5e6&metric=bleu&low=0&high=100")
    said = served.client.ask("GET", "/sweeps/whole/predict?budget=5e6")
    expected = prediction_to_json(predict(sweep.fit, 5e6), sweep.fit.options.confidence)
    assert {name: said[name] for name in expected} == expected
    assert said["run"]["size_param"] == "features"
    assert served.client.ask("GET", "/sweeps/whole/summary")["results_sha256"] == sweep.results_sha256
    assert sweep.results_sha256 in text_of(served, "/api/v1/sweeps/whole/report")
    for figure in ("valleys", "laws", "curves"):
        assert text_of(served, f"/api/v1/sweeps/whole/figures/{figure}").startswith("<svg")
    for budget in ("0", "-1", "nan", "inf", "x"):
        with pytest.raises(ServiceError) as caught:
            served.client.ask("GET", f"/sweeps/whole/predict?budget={budget}")
        assert caught.value.status == 422


def test_a_checkpoint_comes_whole(served: Served, root: Path, tmp_path: Path) -> None:
    found = list(served.client.pages("/sweeps/whole/checkpoints"))
    assert found and {one["kind"] for one in found} == {"trunk"}
    one = found[0]
    fetched = served.client.download("whole", one["id"], tmp_path / "state.pt")
    assert hashlib.sha256(fetched.read_bytes()).hexdigest() == one["sha256"] and fetched.stat().st_size == one["bytes"]
    latest = served.client.ask("GET", f"/sweeps/whole/experiments/{one['key']}/checkpoints/latest")
    assert latest["step"] == max(c["step"] for c in found if c["key"] == one["key"])
    weights = open_sweep(root / "whole").paths.weights(one["key"])
    local_path(weights).write_bytes(b"weights")
    try:
        again = served.client.ask("GET", f"/sweeps/whole/experiments/{one['key']}/checkpoints/latest")
        assert again["kind"] == "weights" and again["sha256"] == hashlib.sha256(b"weights").hexdigest()
        assert served.client.download("whole", again["id"], tmp_path / "w").read_bytes() == b"weights"
    finally:
        weights.unlink()


def test_a_mirror_sees_what_changes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit_ray.service.state.cache.FRESH_SECONDS", -1.0)
    for wait in ("SLOW_SECONDS", "MAX_WAIT_SECONDS"):  # neither is reached, however busy the machine is
        monkeypatch.setattr(f"flops_fit_ray.service.state.cache.{wait}", HANG_SECONDS)
    spec = reference_spec()
    sweep = make_sweep(tmp_path / "x", spec, reference_parts(spec), only=3)
    cache, ledger = SweepCache(sweep.paths), Ledger(sweep.paths)
    first = cache.now()
    assert first.counts["completed"] == 3 and cache.now().version == first.version
    key = _fail(sweep, "once")
    failed = cache.now()
    assert failed.by_key[key]["status"] == "failed" and failed.version != first.version
    ledger.begin_attempt(key)
    ledger.retry(key)
    open_again = cache.now()
    assert open_again.by_key[key]["status"] in ("planned", "waiting") and open_again.version != failed.version
    e = sweep.plan.experiments[-1]
    alive = Progress(
        key=key, tokens_seen=e.tokens // 2, tokens=e.tokens, train_loss=float("nan"), host=hostname(), pid=os.getpid(),
        updated_at=time.time(), tokens_per_second=100.0,
    )  # fmt: skip
    write_json(sweep.paths.progress(key), {"schema_version": 1, **vars(replace(alive, train_loss=None))})
    running = cache.now()
    assert running.by_key[key]["status"] == "running" and running.counts["running"] == 1
    assert running.by_key[key]["share"] == pytest.approx(0.5, abs=0.01) and running.seconds_left is not None
    make_sweep(tmp_path / "x", spec, reference_parts(spec), only=5)
    assert cache.now().counts["completed"] == 5
    content = read_json(sweep.paths.plan)
    assert content is not None
    write_json(sweep.paths.plan, {**content, "experiments": content["experiments"][:-1], "name": "smaller"})
    assert len(cache.now().rows) == 20


def test_events_tell_every_outcome_and_again_after_a_break(tmp_path: Path) -> None:
    spec = reference_spec()
    sweep = make_sweep(tmp_path / "runs" / "x", spec, reference_parts(spec), only=3)
    with serving(tmp_path / "runs", at_once=0) as served:
        events = served.client.events("x")
        kind, first, view = next(events)
        assert kind == "status" and view["counts"]["completed"] == 3  # what is there already is no news
        make_sweep(tmp_path / "runs" / "x", spec, reference_parts(spec), only=6)
        heard, last = [], None
        for kind, event_id, content in events:
            if kind == "outcome":
                heard.append(content["key"])
                last = event_id
            if kind == "status" and content["counts"]["completed"] == 6:
                break
        assert heard == [e.key for e in sweep.plan.experiments[3:6]]
        make_sweep(tmp_path / "runs" / "x", spec, reference_parts(spec), only=8)
        missed = {e.key for e in sweep.plan.experiments[6:8]}
        for kind, _, content in served.client.events("x", since=last):
            missed -= {content["key"]} if kind == "outcome" else set()
            if not missed:
                break
        missed = {e.key for e in sweep.plan.experiments[3:8]}
        for kind, _, content in served.client.events("x", since=first):  # of somebody who had heard of no outcome yet
            missed -= {content["key"]} if kind == "outcome" else set()
            if not missed:
                break
        kind, _, content = next(iter(served.client.events("x", since="nonsense")))
        assert kind == "outcome" and content["key"] in {e.key for e in sweep.plan.experiments[:8]}


def test_an_event_stream_keeps_alive_is_not_stored_and_ends_with_its_client(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    async def endless(self: Feeds) -> AsyncIterator[ServerSentEvent]:
        try:
            yield ServerSentEvent(event="sweeps", id="7", data={"share": 0.5})
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    monkeypatch.setattr(Feeds, "of_all", endless)
    with served.client.request("GET", "/events") as lines:
        assert lines.headers["content-type"].startswith("text/event-stream")
        assert (lines.headers["cache-control"], lines.headers["x-accel-buffering"]) == ("no-store", "no")
        event = [lines.readline() for _ in range(4)]
        assert event == [b"event: sweeps\n", b'data: {"share": 0.5}\n', b"id: 7\n", b"\n"]
        assert lines.readline().startswith(b": ")
    assert ended.wait(HANG_SECONDS)
    with pytest.raises(ServiceError) as caught:
        next(served.client.events("nothing"))
    assert caught.value.status == 404


def test_the_first_line_of_a_stream_says_when_to_come_again(served: Served) -> None:
    for path in ("/events", "/sweeps/whole/events"):
        with served.client.request("GET", path) as lines:
            assert lines.readline() == b"retry: 2000\n"


def test_a_fit_survives_the_death_of_its_process(served: Served) -> None:
    work = served.state.fit_worker
    assert served.client.ask("GET", "/sweeps/whole/predict?budget=1e6")["params"] > 0
    assert work._short.pool is not None and work._long.pool is None
    (pid,) = work._short.pool._processes
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    for _ in range(3):  # the one that was being answered may fail; the next one does not
        try:
            assert served.client.ask("GET", "/sweeps/whole/predict?budget=1.5e6")["params"] > 0
            break
        except ServiceError as e:
            assert e.status == 503
    else:
        raise AssertionError("never again")


class Outline(html.parser.HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_pages_say_it_without_a_script_and_to_everybody(served: Served) -> None:
    key = next(row["key"] for row in served.client.pages("/sweeps/partial/experiments", status="failed"))
    served.client.ask("GET", "/sweeps/partial/fit")  # so that the first fit is there
    paths = [
        "/",
        "/new",
        "/sweeps/whole",
        "/sweeps/partial",
        f"/sweeps/partial/experiments/{key}",
        "/sweeps/whole?budget=1e7",
    ]
    for path in paths:
        text = text_of(served, path)
        outline = Outline(text)
        tags = [tag for tag, _ in outline.tags]
        assert tags.count("h1") == 1 and tags.count("main") == 1 and ("html", {"lang": "en"}) in outline.tags
        labels = {attrs.get("for") for tag, attrs in outline.tags if tag == "label"}
        for tag, attrs in outline.tags:
            assert not any(name.startswith("on") or name == "style" for name in attrs), (path, tag, attrs)
            if tag in ("input", "select", "textarea") and attrs.get("type") not in ("hidden", "range"):
                assert attrs["id"] in labels, (path, attrs)
            if tag == "img":
                assert attrs["alt"]
            if tag == "script":
                assert str(attrs.pop("src")).startswith("/static/") and attrs == {"defer": None}
        assert "style" not in tags
    failed = text_of(served, "/sweeps/partial")
    assert "&lt;b&gt;step&lt;/b&gt; 3" in failed and "12 completed" in failed and 'value="Resume' not in failed
    assert "The first fit is running" not in text_of(served, "/sweeps/whole")
    assert re.search(r'data-of="params_interval">\[[\d.]+k?, ', text_of(served, "/sweeps/whole?budget=1e7"))
    assert "is not a number of FLOPs" in text_of(served, "/sweeps/whole?budget=much")
    assert "10k tokens served for" in text_of(served, "/sweeps/whole?budget=1e7&served=1e4")
    assert "is not a number of tokens" in text_of(served, "/sweeps/whole?budget=1e7&served=many")
    down = text_of(served, "/sweeps/partial?sort=loss&down=1")
    assert 'aria-sort="descending"' in down
    assert "1 to 1 of 1" in text_of(served, "/sweeps/partial?status=failed")
    assert "1 to 21 of 21" in text_of(served, "/sweeps/partial?status=")  # what the form asks for where all are wanted


def test_nothing_that_is_shown_is_run(tmp_path: Path) -> None:
    """20 payloads as error, traceback, spec's text, and event: all of them text."""
    spec = reference_spec()
    sweep = make_sweep(tmp_path / "runs" / "x", spec, reference_parts(spec), only=1)
    key = sweep.plan.experiments[-1].key
    with serving(tmp_path / "runs", (tmp_path,), at_once=0) as served:
        before = len([t for t in Outline(text_of(served, "/sweeps/x")).tags if t[0] == "script"])
        for payload in PAYLOADS:
            _fail(sweep, payload)
            Ledger(sweep.paths).record_event(key, payload, level="warning")
            served.state.caches._kept.clear()
            for path in ("/sweeps/x", f"/sweeps/x/experiments/{key}", "/sweeps/x?status=" + "%3Cscript%3E"):
                outline = Outline(text_of(served, path))
                tags = {tag for tag, _ in outline.tags}
                assert not tags & {"svg", "iframe", "style", "math", "base", "b"}, (payload, path)
                assert len([t for t in outline.tags if t[0] == "script"]) == before
                assert not any(name.startswith("on") for _, attrs in outline.tags for name in attrs)
            with pytest.raises(ServiceError):
                served.client.ask("POST", "/sweeps", {"spec": payload})


def test_errors_are_published_as_problems_on_every_route(served: Served) -> None:
    paths = served.client.ask("GET", "/openapi.json")["paths"]
    errors = [
        (path, code, answer["content"])
        for path, item in paths.items()
        for operation in item.values()
        for code, answer in operation["responses"].items()
        if int(code) >= 400
    ]
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert {path for path, *_ in errors} == set(paths)
    assert [error for error in errors if error[2] != problem] == []


@pytest.mark.slow
@pytest.mark.xdist_group("test_service")
def test_the_api_keeps_what_it_publishes(root: Path, tmp_path: Path) -> None:
    """schemathesis: whatever it asks, no server error, and nothing that the OpenAPI does not announce."""
    shutil.copytree(root, tmp_path / "runs")  # it deletes sweeps, too
    with serving(tmp_path / "runs", (tmp_path,), at_once=0) as served:
        _ask_everything(served)


def _ask_everything(served: Served) -> None:
    import schemathesis  # here, because a second of imports is for this one test
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_dict(served.client.ask("GET", "/openapi.json"))
    schema.config.update(base_url=served.url)
    checks: list[Any] = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    asked, broken = 0, list[str]()
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr] # a wrong schema would have no `ok`, and raise
        if operation.path.endswith("/events"):  # without an end
            continue

        @settings(
            max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
        )
        def probe(case: Any) -> None:
            nonlocal asked
            asked += 1
            for name in case.path_parameters or {}:  # half of the time something that is there
                if name == "name" and asked % 2:
                    case.path_parameters[name] = "whole"
            case.call_and_validate(headers={"Authorization": f"Bearer {served.token}"}, checks=checks, timeout=120)

        try:
            given(case=operation.as_strategy())(probe)()
        except BaseExceptionGroup as e:
            broken += [f"{operation.label}: {one}" for one in e.exceptions]
    assert broken == [] and asked > 150
