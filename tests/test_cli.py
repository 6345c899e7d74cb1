"""The commands, as a program meets them: output, exit codes, and words instead of tracebacks."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit_ray.cli import main
from flops_fit_ray.planning.loss_surfaces import SURFACES
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.storage_path import StoragePath, local_path
from flops_fit_ray.sweep.directory import Sweep
from tests.sweeps import adaptive_reference_spec, make_sweep, reference_parts, reference_spec

DEMO = Path(__file__).parent.parent / "examples" / "bytes"
BUDGETS = "budgets=[6e10, 2e11, 6e11, 2e12]"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    spec = reference_spec(fit={"draws": 200})
    return make_sweep(tmp_path_factory.mktemp("known"), spec, reference_parts(spec))


def call(*args: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("module", ["flops_fit_ray", "flops_fit_ray.run"])
def test_modules_are_doors(module: str) -> None:
    output = subprocess.check_output([sys.executable, "-m", module, "--help"], text=True)
    assert "Usage: python -m flops_fit_ray" in output or "Usage: flops-fit-ray" in output


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    names = "init plan check run extend status fit predict score compare report selftest"
    assert all(f"\n  {name} " in text for name in names.split())


def test_a_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FLOPS_FIT_RAY_COMPLETE", "bash_complete")
    for typed, number, found in (("pl", 1, "plain,plan\n"), ("run --from", 2, "plain,--from-checkpoint\n")):
        monkeypatch.setenv("COMP_WORDS", f"flops-fit-ray {typed}")
        monkeypatch.setenv("COMP_CWORD", str(number))
        assert call() == 0
        assert capsys.readouterr() == (found, "")


def test_init_writes_a_project_that_can_be_planned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("init", tmp_path / "new") == 0
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"sweep.yaml", "model.py", "data.py"}
    capfd.readouterr()
    with (tmp_path / "new" / "model.py").open("a") as code:
        code.write("import os\nprint('from Python')\nos.write(1, b'from C\\n')\n")
    assert call("plan", tmp_path / "new", "--json") == 0
    answer = capfd.readouterr()
    plan = json.loads(answer.out)
    assert "from Python\n" in answer.err and "from C\n" in answer.err
    # A first valley of the least sweep, as no speed is known; the rest is expected to follow from its results
    assert "budgets: the least; as wide as 10 min 00 s allow once a speed is measured" in answer.err
    assert len(plan["experiments"]) == 5 and 6 <= len(plan["forecast"]) <= 12 and not plan["final"]
    budgets = sorted({e["budget"] for e in plan["forecast"]})
    assert len(budgets) == 3 and budgets[-1] == pytest.approx(10 * budgets[0], rel=0.02)
    assert min(e["steps"] for e in plan["experiments"] + plan["forecast"]) >= 300
    assert plan["price"]["flops"] < 0.6 * plan["price"]["flops_full_grid"]
    assert call("init", tmp_path / "new") == 2
    assert "has sweep.yaml, model.py, data.py already; nothing was written" in capfd.readouterr().err


def test_plan_says_which_spec_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("plan") == 0
    out = capsys.readouterr().out
    assert "no SPEC given: using the built-in demo" in out
    assert "hours and money: not known; run `flops-fit-ray check` first" in out
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "sweep.yaml").write_text("model: {}\n")
    assert call("plan") == 2
    captured = capsys.readouterr()
    assert "no SPEC given: using sweep.yaml of this directory" in captured.out
    assert "model.target: is missing" in captured.err


@pytest.mark.parametrize("command", ["plan", "run"])
def test_wrong_input_is_exit_2_without_a_traceback_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert call("init", tmp_path / "p") == 0
    spec = tmp_path / "p" / "sweep.yaml"
    spec.write_bytes((DEMO / "sweep.yaml").read_bytes())  # which lists its budgets
    capsys.readouterr()
    cases: list[tuple[list[str | Path], str]] = [
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        ([spec, "--set", "bugets=[1]"], "bugets: unknown key; did you mean 'budgets'?"),
        ([spec, "--set", "model.target=model:GTP"], "did you mean 'GPT'"),
        ([spec, "--set", "model.kwargs.heads=3"], "model.kwargs: GPT takes no argument 'heads'"),
        (
            [spec, "--set", "model.kwargs.n_head=3", "--set", "model.sizes=[8, 16, 32]"],
            "d_model=8 is not divisible by n_head=3",
        ),
        (
            [spec, "--set", "data.kwargs.context=128", "--set", "model.sizes=[8, 16, 32]"],
            "fails on the first samples: IndexError: index out of range",
        ),
        ([spec, "--set", "budgets=[1e20, 2e20]", "--set", "model.sizes=[8, 16, 32]"], "need more data than there is"),
        ([spec, "--frobnicate"], "No such option"),
    ]
    for arguments, message in cases:
        assert call(command, *arguments) == 2, message
        captured = capsys.readouterr()
        assert message in captured.err
        assert "Traceback" not in captured.err
    assert not (tmp_path / "p" / "runs").exists()


def test_numbers_that_no_comparison_refuses_are_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    limits = [("plan", name) for name in ("--flops", "--hours", "--minutes", "--rate", "--price", "--noise")]
    for command, name in [*limits, ("run", "--flops"), ("run", "--at-most"), ("extend", "--budget")]:
        for bad in ("nan", "inf"):
            assert call(command, name, bad) == 2
            assert f"'{name}': must be a finite number (got {bad})" in capsys.readouterr().err


def test_run_refuses_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert call("run", "--output", tmp_path / "file" / "x") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_status_fit_predict_report(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    root = sweep.paths.root
    assert call("status", root) == 0
    assert "experiments: 21 completed of 21" in capsys.readouterr().out
    assert call("fit", root) == 0
    assert "N_opt = " in capsys.readouterr().out
    assert call("predict", "1e7", root) == 0
    assert "extrapolation factor 6.2" in capsys.readouterr().out
    assert call("report", root) == 0
    assert f"report: {root / 'report.html'}" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_json_of_every_reader(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    def read(*args: str | StoragePath) -> dict[str, object]:
        assert call(*args, "--json") == 0
        content = json.loads(capsys.readouterr().out)
        assert content["schema_version"] == 1
        return dict(content)

    root = sweep.paths.root
    assert read("status", root)["results_sha256"] == sweep.results_sha256
    assert read("report", root)["report"] == str(sweep.paths.report)
    of_sweep = read("fit", root)
    assert of_sweep == json.loads(sweep.paths.analysis.read_bytes())
    for table in (sweep.paths.results_csv, sweep.paths.results_parquet):
        of_table = read("fit", table, "--draws", "200")
        assert all(of_table[name] == of_sweep[name] for name in ("n_opt", "d_opt", "l_opt", "valleys", "hold_out"))
    assert read("predict", "1e6", root)["extrapolation"] == 1.0


def test_a_fit_that_cannot_be_made_is_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = reference_spec()
    sweep = make_sweep(tmp_path, spec, reference_parts(spec), only=3)
    assert call("fit", sweep.paths.root) == 1
    assert "no law: " in capsys.readouterr().out
    assert call("predict", "1e9", sweep.paths.root) == 1
    assert "there is no scaling law to predict from" in capsys.readouterr().err
    assert call("status", sweep.paths.root) == 0
    assert "resume with: flops-fit-ray run" in capsys.readouterr().out


def test_readers_refuse_what_is_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cases: list[tuple[list[str | Path], str]] = [
        (["status"], "no such directory"),
        (["status", tmp_path], "is not a sweep directory"),
        (["fit", tmp_path / "none.csv"], "no such file"),
        (["predict", "many", tmp_path], "is not a valid float"),
    ]
    for arguments, message in cases:
        assert call(*arguments) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert call("fit", tmp_path / "t.csv") == 2
    assert "has no column for params and tokens and flops and loss (it has a, b)" in capsys.readouterr().err


def test_readers_load_neither_torch_nor_ray(sweep: Sweep) -> None:
    code = (
        "import sys\nfrom flops_fit_ray.cli import main\n"
        "for command in ['status'], ['fit'], ['report'], ['predict', '1e7']:\n"
        "    try: main([*command, sys.argv[1]])\n"
        "    except SystemExit as e: print('ENDED', e.code, *{'torch', 'ray'} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", code, str(sweep.paths.root)], text=True)
    assert [line for line in output.splitlines() if line.startswith("ENDED")] == ["ENDED 0"] * 4


def test_the_price_of_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", tmp_path) == 0
    capsys.readouterr()
    asked: list[str | Path] = ["plan", tmp_path, "--set", BUDGETS, "--slots", "4", "--rate", "2e10", "--price", "3"]
    assert call(*asked, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    price = plan["price"]
    assert price["flops"] == pytest.approx(sum(e["flops_executed"] for e in plan["experiments"] + plan["forecast"]))
    assert plan["evaluation_flops"] > 0
    assert price["device_seconds"] == pytest.approx((price["flops"] + plan["evaluation_flops"]) / 2e10)
    assert price["money"] == pytest.approx(3 * 4 * price["wall_seconds"] / 3600)
    assert [start["name"] for start in price["starts"]] == ["trunk", "scratch", "mixed"]
    assert call(*asked) == 0
    said = capsys.readouterr().out
    for words in (
        "saved by trunks",
        "start from trunk",
        "on 4 slots",
        "at --price (at the rate of --rate)",
        "expected",
    ):
        assert words in said


def test_a_plan_is_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", tmp_path) == 0
    capsys.readouterr()
    ask: list[str | Path] = [
        "plan",
        tmp_path,
        "--set",
        BUDGETS,
        "--simulate",
        "--sweeps",
        "1",
        "--set",
        "grid.tokens_per_param=20",
    ]
    (tmp_path / "my_world.py").write_text("def loss(n, d):\n    return 1.5 + 10 / n**0.3 + 30 / d**0.35\n")
    assert call(*ask, "--surface", "my_world:loss", "--noise", "0.001", "--lr-factor", "0.5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["surface_name"] == "my_world:loss" and found["surface"] is None
    assert found["sweeps"] == 1 and found["flops"] < found["flops_full_grid"]
    assert abs(found["bias"]) < 0.1 and 0 <= found["regret"] < 0.001  # of the valleys' N_opt, on that surface
    assert [m["slots"] for m in found["makespans"]] == [2, 8, 64, 1024]
    assert all(m["over_bound"] >= 1 - 1e-9 for m in found["makespans"])
    assert found["lr_factor"] == 0.5
    assert call(*ask, "--surface", "steep") == 2
    assert "'steep' is neither hoffmann, besiroglu, lopsided, kaplan," in capsys.readouterr().err
    assert call(*ask, "--surface", "my_world:los") == 2
    assert "--surface: 'my_world' has no attribute 'los'; did you mean 'loss'?" in capsys.readouterr().err
    assert call("plan", "--help") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in SURFACES)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_any_command_as_interrupted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(getattr(signal, name))
    module = f"stopped_by_{name.lower()}"  # a module of its own: Python keeps those that are imported
    (tmp_path / f"{module}.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    spec = {
        "model": {"target": f"{module}:Model", "size_param": "width", "sizes": [4, 8, 16]},
        "data": {"train": f"{module}:train"}, "loss": "mse", "budgets": [1e5, 2e5],
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(json.dumps(spec))
    assert call("plan", tmp_path) == 4
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == ["", f"stopped by {name}", "Run it again with:"] and said[3].endswith(f" plan {tmp_path}")
    assert signal.getsignal(getattr(signal, name)) == before


def test_extending_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = adaptive_reference_spec()
    sweep = make_sweep(tmp_path / "own", spec, reference_parts(spec), only=0)
    without_base = sweep.paths.plan.read_bytes()
    write_json(sweep.paths.plan, {**(read_json(sweep.paths.plan) or {}), "base": str(tmp_path)})
    cases: list[tuple[list[str | Path], str]] = [
        (["extend", tmp_path / "nowhere"], "no such directory"),
        (["extend", local_path(sweep.paths.root), "--budget", "2e5"], "C = 2e5 is in this sweep already"),
        (["extend", local_path(sweep.paths.root), "--budget", "1"], "is below the smallest"),
        (["extend", local_path(sweep.paths.root), "--size", "4"], "an adaptive grid chooses its sizes itself"),
        (["extend", local_path(sweep.paths.root), "--until", "0.9@1e21"], "is not of the form FACTOR[@C]"),
    ]
    for arguments, message in cases:
        assert call(*arguments) == 2, message
        captured = capsys.readouterr()
        assert message in captured.err and "Traceback" not in captured.err
    local_path(sweep.paths.plan).write_bytes(without_base)
    assert call("extend", sweep.paths.root, "--budget", "3e6") == 2
    assert "call find_optimal(...) again with more budgets" in capsys.readouterr().err
    assert call("run", DEMO, "--until", "1.3", "--set", "budgets=[{flops: 1e12, sizes: [16]}]") == 2
    assert "needs a sweep, and this spec is a single run" in capsys.readouterr().err
