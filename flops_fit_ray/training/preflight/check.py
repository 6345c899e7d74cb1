"""Preflight check: ten items, measured by running the smallest and the largest model of a sweep on the device.

Each item is PASS, WARN or FAIL with its numbers. What can be measured is not taken from the plan.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from flops_fit_ray import formatting as fmt
from flops_fit_ray.planning import Experiment, Plan, Rates, flops_audit, priced
from flops_fit_ray.training.data import first_batch
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.preflight._target_leak import CHANCE_LOSS, detect_target_leak
from flops_fit_ray.training.preflight.timing import (
    ModelTiming,
    choose_precision,
    middle_experiment,
    rates_of,
    smallest_and_biggest,
    time_training,
    with_precision,
)
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.step.device import device_memory, device_name, peak_flops
from flops_fit_ray.training.step.stepper import free_memory, torch_threads
from flops_fit_ray.training.user.parts import UserParts
from flops_fit_ray.training.user.user_code import describe_error

Verdict = Literal["PASS", "WARN", "FAIL"]


MAX_WAIT_SHARE = 0.2  # of the training time, waiting for data


@dataclass(frozen=True)
class CheckItem:
    """One item of the check."""

    verdict: Verdict
    name: str
    words: str  # the finding, for people


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All items of the check, and the measured speed."""

    lines: tuple[CheckItem, ...]
    device: str
    seconds: float
    step_seconds: Mapping[str, float]  # by size
    rates: Rates | None = None  # to price a plan with

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all items."""
        found = {line.verdict for line in self.lines}
        return "FAIL" if "FAIL" in found else "WARN" if "WARN" in found else "PASS"

    def __str__(self) -> str:
        width = max(len(line.name) for line in self.lines)
        lines = [f"{line.verdict}  {line.name.ljust(width)}  {line.words}" for line in self.lines]
        return "\n".join([*lines, f"{self.verdict} on {self.device} in {fmt.duration(self.seconds)}"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rates = None if self.rates is None else self.rates.to_json()
        return {"verdict": self.verdict, **asdict(self), "lines": [asdict(line) for line in self.lines], "rates": rates}


def check_plan(plan: Plan, user: UserParts, *, device: str, slots: int = 1, threads: int = 1) -> CheckReport:
    """Run the smallest and the largest model of a plan for a few seconds each, and report on ten items."""
    started = time.perf_counter()
    place = torch.device(device)
    if plan.experiments[0].recipe.precision == "auto":
        plan = with_precision(plan, choose_precision(plan, user, device=device, threads=threads).precision)
    ends = smallest_and_biggest(plan)
    lines: list[CheckItem] = []
    measured: list[ModelTiming] = []
    with torch_threads(threads):
        for experiment in ends:
            try:
                measured.append(time_training(experiment, user, place))
            except BaseException as e:  # noqa: BLE001 - the user's code may raise anything: a FAIL
                lines.append(CheckItem("FAIL", "runs", f"size {experiment.size}: {_first_line(e)}"))
            free_memory()
        timed = list(measured)
        if len(measured) == len(ends):
            middle = middle_experiment(plan)
            timed += [] if middle is None else [time_training(middle, user, place)]
            lines += _items(plan, user, measured, rates_of(timed, plan, slots=slots), place, slots, threads)
    return CheckReport(
        lines=tuple(lines),
        device=device_name(place),
        seconds=time.perf_counter() - started,
        step_seconds={str(m.experiment.size): m.step_seconds for m in timed},
        rates=replace(rates_of(timed, plan, slots=slots), device=device_name(place)) if timed else None,
    )


def _items(
    plan: Plan,
    user: UserParts,
    measured: Sequence[ModelTiming],
    rates: Rates,
    device: torch.device,
    slots: int,
    threads: int,
) -> Iterator[CheckItem]:
    yield _runs(measured)
    yield _gradients(measured)
    yield _first_loss(measured)
    yield _memory(measured, device, slots)
    yield _tokens(plan, measured)
    yield _flops(plan)
    yield _speed(plan, measured, rates, device, threads)
    yield _data(plan, measured)
    yield _item_or_fail("checkpoint", lambda: _round_trip(measured[0].experiment, user, device))
    yield _item_or_fail("targets", lambda: _targets(measured[0].experiment, user, device))


def _item_or_fail(name: str, ask: Callable[[], CheckItem]) -> CheckItem:
    try:
        return ask()
    except BaseException as e:  # noqa: BLE001 - the user's code may raise anything: a FAIL
        return CheckItem("FAIL", name, _first_line(e))


def _first_line(error: BaseException) -> str:
    return describe_error(error).splitlines()[0]


def _per_size(measured: Sequence[ModelTiming], show: Callable[[ModelTiming], str]) -> str:
    return ", ".join(f"size {m.experiment.size}: {show(m)}" for m in measured)


def _runs(measured: Sequence[ModelTiming]) -> CheckItem:
    wrong = [m for m in measured if m.params_total != m.experiment.params_total]
    shown = _per_size(measured, lambda m: f"{fmt.count(m.params_total)} parameters")
    if wrong:
        return CheckItem(
            "FAIL", "runs", f"{shown}; the plan counted {_per_size(wrong, lambda m: str(m.experiment.params_total))}"
        )
    return CheckItem("PASS", "runs", f"{shown}; built, forward, backward and optimizer step on real batches")


def _gradients(measured: Sequence[ModelTiming]) -> CheckItem:
    idle = [m for m in measured if m.unused]
    if idle:
        names = ", ".join(idle[0].unused[:3])
        return CheckItem(
            "WARN",
            "gradients",
            f"{len(idle[0].unused)} parameters have no gradient: {names}; N counts them nevertheless",
        )
    return CheckItem("PASS", "gradients", "reach every trainable parameter")


def _first_loss(measured: Sequence[ModelTiming]) -> CheckItem:
    shown = _per_size(measured, lambda m: f"{m.loss:.3f}")
    if not all(math.isfinite(m.loss) for m in measured):
        return CheckItem("FAIL", "first loss", f"{shown}: not a finite number")
    classes = measured[0].classes
    if classes is None:
        return CheckItem("PASS", "first loss", f"{shown}; finite (no classes to compare it with)")
    expected = math.log(classes)
    far = [m for m in measured if not 0.5 * expected <= m.loss <= 1.3 * expected + 0.5]
    message = f"{shown}; ln({classes} classes) is {expected:.3f}"
    if far:
        return CheckItem("WARN", "first loss", f"{message}; check the initialisation")
    return CheckItem("PASS", "first loss", message)


def _memory(measured: Sequence[ModelTiming], device: torch.device, slots: int) -> CheckItem:
    whole = device_memory(device)
    room = whole if device.type == "cuda" else whole // slots
    halved = [m for m in measured if m.micro_batch_size != m.experiment.recipe.micro_batch_size]
    peak = max((m.peak_bytes or 0) for m in measured)
    message = f"at most {fmt.size(peak)} of {fmt.size(room)} per experiment"
    if halved:
        size = halved[0].micro_batch_size
        return CheckItem(
            "WARN", "memory", f"{message}; the micro-batch does not fit: set train.micro_batch_size: {size}"
        )
    return CheckItem("WARN" if peak > 0.8 * room else "PASS", "memory", message)


def _tokens(plan: Plan, measured: Sequence[ModelTiming]) -> CheckItem:
    first = measured[0].experiment
    planned = first.tokens // first.steps
    unit = plan.measurements.data.token_unit
    message = f"{measured[0].tokens} in a batch of {first.recipe.batch_size} samples; one is {unit}"
    if any(m.tokens != planned for m in measured):
        return CheckItem("FAIL", "tokens", f"{message}; the plan says {planned}")
    return CheckItem("PASS", "tokens", message)


def _flops(plan: Plan) -> CheckItem:
    sizes = plan.sizes
    ratios = [s.flops_per_token / (6 * s.params) for s in sizes]
    message = f"{min(ratios):.2f} to {max(ratios):.2f} times 6ND, {sizes[0].flops_source}"
    doubts = [flag.text for flag in flops_audit(sizes, plan.measurements.data.token_unit)]
    return (
        CheckItem("WARN", "FLOPs", f"{message}: {'; '.join(doubts)}") if doubts else CheckItem("PASS", "FLOPs", message)
    )


def _speed(plan: Plan, measured: Sequence[ModelTiming], rates: Rates, device: torch.device, threads: int) -> CheckItem:
    name, precision = device_name(device), measured[0].experiment.recipe.precision
    peak, source = peak_flops(name, device.type, precision, threads)

    def shown(m: ModelTiming) -> str:
        rate = m.tokens / m.step_seconds
        mfu = "N/A" if peak is None else f"{100 * rate * m.experiment.flops_per_token / peak:.0f} %"
        return f"{fmt.count(rate)} tokens/s, {1 / m.step_seconds:.3g} steps/s (MFU {mfu})"

    price = priced(plan, "auto", rates=rates).price
    assert price is not None
    message = f"{_per_size(measured, shown)} on {name} in {precision}{'' if peak else f'; {source}'}"
    message += f"; the sweep about {fmt.duration(price.wall_seconds or 0.0)} on {rates.slots} at a time"
    if device.type == "cuda" and precision == "fp32":
        return CheckItem("WARN", "speed", f"{message}; bf16 is faster on a GPU: set train.precision: auto")
    return CheckItem("PASS", "speed", message)


def _data(plan: Plan, measured: Sequence[ModelTiming]) -> CheckItem:
    share = max(m.wait_share for m in measured)
    facts = plan.measurements.data
    held_out = f"{facts.eval_samples} samples of {facts.eval_source}" if facts.eval_samples else facts.eval_source
    message = "; ".join(
        [f"waiting for data {100 * share:.1f} % of the time", f"held-out data: {held_out}", *facts.notes]
    )
    return CheckItem("WARN" if share > MAX_WAIT_SHARE or not facts.eval_samples else "PASS", "data", message)


class _StopError(Exception):
    """Stops an experiment as a crash would."""


class _Stopping(Observer):
    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def fetching(self) -> None:
        if self._left == 0:
            raise _StopError
        self._left -= 1


def _round_trip(experiment: Experiment, user: UserParts, device: torch.device) -> CheckItem:
    """Compare six steps without interruption to six steps with a crash and a resume in between."""
    per_step = experiment.tokens // experiment.steps
    steps = min(6, experiment.steps)
    short = replace(experiment, steps=steps, tokens=steps * per_step)
    whole = train_experiment(short, user, eval_samples=0, device=device.type)
    with tempfile.TemporaryDirectory() as directory:
        store = CheckpointStore(Path(directory), key=experiment.key)
        policy = SavePolicy(store=store, checkpoint_steps=max(1, steps // 2))
        stopping = _Stopping(max(1, steps // 2))
        with contextlib.suppress(_StopError):
            train_experiment(short, user, eval_samples=0, device=device.type, policy=policy, observer=stopping)
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
        resumed = train_experiment(short, user, eval_samples=0, device=device.type, policy=policy)
    message = f"{fmt.size(size)} at size {experiment.size}, saved, loaded and resumed"
    same = [p.train_loss for p in resumed.curve] == [p.train_loss for p in whole.curve]
    if same:
        return CheckItem("PASS", "checkpoint", f"{message}: the same losses to the last bit")
    close = math.isclose(resumed.loss, whole.loss, rel_tol=1e-3)
    difference = abs(resumed.loss - whole.loss)
    verdict: Verdict = "WARN" if close and device.type == "cuda" else "FAIL"
    return CheckItem(
        verdict,
        "checkpoint",
        f"{message}: losses differ by {difference:.2e}; does the model keep state outside its buffers?",
    )


def _targets(experiment: Experiment, user: UserParts, device: torch.device) -> CheckItem:
    RandomState.seed(experiment.recipe.seed)
    model = user.model(**experiment.size_kwargs).to(device)
    batch = first_batch(user.train_data, experiment.recipe.batch_size)
    found = detect_target_leak(model, user.objective, batch, device)
    if found is None:
        return CheckItem("PASS", "targets", "not applicable: the targets are not the input tokens")
    message = f"loss {found.loss:.2f} after {found.steps} steps on random tokens, {CHANCE_LOSS:.2f} by chance"
    if found.learns_targets:
        message += ". The model sees its targets: are they shifted by one, and is attention causal?"
    elif found.sees_ahead:
        message += ", and outputs change with the tokens that come after them: is attention causal?"
    return CheckItem("FAIL" if found.learns_targets or found.sees_ahead else "PASS", "targets", message)
