"""Bodies of requests and responses, as the published OpenAPI has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from flops_fit_ray.service.http import names
from flops_fit_ray.service.rest._documents import CurvePointOut, EventOut, Grows
from flops_fit_ray.service.state.views import State
from flops_fit_ray.spec import BudgetsFor

MAX_TEXT = 1 << 20
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cost = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Flops = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Asked(BaseModel):
    """A body; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class SpecIn(Asked):
    """A spec, and the directory that its model and data are looked for in."""

    text: str = Field(max_length=MAX_TEXT, description="YAML, as in sweep.yaml; without `output`")
    code: str | None = Field(
        default=None,
        max_length=4096,
        description="An absolute path inside of the service's --code; by default the only one",
    )


class CostLimitIn(Asked):
    """Limit of what a sweep whose budgets are `auto` may cost: one of the three at most."""

    minutes: Cost | None = Field(default=None, description="of wall time, for a spec with `budgets: auto`")
    hours: Cost | None = Field(default=None, description="of wall time")
    flops: Cost | None = Field(default=None, description="FLOPs in all")

    @property
    def limit(self) -> BudgetsFor | None:
        """The limit that is given.

        Raises:
            SpecError: there is more than one.
        """
        return BudgetsFor.of(self.minutes, self.hours, self.flops, source="limit")


class PriceIn(SpecIn, CostLimitIn):
    """A spec to plan and price, and what it may cost where it leaves its budgets open."""


class SpecOut(BaseModel):
    """A spec that was handed in."""

    id: str
    name: str
    text: str
    code: str
    created_at: float = Field(description="seconds since the epoch")


class PriceOut(Grows):
    """The plan and price of a spec, or its faults alone."""

    valid: bool
    faults: list[str]
    name: str = ""
    experiments: int = 0
    expected: int = Field(default=0, description="experiments with those that results so far decide on")
    flops: float = 0.0
    price: dict[str, Any] | None = None
    question: list[str] = Field(default=[])
    plan: list[dict[str, Any]] = Field(default=[], description="the first 500 experiments")
    text: str = Field(default="", description="as `plan` prints it")
    warnings: list[str] = Field(default=[])
    notes: list[str] = Field(default=[])


class RunLimitsIn(Asked):
    """Limits of a run, and experiments at a time."""

    until: str | None = Field(default=None, max_length=100, description="FACTOR[@C], as `run --until`")
    at_most: Flops | None = Field(default=None, description="FLOPs in all that `until` may spend")
    slots: int | None = Field(default=None, ge=1, le=100_000, description="experiments at a time")


class ResumeIn(RunLimitsIn):
    """A run that goes on."""

    checkpoint: str | None = Field(
        default=None,
        max_length=100,
        description="id of a checkpoint or trunk, or KEY@STEP: its experiment goes on from there, as by "
        "`run --from-checkpoint`; by default from the newest",
    )


class StartIn(RunLimitsIn, CostLimitIn):
    """A new sweep, of a spec that is stored already, or comes with it and is stored then."""

    spec: Annotated[str, Field(pattern=names.SPEC)] | dict[str, Any] | None = Field(
        default=None, description="id of a stored spec, or the spec itself as an object"
    )
    text: str | None = Field(default=None, max_length=MAX_TEXT, description="the spec itself as YAML")
    code: str | None = Field(default=None, max_length=4096, description="as of a spec; by default the only one")
    name: str | None = Field(default=None, pattern=names.SWEEP, description="by default the spec's")


class ExtendIn(RunLimitsIn):
    """Budgets, sizes and seeds to add to a sweep."""

    budgets: list[Flops] = Field(default=[], max_length=100)
    sizes: list[Annotated[int, Field(gt=0, le=2**31)]] = Field(default=[], max_length=100)
    seeds: int | None = Field(default=None, ge=0, le=20)


class PendingOut(BaseModel):
    """An answer that is not there yet."""

    id: str
    state: Literal["pending"]
    asked_for: str = Field(description="path of the request")
    asked_at: float = Field(description="seconds since the epoch")
    answer: str = Field(description="path that answers as the request would have, once the answer is there")


