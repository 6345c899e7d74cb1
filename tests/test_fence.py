"""Names that a spec may give to a service: what files of the chosen directories define, and nothing that they hold."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from flops_fit_ray.errors import SpecError
from flops_fit_ray.service.runs._allowed import check_allowed
from flops_fit_ray.spec import SweepSpec, dump_spec, make_spec, parse_yaml
from flops_fit_ray.training.data.token_file import open_token_files
from flops_fit_ray.training.fence import Fence
from flops_fit_ray.training.user._targets import load_target

SOURCE = """
import functools, os, subprocess
import os.path as shadowed
from pathlib import Path
from shutil import rmtree
from fence_other import *
from fence_other import kept as renamed, Model as Other

HERE = Path(__file__).parent
F = functools
numbers: list = [1]
runner = subprocess.run

def made(): return "made"
@functools.lru_cache
def cached(): return "cached"
def _hidden(): ...
def twice(): ...
def twice(): return "second"
def later(): ...
later = os.system
def looped(): ...
for looped in [os.system]: ...
def starred(): ...
from fence_other import *
def swapped(): ...
globals()["swapped"] = os.system
if True:
    def nested(): ...
with open(__file__) as opened: ...

class Model:
    shell = os
    run = subprocess.run
    def small(self): ...
    @classmethod
    def large(cls): return "large"
    class Inner:
        def make(): return "inner"
class Lazy(type):
    def __getattr__(cls, name): return os
class Meta(metaclass=Lazy): ...
"""
OTHER = """
from subprocess import run as starred
import os
def kept(): return "kept"
class Model: ...
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    place = tmp_path / "code"
    (place / "fence_pack").mkdir(parents=True)
    (place / "fence_tiny.py").write_text(SOURCE)
    (place / "fence_other.py").write_text(OTHER)
    (place / "fence_pack/__init__.py").write_text("from .deep import made, os\nfrom subprocess import run\n")
    (place / "fence_pack/deep.py").write_text("import os\ndef made(): return 'deep'\n")
    for name, value in Fence((place,)).environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield place
    for module in [name for name in sys.modules if name.startswith("fence_")]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("fence_tiny:made", "made"),
        ("fence_tiny:cached", "cached"),
        ("fence_tiny:twice", "second"),
        ("fence_tiny:renamed", "kept"),
        ("fence_tiny:Model.large", "large"),
        ("fence_tiny:Model.Inner.make", "inner"),
        ("fence_pack:made", "deep"),
        ("fence_pack.deep:made", "deep"),
    ],
)
def test_what_a_file_defines_is_called(target: str, answer: str, code: Path) -> None:
    assert load_target(target, code, "loss")() == answer


@pytest.mark.parametrize(
    "attribute",
    [
        *("HERE", "HERE._flavour.pathmod.os.system", "F", "F.reduce", "numbers", "numbers.append", "runner"),
        *("os", "os.system", "shadowed", "shadowed.os.system", "Path.rmdir", "rmtree", "subprocess.run"),
        *("functools.reduce", "opened.write"),
        *("_hidden", "__loader__", "__builtins__.eval", "made.__globals__", "Model.__init__", "Model._x", "Model.mro"),
        *("later", "looped", "nested", "starred.x", "Model.shell", "Model.shell.system", "Model.run", "Model.small.x"),
        *("Meta.system", "Model.Inner", "Inner", "Model.Inner.__class__", "nothing", "made made", "made;x", "", "."),
    ],
)  # fmt: skip
def test_what_a_module_holds_is_not_imported_for(attribute: str, code: Path) -> None:
    """Nothing is imported: the source says it."""
    if attribute == "Model.Inner":  # a class that stands in a class
        assert Fence((code,)).target_fault(f"fence_tiny:{attribute}", code) is None
        return
    with pytest.raises(SpecError):
        load_target(f"fence_tiny:{attribute}", code, "loss")
    assert "fence_tiny" not in sys.modules


@pytest.mark.parametrize("target", ["fence_pack:run", "fence_pack:os.system", "fence_pack.deep:os", "os:system",
                                    "fence_pack.__init__:made", "torch:load", "..fence_tiny:made"])  # fmt: skip
def test_other_modules_are_not_imported(target: str, code: Path) -> None:
    with pytest.raises(SpecError, match="loss"):
        load_target(target, code, "loss")


@pytest.mark.parametrize("name", ["starred", "swapped"])
def test_an_object_is_what_its_source_defines(name: str, code: Path) -> None:
    """What the source does not show: a star that brings the same name, a name set in globals()."""
    assert Fence((code,)).target_fault(f"fence_tiny:{name}", code) is None
    with pytest.raises(
        SpecError, match=f"loss: 'fence_tiny:{name}' is not the def or class of that name in .*, but anot"
    ):
        load_target(f"fence_tiny:{name}", code, "loss")


