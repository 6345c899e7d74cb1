"""Errors that the package raises on purpose, and the exit code of each.

Exit codes of the commands: 0 all done, 1 finished with failed experiments or without a fit, 2 wrong input, 4
interrupted and resumable.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 4

# Every kind of refusal has a section of docs/troubleshooting.md: its code, and the words by which it is known. The
# first that match count, those of a fault's key (of a spec, or an argument of `find_optimal`) last
REFUSALS: Mapping[str, str] = {
    "unknown_key": r": unknown (key|option); ",
    "missing_key": r"^[\w.]+: (is|[\w, ]+ are) missing|size_param is missing",
    "unreadable_spec": r"^(no such file; `flops-fit-ray init`|cannot be read: |is not (UTF-8|YAML)|is empty; |holds a |"
    r"has \d+ bytes|line \d+, column|is nested too deeply)",
    "other_training": r"would be trained again in another way|is counted in another way now",
    "more_data": r"more data than there is|tokens can feed there",
    "short_budget": r"less than one batch",
    "few_budgets": r"a law needs at least",
    "few_sizes": r"a valley needs at least|around its expected optimum N",
    "same_model": r"check that .* (changes the model|makes the model larger)",
    "in_use": r"is writing here",
    "not_writable": r"cannot be written: .*; (choose|give) another|: lies inside the package",
    "damaged_plan": r"cannot be read as a plan",
    "too_few_resources": r"but the largest node has|but only \d+ workers fit",
    "other_code": r"has other code than the plan",
    "not_shared": r"does not see |and cannot write there|where the spec's code is",
    "gpu_unusable": r"\band torch \S+ (cannot use|is built without|sees)",
    "wrong_budgets": r"^(budget|budgets|budgets_for|compute_budgets|minutes|hours|flops)\b",
    "wrong_model": r"^(model|model_\w+|size_param|sizes|code|shard_model|flops_per_token|axes)\b",
    "wrong_data": r"^(data|dataset|eval_\w+|max_epochs|(tokens_per|bytes_per|count|timeout)_\w+|context|dtype)\b",
    "wrong_loss": r"^(loss|loss_\w+|metrics)\b",
    "wrong_fit": r"^(fit|confidence|curve|delta|draws|law_weights|method|pins|reach|undertuned|window)\b",
    "wrong_resources": r"^(resources_per_trial|device|workers_per_trial|max_retries|slots|address)\b",
    "wrong_train": r"^(train|activation_checkpointing|batch_size|betas|compile|cuda_graph|decay_\w+|eps|"
    r"final_lr_fraction|grad_clip|lr|micro_batch_size|momentum|optimizer|precision|schedule|warmup_tokens|weight_decay)"
    r"\b",
    "wrong_sweep": r"^(spec|grid|checkpoint|trackers|name|output|output_dir|schema_version|seed|stop_diverged|mode|new|"
    r"resume|quiet|until|at_most|from_checkpoint|a key must be text|and \d+ more faults)\b",
}


def code_of(refusal: str) -> str:
    """Return the code of a refusal's kind; empty for one that is of no spec and no sweep, such as a table's."""
    return next((code for code, words in REFUSALS.items() if re.search(words, refusal)), "")


def with_code(refusal: str) -> str:
    """Return a refusal with its place in docs/troubleshooting.md behind it."""
    code = "" if refusal.endswith("]") and refusal.rpartition(" [")[2][:-1] in REFUSALS else code_of(refusal)
    return f"{refusal} [{code}]" if code else refusal


class FlopsFitError(Exception):
    """Base class of all errors of this package. `exit_code` is that of a command that ends with it."""

    exit_code = EXIT_FAILED


class SpecError(FlopsFitError):
    """Wrong input, found before any compute was spent. `faults` has one line per fault: key path, value, way out."""

    exit_code = EXIT_INPUT

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(source, self.faults)  # both arguments, so that the error survives pickling

    @property
    def lines(self) -> tuple[str, ...]:
        """The faults, each with its place in docs/troubleshooting.md."""
        return tuple(map(with_code, self.faults))

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return f"{self.source}: {self.lines[0]}"
        return "\n".join([f"{self.source}: {len(self.faults)} faults", *(f"  - {line}" for line in self.lines)])


class DataDiffersError(SpecError):
    """A process that trains has other data than those that the plan was made of, or makes another model or loss."""


class ArgumentError(SpecError, TypeError, ValueError):
    """Wrong arguments of a Python call: all faults of type and of value at once, so it is caught as either."""


class BudgetsMissingError(ArgumentError, NotImplementedError):
    """All other arguments are right, and no budgets were given: there is nothing to plan yet."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its class if the message is empty."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def last_line(said: object) -> str:
    """Return the last line of what was said, such as the error that a traceback ends with; empty if nothing was."""
    lines = str(said).strip().splitlines()
    return lines[-1] if lines else ""


