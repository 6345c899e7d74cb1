"""Sections of a spec with their defaults, and the checks that span several keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from flops_fit_ray.fit_options import LIMITS, PIN_LIMITS, CurveChoice, FitOptions, LawWeights, MethodChoice, PinName
from flops_fit_ray.spec._values import (
    Betas,
    BoolOrAuto,
    Budget,
    BudgetsFor,
    BudgetValue,
    LearningRate,
    NumberOfSizes,
    OptimizerName,
    Positive,
    Resources,
    ScheduleName,
    Section,
    SeedsOrAuto,
    SingleRun,
    SizesOrLadder,
    Target,
    TokensOrAuto,
    Window,
)

ONE_BUDGET = "one_budget"  # in the context of a validation: one budget of many sizes will do, nothing is run
NO_DATA = "none"  # as data.train and as fingerprint, of a plan that no data were given for
SYNTHETIC_LOSS = "synthetic:besiroglu"  # of a sweep that trains nothing


class ModelSection(Section):
    """Model of the user: its constructor, and the argument that sets its size."""

    target: str
    size_param: str | None = None
    kwargs: dict[str, Any] = Field(default={})
    sizes: SizesOrLadder = "auto"
    flops_per_token: Target | None = None

    @model_validator(mode="after")
    def _size_is_not_fixed(self) -> ModelSection:
        if self.size_param is not None and self.size_param in self.kwargs:
            raise ValueError(f"kwargs.{self.size_param} is the size parameter; remove it from kwargs")
        return self


class DataSection(Section):
    """Data of the user: training set, held-out set, and the definition of a token."""

    train: str
    eval: str | None = None
    kwargs: dict[str, Any] = Field(default={})
    context: int | None = Field(default=None, gt=0)  # of token files: tokens per sample
    dtype: Literal["auto", "uint8", "uint16", "uint32", "int32", "int64"] = "auto"  # of token files
    eval_fraction: float = Field(default=0.05, ge=0, lt=1)
    eval_samples: int | None = Field(default=None, gt=0)
    eval_every_tokens: int | None = Field(default=None, gt=0)
    tokens_per_sample: int | None = Field(default=None, gt=0)
    count_tokens: Target | None = None
    bytes_per_token: Positive | None = None
    max_epochs: Positive = 1.0
    timeout_seconds: Positive = 300.0

    @model_validator(mode="after")
    def _one_rule_for_tokens(self) -> DataSection:
        if self.count_tokens is not None and self.tokens_per_sample is not None:
            raise ValueError("count_tokens and tokens_per_sample both define a token; give one of them")
        return self


class TrainSection(Section):
    """Training of every experiment. Steps, warmup and decay follow from each experiment's D, in the plan."""

    batch_size: int = Field(default=32, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    compile: BoolOrAuto = False
    cuda_graph: bool = False
    optimizer: OptimizerName = "adamw"
    lr: LearningRate = "auto"
    betas: Betas = (0.9, 0.95)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: Positive | None = 1.0
    schedule: ScheduleName = "wsd"
    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    decay_fraction: float = Field(default=0.2, gt=0, lt=1)
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    warmup_tokens: TokensOrAuto = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _lr_known(self) -> TrainSection:
        if self.optimizer != "adamw" and self.lr == "auto":
            raise ValueError(
                f"lr is missing: only adamw has an automatic rate, not {self.optimizer}; give a number, rule or table"
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is more than batch_size {self.batch_size}; lower it"
            )
        return self


class GridSection(Section):
    """Choice of experiments, and ways to save compute. `auto` is off in a static grid.

    A static grid is run as written; an adaptive grid chooses sizes around the predicted minima.
    """

    kind: Literal["auto", "static", "adaptive"] = "auto"  # auto: static where sizes are listed
    first_sizes: int = Field(default=7, ge=3, le=25)  # of the first valley
    sizes: NumberOfSizes = "auto"  # of every further one; auto: many where runs are cheap, three where they are dear
    window: Window = "auto"  # sizes from 1/window to window times the expected optimum; auto: by noise and skew
    tokens_per_param: Positive = 20.0  # D/N around which the first valley is looked for
    max_experiments: int = Field(default=80, gt=0)
    trunk: bool = True  # larger budgets of a size go on from the trunk of the smaller ones (wsd only)
    start: Literal["auto", "trunk", "scratch"] = "auto"  # auto: from scratch where that finishes earlier
    lr_guard: BoolOrAuto = "auto"  # probe learning rates first, where train.lr is auto
    lr_check: Literal["auto", "all", "lower", "none"] = (
        "auto"  # twice and half the rate at minima; lower: but the top two
    )
    seeds: SeedsOrAuto = "auto"  # more seeds at the two smallest minima
    rerun_outliers: BoolOrAuto = "auto"
    target: Positive | None = None  # C at which N_opt is wanted, for `--until FACTOR` and `fit --next`
    runs: list[SingleRun] = Field(default=[], max_length=1000)  # further ones, once the grid is done


class CheckpointSection(Section):
    """Checkpoints of an experiment: when they are written and which are kept. None of it changes a result."""

    minutes: Positive | None = 5.0
    steps: int | None = Field(default=None, gt=0)
    keep: int = Field(default=2, gt=0)
    best: bool = False  # keep the checkpoint with the lowest held-out loss, also after the experiment
    weights: bool = False  # write the final weights as safetensors


def _limited(name: str, default: float | None = None) -> Any:
    """Field of `FitSection` with the limits of `FitOptions`."""
    limits = LIMITS[name]
    return Field(default=default, ge=limits.ge, gt=limits.gt, le=limits.le, lt=limits.lt)


class FitSection(Section):
    """Settings of the fit. None: the default of `FitOptions`, or what the plan of an adaptive sweep says of `reach`."""

    draws: int = _limited("draws", FitOptions.draws)
    confidence: float = _limited("confidence", FitOptions.confidence)
    seed: int = _limited("seed", FitOptions.seed)
    method: MethodChoice | None = None
    curve: CurveChoice | None = None
    window: int | None = _limited("window")
    reach: float | None = _limited("reach")
    law_weights: LawWeights | None = None
    delta: FiniteFloat | None = _limited("delta")
    undertuned: float | None = _limited("undertuned")
    pins: dict[PinName, Annotated[FiniteFloat, Field(gt=PIN_LIMITS.gt)]] | None = None


class WandbSection(Section):
    """Weights & Biases. Its key is its own business: `wandb login` or WANDB_API_KEY, never the spec."""

    project: str | None = None  # by default the sweep's name
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class MlflowSection(Section):
    """MLflow. Without a tracking_uri it is MLFLOW_TRACKING_URI."""

    tracking_uri: str | None = None
    experiment: str | None = None  # by default the sweep's name

    @field_validator("tracking_uri")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        if uri is not None and "@" in uri.partition("://")[2].partition("/")[0]:  # the spec is kept, and shown
            words = "holds credentials; give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise PydanticCustomError("secret", words)
        return uri


class TrackersSection(Section):
    """Trackers that receive the experiments' metrics. None of them can delay or change a training."""

    tensorboard: bool = True
    wandb: WandbSection | None = None
    mlflow: MlflowSection | None = None


FEW_BUDGETS = "has {} budget(s); a law needs at least 2, better 4 or 5 over a range of 32x"


class SweepSpec(Section):
    """Spec of a sweep. `SweepSpec.model_json_schema()` is the published schema of the file."""

    schema_version: Literal[1] = 1
    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    model: ModelSection
    data: DataSection
    loss: str = "cross_entropy"
    loss_unit: Literal["nats", "bits"] | None = None  # of a cross-entropy of the user's, per token
    budgets: list[BudgetValue]  # empty: `auto`, to be chosen before anything is planned
    budgets_for: BudgetsFor | None = None  # what a mapping as `budgets` says; once they are chosen, also how
    train: TrainSection = TrainSection()
    grid: GridSection = GridSection()
    checkpoint: CheckpointSection = CheckpointSection()
    metrics: dict[str, Target] = Field(default={})
    resources_per_trial: Resources = Field(default={"gpu": 1})  # of each worker
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where resources_per_trial has one and the cluster too
    workers_per_trial: int = Field(default=1, gt=0, le=1024)  # that share every batch of an experiment
    shard_model: bool = False  # over the workers of an experiment, each with its part of weights and optimizer states
    max_retries: int = Field(default=3, ge=0, le=1000)  # of an experiment whose worker or node died, without progress
    stop_diverged: bool = True  # end a finite loss that explodes; false goes on, and tries those that ended so again
    fit: FitSection = FitSection()
    trackers: TrackersSection = TrackersSection()
    output: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _cost_stands_for_budgets(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and isinstance(content.get("budgets"), Mapping):
            return {**content, "budgets": "auto", "budgets_for": content["budgets"]}
        return content

    @field_validator("budgets", mode="before", json_schema_input_type=list[BudgetValue] | BudgetsFor | Literal["auto"])
    @classmethod
    def _is_a_list(cls, budgets: Any) -> Any:
        if budgets == "auto":
            return []
        if not isinstance(budgets, Sequence) or isinstance(budgets, str | bytes):
            raise ValueError("must be a list of FLOPs, for example [1e18, 3e18, 1e19], or auto, or {minutes: 30}")
        if not budgets:
            raise ValueError(FEW_BUDGETS.format(0))
        return budgets

    @field_validator("budgets")
    @classmethod
    def _enough(cls, budgets: list[Budget], info: ValidationInfo) -> list[Budget]:
        flops = [b.flops for b in budgets]
        one_run = len(budgets) == 1 and budgets[0].sizes is not None and len(budgets[0].sizes) == 1
        may_be_one = bool((info.context or {}).get(ONE_BUDGET)) and len(flops) == 1
        if len(flops) == 1 and not (one_run or may_be_one):
            raise ValueError(FEW_BUDGETS.format(1))
        twice = sorted({f for f in flops if flops.count(f) > 1})
        if twice:
            raise ValueError(f"{twice} are given twice")
        return sorted(budgets, key=lambda b: b.flops)

    @field_validator("resources_per_trial")
    @classmethod
    def _asks_for_something(cls, resources: dict[str, float] | str) -> dict[str, float] | str:
        if isinstance(resources, str):
            return resources
        if not any(resources.values()):
            raise ValueError("asks for nothing; give {gpu: 1} or {cpu: 1}")
        for name in resources.keys() - {"cpu", "gpu"}:
            if (meant := name.lower().removesuffix("s")) in ("cpu", "gpu"):
                raise ValueError(f"{name} is no resource; did you mean '{meant}'?")
        gpus = resources.get("gpu", 0.0)
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"gpu: {gpus:g} is neither a part of one GPU nor a whole number; give 1 or more whole ones"
            )
        return resources

    @property
    def named_code(self) -> list[tuple[str, str]]:
        """Keys with what they name as text: code as module:attribute, data files, and words of ours such as adamw."""
        model, data, train = self.model, self.data, self.train
        named = {
            "model.target": model.target,
            "model.flops_per_token": model.flops_per_token,
            "data.train": data.train,
            "data.eval": data.eval,
            "data.count_tokens": data.count_tokens,
            "loss": self.loss,
            "train.optimizer": train.optimizer,
            "train.schedule": train.schedule,
            "train.lr": train.lr,
            **{f"metrics.{name}": target for name, target in self.metrics.items()},
        }
        return [(key, text) for key, text in named.items() if isinstance(text, str)]

    @property
    def loss_in(self) -> Literal["nats", "bits"] | None:
        """The unit of a loss that is a cross-entropy; None where that is not known."""
        return "nats" if self.loss == "cross_entropy" else self.loss_unit

    @property
    def nats(self) -> float:
        """Nats in the unit of the loss."""
        return math.log(2) if self.loss_in == "bits" else 1.0

    @property
    def whole_resources(self) -> dict[str, float]:
        """Of an experiment that shares nothing."""
        asked = {"gpu": 1.0} if self.resources_per_trial == "auto" else dict(self.resources_per_trial)
        if self.device != "cpu":
            return asked
        return {"cpu": 1.0, **{name: amount for name, amount in asked.items() if name != "gpu"}}

    @property
    def is_one_run(self) -> bool:
        """One model, trained to one budget or to several, each from the trunk of the last: with nothing to fit."""
        if len(self.budgets) == 1:
            return True
        listed = [budget.sizes or [] for budget in self.budgets]
        return len(listed) > 1 and len(listed[0]) == 1 and all(sizes == listed[0] for sizes in listed)

    @property
    def is_adaptive(self) -> bool:
        """True if the planner chooses sizes around the predicted minima."""
        if self.grid.kind != "auto":
            return self.grid.kind == "adaptive"
        listed = isinstance(self.model.sizes, list) or any(b.sizes is not None for b in self.budgets)
        return not (listed or self.is_one_run)

    @model_validator(mode="after")
    def _adaptive_is_possible(self) -> SweepSpec:
        if self.grid.kind == "adaptive":
            if any(b.sizes is not None for b in self.budgets):
                raise ValueError("grid.kind is adaptive, and a budget lists sizes of its own; give model.sizes instead")
            if len(self.budgets) == 1:
                raise ValueError("grid.kind is adaptive, and there is one budget; a law needs at least 2")
        return self

    @model_validator(mode="after")
    def _budgets_come_from_one_place(self) -> SweepSpec:
        if self.budgets and self.budgets_for is not None and self.budgets_for.why is None:
            raise ValueError(
                "budgets_for: is how budgets were chosen; write budgets: {minutes: 30} to have them chosen"
            )
        return self

    @model_validator(mode="after")
    def _device_is_asked_for(self) -> SweepSpec:
        if self.device == "cuda" and not self.whole_resources.get("gpu"):
            raise ValueError("device is cuda, and resources_per_trial asks for no GPU; give {gpu: 1}")
        return self

    @model_validator(mode="after")
    def _workers_can_share(self) -> SweepSpec:
        workers, train = self.workers_per_trial, self.train
        if train.batch_size % workers:
            raise ValueError(
                f"workers_per_trial: {workers} workers cannot share train.batch_size {train.batch_size}; give a "
                f"multiple of {workers}"
            )
        if workers > 1 and self.resources_per_trial == "auto":
            raise ValueError(
                "resources_per_trial: auto lets small models share a GPU, and several workers cannot; give {gpu: 1}"
            )
        if workers > 1 and train.cuda_graph:
            raise ValueError("workers_per_trial: train.cuda_graph works with one worker alone; set it to false")
        if self.shard_model and workers == 1:
            raise ValueError("shard_model splits a model over workers, and there is one; set workers_per_trial")
        if self.shard_model and train.precision == "fp16":
            raise ValueError("shard_model: fp16's loss scale is each worker's own; set train.precision to bf16 or fp32")
        measured = [name for name in ("precision", "compile") if getattr(train, name) == "auto"]
        if self.shard_model and measured:
            raise ValueError(f"shard_model: train.{measured[0]}: auto is measured with a whole model; choose a value")
        return self

    @model_validator(mode="after")
    def _loss_has_one_unit(self) -> SweepSpec:
        if self.loss == "mse" and self.loss_unit is not None:
            raise ValueError("loss_unit is for a cross-entropy, and mse is none; remove it")
        if self.loss == "cross_entropy" and self.loss_unit == "bits":
            raise ValueError("loss_unit is bits, and cross_entropy is in nats; remove it")
        return self

    @model_validator(mode="after")
    def _numbers_have_a_name(self) -> SweepSpec:
        lists = [self.model.sizes if b.sizes is None else b.sizes for b in self.budgets]
        numbers = any(not isinstance(sizes, list) or any(isinstance(s, int) for s in sizes) for sizes in lists)
        if numbers and self.model.size_param is None:
            raise ValueError("model.size_param is missing: name the constructor argument that sizes stand for")
        return self
