"""Loading of a file as rows and columns: formats, encodings, separators, nested JSON, and limits of size."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Ints
from flops_fit_ray.errors import SpecError, first_line

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json")
MAX_TEXT = 256_000_000  # bytes of CSV, unpacked: millions of runs; in memory it takes about ten times as much
MAX_JSON = 100_000_000  # bytes of JSON, unpacked
MAX_CELLS = 40_000_000  # rows times columns
MAX_COLUMNS = 5_000
ROWS_KEYS = ("results", "experiments", "runs", "rows", "records", "trials", "data", "log_history", "history")
SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Rows of a file. `lines` (rows,) are those of the file; of parquet and JSON the rows, from 1."""

    frame: pd.DataFrame
    lines: Ints
    semicolons: bool = False  # between the cells of a CSV
    notes: tuple[str, ...] = ()  # of what had to be assumed about the file


def load(path: Path) -> Loaded:
    """Load the file; cells of CSV are text.

    Raises:
        SpecError: it is not there, is too large, or is no table.
    """
    name = path.name.lower().removesuffix(".gz")
    kind = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if kind is None:
        raise SpecError(str(path), [f"is not a readable table; use one of {', '.join(SUFFIXES)}"])
    if not path.exists():
        raise SpecError(str(path), ["no such file"])
    if not path.is_file():
        raise SpecError(str(path), ["is not a file"])
    try:
        if kind == ".parquet":
            loaded = _load_parquet(path)
        else:
            cells = kind in (".csv", ".tsv")
            text, notes = _decoded(_content(path, MAX_TEXT if cells else MAX_JSON))
            loaded = _load_text(text, kind) if cells else _load_json(text, lines=kind != ".json")
            loaded = replace(loaded, notes=notes)
    except SpecError as e:
        raise SpecError(str(path), e.faults) from e.__cause__
    # pandas and pyarrow raise subclasses of these
    except (OSError, EOFError, ValueError, TypeError, AttributeError, RecursionError, csv.Error) as e:
        raise SpecError(str(path), [f"cannot be read as a table: {first_line(e)}"]) from e
    for i in range(len(loaded.frame.columns)):  # an empty cell of text is an empty text
        column = loaded.frame.iloc[:, i]
        if getattr(column.dtype, "kind", "O") not in "iufb" and column.isna().any():
            loaded.frame.isetitem(i, column.astype(object).where(column.notna(), "").to_numpy(dtype=object))
    loaded.frame.columns = _distinct(str(column).strip() for column in loaded.frame.columns)
    return loaded


def _distinct(names: Iterable[str]) -> list[str]:
    """Number names that occur again as pandas does: loss, loss.1; names that are there already are passed over."""
    wanted = list(names)
    taken, seen, found = set(wanted), Counter[str](), []
    for name in wanted:
        numbered = name
        while seen[name] and numbered in taken:
            numbered = f"{name}.{seen[name]}"
            seen[name] += 1
        seen[name] += not seen[name]
        taken.add(numbered)
        found.append(numbered)
    return found


def _check_size(rows: int, columns: int) -> None:
    """Refuse a table before it is made.

    Raises:
        SpecError: it has too many columns or cells.
    """
    if columns > MAX_COLUMNS:
        raise SpecError("", [f"has {columns:,} columns, and {MAX_COLUMNS:,} are read at most"])
    if rows * columns > MAX_CELLS:
        raise SpecError("", [f"has {rows:,} rows of {columns:,} columns, and {MAX_CELLS:,} cells are read at most; "
                             "keep the last row of each run, or sample the rows"])  # fmt: skip


def _content(path: Path, limit: int) -> bytes:
    """Read a file, unpacked if it is packed; it is refused before more than `limit` bytes are in memory."""
    packed_up = path.suffix.lower() == ".gz"
    with path.open("rb") as packed, _opened(packed, packed_up) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise SpecError("", [
            f"is larger than {fmt.size(limit)}{' unpacked' if packed_up else ''}, which is no table of runs to be read "
            "at once; keep the last row of each run, or sample the rows"
        ])  # fmt: skip
    return content


def _opened(file: IO[bytes], packed: bool) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if packed else file


