"""The page of JSON: records of the files, and objects that commands print, made of a real sweep directory."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import math
import re
import tarfile
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from click.testing import CliRunner

from docs.markdown import ROOT
from docs.reference._python import comments
from docs.reference._tables import code, page, table
from flops_fit_ray.cli._commands import commands
from flops_fit_ray.console.json_lines import result_fields
from flops_fit_ray.flags import Flag
from flops_fit_ray.ledger import ExperimentResult, Failure, Progress
from flops_fit_ray.ledger._table import COLUMNS
from flops_fit_ray.ledger.hardware import Cluster, Gpu, Machine
from flops_fit_ray.planning import Experiment
from flops_fit_ray.planning._price import Price
from flops_fit_ray.report.page import summary_to_json
from flops_fit_ray.service.app import Settings, make_app, make_state
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.scores import Score
from flops_fit_ray.sweep.simulate import Simulation
from flops_fit_ray.training.loop.meter import CurvePoint
from flops_fit_ray.training.preflight.check import CheckReport

SWEEP = ROOT / "tests" / "golden" / "1-watched.tar.gz"
RECORDS: Mapping[str, tuple[type, str]] = {
    "A result": (ExperimentResult, "experiments/KEY/result.json; an `outcome` of `--json-lines`"),
    "A failure": (
        Failure,
        "experiments/KEY/failure.json; an `outcome` of `--json-lines`; `failures` of `status --json`",
    ),
    "Progress": (Progress, "experiments/KEY/progress.json, once a second; `running` of `status --json`"),
    "A planned experiment": (Experiment, "`experiments` and `forecast` of plan.json; experiments/KEY/experiment.json"),
    "A point of a curve": (CurvePoint, "rows of experiments/KEY/curve.parquet, at most about 250"),
    "A warning": (Flag, "`warnings` of fits and predictions"),
    "A score": (Score, "`scores` of `score --json`; `forecasts` of summary.json and `status --json`"),
    "A check": (CheckReport, "`check --json`, with its `verdict`"),
    "A simulation": (Simulation, "`plan --simulate --json`"),
    "A price": (Price, "`price` of plan.json and `plan --json`"),
    "The cluster": (Cluster, "cluster.json"),
    "A machine": (Machine, "`machines` of cluster.json; `machine` and `others` of progress"),
    "A GPU": (Gpu, "`gpus` of a machine"),
}


def render() -> str:
    """Return the page."""
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(SWEEP) as archive:
        archive.extractall(scratch, filter="data")
        spec = Path(scratch) / "1-watched" / "sweep.yaml"
        spec.write_text(spec.read_text().replace("draws: 2000", "draws: 20"))  # the names are the same, and soon there
        objects = _objects(open_sweep(spec.parent), _table(Path(scratch)))
        routes = list(_routes(Path(scratch)))
    return page(
        "JSON",
        f"Every object has `schema_version`, now {SCHEMA_VERSION}. Fields are added, and never renamed or removed "
        "within a version. With `--json` a command prints one object to stdout, and everything else to stderr; with "
        "`--json-lines` `run`, `extend` and `status --watch` print one object a line with `kind` and `at` (seconds "
        "since the epoch). Warnings have a stable `code` ([what each means](../troubleshooting.md)), a `severity` "
        "(`info`, `warning`, `severe`) and a `message` for people. Numbers that are not known are null.",
        "## Objects",
        *(part for name, value in objects.items() for part in (f"### {name}", table(["field", "holds"], _rows(value)))),
        "## Records",
        *(part for name, (kind, where) in RECORDS.items() for part in _record(name, kind, where)),
        "## Tables",
        f"`results.parquet` and `results.csv`: {' '.join(map(code, COLUMNS))}, and a column `metric_NAME` for each "
        "metric. One row per planned experiment.",
        "## REST",
        "The routes of `flops-fit-ray serve`; `GET /api/v1/openapi.json` has parameters and schemas.",
        table(["", "route", "does"], routes),
    )


def _objects(sweep: Sweep, runs: Path) -> dict[str, Any]:
    """Return what the code says of a sweep and of a table of runs, by the command or file that holds it."""
    where, of_table = str(sweep.paths.root), ["--draws", "0", "--json"]
    return {
        "fit --json, analysis.json": _both(
            _printed(["fit", where, "--at", "1e6", "--next", "1", "--json"]),
            _printed(["fit", str(runs), "--at", "1e20", *of_table]),
        ),
        "predict --json": _both(
            _printed(["predict", "1e6", where, "--json"]),
            _printed(["predict", "1e20", str(runs), "--unique", "1e9", *of_table]),
            _printed(["predict", "--hours", "8", str(runs), *of_table]),
        ),
        "compare --json": _printed(["compare", where, where, "--draws", "0", "--json"]),
        "score --json": _printed(["score", where, "--json"]),
        "status --json": _printed(["status", where, "--json"]),
        "run --json": {"schema_version": SCHEMA_VERSION, **result_fields(sweep)},
        "summary.json": summary_to_json(sweep),
        "plan --json, plan.json": sweep.plan.to_json(),
    }


def _table(where: Path) -> Path:
    """Write a table of runs, some of which repeat their data, by the surface of Besiroglu et al. 2024."""
    lines = ["N,D,loss,unique_tokens,seconds"]
    for c in (1e17, 3e17, 1e18, 3e18):
        for k in range(-2, 3):
            n = 0.11 * c**0.5 * 1.8**k
            d = c / 6 / n
            unique = d if k >= 0 else d / 6
            worth = unique * (1 + 15.4 * (1 - math.exp(-(d / unique - 1) / 15.4)))  # Muennighoff et al. 2023
            loss = 1.8172 + 482.01 / n**0.3478 + 2085.43 / worth**0.3658 + 0.003 * math.sin(7 * k + c / 1e17)
            lines.append(f"{n:.0f},{d:.0f},{loss:.5f},{unique:.0f},{c / 1e12:.1f}")
    path = where / "runs.csv"
    path.write_text("\n".join(lines))
    return path


def _both(first: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of several objects, each as the first holds it that has something in it."""
    names = dict.fromkeys(name for one in (first, *others) for name in one)
    held = {name: [one.get(name) for one in (first, *others)] for name in names}
    return {
        name: next((value for value in values if value not in (None, [], {})), None) for name, values in held.items()
    }


