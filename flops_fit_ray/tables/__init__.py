"""Any table of runs as the points that a fit takes: CSV, parquet, JSON, JSON lines; whatever its columns are called."""

from flops_fit_ray.tables.columns import NAMES, Reading
from flops_fit_ray.tables.read import Table, read_table

__all__ = ["NAMES", "Reading", "Table", "read_table"]
