"""Report of a sweep directory, complete or partial: one page, tables and figures. Reads files and trains nothing."""

from flops_fit_ray.report.write import write_report, write_table_report

__all__ = ["write_report", "write_table_report"]
