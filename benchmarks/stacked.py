"""`python -m benchmarks.stacked`: experiments of one shape trained as one stacked model, against one after the other.

Seeds or learning rates of one size are one batched model for `torch.func.vmap` (Wang et al. 2021, HFTA,
arXiv:2102.02344). CPU seconds of one thread, the demo's model, fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import Line, interleaved
from benchmarks.parts import experiment_of
from flops_fit_ray.training.user.losses import cross_entropy

CASES = ((16, 4), (16, 16), (32, 8), (96, 4))  # width, experiments
BATCH, CONTEXT, BLOCKS, BLOCK_STEPS, TRIED_STEPS = 8, 64, 7, 4, 20
LR, CLIP, TOLERANCE, WORTH_IT = 1e-3, 1.0, 1e-3, 1.5


class OneByOne:
    """Each model with its own optimizer."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models = [copy.deepcopy(model) for model in models]
        self._optimizers = [torch.optim.AdamW(m.parameters(), lr=LR, fused=True) for m in self._models]

    def step(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each."""
        losses = []
        for model, optimizer, x, y in zip(self._models, self._optimizers, ids, targets, strict=True):
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)


class Stacked:
    """One model whose every weight has a first axis for the experiments, each clipped by its own norm."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        stacked, _ = stack_module_state(list(models))
        self._params = {name: p.detach().clone().requires_grad_() for name, p in stacked.items()}
        self._optimizer = torch.optim.AdamW(self._params.values(), lr=LR, fused=True)
        shape = copy.deepcopy(models[0]).to("meta")

        def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(functional_call(shape, params, (x,)), y)

        self._gradients = vmap(grad_and_value(loss))

    def step(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each."""
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused attention has no batching rule
            gradients, losses = self._gradients({n: p.detach() for n, p in self._params.items()}, ids, targets)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        scale = (CLIP / (norms + 1e-6)).clamp(max=1.0)
        for name, p in self._params.items():
            # Contiguous: the fused optimizer reads a gradient as if it lay in memory like its weight
            p.grad = (gradients[name] * scale.view(-1, *[1] * (p.ndim - 1))).contiguous()
        self._optimizer.step()
        return torch.as_tensor(losses)


def main() -> None:
    """A line for each shape and number of experiments."""
    torch.set_num_threads(1)
    for width, count in CASES:
        experiment, user = experiment_of(
            width=width, layers=2, heads=2, context=CONTEXT, batch_size=BATCH, steps=TRIED_STEPS
        )
        models = []
        for seed in range(count):
            torch.manual_seed(seed)
            models.append(user.model(**experiment.size_kwargs))
        ids, targets = torch.randint(256, (2, count, BATCH, CONTEXT))
        alone, stacked = OneByOne(models), Stacked(models)
        pairs = [(alone.step(ids, targets), stacked.step(ids, targets)) for _ in range(TRIED_STEPS)]
        largest = max(float((a - b).abs().max()) for a, b in pairs)

        def steps(of: OneByOne | Stacked, x: Tensor = ids, y: Tensor = targets) -> None:
            for _ in range(BLOCK_STEPS):
                of.step(x, y)

        found = interleaved({"alone": lambda a=alone: steps(a), "stacked": lambda s=stacked: steps(s)}, BLOCKS)  # type: ignore[misc] # bound now
        Line.of(
            found["alone"],
            found["stacked"],
            name=f"stacked/{experiment.params}/{count}",
            target=WORTH_IT,
            limit=f"losses of {TRIED_STEPS} steps within {TOLERANCE}",
            same_answer=largest < TOLERANCE,
            details={"largest_difference": largest},
        ).print()


if __name__ == "__main__":
    main()
