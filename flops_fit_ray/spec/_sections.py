"""Sections of a spec, each key with its default and its meaning. The whole is `_sweep_spec`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator
from pydantic_core import PydanticCustomError

from flops_fit_ray.fit_options import LIMITS, PIN_LIMITS, CurveChoice, FitOptions, LawWeights, MethodChoice, PinName
from flops_fit_ray.spec._axes import MOST_AXES, AxisValues, same_value
from flops_fit_ray.spec._values import (
    Betas,
    BoolOrAuto,
    LearningRate,
    NumberOfSizes,
    OptimizerName,
    Positive,
    ScheduleName,
    Section,
    SeedsOrAuto,
    SingleRun,
    SizesOrLadder,
    Target,
    TokensOrAuto,
    Window,
)


class ModelSection(Section):
    """Model of the user: its constructor, and the argument that sets its size."""

    target: str
    """Class, factory or functools.partial that returns the `nn.Module`, as module:attribute."""
    size_param: str | None = None
    """Argument of the target that makes the model larger; not needed where sizes are mappings of arguments."""
    kwargs: dict[str, Any] = Field(default={})
    """Other arguments of the target, the same at every size."""
    sizes: SizesOrLadder = "auto"
    """Sizes to train, a ladder to choose from, or auto: the planner chooses around the expected minima."""
    axes: dict[str, AxisValues] = Field(default={}, max_length=MOST_AXES)
    """Other arguments whose values are compared at equal C, such as {n_layer: [2, 8]}: a few runs of each beside the
    sweep's minima, which the fit leaves out. The sweep has the value in kwargs, or the constructor's default."""
    flops_per_token: Target | None = None
    """Function (model) -> FLOPs per token, forward and backward; left out, they are counted."""

    @model_validator(mode="after")
    def _axes_are_no_sizes(self) -> ModelSection:
        named = (
            {name for size in self.sizes if isinstance(size, Mapping) for name in size}
            if isinstance(self.sizes, list)
            else set()
        )
        for name, axis in self.axes.items():
            if not name.isidentifier():
                raise ValueError(f"axes.{name}: is no name of an argument")
            if name == self.size_param or name in named:
                raise ValueError(
                    f"axes.{name} makes the size of the model; an axis is another argument of {self.target}"
                )
            if name in self.kwargs and all(same_value(value, self.kwargs[name]) for value in axis.values):
                raise ValueError(
                    f"axes.{name}: {self.kwargs[name]!r} is the sweep's own value (kwargs); give others too"
                )
        return self

    @model_validator(mode="after")
    def _size_is_not_fixed(self) -> ModelSection:
        if self.size_param is not None and self.size_param in self.kwargs:
            raise ValueError(f"kwargs.{self.size_param} is the size parameter; remove it from kwargs")
        return self


class DataSection(Section):
    """Data of the user: training set, held-out set, and the definition of a token."""

    train: str
    """Training set: a dataset or what makes one, as module:attribute; or token files, as a path or a pattern."""
    eval: str | None = None
    """Held-out set, written like the training set; left out, a part of that is held out."""
    kwargs: dict[str, Any] = Field(default={})
    """Arguments of what makes the datasets."""
    context: int | None = Field(default=None, gt=0)
    """Tokens per sample of token files."""
    dtype: Literal["auto", "uint8", "uint16", "uint32", "int32", "int64"] = "auto"
    """Type of the numbers in token files; auto: by a header, meta.pkl or the bytes."""
    eval_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Part of a map-style training set that is held out where eval is left out."""
    eval_samples: int | None = Field(default=None, gt=0)
    """Held-out samples to evaluate on, the first ones; left out: as many as cost a tenth of the training."""
    eval_every_tokens: int | None = Field(default=None, gt=0)
    """Tokens between evaluations along the way; left out: only at the end."""
    tokens_per_sample: int | None = Field(default=None, gt=0)
    """What D counts for each sample; left out: target tokens, or samples where targets are no tokens."""
    count_tokens: Target | None = None
    """Function (batch) -> tokens, where no fixed number per sample says it."""
    bytes_per_token: Positive | None = None
    """Bytes of text per token, so that the loss is also given in bits per byte."""
    max_epochs: Positive = 1.0
    """Times that the data may be repeated; an experiment that needs more is refused."""
    timeout_seconds: Positive = 300.0
    """Seconds that data, or code that holds Python's lock, may keep a trial waiting before it is stalled."""

    @model_validator(mode="after")
    def _one_rule_for_tokens(self) -> DataSection:
        if self.count_tokens is not None and self.tokens_per_sample is not None:
            raise ValueError("count_tokens and tokens_per_sample both define a token; give one of them")
        return self


