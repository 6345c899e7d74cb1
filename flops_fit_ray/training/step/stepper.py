"""One optimizer step: forward and backward over the micro-batches, clip, update. Nothing here waits for a GPU."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_ray.errors import ExperimentError, MemoryExhaustedError, first_line
from flops_fit_ray.planning import Recipe
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.data.batch import without_empty_parts
from flops_fit_ray.training.distributed.group import SINGLE_WORKER, Group
from flops_fit_ray.training.step._activation_checkpointing import checkpoint_activations
from flops_fit_ray.training.step._lr_schedule import lr_factor
from flops_fit_ray.training.step._optimizer import make_optimizer
from flops_fit_ray.training.step.device import DeviceTimer
from flops_fit_ray.training.step.precision import autocast, make_scaler
from flops_fit_ray.training.user.losses import check_loss, sum_and_count
from flops_fit_ray.training.user.optimizers import has_modes
from flops_fit_ray.training.user.parts import UserParts

MAX_HALVINGS = 3
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")  # of torch's messages


class Stepper:
    """Trains a model with its optimizer, one batch at a time."""

    def __init__(
        self,
        model: nn.Module,
        user: UserParts,
        recipe: Recipe,
        steps: int,
        device: torch.device,
        group: Group = SINGLE_WORKER,
        all_reduces: DeviceTimer | None = None,
    ) -> None:
        self.model = model
        self._timer = all_reduces
        if recipe.activation_checkpointing:
            checkpoint_activations(model)
        self.micro_batch_size = self._largest = min(recipe.micro_batch_size, group.max_local_samples(recipe.batch_size))
        self._group = group
        self._user, self._recipe, self._steps, self._device = user, recipe, steps, device
        self._objective = user.objective
        self._params = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(model, recipe, user)
        self.has_modes = has_modes(self.optimizer)  # it evaluates with other weights than it trains with
        if self.has_modes:
            self.optimizer.train()  # type: ignore[attr-defined] # torch's own have no modes
        self.scaler = make_scaler(recipe.precision, device)
        # A user's factory may give each group its own peak (muP); the schedule scales all of them by one factor.
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.lr = 0.0  # of the last step, of the first group
        self._count: Tensor | None = None  # of the last batch by its samples, on this worker, where the loss counts

    def advance(self, batch: Batch, step: int) -> tuple[Tensor, Tensor | None]:
        """Take optimizer step `step`. Returns the batch's mean loss and the gradient norm before clipping.

        The norm is None without clipping; `grad_norm` computes it on demand.
        """
        self.set_lr(step)
        loss = self._gradients(batch)
        if not self._group.is_single:
            with self._timer.measuring() if self._timer is not None else contextlib.nullcontext():
                loss = self._group.all_reduce_gradients(self._params, loss)
        return self._divide_by_count(loss), self._update()

    def set_lr(self, step: int) -> None:
        """Set the rate of optimizer step `step` in every group."""
        factor = lr_factor(step, self._steps, self._recipe, self._user.schedule)
        self.lr = self._peaks[0] * factor
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            self._write_lr(group, peak * factor)

    def _write_lr(self, group: dict[str, Any], lr: float) -> None:
        group["lr"] = lr

    def _update(self) -> Tensor | None:
        """Clip the gradients and update the weights. Returns the norm before clipping; None without clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        clip = self._recipe.grad_clip
        norm = None if clip is None else self._group.full_tensor(nn.utils.clip_grad_norm_(self._params, clip))
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return norm

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Give the model the weights to evaluate and to publish, where its optimizer trains with others.

        Going to eval mode and back rounds, so the weights are put back as they were: evaluating changes no bit.
        """
        if not self.has_modes:
            yield
            return
        before = [p.detach().clone() for p in self._params]
        self.optimizer.eval()  # type: ignore[attr-defined] # torch's own have no modes
        try:
            yield
        finally:
            self.optimizer.train()  # type: ignore[attr-defined] # torch's own have no modes
            with torch.no_grad():
                for p, weight in zip(self._params, before, strict=True):
                    p.copy_(weight)

    def grad_norm(self) -> Tensor:
        """Return the gradient norm of the last step, as the optimizer saw it."""
        return self._group.full_tensor(nn.utils.get_total_norm([p.grad for p in self._params if p.grad is not None]))

    def _gradients(self, batch: Batch) -> Tensor:
        """Run forward and backward; when out of memory, start the batch over with half the micro-batch.

        Raises:
            MemoryExhaustedError: an eighth of the micro-batch does not fit either.
        """
        smallest = max(1, self._largest // 2**MAX_HALVINGS)
        while True:
            self.optimizer.zero_grad()
            try:
                return self._accumulate_gradients(batch)
            except (RuntimeError, MemoryError) as e:
                if not is_out_of_memory(e):
                    raise
                if self._group.sharded:
                    raise MemoryExhaustedError(
                        f"out of memory with a micro-batch of {self.micro_batch_size}; it is not halved automatically "
                        f"with shard_model, so set a smaller train.micro_batch_size: {first_line(e)}"
                    ) from e
                if self._objective.average.over == "whole":
                    raise MemoryExhaustedError(
                        f"out of memory with a batch of {self.micro_batch_size}; it is not split, as the loss is no "
                        f"mean over parts of a batch, so lower train.batch_size: {first_line(e)}"
                    ) from e
                if self.micro_batch_size <= smallest:
                    raise MemoryExhaustedError(
                        f"out of memory with a micro-batch of {self.micro_batch_size}, halved from "
                        f"{self._largest}: {first_line(e)}"
                    ) from e
            self.micro_batch_size = max(smallest, self.micro_batch_size // 2)
            free_memory()

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        """Add up the gradients of this worker's micro-batches. Returns its part of the batch's loss.

        Of a loss that returns its sum and count both are of the sum alone until `_divide_by_count`.
        """
        local = self._group.local_batch(batch)
        parts = [] if local is None else local.split(self.micro_batch_size)
        self._count = None
        if len(parts) == 1 and self._group.is_single:
            loss = self._loss(batch)
            self._backward(loss)
            return loss.detach()
        if self._objective.average.over == "count":
            return self._accumulate_sums(parts, batch.num_samples)
        # 1) The loss of a batch is the weighted mean of those of its parts, L = sum_m (w_m / W) * L_m, where w_m is
        #    what the loss averages over (`Average`) and W that of the whole batch, on all workers. Of a sum, w_m = W.
        weighted = [(part, _on_host(self._objective.weight(part))) for part in parts]
        if self._objective.average.over == "sum":
            total: Tensor | float = 1
        else:
            of_batch = self._group.is_single
            total = sum(w for _, w in weighted) if of_batch else _on_host(self._objective.weight(batch))
        # 2) A part whose targets are all ignored has the loss 0 / 0 = NaN, and the weight 0: leave it out. A weight on
        #    a GPU is not looked at, because that would wait for the device.
        on_device = [w for _, w in weighted if isinstance(w, Tensor)]
        if on_device and local is not None:
            filled = without_empty_parts(local, self.micro_batch_size, on_device)
            weighted = list(zip(filled, on_device, strict=True))
        weighted = [(part, w) for part, w in weighted if isinstance(w, Tensor) or w != 0]
        if self._group.sharded:
            weighted = self._pad_to_same_passes(weighted, batch)
        # 3) Backward through each weighted loss: gradients add up to the gradient of L.
        summed = torch.zeros((), device=self._device)
        for part, weight in weighted:
            scaled: Tensor = self._loss(part) * (weight / total)
            self._backward(scaled)
            summed += scaled.detach()
        return summed

    def _accumulate_sums(self, parts: list[Batch], samples: int) -> Tensor:
        """Add up gradients of sums; what they are divided by is known after the last part of the last worker."""
        summed, count = torch.zeros((), device=self._device), torch.zeros((), dtype=torch.float64, device=self._device)
        missing = -(-self._group.max_local_samples(samples) // self.micro_batch_size) - len(parts)
        for part, share in [*((part, 1.0) for part in parts), *([(parts[0], 0.0)] * missing if parts else [])]:
            found = self._sum_and_count(part)
            scaled = found[0] * (share / samples)
            self._backward(scaled)
            summed += scaled.detach()
            count += share * found[1]
        self._count = count / samples
        return summed

    def _divide_by_count(self, loss: Tensor) -> Tensor:
        """Divide gradients and loss by the count of all workers, where the loss returned one for each part."""
        if self._count is None:
            return loss
        factor = (1 / self._group.all_reduce(self._count)).to(loss.dtype)
        for p in self._params:
            if p.grad is not None:
                p.grad.mul_(factor)
        return loss * factor

    def _pad_to_same_passes(
        self, weighted: list[tuple[Batch, Tensor | float]], batch: Batch
    ) -> list[tuple[Batch, Tensor | float]]:
        """Add passes of weight 0 up to the largest number on any worker: with FSDP each pass is a collective."""
        missing = -(-self._group.max_local_samples(batch.num_samples) // self.micro_batch_size) - len(weighted)
        if not missing:
            return weighted
        filler = next(
            (part for part in batch.split(self.micro_batch_size) if float(self._objective.weight(part))), None
        )
        return weighted if filler is None else weighted + [(filler, 0)] * missing

    def _loss(self, batch: Batch) -> Tensor:
        with autocast(self._recipe.precision, self._device):
            loss = self._objective(self.model, batch.to(self._device))
        return _whole_precision(loss)

    def _sum_and_count(self, batch: Batch) -> tuple[Tensor, Any]:
        with autocast(self._recipe.precision, self._device):
            found = sum_and_count(self._objective.evaluate(self.model, batch.to(self._device)))
        if found is None:
            raise ExperimentError("the loss returned a sum and a count before, and now it does not")
        return _whole_precision(found[0]), found[1]

    def _backward(self, loss: Tensor) -> None:
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped


def _whole_precision(loss: Any) -> Tensor:
    check_loss(loss)
    found: Tensor = loss.float() if loss.dtype in (torch.bfloat16, torch.float16) else loss
    return found


def _on_host(weight: Tensor | int) -> Tensor | float:
    return weight.item() if isinstance(weight, Tensor) and weight.device.type == "cpu" else weight


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an out-of-memory error of torch, the driver or Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _NO_MEMORY)


@contextlib.contextmanager
def memory_errors_named() -> Iterator[None]:
    """Raise MemoryExhaustedError for what runs out of memory outside of the step: smaller micro-batches do not help.

    Raises:
        MemoryExhaustedError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if is_out_of_memory(e):
            raise MemoryExhaustedError(f"out of memory: {e}") from e
        raise


def free_memory() -> None:
    """Collect garbage and empty torch's cache of GPU memory."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch leaves it untyped
        torch.cuda.empty_cache()


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the number of CPU threads for the block: it decides the last bits of a result, as the seed does."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
