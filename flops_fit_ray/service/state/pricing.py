"""Plan and price of a spec in a process of its own: `python -m flops_fit_ray.service.state.pricing SPEC CODE OUT`.

Loads the user's code, as `plan` does. It may print, hang or crash, so the service runs it in a process with a timeout.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from flops_fit_ray.errors import FlopsFitError, SpecError
from flops_fit_ray.formatting import size
from flops_fit_ray.service.http.request_error import busy
from flops_fit_ray.spec import BudgetsFor
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.training.fence import Fence

if TYPE_CHECKING:
    from flops_fit_ray.pipeline import RunRequest

TIMEOUT_SECONDS = 120.0
MAX_PRICING = 2  # specs at a time
MAX_SHOWN = 500  # experiments
MEMORY_SHARE = 0.25  # of the machine's memory, for each
LOOK_SECONDS = 0.1  # between looks at the memory
OUT_OF_MEMORY = 77  # exit status

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
        raise busy(f"{MAX_PRICING} specs are being priced already; try again in a moment")
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
    """Run the process. Return the fault to report if it leaves no output.

    It and all that it starts are of one group, which ends with the service: when this end of its pipe is closed.
    """
    process = subprocess.Popen(  # noqa: S603 - arguments made by the service
        command, cwd=code, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, **fence.environment()},
    )  # fmt: skip
    try:
        status = process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"loading the model and data took more than {TIMEOUT_SECONDS:g} s; try `flops-fit-ray plan`"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what the code has left behind, too
        process.communicate()
    if status == OUT_OF_MEMORY:
        return f"loading the model and data took more than {size(_max_memory())} of memory; try `flops-fit-ray plan`"
    return f"loading the model and data ended the process (status {status}); try `flops-fit-ray plan`"


def _max_memory() -> int:
    """Return the bytes that a process may hold, with all that it starts."""
    return round(MEMORY_SHARE * psutil.virtual_memory().total)


def watched(work: Callable[[], int]) -> int:
    """Do work in a process below this one, and end the whole group when standard input is closed or memory is short.

    The process that runs the user's code cannot watch itself: the code may never let go of Python's lock.
    """
    child = os.fork()
    if child == 0:
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)
        os._exit(work())
    most = _max_memory()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return max(1, status >> 8) if status else 0
        if select.select([0], [], [], LOOK_SECONDS)[0]:  # closed: nothing is ever written to it
            os.killpg(0, signal.SIGKILL)
        if _memory_of_group() > most:
            os.kill(child, signal.SIGKILL)
            return OUT_OF_MEMORY


def _memory_of_group() -> int:
    """Return the bytes of memory of the processes below this one, as they are counted for each."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


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
                "axis": e.axis,
            }
            for e in plan.experiments[:MAX_SHOWN]
        ],
        "text": str(plan),
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
    sys.exit(watched(functools.partial(main, *sys.argv[1:5])))