class TrainSection(Section):
    """Training of every experiment. Steps, warmup and decay follow from each experiment's D, in the plan."""

    batch_size: int = Field(default=32, gt=0)
    """Samples of one optimizer step, over all workers."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Samples in one forward and backward pass of a worker; left out: its whole share of the batch."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Of the computation, weights stay in fp32; auto: the faster of fp32 and bf16, measured once."""
    compile: BoolOrAuto = False
    """Compile the model with torch.compile; auto: where the planned seconds are worth it."""
    cuda_graph: bool = False
    """Replay the whole step as one CUDA graph, where it can be captured."""
    activation_checkpointing: bool = False
    """Run each block of the model again in the backward pass, for less memory: same bits, FLOPs and keys."""
    optimizer: OptimizerName = "adamw"
    """adamw, sgd, or a function (model, lr) -> optimizer or optimizers."""
    lr: LearningRate = "auto"
    """Peak rate of every size: a number, a rule, a table, a function, or auto: measured first in an adaptive grid, and
    by a general rule in a static one."""
    betas: Betas = (0.9, 0.95)
    """Of adamw."""
    eps: Positive = 1e-8
    """Of adamw, as torch names it."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of weights; norms, biases and lookup tables are spared."""
    grad_clip: Positive | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    schedule: ScheduleName = "wsd"
    """wsd, cosine, linear, constant, or a function (step, steps) -> multiple of the peak rate."""
    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    """Of the decay of wsd."""
    decay_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Part of the steps that wsd decays in."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Rate at the end, as a part of the peak rate."""
    warmup_tokens: TokensOrAuto = "auto"
    """Tokens of the linear warmup; auto: as many as the model has parameters, at most a tenth of the shortest D."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of weights, order of the data and dropout."""

    @model_validator(mode="after")
    def _lr_known(self) -> TrainSection:
        if self.optimizer != "adamw" and self.lr == "auto":
            raise ValueError(
                f"lr is missing: only adamw has an automatic rate, not {self.optimizer}; give a number, rule or table"
            )
        if self.cuda_graph and self.activation_checkpointing:
            raise ValueError(
                "activation_checkpointing reads the state of random numbers, which a CUDA graph cannot; set cuda_graph "
                "or activation_checkpointing to false"
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

    kind: Literal["auto", "static", "adaptive"] = "auto"
    """Kind of the grid; auto: static where sizes are listed."""
    first_sizes: int = Field(default=7, ge=3, le=25)
    """Sizes of the first valley."""
    sizes: NumberOfSizes = "auto"
    """Sizes of every further valley; auto: many where runs are cheap, three where they are dear."""
    window: Window = "auto"
    """Sizes lie from 1/window to window times the expected optimum; auto: 4 or 8, by noise and skew."""
    tokens_per_param: Positive = 20.0
    """D/N around which the first valley is looked for."""
    max_experiments: int = Field(default=80, gt=0)
    """Experiments at most."""
    trunk: bool = True
    """Larger budgets of a size go on from the trunk of the smaller ones; with the schedule wsd alone."""
    start: Literal["auto", "trunk", "scratch"] = "auto"
    """Where experiments begin; auto: from scratch where waiting for a trunk would end later."""
    lr_guard: BoolOrAuto = "auto"
    """Probe learning rates first, where train.lr is auto."""
    lr_check: Literal["auto", "all", "lower", "none"] = "auto"
    """Budgets at whose minima twice and half the rate are tried; auto: the two smallest, lower: all but the top two."""
    batch_check: Literal["all", "lower", "none"] = "none"
    """Budgets at whose minima twice and half the batch size are tried, with a rate that goes with it."""
    seeds: SeedsOrAuto = "auto"
    """Further seeds near the two smallest minima, for the noise; auto: 2."""
    rerun_outliers: BoolOrAuto = "auto"
    """Train losses that stand far out again."""
    target: Positive | None = None
    """C in FLOPs at which N_opt is wanted, for `--until FACTOR` and `fit --next`."""
    runs: list[SingleRun] = Field(default=[], max_length=1000)
    """Single runs, once the grid is done; `--until` writes them."""


class CheckpointSection(Section):
    """Checkpoints of an experiment: when they are written and which are kept. None of it changes a result."""

    minutes: Positive | None = 5.0
    """Minutes between checkpoints; null: none by time."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps between checkpoints; left out: none by steps."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints that are kept."""
    best: bool = False
    """Keep the checkpoint of the lowest held-out loss, also after the experiment."""
    weights: bool = False
    """Write the final weights as safetensors."""


def _limited(name: str, default: float | None = None) -> Any:
    """Field of `FitSection` with the limits of `FitOptions`."""
    limits = LIMITS[name]
    return Field(default=default, ge=limits.ge, gt=limits.gt, le=limits.le, lt=limits.lt)


class FitSection(Section):
    """Settings of the fit. None: the default of `FitOptions`, or what the plan of an adaptive sweep says of `reach`."""

    draws: int = _limited("draws", FitOptions.draws)
    """Draws of the bootstrap; 0: no intervals."""
    confidence: float = _limited("confidence", FitOptions.confidence)
    """Of all intervals."""
    seed: int = _limited("seed", FitOptions.seed)
    """Of the bootstrap."""
    method: MethodChoice | None = None
    """Whose answer is the answer; auto: the valleys, or the coupled law where it predicts clearly better."""
    curve: CurveChoice | None = None
    """Of a valley; auto: the one that predicts left-out sizes best, if clearly."""
    window: int | None = _limited("window")
    """Sizes of a valley, those nearest to the lowest loss; left out: all."""
    reach: float | None = _limited("reach")
    """Sizes of a valley within this factor of its minimum; left out: all, or what the plan of an adaptive sweep
    says."""
    law_weights: LawWeights | None = None
    """Weights of the minima in a law: by their precision, or equal."""
    delta: FiniteFloat | None = _limited("delta")
    """Of the Huber loss of ln L (approach 3)."""
    undertuned: float | None = _limited("undertuned")
    """Weight of runs above the surface."""
    pins: dict[PinName, Annotated[FiniteFloat, Field(gt=PIN_LIMITS.gt)]] | None = None
    """Parameters of the surface that are held fixed, such as {E: 1.69}."""


class WandbSection(Section):
    """Weights & Biases. Its key is its own business: `wandb login` or WANDB_API_KEY, never the spec."""

    project: str | None = None
    """Project; left out: the sweep's name."""
    entity: str | None = None
    """Team or user; left out: the default one of the key."""
    mode: Literal["online", "offline"] = "online"
    """offline writes files that `wandb sync` sends."""


class MlflowSection(Section):
    """MLflow. Without a tracking_uri it is MLFLOW_TRACKING_URI."""

    tracking_uri: str | None = None
    """Server or directory; left out: MLFLOW_TRACKING_URI."""
    experiment: str | None = None
    """Experiment; left out: the sweep's name."""

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
    """Event files beside the results; not in object stores."""
    wandb: WandbSection | None = None
    """Weights & Biases; {} takes every default."""
    mlflow: MlflowSection | None = None
    """MLflow; {} takes every default."""
