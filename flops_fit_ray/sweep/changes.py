"""Changes since a directory's last run; refuses to train completed experiments again unless that is asked for."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import DirectoryError, SpecError
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import Experiment, Plan, plan_from_json
from flops_fit_ray.planning.code_facts import CodeFacts, named
from flops_fit_ray.planning.data_probe import USUAL_CAUSES
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.atomic import read_json, set_aside
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep._damage import outcome_flags
from flops_fit_ray.sweep.recorded import recorded_spec

SHOWN = 10  # lines of a difference
_Place = tuple[float, str, str]  # budget, size, role: what an experiment is there for, however it is trained


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The difference of a directory and what is about to be run in it."""

    lines: tuple[str, ...]  # `train.lr: 0.04 -> 0.02`
    changed: int  # completed experiments that the new plan would train again in another way
    dropped: int  # completed experiments that it leaves out
    redefined: int = 0  # completed experiments that it keeps, with another N

    def text(self) -> str:
        """The lines, the first of them where there are many."""
        more = [f"... and {len(self.lines) - SHOWN} more"] if len(self.lines) > SHOWN else []
        return "\n".join(f"  {line}" for line in [*self.lines[:SHOWN], *more])

    def refusal(self, what: str) -> SpecError:
        """Return the refusal of a run, with the way out."""
        if self.redefined:  # one valley cannot hold losses over two definitions of N
            return SpecError(
                what,
                [
                    f"N of {fmt.counted(self.redefined, 'completed experiment')} is counted in another way now: "
                    f"{'; '.join(self.lines[:3])}. Choose another --output, or give the model a num_params of before"
                ],
            )
        said = "; ".join(self.lines[:3]) or "the directory's plan cannot be read, or an earlier engine made its results"
        return SpecError(
            what,
            [
                f"{fmt.counted(self.changed, 'completed experiment')} of this directory would be trained again in "
                f"another way: {said}. Take that back, choose another --output, or say --new: the old results then "
                "stay on record and are left out"
            ],
        )


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Spec and plan of a directory's last run; None where there is none, or it cannot be read."""

    paths: SweepPaths
    spec: SweepSpec | None
    plan: Plan | None
    code: str | None = None  # digest of the user's code

    @property
    def damaged(self) -> list[StoragePath]:
        """The files that are there and cannot be read."""
        both = ((self.paths.plan, self.plan), (self.paths.spec, self.spec))
        return [path for path, content in both if content is None and path.exists()]


def recorded_in(paths: SweepPaths) -> Recorded:
    """Read a directory's spec and plan back.

    Raises:
        DirectoryError: a newer version made it.
    """
    content = read_json(paths.plan) or {}
    version = content.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise DirectoryError(
            f"{paths.plan}: has schema_version {version}, and this version knows {SCHEMA_VERSION}; take the newer one "
            "that made it, or another --output"
        )
    spec: SweepSpec | None = None
    plan: Plan | None = None
    with contextlib.suppress(SpecError):
        spec = recorded_spec(paths)
    with contextlib.suppress(ValueError):
        plan = plan_from_json(content)
    code = content.get("code")
    return Recorded(paths=paths, spec=spec, plan=plan, code=code if isinstance(code, str) else None)


def mend(recorded: Recorded, plan: Plan, say: Callable[[str], object]) -> None:
    """Keep a damaged plan and spec aside, which the run writes again, and name outcomes that are gone or damaged.

    Args:
        plan: as far as the recorded results decide it.

    Raises:
        StorageError: the directory cannot be written.
    """
    for path in recorded.damaged:
        aside = set_aside(path)
        if aside is not None:
            say(f"{path} cannot be read: kept as {aside.name}, and made again from the spec and the results")
    ledger = Ledger(recorded.paths)
    damaged = ledger.damaged(e.key for e in plan.experiments)
    for flag in outcome_flags(ledger, [e for e in plan.experiments if e.key in damaged]):
        say(flag.line)


