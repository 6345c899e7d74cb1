"""What people write by hand, as small as it can be: the peers that our loop is measured against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.user.parts import UserParts


def plain_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = True) -> Tensor:
    """Attention as the textbook writes it: scores, mask, softmax."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(mask, float("-inf")).softmax(dim=-1) @ value


class Peer:
    """A loop over a DataLoader. Each call of `steps` goes on where the last one stopped."""

    def __init__(
        self, experiment: Experiment, user: UserParts, *, plain: bool, device: str = "cpu", **options: Any
    ) -> None:
        torch.manual_seed(experiment.recipe.seed)
        self.model: nn.Module = user.model(**experiment.size_kwargs).to(device)
        self._plain, self._device, self._clip = plain, device, experiment.recipe.grad_clip
        self._dtype: torch.dtype | None = options.get("dtype")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=experiment.recipe.lr,
            betas=experiment.recipe.betas,
            weight_decay=0.0,
            fused=not plain,
            foreach=False if plain else None,
        )
        if options.get("compile"):
            self.model.compile(mode=options.get("mode"))
        self.batches = self._endless(user.train_data, experiment.recipe.batch_size)
        self.loss = math.nan

    def _endless(self, data: Any, batch_size: int) -> Iterator[Any]:
        loader: DataLoader[Any] = DataLoader(_Items(data), batch_size=batch_size, shuffle=True, drop_last=True)
        while True:
            yield from loader

    def use(self, batches: Iterator[Any]) -> None:
        """Read these batches instead: for losses that are to be compared."""
        self.batches = batches

    def steps(self, count: int) -> None:
        """So many optimizer steps."""
        original = functional.scaled_dot_product_attention
        if self._plain:
            functional.scaled_dot_product_attention = plain_attention  # type: ignore[assignment] # as the demo calls it
        try:
            for _ in range(count):
                self._step()
        finally:
            functional.scaled_dot_product_attention = original

    def _step(self) -> None:
        inputs, targets = (t.to(self._device, non_blocking=True) for t in next(self.batches))
        self.optimizer.zero_grad()
        with torch.autocast(self._device, dtype=self._dtype or torch.bfloat16, enabled=self._dtype is not None):
            logits = self.model(inputs)
            loss = functional.cross_entropy(logits.flatten(0, -2), targets.flatten().long())
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self.optimizer.step()
        if self._plain:
            self.loss = loss.item()  # as most loops do, at every step


class _Items(Dataset[Any]):
    """Samples one by one, as a dataset of one's own gives them."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        return self._data[index]