@contextlib.contextmanager
def faults_of(source: str) -> Iterator[None]:
    """Re-raise a SpecError with `source`, the file or call that the user knows, in place of its own source."""
    try:
        yield
    except SpecError as e:
        raise SpecError(source, e.faults) from e.__cause__


@contextlib.contextmanager
def faults_of_arguments(source: str, rename: Callable[[str], str] = str) -> Iterator[None]:
    """Re-raise a SpecError as the ArgumentError of the call `source`; its cause stays.

    Args:
        rename: gives a fault the names that the caller knows.
    """
    try:
        yield
    except SpecError as e:
        kind = type(e) if isinstance(e, ArgumentError) else ArgumentError
        raise kind(source, list(map(rename, e.faults))) from e.__cause__


class DirectoryError(FlopsFitError):
    """A sweep directory is missing, is not one, is in use by another process, or holds another sweep."""

    exit_code = EXIT_INPUT

    def __str__(self) -> str:
        return with_code(super().__str__())


class PlanDamagedError(DirectoryError):
    """The plan of a sweep directory is not what was written; it can be made again from the spec and the results."""


class StorageError(FlopsFitError):
    """A file of the sweep directory cannot be written or read now (full, broken, no permission); results are safe."""

    exit_code = EXIT_INTERRUPTED


class ResourceError(FlopsFitError):
    """A resource that was asked for does not exist: GPUs of a cluster, a port, an optional package."""

    exit_code = EXIT_INPUT

    def __str__(self) -> str:
        return with_code(super().__str__())


class NodeUnfitError(ResourceError):
    """A node cannot run experiments of this sweep: it has other code, other files, or GPUs that torch cannot use."""

    def __init__(self, node: str, fault: str) -> None:
        self.node, self.fault = node, fault  # Ray's id of it, and the sentence, which names its host
        super().__init__(node, fault)  # both arguments, so that the error survives pickling

    def __str__(self) -> str:
        return with_code(self.fault)


class WorkerLostError(FlopsFitError):
    """One of several workers of an experiment died, or its node; the experiment itself did not fail."""


class FitError(FlopsFitError):
    """The results do not support the number asked for."""


class ExperimentError(FlopsFitError):
    """An experiment ended without a result. `status` is the one recorded in the ledger."""

    status: Literal["failed", "diverged", "out_of_memory"] = "failed"


EXPLODED_HINT = "if that is no divergence, stop_diverged: false goes on with it"  # a divergence that is finite ends so
_LIMIT_HINT = "and the limit is"  # and so in earlier versions


def is_finite_divergence(error: str) -> bool:
    """Return True for the words of a divergence whose loss was neither NaN nor infinite."""
    return EXPLODED_HINT in error or _LIMIT_HINT in error


class DivergedError(ExperimentError):
    """The training loss or the held-out loss became NaN or infinite, or rose far above where it was."""

    status: Literal["failed", "diverged", "out_of_memory"] = "diverged"


class MemoryExhaustedError(ExperimentError):
    """The device has too little memory for this model, even after its micro-batch was halved as often as allowed."""

    status: Literal["failed", "diverged", "out_of_memory"] = "out_of_memory"


class DataEndedError(ExperimentError):
    """The training data ended before D."""


class InterruptedSweepError(FlopsFitError):
    """The sweep was stopped from outside; the same command resumes it."""

    exit_code = EXIT_INTERRUPTED


class HeadLostError(InterruptedSweepError):
    """The head node of the Ray cluster is gone, and Ray with it."""
