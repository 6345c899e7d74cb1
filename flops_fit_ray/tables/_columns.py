"""Recognition of columns: what is taken for N, D, C, loss and the rest, in which unit, and what is not taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import did_you_mean, listed
from flops_fit_ray.tables._cells import LOSSES, PERPLEXITY, has_decimal_commas, numbers, unit_of
from flops_fit_ray.tables._load import Loaded, repeated_headers
from flops_fit_ray.tables._names import BITS, NAMES, TEXT_SIZES, forms, normal, unit_for

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("params", "tokens", "flops", "loss")  # one of the first three may follow from the other two
NONE = "none"  # --column flops=none: do not take any
SMALL_SIZE = 10_000  # whole numbers below it in a column called `size` are widths or depths
SMALL_TOKENS = 100_000  # and in one called `d`
FAR = 2.0  # ratio of two columns that could be the same quantity, from which the user has to choose
MAX_NAMED = 20  # columns in a message


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options for reading a table; columns that are not named are recognised by common names."""

    columns: Mapping[str, str] = field(default_factory=dict)  # ours -> theirs; "none": take none
    units: Mapping[str, str] = field(default_factory=dict)  # ours -> k, M, B, T, EFLOP, PF-days, perplexity or a number
    where: Sequence[tuple[str, str]] = ()  # (column, value): keep the rows that have it
    best_of: Sequence[str] = ()  # swept settings: the best row of each (N, D); empty: by common names; "none": keep all
    metrics: Sequence[str] = ()  # columns beside the loss to be predicted, too
    pool: Sequence[str] = ()  # columns that tell rows apart, whose rows are one table all the same


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """The column taken for each quantity, the value of one of its units, and what was assumed."""

    taken: Mapping[str, str]
    scale: Mapping[str, float]
    decimal_comma: bool = False
    perplexity: bool = False  # ln of the loss column is the loss
    notes: tuple[str, ...] = ()

    def values(self, frame: pd.DataFrame, ours: str) -> Floats:
        """Values (rows,) of a quantity in its base unit; NaN where a cell is no number."""
        values = numbers(frame[self.taken[ours]], self.decimal_comma) * self.scale[ours]
        if ours == "loss" and self.perplexity:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(np.log(values))
        return np.asarray(values)


def loss_in(columns: ColumnMap) -> str:
    """Return the unit in which losses are taken: bits where the header says so and nobody made nats of them."""
    header, scale = columns.taken.get("loss", ""), columns.scale.get("loss", 1.0)
    return "bits" if scale == 1.0 and any(normal(header).endswith(word) for word in BITS) else "nats"


def find_columns(source: str, loaded: Loaded, options: TableOptions) -> ColumnMap:
    """Find the column and unit of every quantity.

    Raises:
        SpecError: a named column is not there, a unit is unknown, one that is needed cannot be found, or two columns
            could be it.
    """
    finder = _Finder(loaded)
    faults = [
        f"--column {ours}=...: unknown name; use one of {', '.join(NAMES)}"
        for ours in options.columns
        if ours not in NAMES
    ]
    named = _named_columns(finder.headers, options.columns, faults)
    skipped = {ours for ours, theirs in options.columns.items() if theirs == NONE and theirs not in finder.headers}
    taken, scale, notes = dict(named), {ours: _unit_of_header(ours, theirs) for ours, theirs in named.items()}, []
    for ours in NAMES:
        if ours in named or ours in skipped:
            continue
        found = finder.find(ours, set(taken.values()), faults)
        if found is not None:
            taken[ours], scale[ours] = found
    perplexity = "loss" in taken and any(word in normal(taken["loss"]).split("_") for word in PERPLEXITY)
    said = _units_of_options(options.units, scale, faults)
    perplexity = perplexity if said is None else said
    optima = "params_opt" in taken or "tokens_opt" in taken
    missing = [name for name in REQUIRED if name not in taken and not (name == "flops" and (
        "budget" in taken or ("flops_per_token" in taken and "tokens" in taken)))]  # fmt: skip
    if not optima and ("loss" in missing or len(missing) > 1):
        faults.append(_missing_words(missing, finder, taken))
    if faults:
        raise SpecError(source, [*dict.fromkeys(faults)])
    if perplexity:
        notes.append(f"the loss is the natural logarithm of {taken['loss']!r}, a perplexity")
    elif "loss" in taken:
        notes += _loss_unit_note(taken["loss"], scale["loss"])
    if finder.decimal_comma:
        notes.append("commas in its cells were read as decimal points")
    notes += [*finder.notes, *(words for ours, words in finder.passed_over.items() if ours not in taken)]
    return ColumnMap(taken=taken, scale=scale, decimal_comma=finder.decimal_comma, perplexity=perplexity,
                     notes=tuple(notes))  # fmt: skip


