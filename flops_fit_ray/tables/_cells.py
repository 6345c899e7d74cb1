"""Numbers and their units as people write them in cells and headers: 1.5B, 1,500,000, 10^20, 1e20 FLOPs, 3,61."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit_ray.analysis.arrays import Floats

if TYPE_CHECKING:
    import pandas as pd

COUNTS: dict[str, float] = {
    "1": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "bn": 1e9, "mio": 1e6, "mn": 1e6, "thousand": 1e3,
    "thousands": 1e3, "million": 1e6, "millions": 1e6, "billion": 1e9, "billions": 1e9, "trillion": 1e12,
    "trillions": 1e12, "mega": 1e6, "giga": 1e9,
}  # fmt: skip
_PREFIXES = {"m": 1e6, "mega": 1e6, "g": 1e9, "giga": 1e9, "t": 1e12, "tera": 1e12, "p": 1e15, "peta": 1e15, "e": 1e18,
             "exa": 1e18, "z": 1e21, "zetta": 1e21, "y": 1e24, "yotta": 1e24}  # fmt: skip
# gflop, gflops, gigaflops, giga_flops, gflos, ...
FLOPS: dict[str, float] = {f"{prefix}{gap}{word}": value for prefix, value in _PREFIXES.items()
                           for word in ("flop", "flops", "flos") for gap in ("", "_")
                           if not (gap and len(prefix) == 1)}  # fmt: skip
_DAY = 86_400.0
DAYS = {f"{name}{middle}_day{end}": 1e15 * _DAY for name in ("pf", "pflop", "pflops", "petaflop", "petaflops")
        for middle in ("", "_s") for end in ("", "s")}  # fmt: skip
TIMES = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "min": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0,
         "days": _DAY}  # fmt: skip
LOSSES = {"nats": 1.0, "nat": 1.0, "bits": math.log(2), "bit": math.log(2)}
UNITS: dict[str, float] = {**COUNTS, **FLOPS, **DAYS, **TIMES, **LOSSES}
PERPLEXITY = ("perplexity", "ppl")  # units of a loss whose logarithm is taken

# Words that may follow a number in a cell, and mean 1
_PLAIN = {"", "flop", "flops", "flos", "tokens", "token", "params", "param", "parameters", "nats", "nat", "samples"}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
_POWER = re.compile(
    r"^(?:([-+]?[\d.]+)\s*(?:\*(?!\*)|x|×|·|⋅)\s*)?(10|2)\s*(?:\^|\*\*)\s*\{?([-+]?\d+)\}?\s*(.*)$", re.I
)
_WRAPPED = re.compile(r"^(?:tensor|array|(?:np|numpy|torch)\.\w+)\(\s*\[?\s*([^\s,\]()]+)[^()]*\)$")
_GROUPS = re.compile(r"(?<=\d)[ _'\u00a0\u2009\u202f](?=\d{3}(?!\d))")  # 1 500 000, 1_500_000, 1'500'000
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?!\d)")
_DOTTED = re.compile(r"[-+]?\d{1,3}(?:\.\d{3})+")  # 1.234.567
_DECIMAL_COMMA = re.compile(r"[-+]?(?:\d{1,3}(?:\.\d{3})+|\d*),\d+(?!\d)")
_COMMA = re.compile(r"^\D{0,2}[\d.]*\d?,\d")


def unit_of(word: str, known: Iterable[str] | None = None) -> float | None:
    """Value of a unit, given by name (of `known`, by default all) or as a number; None if it is neither."""
    name = re.sub(r"[\s\-./]+", "_", word.strip().lower())
    if name in (UNITS if known is None else known):
        return UNITS[name]
    power = _POWER.match(word.strip())
    try:
        value = _power(power) if power and not power[4] else float(word)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def numbers(column: pd.Series[Any], decimal_comma: bool = False) -> Floats:
    """Parse the cells of a column; NaN where there is no number."""
    import pandas as pd

    if getattr(column.dtype, "kind", "O") in "iufb":
        return np.array(column, dtype=np.float64)
    text = column.astype(str)
    if decimal_comma:  # then 1.234 is a thousand
        dotted = np.array(text.str.strip().str.fullmatch(_DOTTED.pattern), dtype=bool)
        text = text.where(~dotted, text.str.replace(".", ""))
    values = np.array(pd.to_numeric(text, errors="coerce"), dtype=np.float64)
    odd = np.flatnonzero(np.isnan(values))
    if len(odd):  # each text once: a long table has few that differ
        words, which = np.unique(text.iloc[odd].to_numpy(dtype=object), return_inverse=True)
        values[odd] = np.array([_number(word, decimal_comma) for word in words])[which]
    return values


def metric_numbers(column: pd.Series[Any], decimal_comma: bool = False) -> Floats:
    """Parse the cells of a metric as `numbers` does; true is 1 and false is 0, as for a task that is solved or not."""
    values = numbers(column, decimal_comma)
    words = column.astype(str).str.strip().str.lower().map({"true": 1.0, "false": 0.0})
    return np.where(np.isnan(values), np.array(words, dtype=np.float64), values)


def has_decimal_commas(columns: Iterable[pd.Series[Any]], semicolons: bool) -> bool:
    """Return True if the commas in a table's cells are decimal points: 3,61; one such cell speaks for all.

    1,234 alone may be either; with semicolons between the cells it is a decimal, as in European exports.
    """
    open_to_both = False
    for column in columns:
        if getattr(column.dtype, "kind", "O") in "iufb":
            continue
        for cell in column.iloc[:200].astype(str):
            word = cell.strip()
            if not _COMMA.match(word):
                continue
            if _THOUSANDS.match(word) is None and _DECIMAL_COMMA.match(word) is not None:
                return True
            if word.count(",") > 1 or re.match(r"[^,]*\.", word.split(",", 1)[1]):
                return False  # 1,234,567 and 1,234.5
            open_to_both = True
    return open_to_both and semicolons


def _number(cell: str, decimal_comma: bool) -> float:
    word = cell.strip().lstrip("~≈").strip()
    if wrapped := _WRAPPED.match(word):
        word = wrapped[1]
    if power := _POWER.match(word):
        scale = _scale(power[4])
        try:
            return math.nan if scale is None else _power(power) * scale
        except (ValueError, OverflowError):
            return math.nan
    word = _GROUPS.sub("", word)
    if decimal_comma and _DECIMAL_COMMA.match(word):
        word = word.replace(".", "").replace(",", ".")
    elif _THOUSANDS.match(word):
        word = word.replace(",", "")
    elif _DOTTED.fullmatch(word):
        word = word.replace(".", "")
    number = _NUMBER.match(word)
    scale = _scale(word[number.end() :]) if number else None
    return math.nan if number is None or scale is None else float(number[0]) * scale


def _power(match: re.Match[str]) -> float:
    return float(match[1] or 1) * float(match[2]) ** int(match[3])


def _scale(rest: str) -> float | None:
    """Value of the words after a number: '' -> 1, 'B tokens' -> 1e9, '%' -> 0.01; None if they mean nothing."""
    words = rest.strip().lower().replace("-", "_").split()
    if words == ["%"]:
        return 0.01
    scale = 1.0
    for word in words:
        if word in _PLAIN:
            continue
        if scale != 1 or word not in UNITS:
            return None
        scale = UNITS[word]
    return scale
