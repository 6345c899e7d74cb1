"""Readers of tables of runs (CSV, parquet, JSON, JSON lines), with any column names, as points for a fit."""

from flops_fit_ray.tables._columns import TableOptions
from flops_fit_ray.tables._names import NAMES
from flops_fit_ray.tables._optima import Optima
from flops_fit_ray.tables._read import Table, open_table, read_table, values_of
from flops_fit_ray.tables._rows import Setting

__all__ = ["NAMES", "Optima", "Setting", "Table", "TableOptions", "open_table", "read_table", "values_of"]