def _decoded(content: bytes) -> tuple[str, tuple[str, ...]]:
    """Decode text by its byte order mark, as UTF-8, by the zeros of UTF-16, else as Windows-1252."""
    for mark, encoding in ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
                           (b"\xfe\xff", "utf-16")):  # fmt: skip
        if content.startswith(mark):
            return content.decode(encoding), ()
    head = content[:1000]
    if head.count(0) > len(head) // 4:  # ASCII in two bytes each
        return content.decode("utf-16-le" if head[1:2] == b"\0" else "utf-16-be"), ()
    if content.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS, not the file; run `git lfs pull`")
    if b"\0" in head:
        raise ValueError("it is binary, not text")
    try:
        return content.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace"), ("it is not UTF-8 and was read as Windows-1252",)


def _load_text(text: str, kind: str) -> Loaded:
    """Load a CSV; comments and blank lines before the header are skipped, and the separator is found there."""
    import pandas as pd

    begin, header = _header(text)
    if not header:
        raise ValueError("it is empty")
    separator = _separator(header, kind)
    body = text[begin:].lstrip("# \t") if header.lstrip().startswith("#") else text[begin:]
    names = next(csv.reader([header], delimiter=separator))
    _check_size(text.count("\n", begin), len(names))
    if all(_is_number(name) for name in names):
        raise SpecError("", [
            f"has no header: its first line is numbers ({', '.join(names[:4])}); put names there, such as N,D,C,loss"
        ])  # fmt: skip
    frame = pd.read_csv(
        io.StringIO(body),
        sep=r"\s+" if separator == " " else separator,
        skipinitialspace=True,
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=False,
    )
    if not isinstance(frame.index, pd.RangeIndex):  # one cell more than names: a separator at the end, or row names
        if (frame.iloc[:, -1].fillna("") == "").all():
            shifted = frame.reset_index().iloc[:, : len(frame.columns)]
            shifted.columns = frame.columns
            frame = shifted
        frame = frame.reset_index(drop=True)
    frame = frame.fillna("")
    lines = np.arange(len(frame)) + 2 + text.count("\n", 0, begin)
    first = frame.iloc[:, 0].astype(str).str.lstrip()
    said = (frame.iloc[:, 1:] != "").any(axis=1) if len(frame.columns) > 1 else first != ""
    keep = np.array(said | ((first != "") & ~first.str.startswith("#")), dtype=bool)  # neither blank nor a comment
    frame = _unpacked(frame[keep].reset_index(drop=True))
    return Loaded(frame=frame, lines=lines[keep], semicolons=separator in ";\t")


def _header(text: str) -> tuple[int, str]:
    """Return offset and text of the header: the first line that is neither blank nor a comment.

    Where only numbers follow, the last comment is the header, as numpy.savetxt writes it.
    """
    begin, comment = 0, (0, "")
    for line in io.StringIO(text):
        bare = line.strip()
        if bare.startswith("#"):
            comment = (begin, line)
        elif bare:
            cells = re.split(r"[,;\t| ]+", bare)
            named = len(re.split(r"[,;\t| ]+", comment[1].strip("# \t\r\n"))) == len(cells)
            return comment if named and all(map(_is_number, cells)) else (begin, line)
        begin += len(line)
    return comment


