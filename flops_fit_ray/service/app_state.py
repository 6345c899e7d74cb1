"""State of the application, and the responses of its handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from flops_fit_ray.analysis import json_value
from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger.hardware import Readings
from flops_fit_ray.service.http.conditional import CHANGED, names_tag, tag_of
from flops_fit_ray.service.http.guard import STANDALONE
from flops_fit_ray.service.http.html import VERSION
from flops_fit_ray.service.http.later import IS_LATER, LATER_SECONDS
from flops_fit_ray.service.http.redact import redacted, redacted_values
from flops_fit_ray.service.http.request_error import RequestError, busy, conflict
from flops_fit_ray.service.http.visits import waiting_elsewhere
from flops_fit_ray.service.runs.bin import Bin
from flops_fit_ray.service.runs.queue import LIMIT_EXAMPLE, Runs
from flops_fit_ray.service.runs.specs import Specs
from flops_fit_ray.service.state import views
from flops_fit_ray.service.state.cache import SweepCaches
from flops_fit_ray.service.state.devices import DeviceHistory
from flops_fit_ray.service.state.fits import FitWorker
from flops_fit_ray.service.state.pricing import price_spec
from flops_fit_ray.service.state.snapshot import Snapshot
from flops_fit_ray.spec import BudgetsFor, limit_of_budgets
from flops_fit_ray.training.fence import Fence

FIT_RETRY_SECONDS = 30  # until a fit that takes longer than the next may be there
FIT_SECONDS = 120.0  # for a fit of 10,000 experiments, and those queued before it


@dataclass(frozen=True)
class AppState:
    """Everything that handlers work with."""

    runs: Runs
    specs: Specs
    caches: SweepCaches
    fit_worker: FitWorker
    bin: Bin
    device_history: DeviceHistory
    readings: Readings = field(default_factory=Readings)  # of the service's own machine

    def view(self, name: str) -> dict[str, Any]:
        """Return the state and progress of one sweep."""
        return views.sweep_view(self.runs, self.caches, name)

    def snapshot(self, name: str) -> Snapshot:
        """Return a snapshot of its directory."""
        return views.snapshot_of(self.caches, self.runs, name)

    def price(self, text: str, code: str | None, limit: BudgetsFor | None = None) -> dict[str, Any]:
        """Return the plan and price of a spec, or its faults. Loads the model and the data, which takes seconds.

        Args:
            limit: what a sweep whose budgets are `auto` may cost; None: as its spec says.

        Raises:
            RequestError: too many are being priced.
        """
        try:
            found, where = self.specs.check(text, code)
            limit_of_budgets(found, limit, "spec", LIMIT_EXAMPLE)
        except SpecError as e:
            return faulty(e.faults)
        return dict(redacted_values(price_spec(text, where, Fence(self.specs.roots), limit)))

    def sample_devices(self) -> None:
        """Keep the newest readings of the devices of all sweeps that run here or that somebody watches."""
        here = (s.run.sweep for s in self.runs.open() if s.phase != "queued")
        self.device_history.sample(self.caches, here)

    def sweeps(self) -> list[dict[str, Any]]:
        """Return views of all sweeps: those that run or wait first, then by name."""
        known = sorted({*self.caches.names(), *self.runs.known()})
        order = {state: i for i, state in enumerate(("running", "stopping", "queued"))}
        found = []
        for name in known:
            try:
                found.append(self.view(name))
            except RequestError:  # its directory was deleted
                continue
        return sorted(found, key=lambda view: (order.get(view["state"], 9), view["name"]))

    def server(self, sweeps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the state of the service itself; `sweeps` are the views of all sweeps."""
        return {
            "version": VERSION,
            "root": str(self.runs.paths.root),
            "code": [str(root) for root in self.specs.roots],
            "runs_on": self.runs.launcher.here,
            "machine": json_value(self.readings.read().to_json()),
            "at_once": self.runs.at_once,
            "most_waiting": self.runs.max_queued,
            "states": {state: sum(s["state"] == state for s in sweeps) for state in views.STATES},
            "queue": [s.run.sweep for s in self.runs.open() if s.phase == "queued"],
            "trouble": self.runs.trouble,
        }


