"""Everything that people get wrong in a spec, and what they must be told: F21.

`python -m tests.bad_values` tries each in a process of its own, and prints how long the answer took.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

GOOD: dict[str, Any] = {
    "name": "tiny",
    "model": {"target": "parts:Net", "size_param": "width", "sizes": [4, 8, 16]},
    "data": {"train": "parts:data"},
    "loss": "mse",
    "budgets": [1e5, 2e5],
    "train": {"batch_size": 8, "lr": 1e-2},
    "resources_per_trial": {"cpu": 1},
}
PARTS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self, width, heads=1):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}")
        self.layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x):
        return self.layers(x)


class Empty(nn.Module):
    def __init__(self, width):
        super().__init__()

    def forward(self, x):
        return x[:, :1]


class Flat(Net):
    def __init__(self, width):
        super().__init__(8)


class Shrinking(Net):
    def __init__(self, width):
        super().__init__(64 - 2 * width)


class Scaled(Net):
    def __init__(self, width):
        super().__init__(width)
        self.scale = nn.Parameter(torch.tensor(1.0))


class Bigram(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table, self.head = nn.Embedding(50, width), nn.Linear(width, 50)

    def forward(self, ids):
        return self.head(self.table(ids))


number = 3


def data(samples=2000):
    return TensorDataset(torch.rand(samples, 8), torch.rand(samples, 1))


def missing():
    raise FileNotFoundError(2, "No such file or directory", "/data/train.npy")
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is wrong, and words of the answer: the key's path, the value, the way out."""

    words: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)  # by path, `train.lr`; None removes
    raw: bytes | None = None  # the file itself
    prepare: Callable[[Path], None] | None = None
    spec: str = "sweep.yaml"
    options: tuple[str, ...] = ()


def _bin(content: bytes) -> Callable[[Path], None]:
    def prepare(where: Path) -> None:
        (where / "tokens.bin").write_bytes(content)

    return prepare


def _unreadable(where: Path) -> None:
    (where / "sweep.yaml").unlink()
    (where / "sweep.yaml").symlink_to(where / "sweep.yaml")  # permissions do not stop root; a loop does


def _no_room(where: Path) -> None:
    (where / "file").write_text("")


def _tokens(**more: Any) -> dict[str, Any]:
    data = {"train": "tokens.bin", "context": 16, "dtype": "uint16"}
    return {"model.target": "parts:Bigram", "data": data, "loss": "cross_entropy", **more}