def _separator(header: str, kind: str) -> str:
    """Return the separator that the header has most of; the usual one of the suffix first, spaces last."""
    outside = re.sub(r'"[^"]*"', "", header)
    usual = "\t" if kind == ".tsv" else ","
    if usual in outside and not outside.count(usual) < max(outside.count(s) for s in SEPARATORS):
        return usual
    most = max(SEPARATORS, key=outside.count)
    if most in outside:
        return most
    return " " if re.search(r"\S\s{2,}\S", header.strip()) or len(header.split()) > 2 else usual


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _load_parquet(path: Path) -> Loaded:
    """Load parquet, refused by its own count of cells and bytes before a page is unpacked."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        meta = file.metadata
        unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        _check_size(meta.num_rows, meta.num_columns)
        if unpacked > MAX_TEXT:
            raise SpecError("", [f"holds {fmt.size(unpacked)}, and {fmt.size(MAX_TEXT)} are read at most"])
        table = file.read()
    table = table.rename_columns(_distinct(table.column_names))
    for i, column in enumerate(table.schema):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
            table = table.set_column(i, column.name, _as_double(table.column(i)))
    frame = table.to_pandas(ignore_metadata=True)  # with its index as a column
    return Loaded(frame=_spread_objects(frame), lines=np.arange(len(frame)) + 1)


def _as_double(column: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.float32()).cast(pa.float64()) if pa.types.is_float16(column.type) else column.cast("float64")


def _load_json(text: str, lines: bool) -> Loaded:
    import pandas as pd

    if lines:
        numbered = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        rows = [_object(i, line) for i, line in numbered]
        return Loaded(frame=_frame(rows), lines=np.array([i for i, _ in numbered], dtype=np.int64))
    content = _records(json.loads(text))
    frame = _frame(content) if isinstance(content, list) else _spread_objects(pd.DataFrame(content))
    return Loaded(frame=frame, lines=np.arange(len(frame)) + 1)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Make a table of objects; an object in an object becomes columns: {"config": {"N": 1e6}} is config.N."""
    import pandas as pd

    rows = [_flat(row) if any(isinstance(value, dict) for value in row.values()) else row for row in rows]
    names: set[str] = set()
    for row in rows:
        names.update(row)
    _check_size(len(rows), len(names))
    return pd.DataFrame(rows)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": cell for inner, cell in _flat(value).items()}
        else:
            flat[str(name)] = value
    return flat


def _object(number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as e:
        raise ValueError(f"line {number}: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"line {number} is no JSON object")
    return value


def _records(content: Any) -> Any:
    """Rows of a JSON document: a list, columns, columns and data, or a mapping that holds one of them."""
    if isinstance(content, dict):
        names, data = content.get("columns"), content.get("data")
        if isinstance(names, list) and isinstance(data, list):  # as pandas (orient="split") and W&B write it
            return [dict(zip(map(str, names), row, strict=False)) for row in data]
        for key in ROWS_KEYS:
            if isinstance(content.get(key), list | dict):
                return _records(content[key])
        inner = [
            value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        if len(inner) == 1:
            return inner[0]
        if content and all(isinstance(value, dict) for value in content.values()):
            rows = list(content.values())
            if all(
                str(key).isdigit() for row in rows for key in row
            ):  # columns of numbered cells, as pandas writes them
                return content
            return rows
    if not isinstance(content, list | dict):
        raise ValueError("a JSON table must be a list of rows or an object of columns")
    if isinstance(content, list) and not all(isinstance(row, dict) for row in content):
        raise ValueError("a JSON table must be a list of objects, one per row")
    return content


def _spread_objects(frame: pd.DataFrame) -> pd.DataFrame:
    """Spread columns whose cells are objects."""
    for column in list(frame.columns):
        if frame[column].dtype == object and any(isinstance(cell, dict) for cell in frame[column]):
            frame = _spread(frame, column, [cell if isinstance(cell, dict) else {} for cell in frame[column]])
    return frame


def _unpacked(frame: pd.DataFrame) -> pd.DataFrame:
    """Spread text columns whose cells are objects as Python or JSON writes them, as W&B's export script does."""
    for column in list(frame.columns):
        if len(frame) and len(frame) <= MAX_CELLS // 400 and all(cell.startswith("{") for cell in frame[column]):
            objects = [_literal(cell) for cell in frame[column]]
            if all(isinstance(one, dict) for one in objects):
                frame = _spread(frame, column, objects)
    return frame


def _spread(frame: pd.DataFrame, column: str, objects: list[Any]) -> pd.DataFrame:
    import pandas as pd

    spread = _frame([{column: one} for one in objects]).set_index(frame.index)
    return pd.concat([frame.drop(columns=column), spread], axis=1)


def _literal(cell: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(re.sub(r"\bnan\b|\binf\b", "None", cell) if read is ast.literal_eval else cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def repeated_headers(frame: pd.DataFrame) -> Iterator[tuple[str, list[int]]]:
    """Yield headers that occur more than once, with their places; pandas names the second `loss.1`."""
    again: dict[str, list[int]] = {}
    for i, name in enumerate(frame.columns):
        if numbered := re.fullmatch(r"(.*)\.\d+", name, re.DOTALL):
            again.setdefault(numbered[1], []).append(i)
    for i, name in enumerate(frame.columns):
        if name in again:
            yield name, [i, *again[name]]
