"""The demo's model and text at several sizes, as our loop takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import TensorDataset

from flops_fit_ray.planning import Experiment, make_plan
from flops_fit_ray.spec import make_spec
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user._targets import load_target
from flops_fit_ray.training.user.losses import cross_entropy
from flops_fit_ray.training.user.parts import UserParts, make_user_parts

DEMO = Path(__file__).parent.parent / "examples" / "bytes"


def real_text(context: int, vocab: int = 256) -> TensorDataset:
    """The demo's bytes; for a larger vocabulary two of them make a token, so that the targets stay real."""
    inputs, targets = load_target("data:train", DEMO, "data.train")(context=context).tensors
    if vocab > 256:
        return TensorDataset((inputs * 197 + targets) % vocab, (targets * 197 + inputs) % vocab)
    return TensorDataset(inputs, targets)


def experiment_of(
    *, width: int, layers: int, heads: int, context: int, batch_size: int, steps: int, vocab: int = 256, **train: Any
) -> tuple[Experiment, UserParts]:
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
    user = make_user_parts(
        model=load_target("model:GPT", DEMO, "model.target"),
        model_kwargs=kwargs,
        loss=cross_entropy,
        train=real_text(context, vocab),
        held_out=None,
        data=spec.data,
    )
    experiment = make_plan(spec, measure_sizes(spec, user)).experiments[0]
    recipe = replace(experiment.recipe, warmup_steps=0)
    tokens = steps * batch_size * context
    return replace(experiment, steps=steps, tokens=tokens, recipe=recipe), user
