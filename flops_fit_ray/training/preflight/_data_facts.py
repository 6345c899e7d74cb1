"""Facts about the data that a plan needs: lengths, tokens, a fingerprint, and what was assumed of them."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import DataFacts, DataProbe, ModelSize
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.training.data import (
    Batch,
    Data,
    Stream,
    TokenFile,
    describe_tokens,
    fingerprint,
    first_batch,
    has_tokens,
    num_samples,
    probe_of,
    sample_data,
    token_file_of,
)
from flops_fit_ray.training.data.packed import pack_data
from flops_fit_ray.training.time_limit import time_limit
from flops_fit_ray.training.user.parts import UserParts
from flops_fit_ray.training.user.user_code import user_code
from flops_fit_ray.waiting import waiting


def describe_data(spec: SweepSpec, user: UserParts) -> tuple[Batch, DataFacts, DataProbe]:
    """Read the first batch of the training data, the facts about the data that a plan needs, and their probe.

    Raises:
        SpecError: samples cannot be read, or differ in their number of tokens.
    """
    _check_batch_size(spec, user)
    limit = spec.data.timeout_seconds
    with waiting(f"reading samples of {spec.data.train} (data.train)"), user_code("data.train: reading samples raised"):
        with time_limit(limit, f"no samples within {limit:g} s (data.timeout_seconds)"):
            batch = first_batch(user.train_data, spec.train.batch_size)
            train = sample_data(user.train_data)
            held_out = None if user.eval_data is None else sample_data(user.eval_data)
        per_sample = {user.num_tokens(s, spec.data.tokens_per_sample) / s.num_samples for s in (batch, *train.batches)}
    tokens = sorted(per_sample)
    if len(tokens) > 1 or tokens[0] != int(tokens[0]) or tokens[0] < 1:
        raise SpecError(
            "spec",
            [f"data.train: samples have {tokens[0]:g} to {tokens[-1]:g} tokens; set data.tokens_per_sample"],
        )
    probe = probe_of(train, held_out, user.eval_source)
    files = _token_files(user)
    facts = DataFacts(
        train_samples=_train_samples(user.train_data, spec.train.batch_size),
        eval_samples=_eval_samples(spec, user),
        tokens_per_sample=int(tokens[0]),
        token_unit=_token_unit(spec, batch),
        eval_source=user.eval_source,
        fingerprint=fingerprint(train, held_out),
        tensor_bytes=_tensor_bytes(user),
        notes=tuple(f"{key}: {_described(key, file)[0]}" for key, file in files),
        warnings=(*probe.warnings(), *(f"{key}: {doubt}" for key, file in files for doubt in file.doubts)),
    )
    return batch, facts, probe


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
    count = _length(data)
    if count is not None and count < asked:
        raise SpecError("spec", [f"train.batch_size: {asked} is more than the {count} samples of data.train"])


def _length(data: Data) -> int | None:
    return data.num_samples if isinstance(data, Stream) else num_samples(data)


def _train_samples(data: Data, batch_size: int) -> int | None:
    """Return the samples of one epoch, without an incomplete last batch of a stream; None if unknown."""
    count = _length(data)
    return count // batch_size * batch_size if isinstance(data, Stream) and count is not None else count


def _eval_samples(spec: SweepSpec, user: UserParts) -> int:
    """Return the number of held-out samples to evaluate on; 0 without held-out data."""
    if user.eval_data is None:
        return 0
    count, wanted = _length(user.eval_data), spec.data.eval_samples
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
