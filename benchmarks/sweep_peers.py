"""What people write by hand to answer the demo's question: every cell of a grid trained for its exact D.

    python -m benchmarks.sweep_peers HOW CELLS.json ANSWER.json

HOW: `plain`, one run after the other in a loop of PyTorch; `tune`, the same loop as a function trainable of Ray
Tune, as its documentation writes it; `trainer`, Hugging Face's Trainer in a loop, where transformers is installed.
CELLS is a list of {d_model, steps, lr}; ANSWER gets the held-out loss of each, and the seconds that its steps took.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.parts import DEMO

BATCH, BETAS, CLIP, SLOTS = 8, (0.9, 0.98), 1.0, 2
Cell = dict[str, Any]
Answer = dict[str, float]  # loss, seconds


def main() -> None:
    """Train every cell, and write the losses."""
    how, cells, answer = sys.argv[1:]
    train_all: Callable[[list[Cell]], list[Answer]] = {"plain": in_a_loop, "tune": by_tune, "trainer": by_trainer}[how]
    Path(answer).write_text(json.dumps(train_all(json.loads(Path(cells).read_text()))))


def in_a_loop(cells: list[Cell]) -> list[Answer]:
    """One run after the other in one process."""
    data = _data()
    return [train(cell, *data) for cell in cells]


def train(cell: Cell, train_data: Dataset[Any], held_out: Dataset[Any]) -> Answer:
    """Train one model from scratch for `steps` batches with a cosine schedule, and evaluate it."""
    torch.manual_seed(0)
    model = _model(cell)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cell["lr"], betas=BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cell["steps"])
    batches = iter(DataLoader(train_data, batch_size=BATCH, shuffle=True, drop_last=True))
    began = time.perf_counter()
    for _ in range(cell["steps"]):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = _loss(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        loss.item()  # as most loops do, at every step
    return {"seconds": time.perf_counter() - began, "loss": evaluate(model, held_out)}


def evaluate(model: torch.nn.Module, held_out: Dataset[Any]) -> float:
    """The mean loss of the held-out text."""
    with torch.no_grad():
        losses = [float(_loss(model(inputs), targets)) for inputs, targets in DataLoader(held_out, batch_size=64)]
    return sum(losses) / len(losses)


def by_tune(cells: list[Cell]) -> list[Answer]:
    """A trial for each cell, one CPU each."""
    os.environ.update(RAY_AIR_NEW_OUTPUT="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1")
    import ray
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        tune.report(train(config["cell"], *_data()) | {"number": config["cell"]["number"]})

    ray.init(address="local", num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    numbered = [cell | {"number": i} for i, cell in enumerate(cells)]
    with tempfile.TemporaryDirectory() as where:
        found = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"cell": tune.grid_search(numbered)},
            run_config=tune.RunConfig(storage_path=where, verbose=0),
        ).fit()
    metrics = [found[i].metrics or {} for i in range(len(cells))]
    by_number = {m["number"]: m for m in metrics if m}
    return [{"loss": by_number[i]["loss"], "seconds": by_number[i]["seconds"]} for i in range(len(cells))]


def by_trainer(cells: list[Cell]) -> list[Answer]:
    """A Trainer for each cell, one after the other."""
    import transformers  # type: ignore[import-not-found,unused-ignore] # where it is installed

    transformers.utils.logging.set_verbosity_error()
    train_data, held_out = _data()
    found = []
    for cell in cells:
        with tempfile.TemporaryDirectory() as where:
            trainer = transformers.Trainer(
                model=_WithLoss(cell),
                args=transformers.TrainingArguments(
                    output_dir=where,
                    max_steps=cell["steps"],
                    per_device_train_batch_size=BATCH,
                    per_device_eval_batch_size=64,
                    learning_rate=cell["lr"],
                    lr_scheduler_type="cosine",
                    adam_beta1=BETAS[0],
                    adam_beta2=BETAS[1],
                    max_grad_norm=CLIP,
                    use_cpu=True,
                    save_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                    seed=0,
                ),
                train_dataset=_Named(train_data),
                eval_dataset=_Named(held_out),
            )
            began = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - began
            found.append({"seconds": seconds, "loss": float(trainer.evaluate()["eval_loss"])})
    return found


class _WithLoss(torch.nn.Module):
    """A model that returns its loss, as Trainer takes it."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = _model(cell)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(inputs)
        return {"loss": _loss(logits, labels), "logits": logits}


class _Named(Dataset[dict[str, torch.Tensor]]):
    """Samples by name."""

    def __init__(self, data: Dataset[Any]) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type] # it has a length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        inputs, targets = self._data[index]
        return {"inputs": inputs, "labels": targets}


def _data() -> tuple[Dataset[Any], Dataset[Any]]:
    sys.path.insert(0, str(DEMO))
    from data import held_out, train  # type: ignore[import-not-found,unused-ignore] # the demo's own

    return train(), held_out()


def _model(cell: Cell) -> torch.nn.Module:
    sys.path.insert(0, str(DEMO))
    from model import GPT  # type: ignore[import-not-found,unused-ignore] # the demo's own

    model: torch.nn.Module = GPT(d_model=cell["d_model"])
    return model


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten().long())


if __name__ == "__main__":
    main()
