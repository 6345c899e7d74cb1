"""What the service refuses: tokens, hosts, origins, bodies, places outside, code from elsewhere, secrets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.routing import APIRoute

from flops_fit_ray.cli import main
from flops_fit_ray.errors import DirectoryError, SpecError
from flops_fit_ray.ledger import Failure, Ledger
from flops_fit_ray.service.client import ServiceError
from flops_fit_ray.service.http import guard
from flops_fit_ray.service.http.guard import token_of
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.http.redact import HIDDEN, redacted, redacted_values
from flops_fit_ray.service.pages import pages
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.runs._allowed import check_allowed
from flops_fit_ray.service.state.cache import SweepCache
from flops_fit_ray.service.state.views import experiment_view, log_text
from flops_fit_ray.spec import make_spec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import open_sweep
from tests.chaos import make_project
from tests.serving import Served, ServiceProcess, serving
from tests.sweeps import make_sweep, reference_parts, reference_spec

JSON = "application/json"
Answer = tuple[int, dict[str, str], bytes]
PLANTED = ("AKIAIOSFODNN7EXAMPLE", "sesame")  # secrets in an error, a traceback, an event, a spec and a log


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a failure whose words hold secrets."""
    root = tmp_path_factory.mktemp("service") / "runs"
    spec = reference_spec()
    sweep = make_sweep(root / "known", spec, reference_parts(spec), only=14)
    key = sweep.plan.experiments[-1].key
    words = f'ValueError: {{"password": "{PLANTED[1]}", "key": "{PLANTED[0]}"}}'
    failure = Failure(
        key=key,
        status="failed",
        error=words,
        traceback=words,
        tokens_seen=0,
        seconds=1,
        attempts=1,
        host="h",
        finished_at=1.0,
    )
    Ledger(sweep.paths).record_failure(failure)
    Ledger(sweep.paths).record_event(key, words, level="warning")
    return root


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("code")
    make_project(place)
    return place


@pytest.fixture(scope="module")
def served(root: Path, code: Path) -> Iterator[Served]:
    with serving(root, (code,), at_once=0) as found:
        yield found


