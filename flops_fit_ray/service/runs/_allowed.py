"""Check of what a spec names: code and data must lie in the --code directories, trackers on hosts that are allowed.

No code is run for the check. What the service starts looks again, at the objects and files themselves, behind the same
fence (`training/fence`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from flops_fit_ray.errors import SpecError
from flops_fit_ray.spec import SweepSpec, is_data_path
from flops_fit_ray.training.fence import Fence


def check_allowed(spec: SweepSpec, code: Path, roots: Sequence[Path], tracker_hosts: Sequence[str] = ()) -> None:
    """Check that a spec names only allowed code, data and servers.

    Args:
        tracker_hosts: HOST or HOST:PORT of servers that it may name.

    Raises:
        SpecError: it does not; all faults at once.
    """
    fence = Fence(tuple(roots))
    if not fence.holds(code):
        listed = ", ".join(map(str, roots)) or "none: start it with --code DIR"
        raise SpecError("spec", [f"code: {code} is not in the --code directories of this service ({listed})"])
    faults = [*_faults(spec, code.resolve(), fence), *_tracker_faults(spec, tracker_hosts)]
    if faults:
        raise SpecError("spec", faults)


def _faults(spec: SweepSpec, code: Path, fence: Fence) -> Iterator[str]:
    for key, named in spec.named_code:
        is_data = key in ("data.train", "data.eval") and (is_data_path(named) or ":" not in named)
        fault = None
        if is_data:
            fault = fence.data_fault(named, code)
        elif ":" in named or key == "model.target":  # else a word of the spec's own, such as adamw
            fault = fence.target_fault(named, code)
        if fault is not None:
            yield f"{key}: {fault}"


def _tracker_faults(spec: SweepSpec, allowed: Sequence[str]) -> Iterator[str]:
    uri = None if spec.trackers.mlflow is None else spec.trackers.mlflow.tracking_uri
    if uri is None:
        return
    key = "trackers.mlflow.tracking_uri"
    try:
        parts = urlsplit(uri)
        host, place = parts.hostname or "", parts.netloc.lower()
    except ValueError:
        host = place = ""
    plain = uri.isascii() and uri.isprintable() and not any(mark in uri for mark in " \\@")
    if not (plain and host and parts.scheme in ("http", "https")):
        yield f"{key}: {uri!r} must be http://HOST or https://HOST here"
    elif not {host, place} & {one.lower() for one in allowed}:
        yield (
            f"{key}: {place} is not among the hosts that this service sends to; leave it out for the service's own "
            f"MLFLOW_TRACKING_URI, or start it with --tracker-host {place}"
        )
