"""Data classes of a plan: frozen, convertible to JSON, with units beside the fields."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar

from flops_fit_ray.flags import Flagged
from flops_fit_ray.planning._first_loss import FirstLoss
from flops_fit_ray.planning._loss_facts import NOTHING_LEARNT, LossFacts
from flops_fit_ray.planning.data_probe import DataProbe
from flops_fit_ray.storage.codec import (
    Amount,
    Column,
    Count,
    PositiveFloat,
    PositiveInt,
    Record,
    Seed,
    fields_of,
    parse_json,
    read_versioned,
    value_of,
)
from flops_fit_ray.storage.storage_path import StoragePath

Role = Literal["grid", "probe", "seed", "lr_check", "batch_check", "rerun", "axis"]  # why an experiment is in the plan
IN_FIT: frozenset[str] = frozenset({"grid", "seed", "rerun"})  # roles whose losses are points of a valley


# Rules of N, FLOPs and the first valley; a sweep goes on by the one that it began with. 1: three times the forward
# pass, and frozen parameters belong to N. 2: FLOPs as they run; the first valley lies where 6·N·D is C, unless the
# counted FLOPs are far from that. 3: it lies where the counted FLOPs of D = tokens_per_param·N are C.
COUNTING, AS_THEY_RUN = 3, 2

EPS, FLOAT32 = 1e-8, "float32"  # torch's defaults

FIRST_RULE = "3 times the forward pass"  # backward = 2 × forward (Kaplan et al. 2020, section 2.1)


@dataclass(frozen=True, kw_only=True)
class FirstCount(Record):
    """N and FLOPs of one model as rule 1 counts them, for sweeps that began with it."""

    params: PositiveInt
    params_source: str
    flops_per_token: PositiveFloat
    flops_source: str


@dataclass(frozen=True, kw_only=True)
class ModelSize(Record):
    """One model of the sweep, measured without weights."""

    size: PositiveInt | str  # the value of the size parameter; text where several arguments make the size
    kwargs: Mapping[str, Any]  # constructor arguments of this size
    params: PositiveInt  # N, as `params_source` counts it
    params_total: Count  # all parameters, those that share their memory once
    params_non_embedding: Count  # without lookup tables and without a head that is as large as the vocabulary
    params_source: str
    flops_per_token: PositiveFloat  # forward and backward, as they run
    flops_source: str
    params_frozen: Count = 0  # of all, those that never train
    first_count: FirstCount | None = None  # None where rule 1 counts the same
    without_gradient: tuple[str, ...] = ()  # parameters that train, and that the loss of a first batch does not reach
    lr: Amount | None = None  # from the user's function
    budget_lr: Mapping[str, Amount] = field(default_factory=dict)  # the same by `str(budget)`, where D decides too
    uncounted: tuple[str, ...] = ()  # modules with matrices without counted FLOPs, and operations without a formula
    modules: Mapping[str, Count] = field(default_factory=dict)  # number of modules with their own weights, by kind
    tables: tuple[tuple[Count, Count], ...] = ()  # entries and width of each lookup table, shared ones once
    axis: Mapping[str, Any] = field(default_factory=dict)  # name and value on a second axis; none in the sweep itself
    without_axis: PositiveInt | str | None = None  # `size` as the sweep itself calls it; None there

    @property
    def plain_size(self) -> int | str:
        """The size without its value on a second axis."""
        return self.size if self.without_axis is None else self.without_axis

    def counted_by(self, rule: int) -> ModelSize:
        """Return the size with N and FLOPs as `rule` counts them."""
        first = self.first_count
        if first is None or rule >= AS_THEY_RUN:
            return self
        return replace(
            self,
            params=first.params,
            params_source=first.params_source,
            flops_per_token=first.flops_per_token,
            flops_source=first.flops_source,
            first_count=None,
        )


@dataclass(frozen=True, kw_only=True)
class DataFacts(Record):
    """Facts about the data that a plan needs."""

    train_samples: PositiveInt | None  # None: of unknown length, or endless
    eval_samples: Count  # 0: no held-out data, so the smoothed training loss is used
    tokens_per_sample: PositiveInt
    token_unit: str  # name of what is counted as a token
    eval_source: str
    fingerprint: str  # of the training and held-out samples
    tensor_bytes: Count = 0  # of data made of tensors, of which each process would hold a copy
    notes: tuple[str, ...] = ()  # what was assumed of the data, for people
    warnings: tuple[Flagged, ...] = ()  # about the data

    @property
    def tokens_per_epoch(self) -> int | None:
        """D of one pass over the training set, where its length is known."""
        return None if self.train_samples is None else self.train_samples * self.tokens_per_sample


@dataclass(frozen=True, kw_only=True)
class AxisSizes(Record):
    """A second axis: the value that the sweep itself has, and the models at the others."""

    name: str  # of the constructor's argument
    base: Any  # value of the sweep itself
    base_source: str
    sizes: tuple[ModelSize, ...]

    @property
    def values(self) -> list[Any]:
        """The values besides that of the sweep itself, in the order of the spec."""
        return list({str(s.axis[self.name]): s.axis[self.name] for s in self.sizes}.values())

    def at(self, value: Any) -> list[ModelSize]:
        """Return the models at a value, by increasing FLOPs per token."""
        by_cost = sorted(self.sizes, key=lambda s: (s.flops_per_token, s.params))
        return [s for s in by_cost if str(s.axis[self.name]) == str(value)]


T = TypeVar("T")
MAX_ANSWERS = 1000  # that measurements keep


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Measured facts that a plan is made from. `skipped` are sizes that the model rejected, with its reason."""

    sizes: tuple[ModelSize, ...]
    data: DataFacts
    skipped: tuple[str, ...] = ()
    probe: DataProbe | None = field(default=None, compare=False)  # for the processes that train; in no file
    first_loss: FirstLoss | None = field(default=None, compare=False)  # for them, too
    loss: LossFacts = NOTHING_LEARNT
    counting: int = COUNTING  # the rule of N and FLOPs
    default_dtype: str = FLOAT32  # torch's, as the user's program or module set it
    axes: tuple[AxisSizes, ...] = ()

    @property
    def dtype_words(self) -> str:
        """Return what is to be said beside the precision where torch's default dtype is not float32; else nothing."""
        words = f", parameters {self.default_dtype} unless the model says otherwise (torch's default dtype)"
        return "" if self.default_dtype == FLOAT32 else words

    @property
    def every_size(self) -> tuple[ModelSize, ...]:
        """The sizes, and those of other values on a second axis."""
        return (*self.sizes, *(size for axis in self.axes for size in axis.sizes))

    @cached_property
    def by_params(self) -> tuple[ModelSize, ...]:
        """The sizes by increasing N."""
        return tuple(sorted(self.sizes, key=lambda s: s.params))

    def once(self, question: Hashable, answer: Callable[[], T]) -> T:
        """Answer a question about these sizes once: a planner asks the same ones thousands of times."""
        known = self._answers
        if question not in known:
            if len(known) >= MAX_ANSWERS:
                known.clear()
            known[question] = answer()
        found: T = known[question]
        return found

    @cached_property
    def _answers(self) -> dict[Hashable, Any]:
        return {}

    def counted_by(self, rule: int) -> Measurements:
        """Return the measurements with N and FLOPs by the rule that a sweep began with."""
        if rule >= COUNTING or rule == self.counting:
            return self
        axes = tuple(replace(axis, sizes=tuple(s.counted_by(rule) for s in axis.sizes)) for axis in self.axes)
        return replace(self, sizes=tuple(s.counted_by(rule) for s in self.sizes), axes=axes, counting=rule)