def ask(served: Served, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request as it is written here: nothing is added, quoted or followed."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=300)) as connection:
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def bearer(served: Served) -> str:
    return f"Bearer {served.token}"


def routes_of(served: Served) -> list[tuple[str, str]]:
    """Every route with every method, its blanks filled in with what is there."""
    key = served.client.ask("GET", "/sweeps/known/experiments?limit=1")["items"][0]["key"]
    one = served.client.ask("GET", "/sweeps/known/checkpoints?limit=1")["items"][0]["id"]
    spec = served.state.specs.create((Path(served.state.specs.roots[0]) / "sweep.yaml").read_text(), None)[0]
    with served.client.request("GET", "/sweeps/known/fit", Prefer="respond-async") as accepted:
        answer = accepted.headers["Location"].rpartition("/")[2]
    while "state" in served.client.ask("GET", f"/answers/{answer}"):  # it is pending
        time.sleep(0.05)
    gone = served.state.runs.paths.root / "gone"
    if not gone.exists():
        shutil.copytree(gone.with_name("known"), gone)
    known = {"name": "known", "key": key, "checkpoint_id": one, "spec_id": spec.id, "figure": "valleys",
             "answer_id": answer, "chart": "laws", "other": "known",
             "bin_id": served.client.ask("DELETE", "/sweeps/gone")["id"]}  # fmt: skip
    api = [(method.upper(), path) for path, item in served.app.openapi()["paths"].items() for method in item]
    own = [(m, r.path) for r in pages.routes if isinstance(r, APIRoute) for m in r.methods or ()]
    return [
        (method, path.format(**({**known, "name": "gone"} if method == "DELETE" else known)))  # "known" is needed again
        for method, path in sorted({*api, *own}, key=lambda one: (one[0] == "DELETE", one))
        if method != "HEAD"
    ]


def test_every_route_wants_the_token(served: Served) -> None:
    routes = [r for r in routes_of(served) if r[1] not in guard.PUBLIC_PATHS]
    assert len(routes) > 40
    queries = {"predict": "?budget=1e6"}
    waits = [path for _, path in routes if path.endswith("/events")]
    for method, path in routes:
        assert ask(served, method, path)[0] == 401, (method, path)
        for wrong in (
            "Bearer wrong",
            f"Bearer {served.token[:-1]}",
            f"Basic {served.token}",
            "Bearer",
            f"Bearer {served.token}x",
        ):
            assert ask(served, method, path, Authorization=wrong)[0] == 403, (method, path, wrong)
        assert ask(served, method, path, Cookie=f"{served.app.state.key.cookie}={served.token}")[0] == 403, (
            method,
            path,
        )
        if path in waits:  # streams, which have no end
            continue
        query = queries.get(path.rpartition("/")[2], "")
        status, headers, content = ask(served, method, path + query, Authorization=bearer(served))
        assert status not in (401, 403) and status < 500, (method, path, status, content[:200])
        if method == "GET":
            assert status == 200, (path, status, content[:300])
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_health_alone_asks_for_nothing(served: Served) -> None:
    assert ask(served, "GET", "/api/v1/health")[0] == 200
    status, headers, content = ask(served, "GET", "/")
    assert status == 401 and b'name="token"' in content and headers["www-authenticate"] == "Bearer"


def test_the_token_is_128_bits_for_the_owners_eyes_alone(tmp_path: Path) -> None:
    paths = ServicePaths(tmp_path)
    os.umask(before := os.umask(0))
    token = token_of(paths)
    assert len(bytes.fromhex(token)) == 16 and token_of(paths) == token
    assert stat.S_IMODE(paths.token.stat().st_mode) == 0o600
    assert token_of(ServicePaths(tmp_path / "other")) != token
    paths.token.chmod(0o644)
    with pytest.raises(DirectoryError, match="others can read this token"):
        token_of(paths)
    paths.token.unlink()
    paths.token.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DirectoryError):
        token_of(paths)
    assert before is not None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", ""]
)
def test_another_hosts_name_is_refused(host: str, served: Served) -> None:
    assert ask(served, "GET", "/api/v1/sweeps", Host=host, Authorization=bearer(served))[0] == 421


def logged_in(served: Served) -> str:
    status, headers, _ = ask(
        served, "POST", "/login", f"token={served.token}".encode(), Origin=served.url,
        Content_Type="application/x-www-form-urlencoded",
    )  # fmt: skip
    assert status == 303
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and served.token not in cookie
    return cookie.partition(";")[0]


def test_another_page_cannot_ask_in_a_browsers_name(served: Served) -> None:
    cookie = logged_in(served)
    assert ask(served, "GET", "/", Cookie=cookie)[0] == 200
    for foreign in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {},
        {"Origin": served.url, "Sec_Fetch_Site": "cross-site"},
    ):
        assert ask(served, "POST", "/sweeps/known/stop", b"", Cookie=cookie, **foreign)[0] == 403, foreign
    assert ask(served, "POST", "/sweeps/known/stop", b"", Cookie=cookie, Origin=served.url)[0] == 409  # it does not run
    assert ask(served, "POST", "/login", b"token=wrong", Origin=served.url)[0] == 403
    assert ask(served, "POST", "/login", f"token={served.token}".encode(), Origin="http://evil.example")[0] == 403


OUTSIDE = [
    "..",
    "../known",
    "../../etc",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "%2e%2e%2fknown",
    "..%5c..%5cetc",
    "....//",
    "known/..",
    "known%00",
    "%00",
    "~",
    "~root",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "known%2f..%2f..",
    ".service",
    ".",
    "known.",
    "known;ls",
    "known$(id)",
    "kn%0aown",
    "-rf",
    "C:%5cwindows",
    "file:%2f%2f%2fetc",
    "linked",
    "known%2fexperiments",
    "%c0%ae%c0%ae",
    "%e2%80%ae",
    "..%252f..%252fetc",
    "known%20",
    "%20known",
    "a" * 300,
]
PLACES = ["/api/v1/sweeps/{}", "/api/v1/sweeps/known/checkpoints/{}/file", "/api/v1/sweeps/known/experiments/{}",
          "/api/v1/specs/{}", "/api/v1/sweeps/known/figures/{}", "/sweeps/{}", "/static/{}"]  # fmt: skip


