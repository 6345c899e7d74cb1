"""Plan and price of a spec in a process of its own: `python -m flops_fit_ray.service.state.pricing SPEC CODE OUT`.

Loads the user's code, as `plan` does. It may print, hang or crash, so the service runs it in a process with a timeout.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_ray.errors import FlopsFitError, SpecError
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.spec import BudgetsFor
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.training.fence import Fence

if TYPE_CHECKING:
    from flops_fit_ray.pipeline import RunRequest

TIMEOUT_SECONDS = 120.0
MAX_PRICING = 2  # specs at a time
MAX_SHOWN = 500  # experiments

_room = threading.BoundedSemaphore(MAX_PRICING)


def price_spec(text: str, code: Path, fence: Fence, limit: BudgetsFor | None = None) -> dict[str, Any]:
    """Return the plan and price of a spec, or the faults found when its code is loaded.

    Args:
        fence: around the code and data that it may load.
        limit: what a sweep whose budgets are `auto` may cost; None: as its spec says.

    Raises:
        RequestError: too many are being priced.
    """
    if not _room.acquire(blocking=False):
        raise RequestError(
            HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_PRICING} specs are being priced already; try again in a moment"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="price") as place:
            spec, out = Path(place, "sweep.yaml"), Path(place, "price.json")
            spec.write_text(text)
            words = [str(spec), str(code), str(out), "" if limit is None else limit.model_dump_json()]
            message = _run([sys.executable, "-P", "-m", "flops_fit_ray.service.state.pricing", *words], code, fence)
            return read_json(out) or {"valid": False, "faults": [message]}
    finally:
        _room.release()


def _run(command: list[str], code: Path, fence: Fence) -> str:
    """Run the process. Return the fault to report if it leaves no output."""
    process = subprocess.Popen(  # noqa: S603 - arguments made by the service
        command, cwd=code, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, **fence.environment()},
    )  # fmt: skip
    try:
        status = process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"loading the model and data took more than {TIMEOUT_SECONDS:g} s; try `flops-fit-ray plan`"
    return f"loading the model and data ended the process (status {status}); try `flops-fit-ray plan`"


def main(spec_path: str, code: str, out: str, limit: str) -> int:
    """Plan the spec and write its price or faults to `out`; `limit`: a `BudgetsFor` as JSON, or nothing."""
    try:
        found = _priced(Path(spec_path), Path(code), BudgetsFor.model_validate_json(limit) if limit else None)
    except SpecError as e:
        found = {"valid": False, "faults": list(e.faults)}
    except FlopsFitError as e:
        found = {"valid": False, "faults": [str(e)]}
    write_json(Path(out), found)
    return 0


def _priced(spec_path: Path, code: Path, limit: BudgetsFor | None) -> dict[str, Any]:
    from flops_fit_ray.analysis import json_value
    from flops_fit_ray.console.header import header_lines
    from flops_fit_ray.console.plan_text import plan_text
    from flops_fit_ray.pipeline import plan_request
    from flops_fit_ray.planning import price_warnings, priced

    request, said = _with_budgets(spec_path, code, limit)
    spec = request.spec
    plan = priced(plan_request(request)[1], spec.grid.start)
    price = plan.price
    found = {
        "valid": True,
        "faults": [],
        "name": spec.name,
        "experiments": len(plan.experiments),
        "expected": len(plan.forecast),
        "flops": plan.flops,
        "price": None if price is None else price.to_json(),
        "question": header_lines(spec, plan),
        "plan": [
            {
                "budget": e.budget,
                "size": e.size,
                "params": e.params,
                "tokens": e.tokens,
                "steps": e.steps,
                "role": e.role,
            }
            for e in plan.experiments[:MAX_SHOWN]
        ],
        "text": plan_text(plan),
        "warnings": [*said, *plan.warnings, *(price_warnings(price) if price else ())],
        "notes": list(plan.notes),
    }
    return dict(json_value(found))


def _with_budgets(spec_path: Path, code: Path, limit: BudgetsFor | None) -> tuple[RunRequest, list[str]]:
    """Return the request to run a spec, with budgets, and what is to be said of them."""
    from flops_fit_ray.budgets import with_budgets_chosen
    from flops_fit_ray.engine.loaders import code_loader
    from flops_fit_ray.pipeline import RunRequest
    from flops_fit_ray.spec import read_spec
    from flops_fit_ray.training.preflight.model_size import SpecMeasurer

    spec, said = read_spec(spec_path, open_budgets=True), list[str]()
    request = RunRequest(
        spec=spec,
        source="spec",
        root=spec_path.parent / "none",
        measure=SpecMeasurer(code).measure,
        load_user_parts=code_loader(spec, code),
        command="",
        base=code,
    )
    return with_budgets_chosen(request, limit, said.append, measure_speed=False), said


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
