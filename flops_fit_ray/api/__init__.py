"""The Python door: `find_optimal(...) -> Result`, `check(...)` before it; `fit_table`, `compare`, `compare_axis`."""

from flops_fit_ray.api._compare import compare
from flops_fit_ray.api._compare_axis import compare_axis
from flops_fit_ray.api._find_optimal import check, find_optimal
from flops_fit_ray.api._fit_table import fit_table

__all__ = ["check", "compare", "compare_axis", "find_optimal", "fit_table"]
