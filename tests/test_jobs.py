"""A sweep as a job of a cluster: what is refused before anything is sent, and how a job is gone on with."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit_ray.cli import _resume
from flops_fit_ray.cli._lines import command_line, extend_line, given_options
from flops_fit_ray.engine._authentication import ensure_token, token_fault
from flops_fit_ray.engine.jobs import DEFAULT_ADDRESS, SUBMITTED_BY, job_address, upload_of
from flops_fit_ray.engine.loaders import code_loader
from flops_fit_ray.errors import DirectoryError, ResourceError
from flops_fit_ray.pipeline import check_output
from flops_fit_ray.spec import read_spec
from flops_fit_ray.sweep.run_limits import RunLimits
from tests.chaos import make_project
from tests.nodes import free_port
from tests.test_cli import call


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """A directory where Ray puts a job's files."""
    place = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_00ff"
    make_project(place / "configs")
    return place


def test_a_path_in_a_jobs_upload_is_known(upload: Path, tmp_path: Path) -> None:
    assert upload_of(upload / "configs" / "sweep.yaml") == upload == upload_of(upload)
    assert upload_of(tmp_path) is None


def test_a_job_is_gone_on_with_by_the_submission_and_not_by_its_temporary_directory(
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SUBMITTED_BY, raising=False)
    line = command_line(upload / "configs/sweep.yaml", Path("/shared/gpt"), ["train.lr=1"])
    words = "python -m flops_fit_ray.run configs/sweep.yaml --output /shared/gpt --set train.lr=1"
    assert line == f"ray job submit --working-dir . -- {words}"
    again = extend_line(Path("/shared/gpt"), upload / "configs", RunLimits(slots=4))
    assert again == "ray job submit --working-dir . -- python -m flops_fit_ray extend /shared/gpt --slots 4"
    monkeypatch.setenv(SUBMITTED_BY, "flops-fit-ray submit here.yaml")
    assert command_line(upload / "configs/sweep.yaml", Path("/shared/gpt"), []) == "flops-fit-ray submit here.yaml"


def test_the_line_that_resumes_has_all_that_the_run_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(_resume, "_SET", {"PYTHONPATH": "/my code", "PYTHONHASHSEED": "0", "RAY_AUTH_MODE": "token"})
    spec, root, limits = Path("/p/my sweep.yaml"), Path("/out"), RunLimits(slots=4)
    line = command_line(spec, root, ["name=a b"], limits, Path("/code"), None, "head:6379", ["--new"])
    variables, words = line.split(" run ")
    assert variables.startswith("PYTHONPATH='/my code' RAY_AUTH_MODE=token ")  # the seed is what every run has
    assert shlex.split(words) == [
        str(spec), "--code", "/code", "--output", "/out", "--set", "name=a b", "--slots", "4", "--address", "head:6379",
        "--new",
    ]  # fmt: skip
    added = given_options({"--budget": (1e6, 2e6), "--size": (), "--seeds": 0, "--lr-again": False, "--device": None})
    line = extend_line(root, Path("/code"), limits, Path("/code"), first=added)
    assert line.endswith(" extend /out --slots 4 --code /code --budget 1000000.0 --budget 2000000.0 --seeds 0")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert extend_line(root, Path("/code"), RunLimits()).endswith(" extend /out --address auto")


def test_a_home_that_cannot_be_written_needs_no_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ensure_token() == "" and not os.environ["RAY_AUTH_TOKEN"]  # Ray makes its file
    monkeypatch.setenv("HOME", "/proc/nope")
    assert ensure_token().startswith("/proc/nope/.ray cannot be written: ") and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert ensure_token() == ""


@pytest.mark.parametrize(
    ("variables", "own"),
    [
        ({}, "none is known here (RAY_AUTH_TOKEN, {home}/.ray/auth_token)"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "it does not take that of RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": "{home}/token"}, "it does not take that of {home}/token"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=disabled sends none"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_said_in_the_same_words_everywhere(
    variables: dict[str, str], own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    words = (
        f"the Ray cluster at head:6379 asks for a token, and {own.format(home=tmp_path)}; set RAY_AUTH_MODE=token and "
    )
    for said in (  # by the core of Ray, by its client of jobs, and by `ray.init`
        "Failed to connect\ngcs_client.cc: Unauthenticated: RPC error: InvalidAuthToken: Authentication token",
        "Authentication required: Unauthorized: Missing authentication token",
        "Authentication failed: Forbidden: Invalid authentication token",
        "Token authentication is enabled but no authentication token was found.",
    ):
        fault = token_fault(said, "head:6379")
        assert fault is not None and fault.startswith(words) and "\n" not in fault
    assert token_fault("Failed to connect to Ray cluster", "head:6379") is None


def test_results_are_never_written_into_the_upload(upload: Path) -> None:
    with pytest.raises(DirectoryError, match="would be lost with it; give --output an absolute path"):
        check_output(upload / "runs" / "chaos")


def test_code_is_found_where_a_worker_unpacked_it(
    upload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "another" / "working_dir_files" / "_ray_pkg_00ff"
    load = code_loader(read_spec(upload / "configs/sweep.yaml"), upload / "configs")
    elsewhere.parent.mkdir(parents=True)
    upload.rename(elsewhere)  # so that nothing can be loaded from where the driver has it
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", list(sys.path))
    user = load()
    assert Path(str(sys.modules["parts"].__file__)).is_relative_to(elsewhere) and user.train_data is not None
    del sys.modules["parts"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "output: is missing; give --output, a path shared by all nodes"),
        (("--output", "runs/x"), "output: 'runs/x' is relative, and would be deleted"),
        (("--output", "/shared/x", "--working-dir", "OTHER"), "and only that is uploaded"),
        (("--output", "/shared/x", "--address", "ray://10.0.0.1:10001"), "is no address of a job server"),
        (("--output", "/shared/x", "--address", "FREE"), "forward its port with `ssh -L 8265:127.0.0.1:8265 HEAD`"),
        (("--output", "/shared/x", "--set", "train.l=1"), "did you mean 'lr'?"),
    ],
)
def test_a_wrong_submission_is_refused_in_words(
    given: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_project(tmp_path / "project")
    (tmp_path / "other").mkdir()
    stand_ins = {"OTHER": str(tmp_path / "other"), "FREE": f"127.0.0.1:{free_port()}"}
    assert call("submit", spec, *[stand_ins.get(word, word) for word in given]) == 2
    assert words in capsys.readouterr().err


def test_the_address_is_that_of_rays_own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert job_address(None) == DEFAULT_ADDRESS
    assert job_address("head:8265") == "http://head:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://cluster.example/ray")
    assert job_address(None) == "https://cluster.example/ray"
    assert job_address("http://other:1") == "http://other:1"
    with pytest.raises(ResourceError, match="that of the dashboard"):
        job_address("auto://x")


def test_without_rays_job_client_the_way_out_is_named(tmp_path: Path) -> None:
    spec = make_project(tmp_path)
    code = "import sys; sys.modules['aiohttp'] = None\nfrom flops_fit_ray.cli import main\nmain(sys.argv[1:])"
    command = [sys.executable, "-c", code, "submit", str(spec), "--output", "/shared/x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 2
    assert "pip install 'flops-fit-ray[jobs]'" in done.stderr and "Traceback" not in done.stderr
