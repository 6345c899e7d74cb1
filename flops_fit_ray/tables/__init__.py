"""Readers of tables of runs (CSV, parquet, JSON, JSON lines), with any column names, as points for a fit."""

from flops_fit_ray.tables._columns import NAMES, TableOptions
from flops_fit_ray.tables._read import Table, read_table

__all__ = ["NAMES", "Table", "TableOptions", "read_table"]
