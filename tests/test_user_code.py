"""What ends the user's code is a fault of its key: `exit()`, `os._exit`, a parser of the command line, any error."""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from flops_fit_ray import find_optimal
from flops_fit_ray.cli import main
from flops_fit_ray.engine.interrupt import interruptible
from flops_fit_ray.errors import InterruptedSweepError, SpecError
from flops_fit_ray.training.user.user_code import user_code
from flops_fit_ray.waiting import tell, told_to, waiting
from tests.bad_values import PARTS, Case, prepare
from tests.parts import Mlp, regression

EXIT = 'SystemExit: the code calls exit\\(\\); put what only a script does under `if __name__ == "__main__":`'
PARSES = "SystemExit: the code parses a command line, and has none of its own here"
ARGPARSE = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--lr', default=1)\n"
MODULE, MODEL = "model.target: importing 'parts' raised", "model.target: width=4 fails on a first batch:"
ROWS = "class Rows:\n    def __len__(self): {len}\n    def __getitem__(self, i): {item}\ndata = Rows()"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("exit()", f"{MODULE} {EXIT}"),
        ("import sys; sys.exit('no licence')", f"{MODULE} SystemExit: no licence; the code calls exit"),
        ("import os; os._exit(0)", f"{MODULE} {EXIT}"),
        (f"{ARGPARSE}parser.parse_args()", f"{MODULE} {PARSES}"),
        ("import optparse; optparse.OptionParser().parse_args()", f"{MODULE} {PARSES}"),
        ("import click\n@click.command()\ndef go(): pass\ngo()", f"{MODULE} {PARSES}"),
        ("class Stop(BaseException): pass\nraise Stop('mine')", f"{MODULE} Stop: mine"),
        ("import os; os.environ['NO_SUCH']", "KeyError: 'NO_SUCH'; that environment variable is not set"),
        ("{}['NO_SUCH']", r"KeyError: 'NO_SUCH' \[wrong_model\]$"),
        ("del Net\ndef __getattr__(name): raise OSError('lazy')", "model.target: 'parts:Net' raised OSError: lazy"),
        ("def data(): exit()", f"data.train: data raised {EXIT}"),
        (f"{ARGPARSE}def data(): parser.parse_args()", f"data.train: data raised {PARSES}"),
        (ROWS.format(len="exit()", item="pass"), f"data.train: raised {EXIT}"),
        (ROWS.format(len="return 50", item="exit()"), f"data.train: reading samples raised {EXIT}"),
        ("Net.__init__ = lambda self, width: exit()", f"model.sizes: width=4 raised {EXIT}"),
        ("Net.forward = lambda self, x: exit()", f"{MODEL} {EXIT}"),
    ],
)
def test_what_ends_the_users_code_is_exit_2_and_names_the_key(
    code: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, spec, *_ = prepare(Case(words=()), tmp_path / "p")
    (tmp_path / "p" / "parts.py").write_text(f"{PARTS}\n{code}\n")
    with pytest.raises(SystemExit) as ended:
        main(["plan", spec])
    said = capsys.readouterr().err
    error = said[said.index("error: /") :].strip()
    assert ended.value.code == 2
    assert re.search(words, error), error
    assert "plan" not in said.replace("/plan", "")  # our own command line is not to blame


def test_a_parser_that_takes_what_it_knows_finds_nothing_of_ours(tmp_path: Path) -> None:
    _, spec, *_ = prepare(Case(words=()), tmp_path / "p")
    code = "import sys\nassert parser.parse_known_args()[0].lr == 1 and sys.argv[0] == __file__"
    (tmp_path / "p" / "parts.py").write_text(f"{PARTS}\n{ARGPARSE}{code}\n")
    before = list(sys.argv)
    with pytest.raises(SystemExit) as ended:
        main(["plan", spec, "--set", "train.lr=0.5"])
    assert ended.value.code == 0 and sys.argv == before


def leaves(*_: object) -> object:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("option", "argument"),
    [("loss_fn", "loss_fn"), ("schedule", "schedule"), ("optimizer", "optimizer"), ("lr", "lr"),
     ("flops_per_token", "flops_per_token"), ("count_tokens", "dataset")],
)  # fmt: skip
def test_functions_that_exit_are_named_in_the_plan(option: str, argument: str, tmp_path: Path) -> None:
    arguments = {"loss_fn": "mse", "lr": 1e-2, option: leaves}
    with pytest.raises(SpecError, match=f": {argument}: .*SystemExit: the code calls exit"):
        find_optimal(Mlp, "width", dataset=regression(), compute_budgets=[1e5, 2e5], sizes=[4, 8, 16], batch_size=8,
                     output_dir=tmp_path, train=False, **arguments)  # type: ignore[call-overload]  # fmt: skip # any option


def test_a_metric_that_exits_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="metrics.mine: SystemExit"):
        find_optimal(Mlp, "width", dataset=regression(), loss_fn="mse", compute_budgets=[1e5, 2e5], sizes=[4, 8, 16],
                     batch_size=8, lr=1e-2, metrics={"mine": leaves}, output_dir=tmp_path, train=False)  # fmt: skip


def test_a_request_to_stop_is_no_error_of_the_users_code() -> None:
    with pytest.raises(InterruptedSweepError, match="stopped by SIGINT"), interruptible(), user_code("loss:"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    with pytest.raises(KeyboardInterrupt), user_code("loss:"):  # Ctrl-C, as Python hears it
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    with pytest.raises(SpecError, match="loss: KeyboardInterrupt"), interruptible(), user_code("loss:"):
        raise KeyboardInterrupt  # by the code itself: nobody pressed a key


def test_forked_children_may_still_end() -> None:
    with user_code("data.train:"):
        child = os.fork()
        if child == 0:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_slow_start_says_once_what_it_waits_for_and_leaves_no_thread() -> None:
    said: list[str] = []
    before = threading.active_count()
    with told_to(said.append):
        with waiting("quick"):
            pass
        with waiting("reading data.train", 0.01):
            time.sleep(0.1)
        tell("moved")
    with waiting("unheard", 0), told_to(None):
        tell("unheard")
    assert said == ["reading data.train ...", "moved"] and threading.active_count() == before


def test_a_slow_import_is_named_on_stderr_and_json_stays_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, spec, *_ = prepare(Case(words=()), tmp_path / "p")
    slow = "import time\ntime.sleep(0.2)\nmade = data\ndef data():\n    time.sleep(0.2)\n    return made()"
    (tmp_path / "p" / "parts.py").write_text(f"{PARTS}\n{slow}\n")
    monkeypatch.setattr("flops_fit_ray.waiting.QUIET_SECONDS", 0.1)
    with pytest.raises(SystemExit) as ended:
        main(["plan", spec, "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and json.loads(out)["experiments"]
    lines = err.splitlines()
    assert lines.count("importing parts (model.target) ...") == lines.count("reading parts:data (data.train) ...") == 1
