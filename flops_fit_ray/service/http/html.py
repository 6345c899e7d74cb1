"""Templates of the pages. Values are escaped; scripts and styles are files of their own."""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import Any

import jinja2

from flops_fit_ray import formatting as fmt
from flops_fit_ray.console.status_text import STATUS_LABELS

VERSION = version("flops-fit-ray")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flops_fit_ray.service"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=fmt.printable_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=fmt.count,
        flops=fmt.flops,
        duration=fmt.duration,
        counted=fmt.counted,
        size=fmt.size,
        within=lambda pair: f"[{fmt.count(pair[0])}, {fmt.count(pair[1])}]" if pair else "",
        clock=fmt.local_time,
        status=lambda status: STATUS_LABELS.get(status, status),
        percent=lambda share: f"{100 * share:.0f} %",
    )
    environment.globals["version"] = VERSION
    return environment


def page(template: str, **values: Any) -> str:
    """Render one page."""
    return _environment().get_template(template).render(**values)
