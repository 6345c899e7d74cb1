"""What has changed since a directory's last run, and whether completed experiments could still stand for themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.files import read_json
from flops_fit_ray.layout import SweepPaths
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Plan, plan_from_json
from flops_fit_ray.spec import SweepSpec, read_spec

SHOWN = 10  # lines of a difference
_Place = tuple[float, str, str]  # budget, size, role: what an experiment is there for, however it is trained


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The difference of a directory and what is about to be run in it."""

    lines: tuple[str, ...]  # `train.lr: 0.04 -> 0.02`
    changed: int  # completed experiments that the new plan would train again in another way
    dropped: int  # completed experiments that it leaves out

    def text(self) -> str:
        """The lines, the first of them where there are many."""
        more = [f"... and {len(self.lines) - SHOWN} more"] if len(self.lines) > SHOWN else []
        return "\n".join(f"  {line}" for line in [*self.lines[:SHOWN], *more])

    def refusal(self, what: str) -> SpecError:
        """Why a run is refused, and the way out."""
        said = "; ".join(self.lines[:3]) or "the directory's plan cannot be read, or an earlier engine made its results"
        return SpecError(
            what,
            [
                f"{self.changed} completed experiment(s) of this directory would be trained again in another way: "
                f"{said}. Take that back, choose another --output, or say --new: the old results then stay on record "
                "and are left out"
            ],
        )


def changes_since(paths: SweepPaths, spec: SweepSpec, plan: Plan) -> Changes:
    """Compare what a directory holds with a spec and its plan (as far as the recorded results decide it)."""
    ledger = Ledger(paths)
    recorded = _recorded_plan(paths)
    done: dict[str, _Place] = {}
    if recorded is not None:
        keys = {e.key: (e.budget, str(e.size), e.role) for e in recorded.experiments}
        done = {key: place for key, place in keys.items() if ledger.result(key) is not None}
    else:
        results = ledger.results(sorted(paths.recorded_keys()))
        done = {r.key: (r.budget, str(r.size), r.role) for r in results}
    kept = {e.key for e in plan.experiments}
    places = {(e.budget, str(e.size), e.role) for e in plan.expected}
    out = [place for key, place in done.items() if key not in kept]
    changed = sum(place in places for place in out)
    lines = [*_spec_lines(paths, spec), *([] if recorded is None else _plan_lines(recorded, plan))]
    return Changes(lines=tuple(lines), changed=changed, dropped=len(out) - changed)


def unreadable(paths: SweepPaths) -> list[Path]:
    """Those of a directory's spec and plan that are there and cannot be read."""
    found = []
    if paths.plan.exists() and _recorded_plan(paths) is None:
        found.append(paths.plan)
    if paths.spec.exists():
        try:
            read_spec(paths.spec)
        except SpecError:
            found.append(paths.spec)
    return found


def _recorded_plan(paths: SweepPaths) -> Plan | None:
    try:
        return plan_from_json(read_json(paths.plan) or {})
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _spec_lines(paths: SweepPaths, spec: SweepSpec) -> Iterator[str]:
    """What differs in the spec, key by key."""
    try:
        before = _flat(read_spec(paths.spec).model_dump(mode="json"))
    except SpecError:
        return
    now = _flat(spec.model_dump(mode="json"))
    for path in [*before, *(p for p in now if p not in before)]:
        if path.startswith("budgets."):
            continue
        if before.get(path) != now.get(path):
            yield f"{path}: {_shown(before, path)} -> {_shown(now, path)}"
    yield from _budget_lines(before, now)


def _budget_lines(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Budgets by their FLOPs, because one more moves the numbers of all that follow."""

    def budgets(flat: Mapping[str, Any]) -> dict[float, Any]:
        places = {path.split(".")[1] for path in flat if path.startswith("budgets.")}
        return {flat[f"budgets.{i}.flops"]: flat.get(f"budgets.{i}.sizes") for i in sorted(places, key=int)}

    old, new = budgets(before), budgets(now)
    for flops in sorted(old.keys() | new.keys()):
        if flops not in new:
            yield f"budgets: without C = {flops:g}"
        elif flops not in old:
            yield f"budgets: also C = {flops:g}"
        elif old[flops] != new[flops]:
            yield f"budgets: sizes of C = {flops:g}: {old[flops]} -> {new[flops]}"


def _plan_lines(before: Plan, now: Plan) -> Iterator[str]:
    """What differs in the data and the model behind the same spec."""
    if before.survey.data.fingerprint != now.survey.data.fingerprint:
        yield "data.train: its samples are not those of before"
    sizes = {str(s.size): s for s in before.survey.sizes}
    for size in now.survey.sizes:
        old = sizes.get(str(size.size))
        if old is not None and (old.params, old.flops_per_token) != (size.params, size.flops_per_token):
            yield (
                f"model, size {size.size}: N {old.params} -> {size.params}, FLOPs per token "
                f"{old.flops_per_token:g} -> {size.flops_per_token:g}"
            )


def _shown(flat: Mapping[str, Any], path: str) -> str:
    return json.dumps(flat[path]) if path in flat else "(not set)"


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves by their path; lists of plain values are leaves."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        here = f"{path}{name}"
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{here}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            found |= _flat({str(i): v for i, v in enumerate(value)}, f"{here}.")
        else:
            found[here] = value
    return found