def test_without_a_fence_every_module_may_be_named(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Fence((code,)).environment():
        monkeypatch.delenv(name)
    assert load_target("fence_tiny:F.reduce", code, "loss")(max, [1, 3, 2]) == 3


def test_data_are_read_from_what_was_judged(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file behind a link is the file itself, inside or outside."""
    (tmp_path / "away").mkdir()
    for place in (code / "own.bin", tmp_path / "away/secret.bin"):
        place.write_bytes(np.arange(4000, dtype=np.uint16).tobytes())
    (code / "inner.bin").symlink_to(code / "own.bin")
    (code / "outer.bin").symlink_to(tmp_path / "away/secret.bin")
    (code / "linked").symlink_to(tmp_path / "away")
    opened = open_token_files("in*.bin", code, context=8, dtype="auto", key="data.train")
    assert [file.path for file in opened.files] == [code / "own.bin"]
    fence = Fence((code,))
    for named in (
        "out*.bin",
        "outer.bin",
        "link*/secret.bin",
        "linked/../away/secret.bin",
        "in*/../../away/secret.bin",
    ):
        assert fence.data_fault(named, code) is not None, named
        with pytest.raises(SpecError, match="data.train: "):
            open_token_files(named, code, context=8, dtype="auto", key="data.train")
    for name in fence.environment():
        monkeypatch.delenv(name)
    assert len(open_token_files("out*.bin", code, context=8, dtype="auto", key="data.train").files) == 1


CONTENT: dict[str, Any] = {
    **{"model": {"target": "fence_tiny:Model", "size_param": "width"}, "data": {"train": "fence_tiny:made"}},
    **{"loss": "mse", "budgets": [1e5, 2e5], "train": {"lr": 0.1}},
}
TEXTS = {  # keys of text that names no code, which the schema lets be anything
    "model.size_param", "trackers.wandb.project", "trackers.wandb.entity", "trackers.mlflow.experiment", "output",
}  # fmt: skip


def test_every_key_that_can_name_code_is_fenced(code: Path) -> None:
    """Each key of a spec in turn names a shell. What takes it is refused here, or is a text."""
    base = make_spec(CONTENT, "spec")
    check_allowed(base, code, [code])
    whole = parse_yaml(dump_spec(base), "spec")
    whole["trackers"] = {
        "wandb": {"project": None, "entity": None},
        "mlflow": {"tracking_uri": None, "experiment": None},
    }
    whole["metrics"] = {"shown": None}
    taken, refused = set(), set()
    for section, value in whole.items():
        for key in value if isinstance(value, dict) else [None]:
            for last in value[key] if key is not None and isinstance(value[key], dict) else [None]:
                path = [part for part in (section, key, last) if part is not None]
                changed = parse_yaml(dump_spec(base), "spec")
                changed["trackers"] |= {"wandb": {}, "mlflow": {}}
                here = changed
                for part in path[:-1]:
                    here = here[part]
                here[path[-1]] = "os:system"
                name = ".".join(path)
                try:
                    spec = SweepSpec.model_validate(changed)
                except ValidationError:
                    continue
                taken.add(name)
                try:
                    check_allowed(spec, code, [code])
                except SpecError:
                    refused.add(name)
    assert taken - refused == TEXTS
    assert refused >= {key for key, _ in base.named_code} | {"train.lr", "metrics.shown", "model.flops_per_token"}


def test_metrics_are_sent_to_hosts_that_are_allowed(code: Path) -> None:
    def allowed(uri: str, *hosts: str) -> bool:
        spec = make_spec({**CONTENT, "trackers": {"mlflow": {"tracking_uri": uri}}}, "spec")
        try:
            check_allowed(spec, code, [code], hosts)
        except SpecError as e:
            assert "trackers.mlflow.tracking_uri" in e.faults[0]
            return False
        return True

    assert allowed("http://mlflow.example:5000", "mlflow.example") and allowed(
        "https://MLflow.example/x", "mlflow.example"
    )
    assert allowed("http://mlflow.example:5000", "mlflow.example:5000") and allowed("http://[::1]:5000", "::1")
    assert not allowed("http://mlflow.example:5001", "mlflow.example:5000")
    for uri in ("http://mlflow.example.evil.org", "http://evil.org/mlflow.example", "http://evil.org?mlflow.example",
                "http://evil.org\\.mlflow.example", "http://evil.org#mlflow.example", "ftp://mlflow.example",
                "databricks", "file:///tmp", "http:///x", "http://"):  # fmt: skip
        assert not allowed(uri, "mlflow.example"), uri