def changes_since(recorded: Recorded, spec: SweepSpec, plan: Plan, code: CodeFacts | None = None) -> Changes:
    """Compare what a directory holds with a spec and its plan (as far as the recorded results decide it).

    An edit of the code that changes neither N, FLOPs nor data is said, and no reason to refuse: whoever mends what made
    one experiment fail goes on with the others.
    """
    ledger = Ledger(recorded.paths)
    if recorded.plan is None:
        results = ledger.results(sorted(recorded.paths.recorded_keys()))
        done = {r.key: _place(r) for r in results}
    else:
        planned = {e.key: _place(e) for e in recorded.plan.experiments}
        results = ledger.results(planned)
        done = {r.key: planned[r.key] for r in results}
    kept = {e.key: e.params for e in plan.experiments}
    places = {_place(e) for e in plan.expected}
    out = [place for key, place in done.items() if key not in kept]
    redefined = sum(kept.get(r.key, r.params) != r.params for r in results)
    changed = sum(place in places for place in out)
    lines = [
        *([] if recorded.spec is None else _spec_lines(recorded.spec, spec)),
        *([] if recorded.plan is None else _plan_lines(recorded.plan, plan)),
        *([] if code is None else _code_lines(recorded, results, code)),
    ]
    return Changes(lines=tuple(lines), changed=changed, dropped=len(out) - changed, redefined=redefined)


def _place(of: Experiment | ExperimentResult) -> _Place:
    return of.budget, str(of.size), of.role


def _spec_lines(before: SweepSpec, now: SweepSpec) -> Iterator[str]:
    """Return the differences of the spec by key; budgets by their FLOPs, because one more moves those that follow."""
    old, new = (_flat(spec.model_dump(mode="json", exclude={"budgets", "budgets_for"})) for spec in (before, now))
    for path in [*old, *(p for p in new if p not in old)]:
        if old.get(path) != new.get(path):
            yield f"{path}: {_shown(old, path)} -> {_shown(new, path)}"
    old_sizes, new_sizes = ({b.flops: b.sizes for b in spec.budgets} for spec in (before, now))
    for flops in sorted(old_sizes.keys() | new_sizes.keys()):
        if flops not in new_sizes:
            yield f"budgets: without C = {flops:g}"
        elif flops not in old_sizes:
            yield f"budgets: also C = {flops:g}"
        elif old_sizes[flops] != new_sizes[flops]:
            yield f"budgets: sizes of C = {flops:g}: {old_sizes[flops]} -> {new_sizes[flops]}"


def _plan_lines(before: Plan, now: Plan) -> Iterator[str]:
    """Return the differences of data and model behind the same spec."""
    if before.measurements.data.fingerprint != now.measurements.data.fingerprint:
        yield f"data.train: its samples are not those of before (or those of data.eval are not); {USUAL_CAUSES}"
    old_loss, new_loss = before.measurements.loss, now.measurements.loss
    if old_loss.average != new_loss.average:
        yield f"loss: was taken as {old_loss.average}; tried, it is {new_loss.average}"
    if old_loss.classes_second != new_loss.classes_second:
        yield "loss: logits were taken as (..., classes); tried, they are (samples, classes, positions)"
    old_dtype, new_dtype = before.measurements.default_dtype, now.measurements.default_dtype
    if old_dtype != new_dtype:
        yield f"torch.set_default_dtype: {old_dtype} -> {new_dtype}"
    sizes = {str(s.size): s for s in before.measurements.sizes}
    for size in now.measurements.sizes:
        old = sizes.get(str(size.size))
        if old is not None and (old.params, old.flops_per_token) != (size.params, size.flops_per_token):
            yield (
                f"model, size {size.size}: N {old.params} -> {size.params}, FLOPs per token "
                f"{old.flops_per_token:g} -> {size.flops_per_token:g}"
            )


def _code_lines(recorded: Recorded, results: Sequence[ExperimentResult], now: CodeFacts) -> Iterator[str]:
    """Return what was edited since the last run, and since results were trained by other code still."""
    ledger = Ledger(recorded.paths)
    trained = Counter(r.code for r in results if r.code is not None)
    for digest in dict.fromkeys([recorded.code, *trained]):
        if digest is None or digest == now.digest:
            continue
        before = ledger.code(digest)
        what = "it is not that of before" if before is None else named(before.changes_to(now))
        if what:
            yield (
                f"code: {what}; results of {fmt.counted(trained[digest], 'completed experiment')} of before stay, and "
                "open ones go on from their checkpoints"
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