def test_no_name_leads_outside(served: Served, root: Path, tmp_path: Path) -> None:
    """33 names in 7 places."""
    shutil.copytree(root / "known", tmp_path / "elsewhere")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    try:
        for place in PLACES:
            for name in OUTSIDE:
                path = place.format(name)
                status, _, content = ask(served, "GET", path, Authorization=bearer(served))
                plain_list = path.rstrip("/") in ("/api/v1/sweeps", "/api/v1/specs") or status == 307
                assert status == 404 or plain_list, (path, status, content[:200])
                assert b"root:" not in content
        assert "linked" not in [sweep["name"] for sweep in served.client.pages("/sweeps")]
    finally:
        (root / "linked").unlink()


def test_a_link_is_never_followed_to_a_file(served: Served, root: Path, tmp_path: Path) -> None:
    one = served.client.ask("GET", "/sweeps/known/checkpoints?limit=1")["items"][0]
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    paths = SweepPaths(root / "known")
    state = paths.trunk(one["key"]).state(one["step"])
    kept = state.read_bytes()
    state.unlink()
    local_path(state).symlink_to(secret)
    try:
        assert (
            ask(served, "GET", f"/api/v1/sweeps/known/checkpoints/{one['id']}/file", Authorization=bearer(served))[0]
            == 404
        )
    finally:
        state.unlink()
        local_path(state).write_bytes(kept)
    trunk = paths.trunk(one["key"]).directory
    trunk.rename(tmp_path / "trunk")
    local_path(trunk).symlink_to(tmp_path / "trunk")
    try:
        assert (
            ask(served, "GET", f"/api/v1/sweeps/known/checkpoints/{one['id']}/file", Authorization=bearer(served))[0]
            == 404
        )
    finally:
        trunk.unlink()
        (tmp_path / "trunk").rename(local_path(trunk))


def test_nothing_in_a_directory_is_unpickled(served: Served, root: Path, tmp_path: Path) -> None:
    """Poisoned files where pickles could be; every reading route is asked."""
    paths, mark = SweepPaths(root / "known"), tmp_path / "executed"
    poison = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    one = served.client.ask("GET", "/sweeps/known/checkpoints?limit=1")["items"][0]
    key = one["key"]
    poisoned = [paths.trunk(key).state(one["step"]), paths.checkpoints(key).state(1), paths.curve(key)]
    poisoned += [paths.tune / "round-1" / "tuner.pkl", paths.progress(key), paths.cluster]
    kept = {place: place.read_bytes() for place in poisoned if place.exists()}
    for place in poisoned:
        place.parent.mkdir(parents=True, exist_ok=True)
        local_path(place).write_bytes(poison)
    try:
        for method, path in routes_of(served):
            if method == "GET" and not path.endswith("/events"):
                query = "?budget=1e6" if path.endswith("/predict") else ""
                assert ask(served, method, path + query, Authorization=bearer(served))[0] < 500, path
        assert not mark.exists()
    finally:
        for place in poisoned:
            place.unlink()
        for place, content in kept.items():
            local_path(place).write_bytes(content)


DEEP = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.xdist_group("test_service_guard")
def test_a_body_that_is_too_much_is_refused_and_costs_nothing(root: Path, code: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "runs", ignore=shutil.ignore_patterns(".service"))
    service = ServiceProcess(tmp_path / "runs", code)
    try:
        client = service.client
        client.ask("GET", "/sweeps")
        before = service.memory()
        kind = {
            "Authorization": f"Bearer {ServicePaths(service.root).token.read_text().strip()}",
            "Content-Type": "application/json",
        }

        def send(body: Any, **more: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=40)
            try:
                connection.request("POST", "/api/v1/specs", body, {**kind, **more})
                return connection.getresponse().status
            except (BrokenPipeError, ConnectionResetError):
                return 0  # it hung up
            finally:
                connection.close()

        for _ in range(5):
            assert send(b"x" * 50_000_000) in (413, 0)
            assert send(b"x" * 65536 for _ in range(800)) in (413, 0)  # chunks that would come to 50 MB
            assert send(DEEP) == 422
            assert send(b"[" * 1_000_000) == 422
        assert client.ask("GET", "/health") == {"status": "ok"}
        assert service.memory() - before < 50_000_000
    finally:
        assert service.end() == 0


