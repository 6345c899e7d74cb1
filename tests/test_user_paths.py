"""A path means what its user means by it, wherever it is written: `~`, variables, `file://`, relative ones."""

import os
import re
from pathlib import Path

import pytest

from flops_fit_ray import find_optimal, fit_table
from flops_fit_ray.cli._common import resolve_output
from flops_fit_ray.engine.loaders import code_loader
from flops_fit_ray.errors import SpecError
from flops_fit_ray.storage.storage_path import expanded, storage_path
from flops_fit_ray.training.data import TokenFile, open_token_files
from tests.sweeps import reference_spec
from tests.test_cli import call


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a token file of 6 ids, which $WORK names too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WORK", str(tmp_path))
    monkeypatch.delenv("NOT_SET", raising=False)
    (tmp_path / "x y.bin").write_bytes(bytes(12))
    (tmp_path / "t.csv").write_text(
        "params,tokens,loss\n" + "".join(f"{n}e6,{n * 20}e6,{4 - n / 1e3}\n" for n in (8, 9))
    )
    return tmp_path


SAME = ["~/x y.bin", "$WORK/x y.bin", "${WORK}/x y.bin", "file://~/x y.bin", "file:///$WORK/x%20y.bin"]


@pytest.mark.parametrize("text", SAME)
def test_one_file_by_many_names(home: Path, text: str) -> None:
    text = text.replace("file://~", f"file://localhost{home}").replace("file:///$WORK", f"file://{home}")
    assert expanded(text, "key") == f"{home}/x y.bin"
    assert storage_path(text) == home / "x y.bin"
    assert open_token_files(text, Path("/nowhere"), context=5, dtype="uint16", key="data.train").files[0].path == Path(
        f"{home}/x y.bin"
    )
    assert len(TokenFile(text, 5)) == 1


@pytest.mark.parametrize("plain", ["a/b", "./~", "a~/b", "b$", "a$1", "gs://bucket/a~b"])
def test_other_names_are_left_alone(home: Path, plain: str) -> None:
    assert expanded(plain, "key") == plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$NOT_SET/x.bin", "'$NOT_SET/x.bin': NOT_SET is not set in this environment; set it, or write the path"),
        ("${NOT_SET}/x.bin", "NOT_SET is not set"),
        ("~nobody-of-this-name/x.bin", "no home '~nobody-of-this-name' is known here"),
        ("file://elsewhere/x.bin", "is no file of this machine; write file:///PATH"),
    ],
)
def test_what_cannot_be_known_is_refused_everywhere(
    home: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        storage_path(text)
    with pytest.raises(SpecError, match=f"data.train: .*{re.escape(words)}"):
        open_token_files(text, home, context=5, dtype="uint16", key="data.train")
    with pytest.raises(SpecError, match=re.escape(words)):
        fit_table(text)
    for command in (["status", text], ["plan", text], ["serve", f"--root={text}"], ["run", "x", f"--output={text}"]):
        assert call(*command) == 2
        assert words in " ".join(capsys.readouterr().err.split()), command


@pytest.mark.parametrize(
    ("text", "words"), [("x" * 300, "a name of 300 bytes"), ("x/" * 2000, "a path of 4000 bytes")], ids=["name", "path"]
)
def test_names_and_paths_that_no_system_takes_are_refused(
    text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["status", text], ["run", text], ["run", "x", f"--output={text}"], ["fit", text]):
        assert call(*command) == 2
        assert words in " ".join(capsys.readouterr().err.split()), command


def test_the_output_of_a_spec_is_where_its_words_say(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, file = reference_spec(), Path("/project/sweep.yaml")
    for output, place in {
        None: Path("/project/runs/known"),
        "here/s": Path("/project/here/s"),
        "~/runs": home / "runs",
        "$WORK/runs": home / "runs",
        "file:///data/s": Path("/data/s"),
    }.items():
        assert resolve_output(file, spec.model_copy(update={"output": output}), None) == place
    with pytest.raises(SpecError, match=r"sweep.yaml: output: '\$NOT_SET': NOT_SET is not set"):
        resolve_output(file, spec.model_copy(update={"output": "$NOT_SET"}), None)
    assert call("plan", "~/none.yaml") == 2
    assert not Path("~").exists()


def test_find_optimal_takes_a_home(home: Path) -> None:
    (home / "s").write_text("a file where the sweep should be")
    with pytest.raises(Exception, match=re.escape(f"{home}/s")):
        find_optimal(list, dataset=[1], output_dir="~/s")


def test_a_worker_reads_the_file_that_the_driver_means(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = reference_spec()
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"train": "$WORK/*.bin", "eval": "e.bin"})})
    loader = code_loader(spec, home)
    monkeypatch.setenv("WORK", "/elsewhere")
    assert (loader.spec.data.train, loader.spec.data.eval) == (f"{home}/*.bin", "e.bin")
    assert spec.data.train == "$WORK/*.bin"  # what keys are made of
    assert os.environ["WORK"] == "/elsewhere"


def test_a_table_by_its_home(home: Path) -> None:
    assert len(fit_table("~/t.csv").fit.points.loss) == 2