LATER: dict[int | str, dict[str, Any]] = {
    202: {"model": PendingOut, "description": "with `Prefer: respond-async`; Location has the answer, once it is there"}
}


class Can(BaseModel):
    """Actions that are possible for a sweep now."""

    stop: bool
    resume: bool
    extend: bool


class SweepOut(Grows):
    """Status of a sweep."""

    name: str
    state: State
    words: str = Field(description="why, where that needs words")
    exit_code: int | None
    started_here: bool
    kind: Literal["run", "resume", "extend"] | None = Field(description="of its last run that was requested here")
    run: int | None = Field(description="number of that, from 1")
    asked_at: float | None = Field(description="seconds since the epoch")
    writer: str | None = Field(description="who runs it now")
    can: Can
    version: str = Field(description="changes with the plan and with every outcome")
    counts: dict[str, int] = Field(description="experiments by status")
    total: int
    flops_planned: float
    flops_done: float
    share: float
    seconds_left: float | None = None
    final: bool = Field(description="whether no experiment will be added to the plan")
    device_seconds: float
    deaths: int
    started_at: float | None = Field(description="seconds since the epoch")
    last_at: float | None = Field(description="of its newest sign of life, seconds since the epoch")
    budgets: list[float]
    results_sha256: str | None


class DeletedOut(BaseModel):
    """A sweep in the bin."""

    id: str
    name: str
    deleted_at: float = Field(description="seconds since the epoch")
    directory: str | None = Field(description="where it lies now; null if it had none yet")


class ExperimentOut(Grows):
    """One experiment, planned, running or ended; what is not known is null."""

    key: str
    budget: float
    size: Any
    params: int
    tokens: int
    role: str
    axis: str | None = None
    seed: int
    lr: float | None
    status: str
    share: float | None
    loss: float | None
    loss_stderr: float | None
    train_loss: float | None
    seconds: float | None
    tokens_per_second: float | None
    steps_per_second: float | None
    samples_per_second: float | None
    mfu: float | None
    attempts: int | None
    deaths: int | None
    host: str | None
    finished_at: float | None = Field(description="seconds since the epoch")
    error: str | None


class CheckpointOut(BaseModel):
    """A file that training can go on from, or the final weights."""

    id: str
    key: str
    step: int | None
    kind: Literal["checkpoint", "trunk", "weights"]
    bytes: int
    sha256: str
    eval_loss: float | None


class WholeExperimentOut(ExperimentOut):
    """Everything known of one experiment."""

    planned: dict[str, Any] = Field(description="as in plan.json")
    outcome: dict[str, Any] | None = Field(description="as in result.json or failure.json")
    advice: str | None = Field(description="what to do about a failure")
    progress: dict[str, Any] | None
    events: list[EventOut] = Field(description="the newest 100, the newest last")
    checkpoints: list[CheckpointOut]


class Page(BaseModel):
    """A part of a list. `next` is the offset of the part after it."""

    items: list[Any]
    total: int
    offset: int
    next: int | None


class SweepPage(Page):
    """Sweeps."""

    items: list[SweepOut]


class DeletedPage(Page):
    """Sweeps in the bin."""

    items: list[DeletedOut]


class SpecPage(Page):
    """Specs."""

    items: list[SpecOut]


class ExperimentPage(Page):
    """Experiments."""

    items: list[ExperimentOut]


class HistoryPage(Page):
    """Points of a training curve."""

    items: list[CurvePointOut]


class CheckpointPage(Page):
    """Checkpoints."""

    items: list[CheckpointOut]


class Problem(BaseModel):
    """Reason of a refused request (RFC 9457)."""

    type: str = Field(description="about:blank, or a place in /docs/troubleshooting that says what to do")
    title: str = Field(description="the status in words")
    status: int
    detail: str
    instance: str = Field(description="path of the request")
    error: str = Field(description="as `detail`")
    faults: list[str] = []


class ServerOut(Grows):
    """The service itself."""

    version: str
    root: str
    code: list[str]
    runs_on: str
    machine: dict[str, Any] = Field(description="the service's own: cores, memory, GPUs, as they are now")
    at_once: int
    most_waiting: int
    states: dict[str, int]
    queue: list[str]
    trouble: str