def test_a_body_that_comes_too_slowly_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.5)
    host, port = served.url.removeprefix("http://").split(":")
    lines = [f"Host: {host}:{port}", "Content-Length: 1000", f"Authorization: Bearer {served.token}"]
    head = "\r\n".join(["POST /api/v1/specs HTTP/1.1", *lines, "Content-Type: application/json", "", ""])
    with socket.create_connection((host, int(port)), timeout=0.1) as slow:
        slow.sendall(head.encode())
        for _ in range(900):  # a byte now and then does not help
            slow.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                assert b" 408 " in slow.recv(100)
                break
        else:
            raise AssertionError("no answer")


def test_who_waits_when_the_service_ends_is_told_so() -> None:
    """In words, and without a traceback in the log; what has begun to answer is cut off as before."""

    async def ended(begins: bool) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if begins:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.Event().wait()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/api/v1/health", "headers": [(b"host", b"here:1")]}
        guarded = guard.Guard(app, key=guard.Credentials("a" * 32), hosts=["here:1"])
        work = asyncio.create_task(guarded(scope, receive, send))
        await asyncio.sleep(0.01)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError) if begins else contextlib.nullcontext():
            await work
        assert work.cancelled() == begins
        return sent

    start, body = asyncio.run(ended(False))
    said = json.loads(body["body"])
    assert start["status"] == said["status"] == 503 and "is ending" in said["detail"]
    assert b"retry-after" in dict(start["headers"])
    assert [message["status"] for message in asyncio.run(ended(True))] == [200]


def spec_with(**changed: Any) -> Any:
    content: dict[str, Any] = {
        "model": {"target": "parts:Slow", "size_param": "features"},
        "data": {"train": "parts:data"},
        "loss": "mse",
        "budgets": [1e5, 2e5],
        "train": {"lr": 0.1},
    }
    for path, value in changed.items():
        section, _, name = path.partition("__")
        if name:
            content[section] = {**content.get(section, {}), name: value}
        else:
            content[section] = value
    return make_spec(content, "spec")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model__target": "subprocess:run"}, "model.target"),
        ({"model__target": "os:system"}, "model.target"),
        ({"model__target": "torch.nn:Linear"}, "model.target"),
        ({"model__target": "parts:os.system"}, "does not define 'os' itself"),
        ({"model__target": "parts:torch.load"}, "does not define 'torch' itself"),
        ({"model__target": "parts:nn"}, "does not define 'nn' itself"),
        ({"model__target": "..parts:Slow"}, "model.target"),
        ({"model__target": "away:Model"}, "model.target"),
        ({"model__target": "linked:Model"}, "model.target"),
        ({"model__flops_per_token": "builtins:eval"}, "model.flops_per_token"),
        ({"data__train": "pickle:loads"}, "data.train"),
        ({"data__train": "/etc/secret.bin"}, "data.train"),
        ({"data__train": "~/secret.bin"}, "data.train"),
        ({"data__train": "$HOME/secret.bin"}, "data.train"),
        ({"data__train": "file:///etc/secret.bin"}, "data.train"),
        ({"data__train": "../../away/*.bin"}, "data.train"),
        ({"data__eval": "shutil:rmtree"}, "data.eval"),
        ({"data__count_tokens": "os:remove"}, "data.count_tokens"),
        ({"loss": "os:system"}, "loss"),
        ({"train__optimizer": "os:system"}, "train.optimizer"),
        ({"train__schedule": "os:system"}, "train.schedule"),
        ({"train__lr": "os:system"}, "train.lr"),
        ({"metrics": {"m": "os:system"}}, "metrics.m"),
        ({"data__train": "su*/../../away/s.bin"}, "has '..' behind a wildcard"),
        ({"data__train": "sub/../[s]ub/../../away/s.bin"}, "has '..' behind a wildcard"),
        ({"data__train": "sub/../../away/s.bin"}, "data.train: 'sub/../../away/s.bin' is outside"),
        ({"data__train": "s3://bucket/s.bin"}, "is outside of the --code directories"),
        ({"data__eval": "**/**/s.bin"}, "more than one '**'"),
        ({"trackers": {"mlflow": {"tracking_uri": "file:///tmp/x"}}}, "tracking_uri"),
        ({"trackers": {"mlflow": {"tracking_uri": "http://169.254.169.254/latest"}}}, "--tracker-host 169.254.169.254"),
        ({"trackers": {"mlflow": {"tracking_uri": "http:/\\\\evil.org"}}}, "must be http://HOST"),
        ({"trackers": {"mlflow": {"tracking_uri": "http://[x"}}}, "must be http://HOST"),
    ],
)
def test_only_code_of_the_owners_directories_is_named(
    changed: dict[str, Any], words: str, code: Path, tmp_path: Path
) -> None:
    (tmp_path / "away.py").write_text("class Model: ...")
    if not (code / "linked.py").exists():
        (code / "linked.py").symlink_to(tmp_path / "away.py")
    try:
        with pytest.raises(SpecError, match=re.escape(words)):
            check_allowed(spec_with(**changed), code, [code])
    finally:
        (code / "linked.py").unlink()
    check_allowed(spec_with(), code, [code])