class _Finder:
    """Search for quantities among the headers of one table."""

    def __init__(self, loaded: Loaded) -> None:
        self.frame = loaded.frame
        self.headers: list[str] = list(loaded.frame.columns)
        self.repeated = dict(repeated_headers(loaded.frame))
        self.decimal_comma = has_decimal_commas(
            (loaded.frame.iloc[:, i] for i in range(len(self.headers))), loaded.semicolons
        )
        self.notes: list[str] = []
        self.passed_over: dict[str, str] = {}  # ours -> why a column of that name was not taken
        self.readings = {header: forms(header) for header in self.headers}

    def find(self, ours: str, used: set[str], faults: list[str]) -> tuple[str, float] | None:
        """Return the column of one quantity and the value of its unit, None without one."""
        candidates = [found for found in self._candidates(ours) if found[0] not in used]
        candidates = [found for found in candidates if self._plausible(ours, *found)]
        if ours == "loss" and len(candidates) > 1:  # a loss that is the same in every row is no result
            varying = [found for found in candidates if len(np.unique(self.numbers(found[0]))) > 1]
            candidates = varying or candidates
        if not candidates:
            return None
        header, _, unit = candidates[0]
        self._check_rivals(ours, candidates, faults)
        if ours == "loss" and len(candidates) > 1:
            others = ", ".join(repr(other) for other, _, _ in candidates[1:5])
            self.notes.append(f"the loss is {header!r}; also there: {others} (--column loss=...)")
        if header in self.repeated:
            cells = [self.frame.iloc[:, i].astype(str) for i in self.repeated[header]]
            if not all((one == cells[0]).all() for one in cells[1:]):
                faults.append(f"has {len(cells)} columns called {header!r} that differ; rename one of them")
        return header, unit_for(ours, unit) or 1.0

    def numbers(self, header: str) -> Floats:
        """Values of a column without its unit."""
        return numbers(self.frame[header], self.decimal_comma)

    def _candidates(self, ours: str) -> Iterator[tuple[str, str, str | None]]:
        """Yield (header, name, unit) of every column that could be the quantity, the most likely first."""
        seen = set()
        for level in range(3):
            for name in NAMES[ours]:
                for header in self.headers:
                    for read, unit in self.readings[header][level]:
                        if read == name and header not in seen and unit_for(ours, unit) is not None:
                            seen.add(header)
                            yield header, name, unit

    def _plausible(self, ours: str, header: str, name: str, unit: str | None) -> bool:
        """Return False for names that are often something else, by what is in the column."""
        if name in TEXT_SIZES and ours == "params":
            cells = self.frame[header].astype(str)
            return bool(cells.str.fullmatch(r"\s*\d+(\.\d+)?\s*[kKmMbB]\s*").all())
        if name not in ("size", "d", "l") or unit is not None:
            return True
        values = self.numbers(header)
        whole = len(values) > 0 and bool(np.all(values[np.isfinite(values)] % 1 == 0)) and np.isfinite(values).any()
        limit = {"size": SMALL_SIZE, "d": SMALL_TOKENS, "l": np.inf}[name]
        if not whole or np.nanmax(values) >= limit or (name == "d" and header.strip() != "d"):
            return True
        low, high = np.nanmin(values), np.nanmax(values)
        guess = "a number of layers" if name == "l" else "a width or a depth"
        self.passed_over[ours] = (
            f"{header!r} was not taken for {ours}: {low:g} to {high:g} looks like {guess} (--column {ours}={header} "
            "takes it)"
        )
        return False

    def _check_rivals(self, ours: str, candidates: Sequence[tuple[str, str, str | None]], faults: list[str]) -> None:
        """Refuse two columns that could be D or C and are far apart; other counts of N are definitions of it."""
        if ours not in ("tokens", "flops"):
            if ours == "loss" and candidates[0][1] in [name for _, name, _ in candidates[1:]]:
                same = [header for header, name, _ in candidates if name == candidates[0][1]]
                if normal(candidates[0][0]) != candidates[0][1]:
                    faults.append(f"several columns could be the loss: {', '.join(map(repr, same[:6]))}; choose one, "
                                  f"for example --column loss={same[0]}")  # fmt: skip
            return
        first = self.numbers(candidates[0][0]) * (unit_for(ours, candidates[0][2]) or 1.0)
        for header, _, unit in candidates[1:]:
            with np.errstate(all="ignore"):
                ratio = self.numbers(header) * (unit_for(ours, unit) or 1.0) / first
            ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
            if len(ratio) and not 1 / FAR < float(np.median(ratio)) < FAR:
                faults.append(
                    f"two columns could be {ours}, {candidates[0][0]!r} and {header!r}, and they differ x"
                    f"{float(np.median(ratio)):.3g}; choose one: --column {ours}={candidates[0][0]} or {ours}={header}"
                )
                return


