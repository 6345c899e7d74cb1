"""The demo's model and text at several sizes, as our loop takes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from flops_fit_ray.planning import Experiment, make_plan
from flops_fit_ray.spec import make_spec
from flops_fit_ray.training.guest import Guest, make_guest
from flops_fit_ray.training.losses import cross_entropy
from flops_fit_ray.training.measure import survey

ROOT = Path(__file__).parent.parent


def demo_module(name: str) -> Any:
    """A module of the demo."""
    found = importlib.util.spec_from_file_location(f"demo_{name}", ROOT / "examples" / "bytes" / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def real_text(context: int, vocab: int = 256) -> TensorDataset:
    """The demo's bytes; for a larger vocabulary two of them make a token, so that the targets stay real."""
    inputs, targets = demo_module("data").train(context=context).tensors
    if vocab > 256:
        return TensorDataset((inputs * 197 + targets) % vocab, (targets * 197 + inputs) % vocab)
    return TensorDataset(inputs, targets)


def experiment_of(
    *, width: int, layers: int, heads: int, context: int, batch_size: int, steps: int, vocab: int = 256, **train: Any
) -> tuple[Experiment, Guest]:
    """An experiment of so many steps, and the parts that go with it."""
    kwargs = {"n_layer": layers, "n_head": heads, "context": context, "vocab": vocab}
    spec = make_spec(
        {
            "model": {
                "target": "model:GPT",
                "size_param": "d_model",
                "sizes": [width, 2 * width, 3 * width],
                "kwargs": kwargs,
            },
            "data": {"train": "data:train", "max_epochs": 1e9},
            "budgets": [1e15, 2e15],
            "train": {"batch_size": batch_size, "lr": 1e-3, "schedule": "constant", **train},
        },
        "benchmark",
    )
    guest = make_guest(
        model=demo_module("model").GPT,
        model_kwargs=kwargs,
        loss=cross_entropy,
        train=real_text(context, vocab),
        held_out=None,
        data=spec.data,
    )
    experiment = make_plan(spec, survey(spec, guest)).experiments[0]
    from dataclasses import replace

    recipe = replace(experiment.recipe, warmup_steps=0)
    tokens = steps * batch_size * context
    return replace(experiment, steps=steps, tokens=tokens, recipe=recipe), guest


def seeded(seed: int = 0) -> None:
    """As an experiment begins."""
    torch.manual_seed(seed)
