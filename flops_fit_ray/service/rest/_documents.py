"""Shapes of what is fitted and measured. Fields that only some sweeps have are null or left out elsewhere."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = list[float | None] | None  # from, to; None where there is none


class Grows(BaseModel):
    """An answer; within a version of the API fields are added, and never renamed or removed."""

    model_config = ConfigDict(extra="allow")


class HealthOut(Grows):
    """The service answers."""

    status: Literal["ok"]


class FlagOut(Grows):
    """A warning; docs/troubleshooting.md has its code."""

    code: str
    severity: Literal["info", "warning", "severe"]
    message: str


class LawOut(Grows):
    """A power law of C, at confidence `bootstrap.confidence`."""

    method: str
    exponent: float
    coefficient: float | None
    log10_coefficient: float
    offset: float
    curved: bool
    exponent_ci95: Interval
    exponent_interval: Interval
    coefficient_ci95: Interval
    exponent_stderr: float | None
    exponent_stderr_ols: float | None


class PredictionOut(Grows):
    """N, D and loss at one C."""

    schema_version: int
    budget: float = Field(description="C, FLOPs")
    method: str
    params: float
    params_interval: Interval
    tokens: float
    tokens_interval: Interval
    loss: float | None
    loss_interval: Interval
    loss_interval_of_one_run: Interval
    confidence: float
    extrapolation: float
    params_extrapolation: float
    tokens_extrapolation: float
    warnings: list[FlagOut]
    unique_tokens: float | None = None
    epochs: float | None = None
    budget_interval: Interval = Field(None, description="of C, where a loss was asked for")
    cap: dict[str, Any] | None = Field(None, description="what the largest N costs, where it binds")
    metrics: list[dict[str, Any]] | None = Field(None, description="those asked for, as `predict --json` has them")
    serving: dict[str, Any] | None = Field(None, description="what serving adds, as `predict --json` has it")


class PredictOut(PredictionOut):
    """N, D and loss at one C, and the training run that is recommended for it."""

    run: dict[str, Any]


class FitOut(Grows):
    """Everything that is fitted, as `fit --json` has it (docs/reference/json.md)."""

    schema_version: int
    default_method: str
    n_opt: LawOut | None
    d_opt: LawOut | None
    l_opt: LawOut | None
    methods: dict[str, dict[str, Any]]
    choices: list[dict[str, Any]]
    valleys: list[dict[str, Any]]
    budgets_found_by_nearness: bool
    points: int
    runs: int
    problem: str
    noise: dict[str, Any] | None
    bootstrap: dict[str, Any] | None
    valley_skew: dict[str, Any] | None
    repetition: dict[str, Any] | None
    lack_of_fit: list[dict[str, Any]]
    warnings: list[FlagOut]
    predictions: list[PredictionOut]
    sensitivity: dict[str, Any] | None
    verdict: FlagOut | None
    learning_rates: dict[str, Any] | None
    hold_out: dict[str, Any] | None
    isotime: dict[str, Any] | None
    published: dict[str, Any] | None
    validity: list[dict[str, Any]]


class SummaryOut(Grows):
    """The content of summary.json."""

    schema_version: int
    name: str
    answer: str
    provisional: bool
    status: dict[str, int]
    valleys: list[dict[str, Any]]
    metrics_at_minima: list[dict[str, Any]]
    n_opt: LawOut | None
    d_opt: LawOut | None
    l_opt: LawOut | None
    predictions: list[PredictionOut]
    forecasts: dict[str, Any]
    axes: list[dict[str, Any]] = Field(default=[], description="second axes: name, problem, and fit as `axis --json`")
    problem: str
    warnings: list[str]
    flops_planned: float
    flops_spent: float
    device_seconds: float
    failures: list[dict[str, Any]]
    results_sha256: str | None
    command: str


class MetricsOut(Grows):
    """The newest measurements of an experiment; those that it has not got yet are left out."""

    key: str
    status: str
    loss: float | None = None
    loss_stderr: float | None = None
    train_loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    tokens_seen: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    updated_at: float | None = Field(default=None, description="seconds since the epoch")
    tokens_per_second: float | None = None
    steps_per_second: float | None = None
    samples_per_second: float | None = None
    mfu: float | None = None
    peak_source: str | None = None
    data_wait_share: float | None = None
    all_reduce_share: float | None = None
    metrics: dict[str, float | None] | None = Field(default=None, description="of the user's own")


class CurvePointOut(Grows):
    """A point of a training curve."""

    step: int
    tokens: int
    train_loss: float | None
    lr: float | None = None
    grad_norm: float | None = None
    eval_loss: float | None = None
    seconds: float | None = None


class CurveOut(Grows):
    """A training curve, as columns of one length."""

    step: list[int]
    tokens: list[int]
    train_loss: list[float | None]
    eval_loss: list[float | None]
    lr: list[float | None]


class SpeedOut(Grows):
    """Tokens per second along a training, as columns of one length."""

    step: list[int]
    tokens: list[int]
    seconds: list[float | None]
    tokens_per_second: list[float | None]


class ThroughputOut(Grows):
    """Speed of an experiment that trains or has trained."""

    key: str
    tokens_per_second: float | None
    steps_per_second: float | None
    samples_per_second: float | None
    mfu: float | None
    along: SpeedOut


class EventOut(Grows):
    """A line of an experiment's log."""

    key: str
    at: float = Field(description="seconds since the epoch")
    host: str
    aloud: bool = Field(description="whether it is a warning")
    words: str


class DeviceOut(Grows):
    """A machine as it was read last; what is not known is null."""

    host: str
    cpu: str
    cpus: int | None
    cpu_share: float | None
    memory_used: int | None
    memory_total: int | None
    driver: str | None
    cuda: str | None
    nccl: str | None
    running: int = Field(description="experiments")
    gpus: list[dict[str, Any]]