def _printed(arguments: Sequence[str]) -> Any:
    return json.loads(CliRunner().invoke(commands, arguments, catch_exceptions=False).stdout)


def _rows(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, held in value.items():
        yield code(name), _shape(held)


def _shape(value: Any) -> str:
    """Return the kind of a value, and the names of what is in it."""
    if isinstance(value, Mapping):
        if value and all(isinstance(inner, Mapping) for inner in value.values()):
            return f"by name ({', '.join(map(code, value))}): {_names(value.values())}"
        return f"object: {_names([value])}" if value else "object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and all(isinstance(item, Mapping) for item in value):
            return f"list: {_names(value)}"
        return f"list of {_shape(value[0])}s" if value and not isinstance(value[0], Sequence) else "list"
    kinds = {bool: "true or false", int: "number", float: "number", str: "text", type(None): "null"}
    return kinds[type(value)]


def _names(values: Any) -> str:
    names = dict.fromkeys(name for value in values for name in value)
    return " ".join(map(code, names))


def _record(name: str, kind: type, where: str) -> Iterator[str]:
    yield f"### {name}"
    yield f"In {where}."
    said = {
        key: text
        for base in kind.__mro__[::-1]
        if dataclasses.is_dataclass(base)
        for key, text in comments(base).items()
    }
    hints = get_type_hints(kind)
    rows = [
        (code(f.name), _words(hints[f.name]), re.sub(r"\bNone\b", "null", said.get(f.name, "")))
        for f in dataclasses.fields(kind)
    ]
    yield table(["field", "holds", ""], rows)


_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "anything"}


def _words(hint: Any) -> str:
    """Return the JSON that a type becomes, in words."""
    inner = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_words, inner))
    if get_origin(hint) is Literal:
        return ", ".join(map(code, inner))
    if get_origin(hint) in (tuple, list, collections.abc.Sequence):
        several = inner[:1] if Ellipsis in inner or len(inner) == 1 else inner
        return f"list of {', '.join(map(_words, several))}"
    if get_origin(hint) in (dict, collections.abc.Mapping):
        return f"object, {_words(inner[1])} by name" if inner[1] is not Any else "object"
    if dataclasses.is_dataclass(hint):
        return f"object: {' '.join(code(f.name) for f in dataclasses.fields(hint))}"
    return _PLAIN[hint]


def _routes(root: Path) -> Iterator[tuple[str, str, str]]:
    settings = Settings(root=root, code=(), port=0)
    schema = make_app(make_state(settings), "", settings.hosts).openapi()
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            yield method.upper(), code(path), (route.get("description") or route.get("summary", "")).split("\n\n")[0]
