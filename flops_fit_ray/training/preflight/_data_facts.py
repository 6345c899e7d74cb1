"""Facts about the data that a plan needs: lengths, tokens, a fingerprint, and what was assumed of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from flops_fit_ray.errors import SpecError
from flops_fit_ray.flags import Flag, warning
from flops_fit_ray.planning import DataFacts, DataProbe, ModelSize
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.spec.arguments import readable_name
from flops_fit_ray.training.data import (
    Batch,
    Data,
    SampledData,
    Stream,
    TokenFile,
    describe_tokens,
    fingerprint,
    first_batches,
    has_tokens,
    num_elements,
    num_samples,
    probe_of,
    repeated_samples,
    sample_data,
    token_file_of,
)
from flops_fit_ray.training.data.batch import batch_device
from flops_fit_ray.training.data.packed import pack_data
from flops_fit_ray.training.time_limit import time_limit
from flops_fit_ray.training.user.parts import UserParts
from flops_fit_ray.training.user.user_code import user_code
from flops_fit_ray.training.user.wrong_samples import device_fault
from flops_fit_ray.waiting import waiting


def describe_data(spec: SweepSpec, user: UserParts) -> tuple[Batch, DataFacts, DataProbe]:
    """Read the first batch of the training data, the facts about the data that a plan needs, and their probe.

    Raises:
        SpecError: samples cannot be read, or differ in their number of tokens.
    """
    _check_batch_size(spec, user)
    limit = spec.data.timeout_seconds
    named = readable_name(str(spec.data.train))
    with waiting(f"reading samples of {named} (data.train)"), user_code("data.train: reading samples raised"):
        with time_limit(limit, f"no samples within {limit:g} s (data.timeout_seconds)"):
            batches = first_batches(user.train_data, spec.train.batch_size)
            _refuse_devices(spec, batches[0])
            train = sample_data(user.train_data)
            held_out = None if user.eval_data is None else sample_data(user.eval_data)
            doubts = tuple(_refuse_repeated("data.train", train) + _refuse_repeated("data.eval", held_out))
        looked_at = (*batches, *train.batches)
        tokens = sorted({user.num_tokens(s, spec.data.tokens_per_sample) / s.num_samples for s in looked_at})
        if len(tokens) > 1 or tokens[0] != int(tokens[0]) or tokens[0] < 1:
            fault = f"data.train: samples have {tokens[0]:g} to {tokens[-1]:g} tokens; set data.tokens_per_sample"
            raise SpecError("spec", [fault + _mean_tokens(user, batches if len(batches) > 1 else train.batches)])
    batch, note = _typical(batches)
    _refuse_split(spec, batch)
    probe = probe_of(train, held_out, user.eval_source)
    files = _token_files(user)
    odd = (warning("token_file", f"{key}: {doubt}") for key, file in files for doubt in file.doubts)
    facts = DataFacts(
        train_samples=_train_samples(user.train_data, spec.train.batch_size),
        eval_samples=_eval_samples(spec, user),
        tokens_per_sample=int(tokens[0]),
        token_unit=_token_unit(spec, batch),
        eval_source=user.eval_source,
        fingerprint=fingerprint(train, held_out),
        tensor_bytes=_tensor_bytes(user),
        notes=(*note, *(f"{key}: {_described(key, file)[0]}" for key, file in files)),
        warnings=tuple(flag.text for flag in (*probe.warnings(), *doubts, *odd)),
    )
    return batch, facts, probe


def _refuse_devices(spec: SweepSpec, batch: Batch) -> None:
    """Refuse samples on a GPU in a sweep that has none.

    Raises:
        SpecError: they are.
    """
    device = batch_device(batch)
    if device.type != "cpu" and (spec.device == "cpu" or not spec.whole_resources.get("gpu")):
        raise SpecError("spec", [device_fault(str(device))])


def _refuse_repeated(key: str, data: SampledData | None) -> list[Flag]:
    """Return a warning of what is doubtful of the processes of a loader.

    Raises:
        SpecError: each of them gives every sample.
    """
    fault, doubt = ("", "") if data is None else repeated_samples(data.data)
    if fault:
        raise SpecError("spec", [f"{key}: {fault}"])
    return [warning("repeated_samples", f"{key}: {doubt}")] if doubt else []


def _mean_tokens(user: UserParts, batches: Sequence[Batch]) -> str:
    """Return the number to set, from the distribution of the data, with its error; padding is told apart."""
    counts = [user.num_tokens(b, None) / b.num_samples for b in batches]
    if sum(counts) <= 0:
        return ""
    kept = [int(b.loss_weight()) / b.num_samples for b in batches if has_tokens(b.target)]
    error = statistics.stdev(counts) / math.sqrt(len(counts)) if len(counts) > 1 else 0.0
    words = f" to their mean, {max(1, round(statistics.fmean(counts)))} (+- {error:.2g} from {len(counts)} batches)"
    if kept and round(statistics.fmean(kept)) != round(statistics.fmean(counts)):
        words += f", or {max(1, round(statistics.fmean(kept)))} without the targets that the loss ignores"
    instead = "" if user.count_tokens is None else " in place of data.count_tokens"
    return f"{words}{instead}: D then counts samples times that number"


def _typical(batches: Sequence[Batch]) -> tuple[Batch, tuple[str, ...]]:
    """Return the batch whose size is nearest to the mean, to count FLOPs on, and a note where batches differ."""
    sizes = [num_elements(batch.content) for batch in batches]
    mean = statistics.fmean(sizes)
    batch = min(zip(batches, sizes, strict=True), key=lambda pair: abs(pair[1] - mean))[0]
    if len(batches) == 1:
        return batch, ()
    error = 100 * statistics.stdev(sizes) / mean / math.sqrt(len(sizes))
    return batch, (
        f"data.train: batches hold {min(sizes):,} to {max(sizes):,} numbers: FLOPs are counted on one of mean size "
        f"({mean:,.0f} +- {error:.2g} %, from {len(sizes)} batches)",
    )


def _refuse_split(spec: SweepSpec, batch: Batch) -> None:
    """Refuse to split batches in which the samples are not an axis.

    Raises:
        SpecError: the spec asks for micro-batches, or for several workers.
    """
    if batch.splits:
        return
    why = "a batch of data.train cannot be split: the first axis of its tensors is not the samples (graphs)"
    if (spec.train.micro_batch_size or spec.train.batch_size) < spec.train.batch_size:
        raise SpecError("spec", [f"train.micro_batch_size: {why}; leave it out, or lower train.batch_size"])
    if spec.workers_per_trial > 1:
        raise SpecError("spec", [f"workers_per_trial: {why}; set it to 1"])


def _token_files(user: UserParts) -> list[tuple[str, TokenFile]]:
    """Return the token files that the data are read from, by key; one that both are read from once."""
    both = [("data.train", token_file_of(user.train_data)), ("data.eval", token_file_of(user.eval_data))]
    kept = both[:1] if both[0][1] is both[1][1] else both
    return [(key, file) for key, file in kept if file is not None]


def _described(key: str, file: TokenFile) -> tuple[str, int]:
    """Return the line on a token file, and its largest id. Faults name the key."""
    try:
        return describe_tokens(file.files)
    except SpecError as e:
        raise SpecError(e.source, [fault.replace("data: ", f"{key}: ", 1) for fault in e.faults]) from e


def refuse_large_ids(user: UserParts, sizes: Sequence[ModelSize]) -> None:
    """Refuse token files with ids that no lookup table of the model has: the first samples may not show them.

    Raises:
        SpecError: there is such an id.
    """
    entries = max((count for size in sizes for count, _ in size.tables), default=0)
    for key, file in _token_files(user):
        largest = _described(key, file)[1]
        if entries and largest >= entries:
            kinds = ", ".join(dict.fromkeys(one.dtype.name for one in file.files))
            fault = f"{key}: has the id {largest:,}, and the model's largest lookup table {entries:,} entries"
            raise SpecError(
                "spec", [f"{fault}; set its vocabulary in model.kwargs, or data.dtype (it is read as {kinds})"]
            )


def _tensor_bytes(user: UserParts) -> int:
    """Return the bytes of data that processes of a node can share; 0 if they cannot."""
    packed = pack_data(user.prepared_data)
    return 0 if packed is None else packed.nbytes


def _check_batch_size(spec: SweepSpec, user: UserParts) -> None:
    asked, data = spec.train.batch_size, user.train_data
    if isinstance(data, Stream) and data.batch_size not in (None, asked):
        raise SpecError(
            "spec", [f"train.batch_size: is {asked}, but the DataLoader's is {data.batch_size}; set both to the same"]
        )
    if spec.grid.batch_check != "none" and isinstance(data, Stream) and data.batch_size is not None:
        fault = "the DataLoader makes batches of its own size; give its dataset as data.train, or leave batch_check out"
        raise SpecError("spec", [f"grid.batch_check: {fault}"])
    count = _length(data)
    if count is not None and count < asked:
        raise SpecError("spec", [f"train.batch_size: {asked} is more than the {count} samples of data.train"])


def _length(data: Data) -> int | None:
    return data.num_samples if isinstance(data, Stream) else num_samples(data)


def _train_samples(data: Data, batch_size: int) -> int | None:
    """Return the samples of one epoch, without incomplete batches of a stream; None if unknown."""
    count = data.whole_samples if isinstance(data, Stream) else num_samples(data)
    return count // batch_size * batch_size if isinstance(data, Stream) and count is not None else count


def _eval_samples(spec: SweepSpec, user: UserParts) -> int:
    """Return the number of held-out samples to evaluate on; 0 without held-out data."""
    if user.eval_data is None:
        return 0
    held_out, wanted = user.eval_data, spec.data.eval_samples
    count = held_out.readable_samples if isinstance(held_out, Stream) else num_samples(held_out)
    if count is None and wanted is None:
        raise SpecError("spec", ["data.eval_samples: is missing; data.eval is a stream of unknown length, so set it"])
    return min(n for n in (count, wanted) if n is not None)


def _token_unit(spec: SweepSpec, batch: Batch) -> str:
    if spec.data.count_tokens is not None:
        return f"what {spec.data.count_tokens} counts"
    if spec.data.tokens_per_sample is not None:
        return f"{spec.data.tokens_per_sample} tokens per sample, as data.tokens_per_sample says"
    if not batch.has_target:
        return "one number of a sample" if has_tokens(batch.content) else "one sample"
    return "one target token" if has_tokens(batch.target) else "one sample"
