"""What a terminal and a log are shown: numbers that are there, in the room that there is, at next to no cost."""

import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from flops_fit_ray.analysis import FitOptions, fit_minima, fit_sweep
from flops_fit_ray.console._drawing import draw
from flops_fit_ray.console._live import LiveConsole
from flops_fit_ray.console._valley_plot import CURVE, MINIMUM, law_text, letter, plot_valleys
from flops_fit_ray.console.header import header_lines
from flops_fit_ray.console.json_lines import JsonConsole
from flops_fit_ray.console.live_state import GpuUse, LiveState, NodeUse, Pace, measured_rates, node_uses, seconds_left
from flops_fit_ray.console.plain import PlainConsole, QuietConsole, machine_lines
from flops_fit_ray.console.select import console_for
from flops_fit_ray.console.status_text import summary_text
from flops_fit_ray.ledger import Event, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster, Gpu, Machine
from flops_fit_ray.ledger.watch import Watcher
from flops_fit_ray.planning import Experiment
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import Sweep
from tests.records import FAILURE
from tests.surfaces import HOFFMANN, sweep_on
from tests.sweeps import make_sweep, reference_parts, reference_spec

BUDGETS = [1e18, 1e19, 1e20]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of 21 experiments, 10 of which are done."""
    spec = reference_spec()
    return make_sweep(tmp_path_factory.mktemp("console") / "half", spec, reference_parts(spec), only=10)


def sign_of_life(e: Experiment, share: float = 0.5, **more: object) -> Progress:
    values = {
        "key": e.key,
        "tokens_seen": int(e.tokens * share),
        "tokens": e.tokens,
        "train_loss": 0.5,
        "host": "node-1",
        "pid": 4711,
        "updated_at": 1e9,
    }
    return Progress(**{**values, **more})  # type: ignore[arg-type] # fields by name


def gpu(index: int, **more: object) -> Gpu:
    """A stand-in reading: no GPU is here."""
    known = {
        "uuid": f"GPU-{index}", "index": index, "name": "H200", "utilisation": 0.5, "memory_used": 70 * 2**30,
        "memory_total": 141 * 2**30, "temperature": 60.0, "power": 500.0, "power_limit": 700.0,
    }  # fmt: skip
    return Gpu(**{**known, **more})  # type: ignore[arg-type] # fields by name


def state_of(sweep: Sweep, **more: object) -> LiveState:
    running = [e for e in sweep.plan.experiments if e.key not in {r.key for r in sweep.results}][:4]
    signs = tuple((e, sign_of_life(e, 0.25, lr=0.01, tokens_per_second=100.0, mfu=0.4)) for e in running)
    values = {
        "name": "known",
        "completed": len(sweep.results),
        "failed": 1,
        "total": len(sweep.plan.experiments),
        "final": True,
        "pace": Pace(flops_done=1e6, flops_planned=4e6, elapsed=75, flops_per_second=1e4, seconds_left=300),
        "running": signs,
        "nodes": node_uses([Machine(host="node-1", cpu="EPYC", cpus=2)], signs),
        "fit": fit_minima(sweep.points, sweep.fit_options),
    }
    return LiveState(**{**values, **more})  # type: ignore[arg-type] # fields by name


def said(lines: list[object]) -> str:
    return "\n".join(str(line) for line in lines)


def test_a_look_in_mid_sweep_sees_the_valleys_of_the_whole_fit() -> None:
    points = sweep_on(HOFFMANN, BUDGETS, noise=0.003)
    quick, whole = fit_minima(points, FitOptions(draws=200)), fit_sweep(points, FitOptions(draws=200))
    assert [v.params_opt for v in quick.valleys] == [v.params_opt for v in whole.valleys]
    assert quick.intervals == whole.intervals
    assert quick.method.params_opt is not None and whole.methods["valley"].params_opt is not None
    assert quick.method.params_opt.exponent == whole.methods["valley"].params_opt.exponent
    assert f"C^{quick.method.params_opt.exponent:.3f} [" in law_text(quick)


def test_the_picture_has_every_result_and_the_minimum_where_it_is() -> None:
    points = sweep_on(HOFFMANN, BUDGETS)
    fit = fit_minima(points, FitOptions(draws=0))
    drawn = plot_valleys(fit, 61, 21)
    assert drawn is not None
    assert drawn.params == pytest.approx((points.params.min(), points.params.max()))
    assert drawn.loss == pytest.approx((points.loss.min(), points.loss.max()))
    for number, valley in enumerate(fit.valleys):
        cells = [
            (column, row, cell.glyph)
            for row, line in enumerate(drawn.rows)
            for column, cell in enumerate(line)
            if cell is not None and cell.budget == number
        ]
        ((column, row),) = [(c, r) for c, r, glyph in cells if glyph == MINIMUM]
        low, high = np.log(drawn.params)
        assert column == pytest.approx(60 * (math.log(valley.params_opt) - low) / (high - low), abs=0.51)
        low, high = np.log(drawn.loss)
        assert row == pytest.approx(20 * (high - math.log(valley.loss_opt)) / (high - low), abs=0.51)
        glyphs = {glyph for _, _, glyph in cells}
        assert {letter(number), CURVE} <= glyphs
    assert plot_valleys(fit, 1, 20) is None


@pytest.mark.parametrize("width", [40, 60, 80, 140, 240])
@pytest.mark.parametrize("height", [4, 10, 22, 60])
def test_the_view_keeps_to_its_room(half: Sweep, width: int, height: int) -> None:
    many = [Machine(host=f"n{i}", gpus=tuple(gpu(k) for k in range(8))) for i in range(8)]
    for nodes in (nodes_with(many), nodes_with(many[:1]), node_uses(many, ()), ()):
        lines = draw(state_of(half, nodes=nodes), width, height)
        assert 1 <= len(lines) <= height
        assert all(line.cell_len <= width for line in lines)
        assert "known" in lines[0].plain and "25 %" in lines[0].plain


def test_at_80_columns_there_is_what_matters_and_at_140_all_of_it(half: Sweep) -> None:
    narrow, wide = (said([*draw(state_of(half), width, 40)]) for width in (80, 140))
    for words in ("loss", "left", "0.5000", "10/21 done, 1 failed", "1:15", "ETA 5:00", "N_opt", "no law yet"):
        assert words in narrow and words in wide, words
    e, _ = state_of(half).running[0]
    steps = f"{100.0 * e.steps / e.tokens:.3g}"  # of 100 tokens
    for words in ("steps/s", steps, "lr", "1.0e-02", "MFU", "40 %", "node-1:4711", "1e4 FLOP/s"):
        assert words in wide, words


def test_what_is_not_known_is_not_shown(half: Sweep) -> None:
    bare = [e for e, _ in state_of(half).running]
    signs = tuple((e, sign_of_life(e, 0.0, train_loss=None)) for e in bare)
    dumb = Machine(host="node-1", gpus=(Gpu(uuid="GPU-0", index=0, name="T4"),))
    pace = Pace(flops_done=0, flops_planned=4e6, elapsed=0)
    words = said([*draw(state_of(half, running=signs, nodes=node_uses([dumb], ()), pace=pace, fit=None), 200, 40)])
    for invented in ("None", "nan", "loss", "ppl", "MFU", "/s", "°C", " W", "GiB", "ETA", "N_opt"):
        assert invented not in words, invented
    assert "GPU 0 T4  idle" in words


def test_devices_have_their_holders_and_the_colours_of_heat(half: Sweep) -> None:
    (first, _), (second, _), *_ = state_of(half).running
    cool, warm, hot = (
        gpu(0, temperature=74.0),
        gpu(1, temperature=76.0),
        gpu(2, temperature=86.0, memory_used=135 * 2**30),
    )
    whole = Machine(host="node-1", gpus=(cool, warm, hot, gpu(3)), driver="570.1", cuda="12.8", nccl="2.26.2")
    one = Machine(host="node-1", cpu_share=0.5, gpus=(replace(hot, utilisation=0.99), warm))
    other = Machine(host="node-1", cpu_share=0.5, gpus=(replace(hot, utilisation=0.99), cool))
    signs = [(first, sign_of_life(first, machine=one)), (second, sign_of_life(second, machine=other))]
    apart = replace(sign_of_life(first, machine=one), others=(Machine(host="node-2", gpus=(gpu(4, uuid="x"),)),))
    near, far = node_uses([whole], [(first, apart)])  # an experiment of two workers
    assert (near.running, far.running, far.machine.host) == (1, 1, "node-2")
    assert [holder.experiments for holder in far.gpus] == [(first,)]
    (node,) = node_uses([whole], signs)
    assert node.machine.driver == "570.1" and node.machine.cpu_share == 0.5 and node.running == 2
    assert [holder.experiments for holder in node.gpus] == [(second,), (first,), (first, second), ()]
    lines = [line for line in draw(state_of(half, nodes=(node,), fit=None), 160, 40) if "GPU" in line.plain]
    assert lines.pop().plain.rstrip() == "GPU 3 H200  idle"  # what was read of it is of another time
    assert "99 %" in lines[2].plain and "135/141 GiB" in lines[2].plain and "500/700 W" in lines[2].plain

    def styles(line: object, words: str) -> set[str]:
        spans = line.spans  # type: ignore[attr-defined] # rich's
        return {str(span.style) for span in spans if words in line.plain[span.start : span.end]}  # type: ignore[attr-defined] # as above

    assert [styles(line, "°C") for line in lines] == [set(), {"yellow"}, {"bold red"}]
    assert styles(lines[2], "GiB") == {"bold red"} and styles(lines[0], "GiB") == set()
    assert machine_lines([whole]) == ["node-1: 4 x H200 (141 GiB), driver 570.1, CUDA 12.8, NCCL 2.26.2"]


def nodes_with(machines: list[Machine]) -> tuple[NodeUse, ...]:
    return tuple(NodeUse(machine=m, gpus=tuple(GpuUse(gpu=g) for g in m.gpus)) for m in machines)


def test_64_gpus_are_8_lines(half: Sweep) -> None:
    """Made-up readings: no real ones of so many GPUs are at hand."""
    nodes = nodes_with([Machine(host=f"n{i}", gpus=tuple(gpu(k) for k in range(8))) for i in range(8)])
    lines = [line.plain for line in draw(state_of(half, nodes=nodes, fit=None), 100, 40) if "H200" in line.plain]
    assert len(lines) == 8
    assert lines[0] == "n0 ▅▅▅▅▅▅▅▅  8 x H200  50 %  memory max 50 %  max 60 °C  4.0 kW  0 running"


def test_the_end_is_estimated_from_the_speed_of_each_size(half: Sweep) -> None:
    experiments = half.plan.experiments
    fast = [replace(r, tokens_per_second=1e6 / r.params) for r in half.results]  # 1e6 parameters · tokens per second
    rates = measured_rates(fast, ())
    assert rates is not None
    done = {r.key for r in fast}
    left = [e for e in experiments if e.key not in done]
    evaluating = {e.key: half.plan.evaluation_cost(e) / e.flops * e.tokens for e in left}  # in tokens of training
    work = sum((e.tokens * (1 - e.start_step / e.steps) + evaluating[e.key]) * e.params for e in left) / 1e6
    assert seconds_left(half.plan, done, (), rates, 4) == pytest.approx(work / 4, rel=0.01)
    longest = max(left, key=lambda e: e.flops)
    alone = seconds_left(half.plan, done, [(longest, sign_of_life(longest, 0.5))], rates, 1000)
    assert alone == pytest.approx(
        (0.5 * longest.tokens + evaluating[longest.key]) * longest.params / 1e6, rel=0.01
    )  # not sooner than what runs
    assert measured_rates((), ()) is None and seconds_left(half.plan, done, (), None, 4) is None


def terminal(width: int = 100, height: int = 30) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, height=height, highlight=False), out


def watched(sweep: Sweep, console: PlainConsole) -> Watcher:
    watcher = Watcher(console)
    watcher.take(Ledger(sweep.paths))
    watcher.on_plan(sweep.plan)
    return watcher


@pytest.fixture
def copy(half: Sweep, tmp_path: Path) -> Iterator[Sweep]:
    """The same directory, to be written into."""
    spec = reference_spec()
    yield make_sweep(tmp_path / "copy", spec, reference_parts(spec), only=2)


def test_a_log_has_lines_and_no_escape_codes(copy: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    view = console_for("", copy.paths, copy.spec, out)  # no terminal
    assert type(view) is PlainConsole and view.every >= 60
    view.header(copy.spec, copy.plan)
    watcher = watched(copy, view)
    Ledger(copy.paths).record_cluster(Cluster(slots=2, machines=(Machine(host="n", cpu="EPYC", cpus=2),)))
    watcher.on_cluster()
    spec = reference_spec()
    with watcher.following():
        make_sweep(copy.paths.root, spec, reference_parts(spec), only=4)
        key = copy.plan.experiments[3].key
        Ledger(copy.paths).record_event(key, "nobody need hear this", level="info")
        Ledger(copy.paths).record_event(key, "everybody should", level="warning")
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert lines[0].startswith("model: tests.parts:TruncatedRegression, N 8 to 272, features 8 to 272, 1 Linear")
    assert lines[1].startswith("data: tests.parts:power_law_regression, ") and "a token is one sample" in lines[1]
    assert lines[2].startswith("training: batch 4 samples, fp32, sgd, lr 0.04, wsd with 20 % decay")
    assert "cluster: 2 experiments at a time" in lines and "  n: 2 cores of EPYC" in lines
    assert sum(line.startswith(("[ 3/21]", "[ 4/21]")) for line in lines) == 2
    assert not any("need hear" in line for line in lines)


def test_json_lines_are_objects_and_quiet_is_quiet(copy: Sweep) -> None:
    texts = {}
    failure = replace(FAILURE, key=copy.plan.experiments[4].key)
    event = Event(key=failure.key, at=1.0, host="h", level="warning", message="w")
    for name, view in {
        "json": JsonConsole(out := io.StringIO()),
        "quiet": QuietConsole(quiet := io.StringIO()),
    }.items():
        view.header(copy.spec, copy.plan)
        view.plan(copy.plan, 2)
        view.cluster(Cluster(slots=2))
        view.outcome(copy.results[0], 1, 21)
        view.outcome(failure, 2, 21)
        view.event(event)
        view.progress([sign_of_life(copy.plan.experiments[5])], 2, 21)
        view.say("in the end")
        view.result(copy, 75.0)
        texts[name] = (out if name == "json" else quiet).getvalue()
    found = [json.loads(line) for line in texts["json"].splitlines()]
    kinds = ["question", "plan", "cluster", "outcome", "outcome", "event", "progress", "said", "result"]
    assert [line["kind"] for line in found] == kinds
    assert all(line["schema_version"] == 1 for line in found)
    assert found[3]["loss"] == copy.results[0].loss and found[3]["done"] == 1
    assert len(found[1]["experiments"]) == 21 and found[0]["spec"]["name"] == "known"
    quiet_lines = texts["quiet"].splitlines()
    assert "failed: E" in quiet_lines[0] and quiet_lines[1] == "in the end"
    assert "time: 1 min 15 s" in texts["quiet"] and quiet_lines[-1] == f"report: {copy.paths.report}"
    assert found[-1]["status"]["completed"] == 2 and found[-1]["results_sha256"] == copy.results_sha256


def test_a_line_of_progress_names_what_runs_and_stays_a_line(half: Sweep) -> None:
    view = PlainConsole(out := io.StringIO())
    view.plan(half.plan, 0)
    view.progress([sign_of_life(e) for e in half.plan.experiments[:10]], 3, 21)
    line = out.getvalue().splitlines()[-1]
    assert line.startswith("[ 3/21] running: C 1e5, size 8: 50 %; C 1e5, size 12: 50 %") and line.endswith(
        "; and 2 more"
    )


def test_who_gets_which_view(half: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    kinds = {
        style: type(console_for(style, half.paths, half.spec, Terminal())) for style in ("", "plain", "quiet", "json")
    }
    assert kinds == {"": LiveConsole, "plain": PlainConsole, "quiet": QuietConsole, "json": JsonConsole}
    monkeypatch.setenv("TERM", "dumb")
    assert type(console_for("", half.paths, half.spec, Terminal())) is PlainConsole


def test_without_colour_there_are_none(half: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console, out = terminal()
    console.print(*draw(state_of(half), 100, 30))
    assert "\x1b[3" not in out.getvalue() and "known" in out.getvalue()


def test_the_summary_counts_what_was_spent(half: Sweep) -> None:
    words = summary_text(half, 75.0)
    assert "10 completed" in words and "time: 1 min 15 s" in words and "s of CPU time" in words
    assert sum(r.seconds_executed or 0 for r in half.results) == pytest.approx(half.device_seconds)


def test_the_question_names_layers_and_tables() -> None:
    from tests.parts import Bigram, planned, spec_of, text, user_parts_of

    spec = spec_of(
        model={"target": "tests.parts:Bigram", "size_param": "width", "sizes": [4, 8, 16]},
        loss="cross_entropy",
        budgets=[1e6, 4e6],
    )
    plan = planned(spec, user_parts_of(spec, model=Bigram, train=text()))
    model, data, _ = header_lines(spec, plan)
    of_program = spec.model_copy(update={"data": spec.data.model_copy(update={"train": "builtins:tuple()"})})
    assert data.startswith("data: tests.parts:") and header_lines(of_program, plan)[1].startswith("data: a tuple, ")
    assert "width 4 to 16" in model and "tables up to " in model and " x 16" in model
    assert asdict(plan.measurements.sizes[0])["modules"]


def test_a_killed_watcher_leaves_the_directory_alone(copy: Sweep) -> None:
    before = {p: p.stat().st_mtime_ns for p in local_path(copy.paths.root).rglob("*")}
    with watched(copy, PlainConsole(io.StringIO())).following():
        pass
    assert {p: p.stat().st_mtime_ns for p in local_path(copy.paths.root).rglob("*")} == before


def test_no_terminal_at_all() -> None:
    closed = open(os.devnull, "w")  # noqa: PTH123, SIM115 - to be closed at once
    closed.close()
    paths = SweepPaths(Path("/nowhere"))
    assert type(console_for("", paths, reference_spec(), closed)) is PlainConsole
