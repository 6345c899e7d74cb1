"""The spec of a whole sweep, and the checks that span several keys."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from flops_fit_ray.spec._sections import (
    CheckpointSection,
    DataSection,
    FitSection,
    GridSection,
    ModelSection,
    TrackersSection,
    TrainSection,
)
from flops_fit_ray.spec._values import Budget, BudgetsFor, BudgetValue, Resources, Section, Target, few

ONE_BUDGET = "one_budget"  # in the context of a validation: one budget of many sizes will do, nothing is run
NO_DATA = "none"  # as data.train and as fingerprint, of a plan that no data were given for
SYNTHETIC_LOSS = "synthetic:besiroglu"  # of a sweep that trains nothing
FEW_BUDGETS = "has {}; a law needs at least 2, better 4 or 5 over a range of 32x"


class SweepSpec(Section):
    """Spec of a sweep. `SweepSpec.model_json_schema()` is the published schema of the file."""

    schema_version: Literal[1] = 1
    """Version of the spec's form."""
    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the sweep; its directory is runs/NAME beside the spec."""
    model: ModelSection
    data: DataSection
    loss: str = "cross_entropy"
    """cross_entropy, mse, model (the model returns its own), or a function (outputs, targets) or (model, batch) ->
    mean loss."""
    loss_unit: Literal["nats", "bits"] | None = None
    """Unit per token of a loss of your own that is a cross-entropy."""
    budgets: list[BudgetValue]  # empty: auto, to be chosen before anything is planned
    """C of each budget, or {minutes: 30}, {hours: 8}, {flops: 1e19} or auto: chosen by what the sweep may cost."""
    budgets_for: BudgetsFor | None = None
    """How the budgets that stand here were chosen; written by the program."""
    train: TrainSection = TrainSection()
    grid: GridSection = GridSection()
    checkpoint: CheckpointSection = CheckpointSection()
    metrics: dict[str, Target] = Field(default={})
    """Further measurements on the held-out data, by name: functions as for loss."""
    resources_per_trial: Resources = Field(default={"gpu": 1})
    """Of Ray, for each worker of an experiment; auto: small models share a GPU, by measured memory and time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the experiments; auto: a GPU where resources_per_trial asks for one and the cluster has it."""
    workers_per_trial: int = Field(default=1, gt=0, le=1024)
    """Workers that share every batch of an experiment."""
    shard_model: bool = False
    """Each worker holds its part of weights, gradients and optimizer states."""
    max_retries: int = Field(default=3, ge=0, le=1000)
    """Deaths of worker or node in a row, without progress, after which an experiment has failed."""
    stop_diverged: bool = True
    """End a finite loss that explodes; false goes on, and tries those that ended so again."""
    fit: FitSection = FitSection()
    trackers: TrackersSection = TrackersSection()
    output: str | None = None
    """Sweep directory, relative to the spec, or in an object store; left out: runs/NAME."""

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
            raise ValueError(FEW_BUDGETS.format("no budgets"))
        return budgets

    @field_validator("budgets")
    @classmethod
    def _enough(cls, budgets: list[Budget], info: ValidationInfo) -> list[Budget]:
        flops = [b.flops for b in budgets]
        one_run = len(budgets) == 1 and budgets[0].sizes is not None and len(budgets[0].sizes) == 1
        may_be_one = bool((info.context or {}).get(ONE_BUDGET)) and len(flops) == 1
        if len(flops) == 1 and not (one_run or may_be_one):
            raise ValueError(FEW_BUDGETS.format("1 budget"))
        twice = sorted(f for f, times in Counter(flops).items() if times > 1)
        if twice:
            raise ValueError(f"{few(twice)} are given twice")
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
    def _axes_have_budgets(self) -> SweepSpec:
        known = {b.flops for b in self.budgets}
        for name, axis in self.model.axes.items():
            if known and self.is_one_run:
                raise ValueError(f"model.axes.{name}: values are compared at minima of a sweep, and this is one run")
            named = {name for b in self.budgets for size in b.sizes or () if isinstance(size, dict) for name in size}
            if name in named:
                raise ValueError(f"model.axes.{name} makes the size of the model at a budget; name another argument")
            missing = [c for c in axis.budgets if c not in known] if isinstance(axis.budgets, list) else []
            if known and missing:
                raise ValueError(f"model.axes.{name}.budgets: {few(missing)} are no budgets of this sweep")
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