def _units_of_options(units: Mapping[str, str], scale: dict[str, float], faults: list[str]) -> bool | None:
    """Put the user's units into `scale`. Returns whether the loss is a perplexity, None where that is not said."""
    perplexity = None
    for ours, word in units.items():
        value = unit_for(ours, word)
        if ours == "loss":
            perplexity = word.strip().lower() in PERPLEXITY
        if ours == "loss" and perplexity:
            scale[ours] = 1.0
        elif ours in NAMES and value is not None:
            scale[ours] = value
        else:
            known = ", ".join(NAMES)
            faults.append(
                f"--unit {ours}={word}: use NAME=UNIT, a name of {known} and k, M, B, T, EFLOP, PF-days or a number"
            )
    return perplexity


def _named_columns(headers: Sequence[str], named: Mapping[str, str], faults: list[str]) -> dict[str, str]:
    taken = {}
    for ours, theirs in named.items():
        if theirs in headers:
            taken[ours] = theirs
        elif theirs != NONE:
            faults.append(f"--column {ours}={theirs}: {unknown_column(theirs, headers)}")
    return taken


def _unit_of_header(ours: str, header: str) -> float:
    """Value of the unit that the header of a named column holds; 1 if it holds none."""
    for level, reading in enumerate(forms(header)):
        for name, unit in reading:
            value = unit_for(ours, unit)
            if unit is not None and value is not None and (level == 0 or name in NAMES[ours]):
                return value
    return 1.0


def _missing_words(missing: Sequence[str], finder: _Finder, taken: Mapping[str, str]) -> str:
    wide = sum(unit_of(header) is not None for header in finder.headers)
    if wide >= 3:
        return (
            f"is wide: {wide} of its {len(finder.headers)} headers are numbers; a table of runs has a row per run and "
            "a column for each of N, D or C, and loss (in pandas: melt)"
        )
    if "loss" in missing and "params" in taken and ("flops" in taken or "budget" in taken):
        return (
            f"has no column for loss (it has {shown(finder.headers)}); name it, for example --column loss=COLUMN; if "
            f"each row is the optimum of one budget, --column params_opt={taken['params']} fits N_opt(C) to the rows"
        )
    over = "".join(f"; {words}" for ours, words in finder.passed_over.items() if ours in missing)
    return (
        f"has no column for {' and '.join(missing)} (it has {shown(finder.headers)}); name it, for example "
        f"--column {missing[0]}=COLUMN; required are loss and two of params, tokens, flops{over}"
    )


def unknown_column(name: str, headers: Iterable[str]) -> str:
    """Return that a table has no such column, with the nearest name or those that there are."""
    known = [str(header) for header in headers]
    return f"there is no such column; {did_you_mean(name, known) or f'it has {shown(known)}'}"


def shown(headers: Sequence[str]) -> str:
    """Return the headers for a message, the first of very many."""
    return listed([str(header) for header in headers], MAX_NAMED)


def _loss_unit_note(header: str, scale: float) -> Iterator[str]:
    if scale == LOSSES["bits"]:
        yield f"losses of {header!r} are taken times ln 2, from bits to nats"
    elif any(normal(header).endswith(word) for word in BITS):
        yield f"losses of {header!r} stay in bits: so are E, A and B (--unit loss=bits makes nats of them)"
