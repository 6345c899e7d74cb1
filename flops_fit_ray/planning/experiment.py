"""The values of a plan. All frozen, all JSON, units beside the fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from flops_fit_ray.storage.codec import value_of

if TYPE_CHECKING:
    pass

Role = Literal["grid", "probe", "seed", "lr_check", "rerun"]  # why an experiment is in the plan
IN_FIT: frozenset[str] = frozenset({"grid", "seed", "rerun"})  # roles whose losses are points of a valley


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """One model of the sweep, measured without weights."""

    size: int | str  # the value of the size parameter; text where several arguments make the size
    kwargs: Mapping[str, Any]  # constructor arguments that make this size
    params: int  # N, as `params_source` counts it
    params_total: int  # every parameter
    params_non_embedding: int  # without lookup tables and without a head that is as large as the vocabulary
    params_source: str
    flops_per_token: float  # forward and backward
    flops_source: str
    lr: float | None = None  # what the user's function gave
    uncounted: tuple[str, ...] = ()  # modules with parameters in which the counter saw no FLOPs
    modules: Mapping[str, int] = field(default_factory=dict)  # with weights of their own: how many, by kind
    tables: tuple[tuple[int, int], ...] = ()  # entries and width of each lookup table that is not another's


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the plan must know of the data."""

    train_samples: int | None  # None: the data cannot say, or never end
    eval_samples: int  # 0: no held-out data, the smoothed training loss stands in
    tokens_per_sample: int
    token_unit: str  # what one token is, in words
    eval_source: str
    fingerprint: str  # of the training and held-out samples
    tensor_bytes: int = 0  # of data that are made of tensors, which each process would hold

    @property
    def tokens_per_epoch(self) -> int | None:
        """D of one pass over the training set, where its length is known."""
        return None if self.train_samples is None else self.train_samples * self.tokens_per_sample


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The measured facts that a plan is made from. `skipped` are candidates the model refused, with its reason."""

    sizes: tuple[ModelSize, ...]
    data: DataFacts
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one experiment is trained, every rule already resolved for its own N and D."""

    batch_size: int  # samples in one optimizer step
    micro_batch_size: int  # samples in one forward and backward
    optimizer: str
    lr: float  # peak
    betas: tuple[float, float]
    momentum: float
    weight_decay: float
    grad_clip: float | None  # largest global norm
    schedule: str
    warmup_steps: int
    decay_fraction: float
    decay_shape: str
    final_lr_fraction: float
    seed: int
    precision: str
    compile: bool  # by torch.compile
    cuda_graph: bool  # the whole step as one graph


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A planned point (C, N) with its D. `key` is a hash of all that changes the result."""

    key: str
    budget: float  # C, FLOPs asked for
    size: int | str
    size_kwargs: Mapping[str, Any]
    params: int  # N
    params_total: int
    tokens: int  # D, exactly what will be seen
    tokens_per_sample: int | None  # None: counted in the targets of each batch
    steps: int  # optimizer steps
    flops: float  # tokens × flops_per_token; differs from `budget` by at most half a batch
    flops_per_token: float
    epochs: float | None  # None where the length of the data is not known
    recipe: Recipe
    role: Role = "grid"
    reason: str = ""  # why it is here
    of: str | None = None  # key of the experiment that a seed, a check or a rerun stands beside
    # Where it begins: at the trunk checkpoint of another experiment of this size, or from scratch. On the CPU both give
    # the same bits, so neither is a part of the key.
    parent: str | None = None
    start_step: int = 0  # optimizer steps that the parent has taken for it

    @cached_property
    def trunk_step(self) -> int:
        """Steps at the peak rate: where the trunk ends and the decay of this experiment's own begins."""
        return self.steps - decay_steps(self.recipe, self.steps)

    @property
    def flops_executed(self) -> float:
        """FLOPs that this experiment itself has to spend: without what it takes over from its parent."""
        return self.flops * (self.steps - self.start_step) / self.steps

    def from_scratch(self) -> Experiment:
        """The same experiment without a parent."""
        return replace(self, parent=None, start_step=0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in plan.json."""
        return {**asdict(self), "seed": self.recipe.seed, "flops_executed": self.flops_executed}


def decay_steps(recipe: Recipe, steps: int) -> int:
    """The optimizer steps over which a warmup-stable-decay schedule decays: one at least, and never into the warmup."""
    return min(max(1, round(recipe.decay_fraction * steps)), steps - recipe.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What became of an experiment, as far as planning cares. `loss` is None where there is none."""

    loss: float | None
    diverged: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepConstants:
    """What a sweep decides once and keeps when budgets, sizes or seeds are added, so that nothing is renamed."""

    identity: str  # of model, data, loss and recipe; a frame serves no other sweep
    base_budget: float  # the smallest C: where learning rates are probed and the first valley lies
    warmup_limit: int  # tokens; a tenth of the smallest D of the sweep


@dataclass(frozen=True, kw_only=True)
class LrFound:
    """A learning rate that was measured: lr = coefficient · (N / at) ^ exponent."""

    coefficient: float
    at: float  # N
    exponent: float
    optima: tuple[tuple[int, float], ...]  # (N, best rate) of each probed size

    def of(self, params: float) -> float:
        """The rate of a model of N = `params`."""
        return float(self.coefficient * (params / self.at) ** self.exponent)


# What plans of earlier versions do not say, because there was nothing else
_OLD_RECIPE = {"decay_shape": "linear", "compile": False, "cuda_graph": False}


def experiment_from_json(content: Mapping[str, Any]) -> Experiment:
    """The inverse of `Experiment.to_json`.

    Raises:
        KeyError, TypeError: the content is not an experiment of this schema.
    """
    recipe = {"micro_batch_size": content["recipe"]["batch_size"], **_OLD_RECIPE, **content["recipe"]}
    return value_of(Experiment, {**content, "recipe": value_of(Recipe, {**recipe, "betas": tuple(recipe["betas"])})})


def content_key(identity: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the identity as canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
