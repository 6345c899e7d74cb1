"""Readers of tables of runs (CSV, parquet, JSON, JSON lines), with any column names, as points for a fit."""

from flops_fit_ray.tables._columns import TableOptions
from flops_fit_ray.tables._load import Loaded, load
from flops_fit_ray.tables._names import NAMES
from flops_fit_ray.tables._optima import Optima
from flops_fit_ray.tables._read import Table, read_loaded, read_table, values_of
from flops_fit_ray.tables._rows import Setting

__all__ = [
    "NAMES",
    "Loaded",
    "Optima",
    "Setting",
    "Table",
    "TableOptions",
    "load",
    "read_loaded",
    "read_table",
    "values_of",
]
