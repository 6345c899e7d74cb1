"""Files of tables as programs write them: separators, encodings, JSON of every shape, types of parquet, and bombs."""

import decimal
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from flops_fit_ray.errors import SpecError
from flops_fit_ray.tables import read_table
from tests.surfaces import BESIROGLU, BUDGETS, sweep_on

POINTS = sweep_on(BESIROGLU, BUDGETS, sizes=5)
RUNS = pd.DataFrame(
    {"N": POINTS.params.round(), "D": POINTS.tokens.round(), "C": POINTS.flops, "loss": POINTS.loss.round(5)}
)
ROWS = RUNS.to_dict(orient="records")
CSV = RUNS.to_csv(index=False)
LINES = CSV.splitlines()


def is_read(path: Path, within: float = 1e-9) -> str:
    """Check that the file has the runs; return what was said."""
    table = read_table(path)
    assert table.refused == () and len(table.points) == 25
    for ours, theirs in (("params", "N"), ("tokens", "D"), ("loss", "loss")):
        expected = RUNS.sort_values(["C", "N"])[theirs]
        assert np.allclose(getattr(table.points, ours), expected, rtol=within), ours
    return " ".join(map(str, table.flags))


def european(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", "_").replace(".", ",").replace("_", ".")


def rows(header: str, row: Callable[[dict[Any, Any]], str]) -> str:
    return "\n".join([header, *map(row, ROWS)])


TEXTS: dict[str, Callable[[], str]] = {
    "semicolons": lambda: CSV.replace(",", ";"),
    "tabs": lambda: CSV.replace(",", "\t"),
    "pipes": lambda: CSV.replace(",", "|"),
    "spaces after commas": lambda: CSV.replace(",", ", "),
    "comments": lambda: "\n".join(["# a sweep", "", LINES[0], *LINES[1:9], "", "# more", *LINES[9:], "", ""]),
    "numpy.savetxt": lambda: "\n".join(["# N D C loss", *(" ".join(line.split(",")) for line in LINES[1:])]),
    "numbers of rows": lambda: RUNS.to_csv(),
    "row names without a header": lambda: "\n".join([LINES[0], *(f"run,{line}" for line in LINES[1:])]),
    "commas at the end": lambda: "\n".join([LINES[0], *(f"{line}," for line in LINES[1:])]),
    "decimal commas": lambda: RUNS.astype(str).replace(r"\.", ",", regex=True).to_csv(index=False, sep=";"),
    "European thousands": lambda: rows(
        "N;D;loss", lambda r: f"{european(r['N'], 0)};{european(r['D'], 0)};{european(r['loss'], 5)}"
    ),
    "thousands": lambda: rows("N,D,loss", lambda r: f'"{r["N"]:,.0f}","{r["D"]:,.0f}",{r["loss"]}'),
    "spaces for thousands": lambda: rows("N;D;loss", lambda r: f"{r['N']:,.0f};{r['D']};{r['loss']}".replace(",", " ")),
    "words in cells": lambda: rows(
        "N,D,C,loss", lambda r: f"{r['N'] / 1e9:.12g}B,{r['D'] / 1e6:.12g}M tokens,{r['C']:g} FLOPs,{r['loss']}"
    ),
    "powers of ten": lambda: rows("N,D,C,loss", lambda r: f"{r['N']},{r['D']},{r['C'] / 1e18:g}x10^18,{r['loss']}"),
    "tensors": lambda: rows("N,D,loss", lambda r: f'{r["N"]},{r["D"]},"tensor({r["loss"]}, dtype=torch.bfloat16)"'),
    "sizes as names": lambda: rows("model,D,loss", lambda r: f"{r['N'] / 1e6:.12g}M,{r['D']},{r['loss']}"),
    "objects in cells": lambda: pd.DataFrame(
        {
            "summary": [str({"val_loss": r["loss"], "_step": 9, "best": float("nan")}) for r in ROWS],
            "config": [json.dumps({"n_params": r["N"], "optim": {"lr": 1e-3}, "tokens": r["D"]}) for r in ROWS],
            "name": [f"run-{i}" for i in range(25)],
        }
    ).to_csv(),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_text(tmp_path: Path, kind: str) -> None:
    (tmp_path / "runs.csv").write_text(TEXTS[kind]())
    words = is_read(tmp_path / "runs.csv")
    assert ("decimal points" in words) == (kind in ("decimal commas", "European thousands"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "runs.csv").write_text(CSV.replace("C,", "Größe,", 1), encoding=encoding)
    assert ("Windows-1252" in is_read(tmp_path / "runs.csv")) == (encoding == "cp1252")


SHAPES: dict[str, Callable[[], object]] = {
    "split": lambda: json.loads(RUNS.to_json(orient="split", double_precision=15)),
    "columns": lambda: json.loads(RUNS.to_json(orient="columns", double_precision=15)),
    "index": lambda: {f"run{i}": row for i, row in enumerate(ROWS)},
    "one list among facts": lambda: {"project": "x", "points": ROWS},
    "nested": lambda: [
        {"config": {"model": {"n_params": r["N"], "d_model": 64}, "data": {"tokens": r["D"]}},
         "metrics": {"eval": {"loss": r["loss"]}, "train": {"loss": 9}}, "state": "finished"}
        for r in ROWS
    ],
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_json(tmp_path: Path, shape: str) -> None:
    (tmp_path / "runs.json").write_text(json.dumps(SHAPES[shape]()))
    is_read(tmp_path / "runs.json", 1e-6)


def test_types_of_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "N": pa.array(RUNS["N"].to_numpy(np.float32)),
            "D": pa.array([decimal.Decimal(int(d)) for d in RUNS["D"]]),
            "C": pa.array([f"{c:g}" for c in RUNS["C"]]).dictionary_encode(),
            "loss": pa.array(RUNS["loss"].to_numpy(np.float16)),
        }
    )
    parquet.write_table(table, tmp_path / "runs.parquet")
    is_read(tmp_path / "runs.parquet", 1e-3)
    RUNS.astype({"N": np.int64, "D": np.uint64}).set_index("N").to_parquet(tmp_path / "index.parquet")
    is_read(tmp_path / "index.parquet")
    nested = pa.table({"config": [{"params": r["N"], "tokens": r["D"]} for r in ROWS], "loss": list(RUNS["loss"])})
    parquet.write_table(nested, tmp_path / "nested.parquet")
    is_read(tmp_path / "nested.parquet")
    twice = pa.Table.from_arrays(
        [pa.array(RUNS[name]) for name in ("N", "D", "loss", "C")], names=["N", "D", "loss", "loss"]
    )
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(SpecError, match="has 2 columns called 'loss' that differ"):
        read_table(tmp_path / "twice.parquet")


def refused(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as caught:
        read_table(path)
    assert len(caught.value.faults) == 1 and len(str(caught.value)) < 500


def test_what_is_no_table_of_runs_is_named(tmp_path: Path) -> None:
    wide = "size,1e18,1e19,1e20\n" + "\n".join(f"{i},3.{i},3.1,3.2" for i in range(5))
    refused(tmp_path / "runs.csv", wide.encode(), "is wide: 3 of its 4 headers are numbers")
    refused(tmp_path / "runs.csv", "\n".join(LINES[1:]).encode(), "has no header: its first line is numbers")
    refused(tmp_path / "runs.csv", gzip.compress(CSV.encode()), "it is binary, not text")
    refused(tmp_path / "runs.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of Git LFS")
    state = {
        "global_step": 9,
        "log_history": [{"loss": 5 - i, "step": i} for i in range(4)],
    }  # of Hugging Face's Trainer
    refused(tmp_path / "runs.json", json.dumps(state).encode(), "has no column for params and tokens and flops")
    refused(tmp_path / "runs.json", b"[[1, 2], [3, 4]]", "must be a list of objects")
    refused(tmp_path / "runs.jsonl", b'{"N": 1}\n{"N": 2', "line 2: ")
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(SpecError, match="is not a file"):
        read_table(tmp_path / "dir.csv")


def test_bombs_are_refused_before_they_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = pa.array(np.zeros(15_000_000, dtype=np.float32))  # kilobytes in the file
    parquet.write_table(pa.table({"N": zeros, "D": zeros, "loss": zeros}), tmp_path / "runs.parquet")
    assert (tmp_path / "runs.parquet").stat().st_size < 1e6
    with pytest.raises(SpecError, match="15,000,000 rows of 3 columns"):
        read_table(tmp_path / "runs.parquet")
    keys = json.dumps([{f"k{i}_{j}": 1 for j in range(4)} for i in range(4000)])  # a column per cell
    refused(tmp_path / "runs.json", keys.encode(), "has 16,000 columns, and 5,000 are read at most")
    refused(tmp_path / "runs.json", b"[" * 100_000, "cannot be read as a table: maximum recursion depth")
    refused(
        tmp_path / "runs.csv",
        (",".join(f"c{i}" for i in range(4000)) + "\n" * 20_000).encode(),
        "80,000,000|20,000 rows of 4,000",
    )
    for name in ("MAX_TEXT", "MAX_JSON"):
        monkeypatch.setattr(f"flops_fit_ray.tables._load.{name}", 1_000_000)
    packed = gzip.compress(b" " * 2_000_000)
    for name in ("runs.csv.gz", "runs.json.gz", "runs.jsonl.gz"):
        refused(tmp_path / name, packed, "is larger than 1 MB unpacked")


def test_headers_that_occur_again_have_names_of_their_own(tmp_path: Path) -> None:
    points = sweep_on(BESIROGLU, BUDGETS, sizes=5)
    columns = [points.params, points.tokens, points.loss, *[np.ones(len(points.loss))] * 3]
    table = pa.Table.from_arrays([pa.array(c) for c in columns], names=["N", "D", "loss", "note", "note", "note.1"])
    parquet.write_table(table, tmp_path / "t.parquet")
    assert len(read_table(tmp_path / "t.parquet").points) == len(points)


def test_json_that_is_not_utf8_is_said(tmp_path: Path) -> None:
    points = sweep_on(BESIROGLU, BUDGETS, sizes=5)
    rows = [
        {"N": n, "D": d, "loss": loss, "by": "Zürich"}
        for n, d, loss in zip(points.params, points.tokens, points.loss, strict=True)
    ]
    path = tmp_path / "t.json"
    path.write_bytes(json.dumps(rows, ensure_ascii=False).encode("cp1252"))
    assert "it is not UTF-8 and was read as Windows-1252" in [flag.message for flag in read_table(path).flags]