BAD: dict[str, Case] = {
    "no budgets": Case(changes={"budgets": None}, words=("budgets: is missing",)),
    "budgets []": Case(changes={"budgets": []}, words=("budgets: has no budgets", "at least 2")),
    "budgets a scalar": Case(changes={"budgets": 1e18}, words=("budgets: ", "list", "1e+18")),
    "budget 1e18x": Case(changes={"budgets": [1e18, "1e18x"]}, words=("budgets.1", "number", "1e18x")),
    "budget 0": Case(changes={"budgets": [0, 1e5]}, words=("budgets.0", "positive, finite", "got 0")),
    "budget negative": Case(changes={"budgets": [1e5, -1.0]}, words=("budgets.1", "positive, finite", "-1")),
    "budget nan": Case(changes={"budgets": [1e5, float("nan")]}, words=("budgets.1", "positive, finite", "nan")),
    "budget inf": Case(changes={"budgets": [1e5, float("inf")]}, words=("budgets.1", "positive, finite", "inf")),
    "budgets twice": Case(changes={"budgets": [1e5, 1e5]}, words=("budgets: [100000.0] are given twice",)),
    "one budget": Case(changes={"budgets": [1e5]}, words=("budgets: has 1 budget;", "at least 2")),
    "bugets": Case(changes={"bugets": [1e5]}, words=("bugets: unknown key; did you mean 'budgets'?",)),
    "nested typo": Case(changes={"train.batch_sise": 4}, words=("train.batch_sise", "did you mean 'batch_size'?")),
    "key twice": Case(raw=b"name: a\nname: b\n", words=("line 2, column 1: duplicate key 'name'",)),
    "tab": Case(raw=b"model:\n\ttarget: x\n", words=("line 2, column 1",)),
    "syntax": Case(raw=b"budgets: [1, 2\nname: x\n", words=("line 2, column",)),
    "python object": Case(raw=b"name: !!python/object/apply:os.system [ls]\n", words=("line 1", "constructor")),
    "alias bomb of few aliases": Case(
        raw=b"a0: &a0 [1, 1]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 30)),
        words=("line 13", "more than 20000 values"),
    ),
    "holds itself": Case(raw=b"a: &a {b: *a}\n", words=("line 1", "a value that holds itself")),
    "too many values": Case(raw=b"a: [" + b"1," * 20_000 + b"]\n", words=("more than 20000 values",)),
    "too deep": Case(raw=b"a: " + b"[" * 65 + b"]" * 65, words=("nested too deeply",)),
    "a number of digits": Case(
        raw=b"budgets: [" + b":".join([b"59"] * 5000) + b"]", words=("a number of thousands of digits",)
    ),
    "alias bomb": Case(raw=b"a: &a [1]\nb: [" + b"*a, " * 99 + b"]\n", words=("line 2", "more than 64 aliases")),
    "empty file": Case(raw=b"", words=("is empty; `flops-fit-ray init` writes a starter",)),
    "top-level list": Case(raw=b"- 1\n", words=("holds a list, not keys and values",)),
    "file missing": Case(spec="none.yaml", words=("none.yaml: no such file; `flops-fit-ray init`",)),
    "a directory without one": Case(spec="..", words=("sweep.yaml: no such file",)),
    "unreadable": Case(prepare=_unreadable, words=("sweep.yaml: cannot be read",)),
    "not UTF-8": Case(raw=b"name: \xff\n", words=("is not UTF-8 text (byte 6)",)),
    "over 1 MiB": Case(raw=b"# " + b"x" * (1 << 20), words=("has 1048578 bytes; a spec is at most 1048576",)),
    "target without colon": Case(
        changes={"model.target": "parts.Net"}, words=("model.target", "parts.Net", "module:attr")
    ),
    "target pkg:": Case(changes={"model.target": "parts:"}, words=("model.target", "'parts:'", "module:attribute")),
    "no module": Case(changes={"model.target": "prats:Net"}, words=("model.target: no module 'prats'",)),
    "no attribute": Case(
        changes={"model.target": "parts:Nett"}, words=("model.target", "'Nett'", "did you mean 'Net'")
    ),
    "not callable": Case(
        changes={"model.target": "parts:number"}, words=("model.target: 'parts:number' is of type int",)
    ),
    "no size parameter": Case(changes={"model.size_param": "depth"}, words=("model.size_param", "no argument 'depth'")),
    "not divisible": Case(
        changes={"model.kwargs": {"heads": 3}}, words=("model.sizes", "width=4", "divisible by heads=3")
    ),
    "no parameters": Case(changes={"model.target": "parts:Empty"}, words=("model", "parameters")),
    "N not increasing": Case(
        changes={"model.target": "parts:Flat"}, words=("model.sizes: 3 sizes, 4 to 16, have N = 81",)
    ),
    "N decreasing": Case(
        changes={"model.target": "parts:Shrinking"}, words=("model.sizes: N falls from 561 at size 4 to 481 at size 8",)
    ),
    "two sizes": Case(changes={"model.sizes": [4, 8]}, words=("sizes", "3")),
    "size 0": Case(changes={"model.sizes": [0, 4, 8]}, words=("model.sizes: [0] are not positive whole numbers",)),
    "size negative": Case(changes={"model.sizes": [-4, 4, 8]}, words=("model.sizes: [-4] are not positive",)),
    "size twice": Case(changes={"model.sizes": [4, 4, 8]}, words=("model.sizes: [4] are given twice",)),
    "size fractional": Case(changes={"model.sizes": [4.5, 8, 16]}, words=("model.sizes.0", "whole number", "4.5")),
    "dataset not found": Case(changes={"data.train": "parts:missing"}, words=("data.train", "/data/train.npy")),
    "token file not found": Case(changes=_tokens(), words=("data.train", "tokens.bin")),
    "dataset empty": Case(changes={"data.kwargs": {"samples": 0}}, words=("data.train: is empty",)),
    "smaller than a batch": Case(changes={"data.kwargs": {"samples": 6}}, words=("data.train", "batch")),
    "beyond one epoch": Case(changes={"budgets": [1e5, 1e9]}, words=("data.train", "max_epochs")),
    "odd .bin": Case(changes=_tokens(), prepare=_bin(b"\1" * 9999), words=("data.train", "tokens.bin", "9999")),
    "token id": Case(
        changes=_tokens(),
        prepare=_bin(np.full(99_999, 50, np.uint16).tobytes()),
        words=("data.train: has the id 50", "largest lookup table 50 entries"),
    ),
    "batch 0": Case(changes={"train.batch_size": 0}, words=("train.batch_size", "greater than 0", "got 0")),
    "lr negative": Case(changes={"train.lr": -1.0}, words=("train.lr: must be a positive, finite number (got -1",)),
    "lr text": Case(changes={"train.lr": "fast"}, words=("train.lr: must be a number, a rule", "got 'fast'")),
    "schedule": Case(changes={"train.schedule": "cosin"}, words=("train.schedule", "wsd, cosine", "mean 'cosine'")),
    "optimizer": Case(changes={"train.optimizer": "adm"}, words=("train.optimizer", "adamw, sgd")),
    "precision": Case(changes={"train.precision": "fp8"}, words=("train.precision", "fp32", "bf16", "fp8")),
    "warmup too long": Case(changes={"train.warmup_tokens": 10**9}, words=("train.warmup_tokens", "1000000000")),
    "decay 0": Case(changes={"train.decay_fraction": 0}, words=("train.decay_fraction", "greater than 0")),
    "decay 1": Case(changes={"train.decay_fraction": 1}, words=("train.decay_fraction", "less than 1")),
    "seed": Case(changes={"train.seed": -1}, words=("train.seed", "greater than or equal to 0", "-1")),
    "output not writable": Case(
        prepare=_no_room, options=("--output", "file/out"), words=("file/out", "cannot be written", "--output")
    ),
    "output is a file": Case(prepare=_no_room, options=("--output", "file"), words=("file", "cannot", "--output")),
    "output in the package": Case(options=("--output", "PACKAGE/runs"), words=("flops_fit_ray/runs", "--output")),
    "more cores than there are": Case(
        changes={"resources_per_trial": {"cpu": 4096}},
        words=("resources_per_trial is {cpu: 4096}, but the largest node has",),
    ),
    "half a GPU too many": Case(changes={"resources_per_trial": {"gpu": 1.5}}, words=("resources_per_trial", "1.5")),
    "resources negative": Case(changes={"resources_per_trial": {"gpu": -1}}, words=("resources_per_trial.gpu", "-1")),
    "resources in the plural": Case(
        changes={"resources_per_trial": {"gpus": 1}}, words=("resources_per_trial", "gpus", "did you mean 'gpu'")
    ),
    "resources a word": Case(changes={"resources_per_trial": "atuo"}, words=("resources_per_trial", "or auto", "atuo")),
    "workers do not divide": Case(changes={"workers_per_trial": 3}, words=("workers_per_trial: 3", "batch_size 8")),
    "workers share a share": Case(
        changes={"workers_per_trial": 2, "resources_per_trial": "auto"}, words=("resources_per_trial: auto", "workers")
    ),
    "nobody to share a model with": Case(changes={"shard_model": True}, words=("shard_model", "set workers_per_trial")),
    "a shared model in fp16": Case(
        changes={"shard_model": True, "workers_per_trial": 2, "train.precision": "fp16"},
        words=("shard_model", "fp16", "bf16 or fp32"),
    ),
    "a shared model is not measured": Case(
        changes={"shard_model": True, "workers_per_trial": 2, "train.precision": "auto"},
        words=("shard_model", "train.precision: auto", "choose a value"),
    ),
    "a number cannot be shared": Case(
        changes={"shard_model": True, "workers_per_trial": 2, "model.target": "parts:Scaled"},
        words=("shard_model: scale has no dimension", "(1,)"),
    ),
    "two rules for tokens": Case(
        changes={"data.count_tokens": "parts:count", "data.tokens_per_sample": 2},
        words=("data: ", "count_tokens and tokens_per_sample both define a token; give one of them"),
    ),
    "a GPU that is not asked for": Case(
        options=("--device", "cuda"), words=("device is cuda, and resources_per_trial asks for no GPU", "{gpu: 1}")
    ),
    "device": Case(changes={"device": "gpu"}, words=("device: must be 'auto', 'cpu' or 'cuda' (got 'gpu')",)),
    "resources nothing": Case(changes={"resources_per_trial": {}}, words=("resources_per_trial", "{gpu: 1}")),
    "unknown tracker": Case(changes={"trackers": {"wnadb": {}}}, words=("trackers.wnadb", "did you mean 'wandb'")),
    "a tracker's secret": Case(
        changes={"trackers": {"mlflow": {"tracking_uri": "http://me:pw@host"}}},
        words=("trackers.mlflow.tracking_uri", "MLFLOW_TRACKING_PASSWORD"),
    ),
    "tracker": Case(changes={"tracker": "wandb"}, words=("tracker: unknown key",)),
    "checkpoint interval 0": Case(changes={"checkpoint": {"minutes": 0}}, words=("checkpoint.minutes", "positive")),
    "checkpoint steps 0": Case(changes={"checkpoint": {"steps": 0}}, words=("checkpoint.steps", "greater than 0")),
    "retries negative": Case(changes={"max_retries": -1}, words=("max_retries", "-1")),
    "override without a value": Case(options=("--set", "train.lr"), words=("--set", "train.lr", "a.b=c")),
    "override of a typo": Case(options=("--set", "train.l=1"), words=("train.l", "did you mean 'lr'?")),
    "until": Case(changes={"model.sizes": "auto"}, options=("--until", "1,3"), words=("--until", "FACTOR[@C]")),
}
WORKS: dict[str, dict[str, Any]] = {  # that look odd, and are right
    "a number with a whole exponent": {"checkpoint": {"steps": 1e3}},
    "a third of a GPU": {"resources_per_trial": {"gpu": 0.3}},
    "tokens by a number": {"data": {"train": "parts:data", "tokens_per_sample": 2}},
    "tokens by a function": {"data": {"train": "parts:data", "count_tokens": "parts:count"}},
}