def test_a_name_may_come_from_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from .deep import Model as Slow\nfrom subprocess import run\n")
    (tmp_path / "package" / "deep.py").write_text("class Model: ...\n")
    (tmp_path / "parts.py").write_text("def data(): ...\n")
    check_allowed(spec_with(model__target="package:Slow"), tmp_path, [tmp_path])
    with pytest.raises(SpecError, match="'run' itself"):
        check_allowed(spec_with(model__target="package:run"), tmp_path, [tmp_path])
    with pytest.raises(SpecError, match="is not in the --code directories"):
        check_allowed(spec_with(), tmp_path, [tmp_path / "package"])
    with pytest.raises(SpecError, match="--code"):
        check_allowed(spec_with(), tmp_path, [])


SECRETS = {
    "wandb": ("WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567", "0123456789abcdef0123456789abcdef01234567"),
    "url": ("mlflow at https://anna:hunter2secret@example.org/x", "hunter2secret"),
    "aws": ("key AKIAIOSFODNN7EXAMPLE was refused", "AKIAIOSFODNN7EXAMPLE"),
    "aws secret": ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
    "hf": ("token hf_abcdefghijklmnopqrstuvwxyz0123", "hf_abcdefghijklmnopqrstuvwxyz0123"),
    "github": ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_abcdefghijklmnopqrstuvwxyz0123456789"),
    "yaml": ("kwargs: {api_key: sesame-open, d: 3}", "sesame-open"),
    "json": ('{"password": "sesame open"}', "sesame open"),
    "bearer": ("Authorization: Bearer abcdef0123456789", "abcdef0123456789"),
    "basic": ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
    "token": ("-H 'authorization: token 0123456789abcdef'", "0123456789abcdef"),
    "another scheme": ("{'Authorization': 'ApiKey abcdefgh1234'}", "abcdefgh1234"),
    "github, fine-grained": ("github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz", "11ABCDEFG0abcdefghijkl"),
    "google": ("https://example.org/?key=AIzaSyA1234567890abcdefghijklmnopqrstuvw", "AIzaSyA1234567890"),
    "google, short-lived": ("ya29.a0AfH6SMBx-abcdefghijklmnop", "a0AfH6SMBx"),
    "npm": ("//registry.npmjs.org/:_authToken=npm_abcdefghijklmnopqrstuvwxyz0123456789", "npm_abcdef"),
    "azure": ("AccountName=a;AccountKey=abcdEFGH1234+/abcdEFGH1234==;EndpointSuffix=x", "abcdEFGH1234"),
    "azure, shared": ("https://a.blob.core.windows.net/c?sp=r&sig=AbCdEf%2BGhIjKl%3D&se=2", "AbCdEf%2BGhIjKl"),
    "aws, signed": ("https://b.s3.amazonaws.com/k?X-Amz-Signature=0123abcd0123abcd&x=1", "0123abcd0123abcd"),
    "redis": ("redis://:hunter2pw@cache:6379/0", "hunter2pw"),
    "pem": ("-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nb+c=\n-----END RSA PRIVATE KEY-----", "MIIEowIB"),
    "pem, cut off": ("key: -----BEGIN PRIVATE KEY-----\nMIIEowIBAAKCAQEA", "MIIEowIB"),
    "cookies": ("Cookie: session=abc123def; other=xyz987uvw", "xyz987uvw"),
    "cookie set": ("Set-Cookie: sid=abc123def456; Path=/", "abc123def456"),
    "connection": ("Server=db;Uid=sa;Pwd=hunter2x;", "hunter2x"),
    "camel case": ('{"clientSecret": "abcDEF123"}', "abcDEF123"),
    "argument": ("train.py --password hunter22secret", "hunter22secret"),
    "slack": ("https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX", "XXXXXXXXXXXX"),
    "environment": ("it said planted-value-of-mine", "planted-value-of-mine"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, secret = SECRETS[name]
    monkeypatch.setenv("MY_OWN_TOKEN", "planted-value-of-mine")
    assert secret not in redacted(text) and HIDDEN in redacted(text)
    assert secret not in json.dumps(redacted_values({"a": [{"b": text}]}))


@pytest.mark.parametrize("part", ["a_", "-", "secret_", "eyJ-", "'", "://a:", "password='", "sk-"])
def test_looking_for_secrets_takes_no_longer_for_odd_texts(part: str) -> None:
    """A pattern that looks again at every place takes minutes here; no time is measured, the suite would hang."""
    redacted(part * (300_000 // len(part)))


def test_what_is_no_secret_stays() -> None:
    text = "token_unit: one sample; tokens_per_sample: 3; keys: 4; 261125564bfb79e2: loss 0.5; https://example.org:80/a"
    more = "basic training of 12345678 tokens; TypeError: bad signature; pk_embeddings_of_the_model; signature: (x, y)"
    assert redacted(text) == text and redacted(more) == more


def test_a_planted_secret_is_on_no_route(served: Served, root: Path, code: Path) -> None:
    """In a spec, a log, and the words of a failure; every route is asked."""
    name = served.client.start((code / "sweep.yaml").read_text() + f"\nmetrics: {{}} # {PLANTED[0]}\n")
    served.state.runs.paths.log(name).write_text(f"error: {PLANTED[0]} was refused\n")
    (key,) = {failure.key for failure in open_sweep(root / "known").failures}
    asked = [path for method, path in routes_of(served) if method == "GET" and not path.endswith("/events")]
    asked = [path.replace("/predict", "/predict?budget=1e6") for path in asked]
    more = [f"/api/v1/sweeps/known/experiments/{key}", f"/sweeps/known/experiments/{key}", f"/sweeps/{name}"]
    more += ["/api/v1/sweeps/known/results?format=csv", "/api/v1/sweeps/known/results?format=parquet"]
    for path in [*asked, *more, f"/api/v1/sweeps/{name}/log", f"/api/v1/sweeps/known/experiments/{key}/log"]:
        status, headers, content = ask(served, "GET", path, Authorization=bearer(served))
        assert status in (200, 404) and not any(secret.encode() in content for secret in PLANTED), path
        if headers["content-type"] == "application/json":
            json.loads(content)


STEERING = "\x1b[2J\x1b]0;title\x07red\x9b31m \u202egnp.exe \u2066x\x08\x7f\r"
SEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def test_text_of_the_users_code_steers_nothing(served: Served, tmp_path: Path) -> None:
    """In an error, an event, a log and the name of a metric: on pages, in logs, reports and the terminal."""
    root, runs = served.state.runs.paths.root, served.state.runs
    shutil.copytree(root / "known", tmp_path / "sweep")
    sweep = open_sweep(tmp_path / "sweep")
    key = sweep.failures[0].key
    failure = dataclasses.replace(sweep.failures[0], error=f"ValueError: {STEERING}", traceback=f"at\n{STEERING}")
    local_path(sweep.paths.failure(key)).unlink()
    Ledger(sweep.paths).record_failure(failure)
    Ledger(sweep.paths).record_event(key, STEERING, level="warning")
    log = runs.paths.log("steered")
    log.parent.mkdir(parents=True)
    log.write_text(f"error: {STEERING}")
    shown = [log_text(log.read_bytes(), 9)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for command in (["status", str(tmp_path / "sweep")], ["status", str(tmp_path / "sweep"), "--json"]):
            with pytest.raises(SystemExit):
                main(command)
    shown.append(out.getvalue())
    e = experiment_view(SweepCache(sweep.paths).now(), key)
    shown.append(page("experiment.html.j2", name="x", e=e, drawn=False, stamp=None))
    for text in shown:
        assert "\\u001b" in text and not SEEN.search(text), text[:500]


def test_a_refusal_says_what_to_do(served: Served) -> None:
    with pytest.raises(ServiceError, match="its own name|takes|spec") as caught:
        served.client.ask("POST", "/specs", {"text": "bugets: [1]"})
    assert caught.value.status == 422 and any("did you mean 'budgets'" in fault for fault in caught.value.faults)
    with pytest.raises(ServiceError, match="no such sweep"):
        served.client.sweep("nothing")
    with pytest.raises(ServiceError, match="leave it out"):
        served.client.ask(
            "POST",
            "/specs",
            {"text": (Path(served.state.specs.roots[0]) / "sweep.yaml").read_text() + "\noutput: /tmp/x\n"},
        )


def test_a_foreign_cookie_shuts_nobody_out(served: Served) -> None:
    """Browsers share cookies among the ports of a host, so those of other services come as well."""
    key = served.app.state.key
    mine = f"{key.cookie}={key.session}"
    for cookies in (
        mine,
        f'x={{"a": 1, "b": [2]}}; {mine}',
        f'"; x=y=z; {mine}; =',
        f"{mine};x",
        f"{key.cookie}x=1; {mine}",
    ):
        assert ask(served, "GET", "/", Cookie=cookies)[0] == 200, cookies
    for cookies in ("", f"x{mine}", f"{key.cookie}", f"{key.cookie}=; x=1", f"x={mine}"):
        assert ask(served, "GET", "/", Cookie=cookies)[0] in (401, 403), cookies


ODD = ["1e-320", "1e308", "nan", "-1", "9" * 4400, "\x00", "\u202e", "[", "%ud800", "1e400", "true"]


def test_what_makes_no_sense_is_refused_in_words(served: Served, code: Path) -> None:
    """Numbers that no fit can take, forms and headers that no browser sends: never 500."""
    text = (code / "sweep.yaml").read_text()
    asked: list[tuple[str, str, str | None, dict[str, str]]] = []
    for odd in map(quote, ODD):
        asked += [("GET", f"/api/v1/sweeps/known/predict?budget={odd}", None, {})]
        asked += [("GET", f"/api/v1/sweeps/known/predict?budget=1e9&unique={odd}", None, {})]
        asked += [("GET", f"/sweeps/known?budget={odd}", None, {}), ("GET", f"/sweeps/known?offset={odd}", None, {})]
        asked += [("POST", "/new", f"limit={odd}&unit=hours&do=start&text={quote(text)}", {})]
        asked += [("POST", "/sweeps/known/extend", f"{name}={odd}", {}) for name in ("budgets", "sizes", "seeds")]
    fields = "&".join(f"f{i}=1" for i in range(60))
    asked += [("POST", path, fields, {}) for path in ("/new", "/sweeps/known/extend", "/login")]
    asked += [("POST", "/new", f"text={quote('model: {kwargs: &k {a: *k}}')}&code={code}", {})]
    asked += [("POST", "/login", "token=x", {"Origin": "http://["}), ("POST", "/login", "", {"Origin": "\xff]"})]
    asked += [("POST", "/api/v1/specs/validate", json.dumps({"text": text, "hours": 1e308}), {"Content-Type": JSON})]
    for method, path, body, headers in asked:
        status, _, content = ask(
            served, method, path, body.encode() if body is not None else None, Authorization=bearer(served), **headers
        )
        assert status < 500, (method, path, (body or "")[:80], content)
        if "predict" in path and "unique" not in path:
            assert status == 422 and json.loads(content)["faults"], path
