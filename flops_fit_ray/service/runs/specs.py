"""Stored specs. The id of a spec is a hash of its text and of the directory of its code, so none is stored twice."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flops_fit_ray.errors import SpecError
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.request_error import not_found
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.runs._allowed import check_allowed
from flops_fit_ray.spec import SweepSpec, spec_from_bytes
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.codec import Record, value_of
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.storage.storage_path import names_in

MAX_SPECS = 1000


@dataclass(frozen=True, kw_only=True)
class StoredSpec(Record):
    """A spec as it was uploaded; the fields are the keys of its file."""

    id: str
    name: str
    text: str  # YAML
    code: str  # directory of the code that it names
    created_at: float  # seconds since the epoch


class Specs:
    """Store of all specs.

    Args:
        roots: directories that specs may load code from.
        tracker_hosts: servers that specs may send metrics to.
    """

    def __init__(self, paths: ServicePaths, roots: Sequence[Path], tracker_hosts: Sequence[str] = ()) -> None:
        self._paths, self.roots, self._tracker_hosts = paths, tuple(roots), tuple(tracker_hosts)
        self._lock = threading.Lock()

    def check(self, text: str, code: str | None) -> tuple[SweepSpec, Path]:
        """Return the spec in a text, and the directory of its code.

        Raises:
            SpecError: the text is wrong, or names code that is not allowed; all faults at once.
        """
        if code is None and len(self.roots) != 1:
            listed = ", ".join(map(str, self.roots)) or "there are none"
            raise SpecError("spec", [f"code: is missing; give one of the --code directories of this service: {listed}"])
        if code is not None and "\0" in code:
            raise SpecError("spec", ["code: contains a null character"])
        where = self.roots[0] if code is None else Path(code)
        if not where.is_absolute():
            raise SpecError("spec", [f"code: {code!r} is not an absolute path"])
        found = spec_from_bytes(text.encode(errors="replace"), "spec", open_budgets=True)
        if found.output is not None:
            message = f"output: {found.output!r} is not allowed here: leave it out, the sweep's name decides"
            raise SpecError("spec", [message])
        self.refuse_foreign(found, where)
        return found, where.resolve()

    def refuse_foreign(self, spec: SweepSpec, code: Path) -> None:
        """Check that a spec names only code, data and servers that are allowed here.

        Raises:
            SpecError: it does not; all faults at once.
        """
        check_allowed(spec, code, self.roots, self._tracker_hosts)

    def id_of(self, text: str, code: str | None) -> str:
        """Return the id that a spec has, or would have; nothing is checked."""
        return _id_of(text, self.roots[0].resolve() if code is None and self.roots else Path(code or "/").resolve())

    def create(self, text: str, code: str | None) -> tuple[StoredSpec, bool]:
        """Store a spec and return it, and True if it is new.

        Raises:
            SpecError: as `check`; or there are too many specs.
        """
        found, where = self.check(text, code)
        spec_id = _id_of(text, where)
        with self._lock:  # a file has one writer at a time
            known = self._read(spec_id)
            if known is not None:
                return known, False
            if len(names_in(self._paths.specs)) >= MAX_SPECS:
                raise SpecError("spec", [f"{MAX_SPECS} specs are stored already, the maximum; delete some"])
            made = StoredSpec(id=spec_id, name=found.name, text=text, code=str(where), created_at=time.time())
            write_json(self._paths.spec(spec_id), {"schema_version": SCHEMA_VERSION, **asdict(made)})
        return made, True

    def all(self) -> list[StoredSpec]:
        """Return all specs, newest first."""
        ids = (name.removesuffix(".json") for name in names_in(self._paths.specs) if name.endswith(".json"))
        found = (self._read(spec_id) for spec_id in ids if re.fullmatch(names.SPEC, spec_id))
        return sorted((spec for spec in found if spec is not None), key=lambda s: (-s.created_at, s.id))

    def named(self, spec_id: str) -> StoredSpec:
        """Return one spec.

        Raises:
            RequestError: there is none.
        """
        found = self._read(spec_id) if re.fullmatch(names.SPEC, spec_id) else None
        if found is None:
            raise not_found("spec")
        return found

    def delete(self, spec_id: str) -> None:
        """Delete one; sweeps that were started with it keep their own copy.

        Raises:
            RequestError: there is none.
        """
        self._paths.spec(self.named(spec_id).id).unlink(missing_ok=True)

    def _read(self, spec_id: str) -> StoredSpec | None:
        content = read_json(self._paths.spec(spec_id))
        try:
            return None if content is None else value_of(StoredSpec, content)
        except ValueError:
            return None


def _id_of(text: str, code: Path) -> str:
    return hashlib.sha256(f"{code}\n{text}".encode(errors="replace")).hexdigest()[:16]