@dataclass(frozen=True, kw_only=True)
class Recipe(Record):
    """Training settings of one experiment, with every rule resolved for its N and D."""

    batch_size: PositiveInt  # samples in one optimizer step
    micro_batch_size: PositiveInt  # samples in one forward and backward
    optimizer: str
    lr: Amount  # peak
    betas: tuple[float, float]
    momentum: float
    weight_decay: float
    grad_clip: Amount | None  # largest global norm
    schedule: str
    warmup_steps: Count
    decay_fraction: Amount
    decay_shape: str
    final_lr_fraction: Amount
    seed: Seed
    precision: str
    compile: bool  # by torch.compile
    cuda_graph: bool  # the whole step as one graph
    eps: PositiveFloat = EPS  # of adamw
    activation_checkpointing: bool = False  # a block's activations are computed again in the backward pass: same bits

    @property
    def identity(self) -> dict[str, Any]:
        """Fields that belong to an experiment's key."""
        return key_fields(vars(self))


@dataclass(frozen=True, kw_only=True)
class ExperimentFacts(Record):
    """Facts of an experiment that a plan and a result share. `key` is a hash of all that changes the result."""

    key: Annotated[str, Column(10, planned=True)]
    budget: Annotated[PositiveFloat, Column(20, planned=True)]  # nominal C, FLOPs
    size: Annotated[PositiveInt | str, Column(30, planned=True)]
    params: Annotated[PositiveInt, Column(40, planned=True)]  # N
    params_total: Annotated[Count, Column(50, planned=True)]
    tokens: Annotated[PositiveInt, Column(60, planned=True)]  # D, exactly as trained
    steps: Annotated[PositiveInt, Column(200)]  # optimizer steps
    role: Annotated[Role, Column(290, planned=True)] = "grid"
    of: Annotated[str | None, Column(300, planned=True)] = None  # experiment that a seed, check or rerun repeats
    axis: Annotated[str | None, Column(305, planned=True)] = None  # `n_layer=8`: the value of a second axis
    # Start: the trunk checkpoint of another experiment of this size, or from scratch. On the CPU both give the same
    # bits, so neither this nor `start_step` is part of the key.
    parent: Annotated[str | None, Column(310)] = None


