"""Pages of the service, rendered on the server. They are complete without the scripts, which refresh and draw."""

from __future__ import annotations

from fastapi import APIRouter

from flops_fit_ray.service.pages import _compare_page as compare_page
from flops_fit_ray.service.pages import _experiment_page as experiment_page
from flops_fit_ray.service.pages import _index_page as index_page
from flops_fit_ray.service.pages import _new_page as new_page
from flops_fit_ray.service.pages import _sweep_page as sweep_page

pages = APIRouter(include_in_schema=False)
for _room in (index_page, sweep_page, experiment_page, new_page, compare_page):
    pages.include_router(_room.routes)

__all__ = ["pages"]
