"""One cell (C, N) as an experiment: exact D, every rule of the recipe resolved, and the content key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning.experiment import (
    FLOAT32,
    Experiment,
    Measurements,
    ModelSize,
    Recipe,
    Role,
    SweepConstants,
    content_key,
    key_fields,
)
from flops_fit_ray.planning.lr_probes import probe_budgets
from flops_fit_ray.spec import LrRule, LrTable, SweepSpec

ENGINE_VERSION = 2  # raised whenever the same recipe would give other bits, so that old results are not reused
WARMUP_SHARE = 0.1  # of the smallest D of the sweep
FURTHER, CHEAP = 10.0, 0.1  # of two budgets for a second axis: their ratio, and the larger over the largest of all
HARMLESS_DATA_KEYS = {"max_epochs", "timeout_seconds", "eval_every_tokens", "bytes_per_token"}  # change no result
MAX_KEPT = 10_000  # experiments, of those that a factory has made: a replay asks for the same ones again
HARMLESS_TRAIN_KEYS = {"precision", "compile", "cuda_graph", "seed"}  # do not change `SweepConstants`


@dataclass(frozen=True)
class Cells:
    """Factory of the experiments of one sweep."""

    spec: SweepSpec
    measurements: Measurements
    constants: SweepConstants
    _made: dict[tuple[object, ...], tuple[ModelSize, Experiment]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def make(
        self,
        budget: float,
        size: ModelSize,
        lr: float,
        *,
        role: Role = "grid",
        reason: str = "",
        seed: int | None = None,
        of: str | None = None,
    ) -> Experiment:
        """Return the experiment of one cell, made once; `seed` None takes that of the sweep."""
        asked = (budget, id(size), lr, role, reason, seed, of)
        known = self._made.get(asked)
        if known is None:
            if len(self._made) >= MAX_KEPT:
                self._made.clear()
            made = self._make(budget, size, lr, role=role, reason=reason, seed=seed, of=of)
            known = self._made[asked] = (size, made)  # with its size, so that no other one gets that id
        return known[1]

    def _make(
        self, budget: float, size: ModelSize, lr: float, *, role: Role, reason: str, seed: int | None, of: str | None
    ) -> Experiment:
        spec, measurements = self.spec, self.measurements
        steps = steps_of(spec, measurements, budget, size)
        tokens = steps * batch_tokens(spec, measurements)
        per_epoch = measurements.data.train_samples
        recipe = Recipe(
            batch_size=spec.train.batch_size,
            micro_batch_size=spec.train.micro_batch_size or spec.train.batch_size,
            optimizer=spec.train.optimizer,
            lr=lr,
            betas=spec.train.betas,
            momentum=spec.train.momentum,
            weight_decay=spec.train.weight_decay,
            grad_clip=spec.train.grad_clip,
            schedule=spec.train.schedule,
            warmup_steps=min(self._warmup_tokens(size, tokens) // batch_tokens(spec, measurements), steps - 1),
            decay_fraction=spec.train.decay_fraction,
            decay_shape=spec.train.decay_shape,
            final_lr_fraction=spec.train.final_lr_fraction,
            seed=spec.train.seed if seed is None else seed,
            precision=spec.train.precision,
            compile=spec.train.compile is True,
            cuda_graph=spec.train.cuda_graph,
            eps=spec.train.eps,
            activation_checkpointing=spec.train.activation_checkpointing,
        )
        return Experiment(
            key=content_key(self._identity(budget, size, tokens, recipe)),
            budget=budget,
            size=size.size,
            size_kwargs=size.kwargs,
            params=size.params,
            params_total=size.params_total,
            tokens=tokens,
            tokens_per_sample=spec.data.tokens_per_sample,
            steps=steps,
            flops=tokens * size.flops_per_token,
            flops_per_token=size.flops_per_token,
            epochs=None if per_epoch is None else steps * spec.train.batch_size / per_epoch,
            recipe=recipe,
            role=role,
            reason=reason,
            of=of,
            axis=next((f"{name}={value}" for name, value in size.axis.items()), None),
        )

    def _warmup_tokens(self, size: ModelSize, tokens: int) -> int:
        """Warmup of at most N tokens and a tenth of the smallest D of the sweep (Porian et al. 2024, section 3.3).

        A cell added later may have a smaller D than any when the limit was set: it takes a tenth of its own D.
        """
        train = self.spec.train
        if train.warmup_tokens != "auto":
            return train.warmup_tokens
        if train.schedule == "constant" or ":" in train.schedule:  # a user's schedule does its own warmup
            return 0
        return min(size.params, self.constants.warmup_limit, int(WARMUP_SHARE * tokens))

    def _identity(self, budget: float, size: ModelSize, tokens: int, recipe: Recipe) -> dict[str, Any]:
        """Everything that changes the result of an experiment; resources and output are left out."""
        return {
            **_common_identity(self.spec, self.measurements),
            "model": {
                "target": self.spec.model.target,
                "kwargs": self.spec.model.kwargs,
                "size": dict(size.kwargs),
            },
            "budget": budget,
            "tokens": tokens,
            "recipe": recipe.identity,
            "parent": None,  # the trunk of another experiment gives the same bits
        }


def _common_identity(spec: SweepSpec, measurements: Measurements) -> dict[str, Any]:
    data = spec.data.model_dump(mode="json", exclude=HARMLESS_DATA_KEYS)
    found = {
        "engine": ENGINE_VERSION,
        "data": {**data, "fingerprint": measurements.data.fingerprint},
        "loss": spec.loss,
    }
    facts = measurements.loss
    if facts.average.over not in ("auto", "whole"):  # those are what every loss was taken for before it was tried
        found["average"] = asdict(facts.average)
    if facts.classes_second:
        found["classes_second"] = True
    if measurements.default_dtype != FLOAT32:
        found["default_dtype"] = measurements.default_dtype
    return found


def constants_identity(spec: SweepSpec, measurements: Measurements) -> str:
    """Hash of the sweep without its budgets, sizes and seeds: `SweepConstants` are valid for this identity."""
    train = key_fields(spec.train.model_dump(mode="json", exclude=HARMLESS_TRAIN_KEYS))
    model = {"target": spec.model.target, "kwargs": spec.model.kwargs}
    return content_key({**_common_identity(spec, measurements), "model": model, "train": train})


def make_constants(
    spec: SweepSpec, measurements: Measurements, smallest_tokens: int, eval_samples: int
) -> SweepConstants:
    """Make the constants of a new sweep with the smallest D `smallest_tokens`."""
    return SweepConstants(
        identity=constants_identity(spec, measurements),
        base_budget=spec.budgets[0].flops,
        warmup_limit=int(WARMUP_SHARE * smallest_tokens),
        eval_samples=eval_samples,
        counting=measurements.counting,
        probe_budgets=probe_budgets([b.flops for b in spec.budgets]),
        total_budget=sum(b.flops for b in spec.budgets),
        axis_budgets=cheap_budgets([b.flops for b in spec.budgets]),
    )


def cheap_budgets(budgets: Sequence[float]) -> tuple[float, ...]:
    """Choose two budgets for a second axis: the smallest, and one about `FURTHER` times as large where that is cheap.

    Two so that a change with C shows, cheap so that it is known before a dear one is paid for.
    """
    smallest, *others = sorted(budgets)
    cheap = [c for c in others if c <= CHEAP * max(budgets)] or others[:1]
    nearest = min(cheap, key=lambda c: abs(math.log(c / smallest / FURTHER)), default=None)
    return (smallest,) if nearest is None else (smallest, nearest)


def batch_tokens(spec: SweepSpec, measurements: Measurements) -> int:
    """Tokens of one optimizer step."""
    return spec.train.batch_size * measurements.data.tokens_per_sample


def steps_of(spec: SweepSpec, measurements: Measurements, budget: float, size: ModelSize) -> int:
    """Optimizer steps, C / (FLOPs per token · tokens per batch), rounded to whole batches."""
    return round(budget / (size.flops_per_token * batch_tokens(spec, measurements)))


def tokens_of(spec: SweepSpec, measurements: Measurements, budget: float, size: ModelSize) -> int:
    """Tokens D in whole batches."""
    return steps_of(spec, measurements, budget, size) * batch_tokens(spec, measurements)


def max_steps(spec: SweepSpec, measurements: Measurements) -> float:
    """Optimizer steps that the data allow; infinite where their length is unknown."""
    per_epoch = measurements.data.train_samples
    return float("inf") if per_epoch is None else spec.data.max_epochs * per_epoch / spec.train.batch_size


def resolve_lr(spec: SweepSpec, size: ModelSize, budget: float) -> float:
    """Return the peak learning rate of one size at one budget as the spec gives it; `auto` is `general_lr`."""
    lr = spec.train.lr
    if size.budget_lr:
        return size.budget_lr[str(budget)]
    if size.lr is not None:
        return size.lr
    if isinstance(lr, LrTable):
        if size.plain_size not in lr.table:
            raise SpecError(
                "spec", [f"train.lr.table: has no rate for size {size.plain_size}; add one (it has {list(lr.table)})"]
            )
        return lr.table[size.plain_size]
    if isinstance(lr, LrRule):
        x = size.params if lr.of == "params" else size.plain_size
        if isinstance(x, str):
            raise SpecError("spec", ["train.lr.of: 'size' needs sizes that are numbers; use 'params'"])
        return float(lr.base * (x / lr.at) ** lr.exponent)
    if isinstance(lr, str):
        return general_lr(size.params)
    return lr


def general_lr(params: int) -> float:
    """Return lr = 1e-3 · (N / 1e7)^-0.25, close to published rates of AdamW from 1e5 to 1e9 parameters.

    It errs on the low side, because half the best rate costs less loss than twice the best. It is a rule of thumb, and
    not measured.
    """
    return float(1e-3 * (params / 1e7) ** -0.25)