@dataclass(frozen=True, kw_only=True)
class Experiment(ExperimentFacts):
    """A planned point (C, N) with its D."""

    size_kwargs: Mapping[str, Any]
    tokens_per_sample: Count | None  # None: counted in the targets of each batch
    flops: PositiveFloat  # tokens × flops_per_token; differs from `budget` by at most half a batch
    flops_per_token: PositiveFloat
    epochs: Amount | None  # None where the length of the data is not known
    recipe: Recipe
    reason: str = ""  # for its place in the plan
    start_step: Count = 0  # optimizer steps taken over from the parent

    @property
    def plain_size(self) -> int | str:
        """The size without its value on a second axis, as the sweep itself calls it."""
        if self.axis is None:
            return self.size
        kwargs = {key: value for key, value in self.size_kwargs.items() if key != self.axis.partition("=")[0]}
        only = next(iter(kwargs.values())) if len(kwargs) == 1 else None
        return only if isinstance(only, int) else ",".join(f"{key}={value}" for key, value in kwargs.items())

    @cached_property
    def trunk_step(self) -> int:
        """Step at which the trunk (constant rate) ends and the decay begins."""
        return self.steps - decay_steps(self.recipe, self.steps)

    @property
    def flops_executed(self) -> float:
        """FLOPs of the steps that this experiment takes itself, without those taken over from its parent."""
        return self.flops * (self.steps - self.start_step) / self.steps

    # The names that flops-fit has for these (docs/from-flops-fit.md)
    experiment_id = property(attrgetter("key"))
    compute_budget = property(attrgetter("budget"))
    size_param_value = property(attrgetter("size"))
    num_params = property(attrgetter("params"))
    num_tokens = property(attrgetter("tokens"))

    @property
    def tokens_per_param(self) -> float:
        """D / N."""
        return self.tokens / self.params

    def rates(self, tokens_per_second: float | None) -> tuple[float | None, float | None]:
        """Return the optimizer steps and the samples per second at a speed; None where it is not known."""
        if tokens_per_second is None:
            return None, None
        steps = tokens_per_second * self.steps / self.tokens
        return steps, steps * self.recipe.batch_size

    def from_scratch(self) -> Experiment:
        """Return the same experiment without a parent."""
        return replace(self, parent=None, start_step=0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in plan.json."""
        plain = {
            **fields_of(Experiment, self),
            "recipe": fields_of(Recipe, self.recipe),
        }  # asdict takes ten times as long
        return {**plain, "seed": self.recipe.seed, "flops_executed": self.flops_executed}


def key_fields(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training settings that belong into a key.

    An epsilon only where it is not what all had in earlier versions; nothing that leaves the bits as they are.
    """
    left_out = {"activation_checkpointing", *(["eps"] if train["eps"] == EPS else [])}
    return {name: value for name, value in train.items() if name not in left_out}


def decay_steps(recipe: Recipe, steps: int) -> int:
    """Steps of the decay of a warmup-stable-decay schedule: decay_fraction of all, at least 1, never in the warmup."""
    return min(max(1, round(recipe.decay_fraction * steps)), steps - recipe.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Outcome of an experiment as planning sees it; `loss` is None where it has none."""

    loss: float | None
    diverged: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepConstants(Record):
    """Values fixed at the start of a sweep and kept when budgets, sizes or seeds are added, so that keys stay valid."""

    identity: str  # hash of model, data, loss and recipe that these constants belong to
    base_budget: PositiveFloat  # the smallest C: where learning rates are probed and the first valley lies
    warmup_limit: Count  # tokens: a tenth of the smallest D of the sweep
    eval_samples: Count | None = None  # held-out samples to evaluate on; None: all, in sweeps of earlier versions
    counting: PositiveInt = 1  # rule of N and FLOPs; sweeps of earlier versions do not name theirs
    probe_budgets: tuple[PositiveFloat, ...] = ()  # of the learning rate; sweeps of earlier versions have one, unnamed
    # Sum of the budgets when the sweep began, of which a grid that tapers takes shares; None: it does not, in sweeps of
    # earlier versions
    total_budget: PositiveFloat | None = None
    axis_budgets: tuple[PositiveFloat, ...] = ()  # where `auto` runs a second axis; none in sweeps of earlier versions


@dataclass(frozen=True, kw_only=True)
class MeasuredLr(Record):
    """The measured learning rate rule: lr = coefficient · (N / at) ^ exponent."""

    coefficient: PositiveFloat
    at: PositiveFloat  # N
    exponent: float  # along D = r·N
    optima: tuple[tuple[PositiveInt, PositiveFloat], ...]  # (N, best rate) of each probe
    # Not in sweeps of earlier versions, whose probes had one budget
    optima_tokens: tuple[PositiveInt, ...] = ()  # D of each probe
    tokens_exponent: float | None = None  # of D at one N
    exponent_sd: float | None = None
    found_exponent: float | None = None  # as the probes ask for it

    @property
    def held(self) -> bool:
        """Return True if the exponent that the probes ask for is not believed."""
        return self.found_exponent is not None and self.found_exponent != self.exponent

    def of(self, params: float) -> float:
        """Learning rate of a model of N = `params`."""
        return float(self.coefficient * (params / self.at) ** self.exponent)


def read_experiment(path: StoragePath) -> Experiment | None:
    """Return the experiment in a file, of an earlier version too; None where there is none that can be read.

    Raises:
        StorageError: an object store does not answer.
    """
    raw = read_versioned(path)
    with contextlib.suppress(ValueError):
        return value_of(Experiment, raw)
    with contextlib.suppress(ValueError):
        return value_of(Experiment, with_whole_recipe(parse_json(raw)))
    return None


# Fields of a recipe that plans of earlier versions lack, because there was nothing to choose
_ONLY_RECIPE = {"decay_shape": "linear", "compile": False, "cuda_graph": False}


def with_whole_recipe(content: Any) -> Any:
    """Fill in what the recipe of an experiment lacks in files of earlier versions."""
    recipe = content.get("recipe") if isinstance(content, Mapping) else None
    if not isinstance(recipe, Mapping):
        return content
    return {**content, "recipe": {"micro_batch_size": recipe.get("batch_size"), **_ONLY_RECIPE, **recipe}}


def content_key(identity: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the identity as canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
