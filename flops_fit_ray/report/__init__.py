"""A sweep directory as one page, tables and figures. Reads files, trains nothing, works on partial sweeps."""

from flops_fit_ray.report.write import write_report, write_table_report

__all__ = ["write_report", "write_table_report"]