def prepare(case: Case, where: Path) -> list[str]:
    """Write the project of a case; returns the arguments of `run`."""
    where.mkdir(parents=True)
    (where / "parts.py").write_text(PARTS)
    content = {name: dict(value) if isinstance(value, dict) else value for name, value in GOOD.items()}
    for path, value in case.changes.items():
        *parents, last = path.split(".")
        here = content
        for name in parents:
            here = here[name]
        here[last] = value
    content = {name: value for name, value in content.items() if value is not None}
    raw = yaml.safe_dump(content).encode() if case.raw is None else case.raw
    (where / "sweep.yaml").write_bytes(raw)
    if case.prepare is not None:
        case.prepare(where)
    package = str(Path(__file__).parent.parent / "flops_fit_ray")
    options = [o.replace("PACKAGE", package).replace("file", str(where / "file")) for o in case.options]
    return ["run", str(where / case.spec), *options]


def main() -> None:
    """Each in a process of its own: what it says, and how long that takes."""
    slowest = 0.0
    for name, case in BAD.items():
        with tempfile.TemporaryDirectory() as where:
            arguments = prepare(case, Path(where) / "p")
            started = time.perf_counter()
            command = [sys.executable, "-m", "flops_fit_ray", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
            seconds = time.perf_counter() - started
            slowest = max(slowest, seconds)
            good = done.returncode == 2 and all(word in done.stderr for word in case.words)
            answer = (done.stderr.strip().splitlines() or [""])[-1].replace(where, "")
            print(f"{'ok ' if good else 'BAD'} {seconds:4.1f} s  {name}: {answer[:150]}", flush=True)  # noqa: T201
    print(f"{len(BAD)} tried, slowest {slowest:.1f} s")  # noqa: T201


if __name__ == "__main__":
    main()
