"""Data of an experiment: datasets and streams, batches and their order, tokens per batch, fingerprints."""

from flops_fit_ray.training.data._feed import Feed, first_batch, first_batches, make_feed
from flops_fit_ray.training.data._probe import SampledData, compare_data, fingerprint, probe_of, sample_data
from flops_fit_ray.training.data._stream import Stream
from flops_fit_ray.training.data._token_format import describe_tokens
from flops_fit_ray.training.data._workers import repeated_samples
from flops_fit_ray.training.data.batch import Batch, has_tokens, num_elements
from flops_fit_ray.training.data.dataset import (
    Data,
    MapDataset,
    PreparedData,
    as_data,
    eval_batches,
    num_samples,
    split_held_out,
)
from flops_fit_ray.training.data.token_file import TokenFile, open_token_files, token_file_of

__all__ = [
    "Batch",
    "Data",
    "Feed",
    "MapDataset",
    "PreparedData",
    "SampledData",
    "Stream",
    "TokenFile",
    "as_data",
    "compare_data",
    "describe_tokens",
    "eval_batches",
    "fingerprint",
    "first_batch",
    "first_batches",
    "has_tokens",
    "make_feed",
    "num_elements",
    "num_samples",
    "open_token_files",
    "probe_of",
    "repeated_samples",
    "sample_data",
    "split_held_out",
    "token_file_of",
]
