"""The values of a plan. All frozen, all JSON, units beside the fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_ray.layout import SCHEMA_VERSION

if TYPE_CHECKING:
    import pandas as pd


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


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the plan must know of the data."""

    train_samples: int | None  # None: the data cannot say, or never end
    eval_samples: int  # 0: no held-out data, the smoothed training loss stands in
    tokens_per_sample: int
    token_unit: str  # what one token is, in words
    eval_source: str
    fingerprint: str  # of the training and held-out samples

    @property
    def tokens_per_epoch(self) -> int | None:
        """D of one pass over the training set, where its length is known."""
        return None if self.train_samples is None else self.train_samples * self.tokens_per_sample


@dataclass(frozen=True, kw_only=True)
class Survey:
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
    parent: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in plan.json."""
        return {**asdict(self), "seed": self.recipe.seed}


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a sweep needs besides its results."""

    per_running: int  # checkpoints of the largest experiment; times the experiments that run side by side
    in_the_end: int  # best checkpoints and weights of all of them, where they are asked for


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every experiment of a sweep, and what its owner should know before paying for it."""

    name: str
    experiments: tuple[Experiment, ...]
    survey: Survey
    warnings: tuple[str, ...]
    disk: Disk

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole sweep."""
        return sum(e.flops for e in self.experiments)

    def to_frame(self) -> pd.DataFrame:
        """One row per experiment: budget, size, params, tokens, steps, epochs, lr, flops, key."""
        import pandas as pd

        names = ("budget", "size", "params", "tokens", "steps", "epochs", "flops", "key")
        return pd.DataFrame([{n: getattr(e, n) for n in names} | {"lr": e.recipe.lr} for e in self.experiments])

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in plan.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "flops": self.flops,
            "data": asdict(self.survey.data),
            "sizes": [asdict(s) | {"flops_per_token_6n": 6.0 * s.params} for s in self.survey.sizes],
            "skipped": list(self.survey.skipped),
            "warnings": list(self.warnings),
            "disk": asdict(self.disk),
            "experiments": [e.to_json() for e in self.experiments],
        }


def plan_from_json(content: Mapping[str, Any]) -> Plan:
    """The inverse of `Plan.to_json`.

    Raises:
        KeyError, TypeError: the content is not a plan of this schema.
    """
    sizes = tuple(ModelSize(**{k: v for k, v in s.items() if k != "flops_per_token_6n"}) for s in content["sizes"])
    survey = Survey(sizes=sizes, data=DataFacts(**content["data"]), skipped=tuple(content["skipped"]))
    experiments = tuple(_experiment(e) for e in content["experiments"])
    return Plan(
        name=content["name"],
        experiments=experiments,
        survey=survey,
        warnings=tuple(content["warnings"]),
        disk=Disk(**content["disk"]),
    )


def _experiment(content: Mapping[str, Any]) -> Experiment:
    fields = {k: v for k, v in content.items() if k not in {"recipe", "seed"}}
    recipe = dict(content["recipe"])
    recipe["betas"] = tuple(recipe["betas"])
    return Experiment(**fields, recipe=Recipe(**recipe))


def content_key(identity: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the identity as canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