def faulty(faults: Sequence[str]) -> dict[str, Any]:
    """Return the faults of a spec, in place of its price."""
    return {"valid": False, "faults": [redacted(fault) for fault in faults]}


def app_state_of(request: Request) -> AppState:
    """Return the state of the application that serves a request."""
    state: AppState = request.app.state.app_state
    return state


async def fresh_snapshot(request: Request, name: str) -> Snapshot:
    """Return a snapshot of a sweep, from the cache if it is new enough, else read in a thread."""
    state = app_state_of(request)
    known = state.caches.of(name).fresh
    return known if known is not None else await asyncio.to_thread(state.snapshot, name)


async def ask_fit_worker(
    request: Request, snapshot: Snapshot, question: str, *arguments: str, beside: Snapshot | None = None
) -> bytes:
    """Return the fit worker's answer on a sweep.

    Raises:
        RequestError: there is nothing to fit yet, or it takes too long.
    """
    if not snapshot.sweep.results and question not in ("csv", "parquet", "curve", "overlay"):
        raise conflict("no experiment is completed yet; try again when one is", "no_results")
    seconds = LATER_SECONDS if request.scope.get(IS_LATER) else FIT_SECONDS
    try:
        with waiting_elsewhere(request):
            worker = app_state_of(request).fit_worker
            return await worker.answer(seconds, question, snapshot, *arguments, beside=beside)
    except TimeoutError as e:
        message = f"the fit takes more than {seconds:g} s and is still running; ask again, with Prefer: respond-async"
        raise busy(message, FIT_RETRY_SECONDS) from e


def as_json(content: Mapping[str, Any] | list[Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return a JSON response; numbers that are not finite become null."""
    return JSONResponse(json_value(content), status_code=status)


def as_page(request: Request, rows: Sequence[Any], offset: int, limit: int) -> Response:
    """Return one page of a list, as an object; Link leads to the next one."""
    page = views.page_of(rows, offset, limit)
    return _linked(as_json(page), request, page["total"], page["next"], limit)


def as_list(request: Request, rows: Sequence[Any], offset: int, limit: int, *, newest: bool = False) -> Response:
    """Return one page of a list, as a list; Link leads to the next one, X-Total-Count says how many there are.

    Args:
        newest: count from the end, where the newest are, and keep the order.
    """
    page = views.page_of(rows[::-1] if newest else rows, offset, limit)
    items = page["items"][::-1] if newest else page["items"]
    return _linked(as_json(items), request, page["total"], page["next"], limit)


def _linked(response: Response, request: Request, total: int, after: int | None, limit: int) -> Response:
    response.headers["x-total-count"] = str(total)
    if after is not None:
        url = request.url.include_query_params(offset=after, limit=limit)
        response.headers["link"] = f'<{url.path}?{url.query}>; rel="next"'
    return response


def check_match(request: Request, shown: Callable[[], dict[str, Any]]) -> None:
    """Check that what a request changes is what its If-Match names.

    Args:
        shown: makes what GET would show of it.

    Raises:
        RequestError: it is another, or is there no more.
    """
    given = request.headers.getlist("if-match")
    if given and not names_tag(given, tag_of(bytes(as_json(shown()).body))):
        raise RequestError(HTTPStatus.PRECONDITION_FAILED, CHANGED, kind="changed")


def as_is(content: bytes) -> Response:
    """Return a response of JSON that is encoded already."""
    return Response(content, media_type="application/json")


def as_svg(content: bytes) -> Response:
    """Return a response of a figure, with a policy that lets its own styles apply."""
    return Response(content, media_type="image/svg+xml", headers={"content-security-policy": STANDALONE})


def of_kind(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a response that is not JSON."""
    return {200: {"content": {kind: {} for kind in kinds}}}
