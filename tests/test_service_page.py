"""What the pages show: the numbers of the charts are those of the directory, and what people write stays with it."""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

from flops_fit_ray.analysis import compare, comparison_to_json
from flops_fit_ray.console.live_state import GpuUse, NodeUse
from flops_fit_ray.ledger import Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Gpu, Machine
from flops_fit_ray.service.client import ServiceError
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.pages._sparks import device_rows, spark
from flops_fit_ray.service.pages._sweep_page import _failures
from flops_fit_ray.service.state import devices
from flops_fit_ray.service.state.cache import SweepCache
from flops_fit_ray.service.state.devices import MAX_READINGS, DeviceHistory
from flops_fit_ray.service.state.views import experiment_view
from flops_fit_ray.spec import FitSection
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from tests.serving import Served, serving
from tests.sweeps import make_sweep, reference_parts, reference_spec


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sweep, and a smaller one of which one experiment runs."""
    root = tmp_path_factory.mktemp("page") / "runs"
    spec = reference_spec(fit=FitSection(draws=100))
    make_sweep(root / "whole", spec, reference_parts(spec))
    sweep = make_sweep(root / "part", spec, reference_parts(spec), only=14)
    _run(root / "part", sweep.plan.experiments[-1].key)
    return root


@pytest.fixture(scope="module")
def whole(root: Path) -> Sweep:
    """The whole sweep, fitted once."""
    return open_sweep(root / "whole")


def test_a_page_of_an_older_reading_shows_what_is_there_now(tmp_path: Path) -> None:
    """Whatever is recorded between the reading of a directory and the page of one experiment."""
    spec = reference_spec(fit=FitSection(draws=100))
    whole = make_sweep(tmp_path / "whole", spec, reference_parts(spec), only=3)
    part = make_sweep(tmp_path / "part", spec, reference_parts(spec), only=2)
    key, paths = whole.results[-1].key, SweepPaths(tmp_path / "part")
    ledger, result = Ledger(paths), whole.results[-1]
    assert key not in {one.key for one in part.results}
    failure = Failure(key=key, status="failed", error="ValueError: no", traceback="Traceback\n", tokens_seen=3,
                      seconds=1.5, attempts=1, host="node", finished_at=time.time())  # fmt: skip
    happens: list[tuple[str, Callable[[], object]]] = [
        ("planned", lambda: None),
        ("running", lambda: _run(tmp_path / "part", key)),
        ("failed", lambda: ledger.record_failure(failure)),
        ("planned", lambda: ledger.retry(key)),
        ("failed", lambda: ledger.record_failure(failure)),
        ("completed", lambda: ledger.record_result(result)),
        ("planned", lambda: local_path(paths.result(key)).unlink()),  # by somebody's hand
    ]
    read = []
    for status, happen in happens:
        happen()
        read.append(SweepCache(paths).now())
        for snapshot in read:
            found = experiment_view(snapshot, key)
            assert found["status"] == status
            shown = page("experiment.html.j2", name="part", e=found, drawn=False, stamp=None)
            assert (f"{result.loss:.5f}" in shown) == (status == "completed")
            assert ("ValueError: no" in shown) == (status == "failed")
            assert [one["key"] for one in _failures(snapshot)] == [key] * (
                status == "failed" and snapshot.sweep.failures != ()
            )


def _run(directory: Path, key: str) -> None:
    """Let an experiment run: half of its tokens, in 20 s, with a curve of 50 points."""
    sweep = open_sweep(directory)
    ledger, e = Ledger(sweep.paths), next(e for e in sweep.plan.experiments if e.key == key)
    same = {"lr": 0.01, "grad_norm": 1.5, "eval_loss": None}
    points = [{"step": i, "tokens": 10 * i, "train_loss": 5.0 / i, "seconds": i / 5, **same} for i in range(1, 51)]
    ledger.record_curve(key, points)
    now = time.time()
    machine = Machine(host="node1", cpus=8, cpu_share=0.5, memory_used=2**30, memory_total=2**31)
    ledger.record_progress(
        Progress(key=key, tokens_seen=e.tokens // 2, tokens=e.tokens, train_loss=0.1, host=hostname(), pid=1,
                 updated_at=now, started_at=now - 20, machine=machine)
    )  # fmt: skip


@pytest.fixture(scope="module")
def served(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(root, (tmp_path_factory.mktemp("code"),), at_once=0) as found:
        yield found


def got(served: Served, path: str) -> Any:
    return served.client.ask("GET", path)


def page_of(served: Served, path: str) -> str:
    """The text of a page, its tags left out."""
    client = served.client
    client._url = served.url
    with client.request("GET", path, **{"Content-Type": "text/plain"}) as answer:
        text = answer.read().decode()
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text)))


def posted(served: Served, path: str, **fields: str) -> tuple[int, dict[str, str]]:
    """The status and headers of a form that is sent."""
    headers = {"Authorization": f"Bearer {served.token}", "Content-Type": "application/x-www-form-urlencoded"}
    with contextlib.closing(HTTPConnection(served.url.removeprefix("http://"), timeout=30)) as connection:
        connection.request("POST", path, urlencode(fields), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, dict(answer.getheaders())


def test_the_chart_of_the_valleys_has_every_run_and_the_minima_of_the_fit(served: Served, whole: Sweep) -> None:
    sweep, chart = whole, got(served, "/sweeps/whole/charts/valleys")
    drawn = {p["key"]: (p["params"], p["tokens"], p["loss"]) for v in chart["valleys"] for p in v["points"]}
    assert drawn == {r.key: (r.params, r.tokens_seen, r.loss) for r in sweep.results} and len(drawn) == 21
    for valley, fitted in zip(chart["valleys"], sweep.fit.valleys, strict=True):
        assert (valley["params"], valley["loss"]) == pytest.approx((fitted.params_opt, fitted.loss_opt), rel=1e-12)
        low, high = valley["params_interval"]
        assert low < valley["params"] < high
        assert min(valley["curve"]["loss"]) == pytest.approx(fitted.loss_opt, rel=1e-3)
    laws = got(served, "/sweeps/whole/charts/laws")["laws"]
    assert [law["name"] for law in laws] == ["N_opt (parameters)", "D_opt (tokens)"]
    assert laws[0]["value"] == [v["params"] for v in chart["valleys"]]
    assert laws[0]["fitted_to"] == sweep.fit.fitted_range[1]


def test_the_page_begins_with_the_answer_its_law_and_how_far_to_trust_it(served: Served, whole: Sweep) -> None:
    got(served, "/sweeps/whole/fit")
    while "The first fit is running" in (text := page_of(served, "/sweeps/whole")):
        time.sleep(0.05)
    best = whole.fit.optima[-1][0]
    places = [text.index(words) for words in ("N, parameters", "The law", "Can it be trusted?", "A note stays")]
    assert places == sorted(places)
    assert f"{best.loss_opt:.4f}" in text and whole.fit.laws[0][1].formula in text
    assert re.search(r"\d+ of 15 checks pass", text) and "Lack of fit: " in text
    answer = re.search(r"wholecompleted.*?N ([\d.]+k?) \[", page_of(served, "/"))
    assert answer is not None and answer[1] in text


def test_a_sweep_says_when_it_started_and_how_long_it_took(served: Served, whole: Sweep) -> None:
    results, view = whole.results, got(served, "/sweeps/whole")
    assert view["started_at"] == min(r.finished_at - r.seconds for r in results)
    assert view["last_at"] == max(r.finished_at for r in results)
    assert got(served, "/sweeps/part")["last_at"] > view["last_at"]  # something runs there


def test_the_table_is_searched_by_words_in_any_column(served: Served, whole: Sweep) -> None:
    rows = whole.plan.experiments
    wanted = [e.key for e in rows if e.size == 24 and e.budget == 1e5]
    for find in ("24 1e5", "  1E5  24 ", f"grid {wanted[0]}"):
        found = got(served, "/sweeps/whole/experiments?" + urlencode({"find": find}))
        assert wanted[0] in [row["key"] for row in found["items"]] and found["total"] < len(rows), find
    assert got(served, "/sweeps/whole/experiments?find=nowhere")["total"] == 0
    assert got(served, "/sweeps/part/experiments?find=grid&status=running")["total"] == 1
    text = page_of(served, f"/sweeps/whole?find={wanted[0]}&sort=loss&down=1")
    assert "1 to 1 of 1" in text and "No experiment is like that" in page_of(served, "/sweeps/whole?find=nowhere")


def test_curves_beside_each_other_are_those_of_the_files(served: Served, root: Path) -> None:
    sweep = open_sweep(root / "part")
    (running,) = [e for e, _ in sweep.running]
    found = got(served, "/sweeps/part/curves")
    (curve,) = found["experiments"]
    assert (found["which"], found["total"], curve["key"], curve["status"]) == ("running", 1, running.key, "running")
    assert curve["tokens"] == [10 * i for i in range(1, 51)] and curve["train_loss"][-1] == 0.1
    assert curve["tokens_per_second"] == pytest.approx([50.0] * 50) and set(curve["grad_norm"]) == {1.5}
    assert got(served, f"/sweeps/part/experiments/{running.key}/curves")["experiments"] == [curve]
    done = got(served, "/sweeps/part/curves?which=completed")
    assert done["total"] == 14 == len(done["experiments"])
    assert got(served, "/sweeps/whole/curves")["which"] == "completed"
    with pytest.raises(ServiceError, match="no experiment is running"):
        got(served, "/sweeps/whole/curves/figure?which=running")
    assert "1 running experiment" in page_of(served, "/sweeps/part")


def test_two_sweeps_are_compared_as_by_the_command(served: Served, root: Path, whole: Sweep) -> None:
    found = got(served, "/sweeps/whole/compare/part?budget=1e6")
    said = json.loads(json.dumps(comparison_to_json(compare(whole.fit, open_sweep(root / "part").fit, 1e6))))
    assert {name: found[name] for name in said} == said
    assert [len(one["sweeps"]) for one in found["laws"]] == [2, 2]
    text = page_of(served, "/compare?first=whole&second=part&budget=1e6")
    assert "At C = 1e6 FLOPs" in text and "exponent of N_opt" in text
    assert "no such sweep" in page_of(served, "/compare?first=whole&second=nothing")
    assert "is not a number of FLOPs" in page_of(served, "/compare?first=whole&second=part&budget=much")


def test_notes_stay_with_the_sweep_and_name_their_author(served: Served, root: Path, tmp_path: Path) -> None:
    text = "lr <b>looks</b> low\x1b[2J\npassword=hunter22"
    status, headers = posted(
        served, "/sweeps/part/notes", author="Ada", text="lr <b>looks</b> low\x1b[2J\npassword=hunter22"
    )
    assert (status, headers["location"]) == (303, "/sweeps/part#notes-title") and "Ada" in headers["set-cookie"]
    served.client.ask("POST", "/sweeps/part/notes", {"author": "Grace", "text": "it is"})
    notes = root / "part" / "notes.jsonl"
    assert notes.stat().st_mode & 0o777 == 0o600
    assert [json.loads(n)["author"] for n in notes.read_text().splitlines()] == ["Ada", "Grace"]
    with notes.open("a") as file:
        file.write('{"at": 1, "author": "torn')
    text = page_of(served, "/sweeps/part")
    assert "lr <b>looks</b> low\\u001b[2J" in text and "hunter22" not in text and "torn" not in text
    assert [n["author"] for n in got(served, "/sweeps/part/notes")] == ["Ada", "Grace"]
    assert got(served, "/sweeps/part")["counts"]["running"] == 1  # a note is no damage
    for wrong in ({"author": "", "text": "x"}, {"author": "Ada", "text": " "}, {"author": "Ada", "text": "x" * 4001}):
        assert posted(served, "/sweeps/part/notes", **wrong)[0] == 422
    assert posted(served, "/sweeps/nothing/notes", author="Ada", text="x")[0] == 404
    notes.unlink()
    notes.symlink_to(tmp_path / "elsewhere")
    assert posted(served, "/sweeps/part/notes", author="Ada", text="x")[0] == 409
    assert not (tmp_path / "elsewhere").exists() and got(served, "/sweeps/part/notes") == []
    notes.unlink()


def _snapshot(at: float, share: float) -> Any:
    gpu = Gpu(
        uuid="G-1", index=0, name="A100", utilisation=share, memory_used=2**30, memory_total=2**31, temperature=70.0
    )
    node = NodeUse(machine=Machine(host="n", cpus=4, cpu_share=share), gpus=(GpuUse(gpu=gpu),), running=1)
    running = ((None, SimpleNamespace(updated_at=at)),)
    return SimpleNamespace(sweep=SimpleNamespace(running=running), nodes=(node,))


def test_the_history_of_devices_keeps_the_whole_time_in_a_bounded_number_of_readings_also_over_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def file_of(name: str) -> Path:
        return tmp_path / f"{name}.jsonl"

    history = DeviceHistory(file_of)
    for i in range(5000):
        if i == 2345:  # killed while it wrote
            with file_of("x").open("a") as file:
                file.write('{"at": 3344.5, "every"')
            history = DeviceHistory(file_of)
        history.add("x", _snapshot(1000.0 + i, i / 5000))
        history.add("x", _snapshot(1000.0 + i, 0.0))  # the same reading again is none
    (machine,) = history.of("x")
    kept = machine["at"]
    assert MAX_READINGS / 2 <= len(kept) <= MAX_READINGS and kept[0] == 1000.0 and kept[-1] > 5980.0
    assert max(late - early for early, late in itertools.pairwise(kept)) <= 2 * 5000 / len(kept) + 8
    assert machine["gpus"][0]["utilisation"] == pytest.approx([(at - 1000) / 5000 for at in kept])
    assert DeviceHistory(file_of).of("x") == [machine]
    history.forget("x")  # of another directory, from now on
    assert history.of("x") == history.of("another") == []
    monkeypatch.setattr(devices, "MAX_BYTES", 5000)  # of a cluster of many machines
    for i in range(100):
        history.add("many", _snapshot(1000.0 + i, 0.5))
    assert 1000 < file_of("many").stat().st_size <= 5000
    assert [row["at"][0] for row in history.of("many")] == [1000.0]


def test_a_line_of_readings_has_gaps_where_nothing_was_read(served: Served) -> None:
    assert spark([0, 1, 2, 3, 4], [0.0, 1.0, None, 0.5, 0.5], 1.0) == ["0.0,23.0 30.0,1.0", "90.0,12.0 120.0,12.0"]
    assert spark([0], [1.0], 1.0) == spark([0, 1], [1.0, 1.0], None) == []
    served.state.device_history.add("part", served.state.snapshot("part"))
    newest, history = got(served, "/sweeps/part/devices"), got(served, "/sweeps/part/devices/history")
    (row,) = device_rows(newest, history)
    assert row["name"] == "node1" and row["load"][0] == 0.5 and row["memory"][:2] == (2**30, 2**31)
    assert history[0]["cpu_share"] == [0.5] and "node1" in page_of(served, "/sweeps/part")
