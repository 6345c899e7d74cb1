"""The arguments of `find_optimal` as a spec, with names for objects that are the same in every process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import numbers
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from flops_fit_ray.errors import SpecError
from flops_fit_ray.spec import (
    NO_DATA,
    SYNTHETIC_LOSS,
    DataSection,
    FitSection,
    SweepSpec,
    TrainSection,
    make_spec,
)
from flops_fit_ray.spec._hints import meant_key, meant_paths
from flops_fit_ray.spec.wrong_data import data_faults

PARAMETERS = {  # of `find_optimal`: the keys of a spec that they are
    "model_cls": ("model", "model.target"),
    "model_size_param": ("model.size_param",),
    "model_kwargs": ("model.kwargs",),
    "dataset": ("data", "data.train"),
    "eval_dataset": ("data.eval",),
    "loss_fn": ("loss",),
    "compute_budgets": ("budgets",),
    "output_dir": ("output",),
}
CALL_OPTIONS = (
    "eval_dataset",
    "address",
    "quiet",
    "until",
    "at_most",
    "slots",
    "new",
    "from_checkpoint",
    "minutes",
    "hours",
    "flops",
)
# A key in words: no file's name, module's or attribute's
_SPEC_KEY = re.compile(r"(?<![\w./:'\"])(?:model|data|train|fit)(?:\.[a-z_]+)+(?![\w(]|[:.]\w)")
_DESCRIBED = re.compile(r"([\w.]+):([\w.<>]+)\((.*)\)", flags=re.DOTALL)  # an object that has no name of its own
Mode = Literal["local", "mock"]
MODES = get_args(Mode)
SOURCE = "find_optimal"  # how faults of arguments are introduced


def spec_from_arguments(
    model_cls: Any,
    size_param: str | None,
    model_kwargs: Mapping[str, Any],
    dataset: Any,
    loss_fn: Any,
    budgets: Sequence[float | Mapping[str, Any]] | Literal["auto"] | None,
    mode: str,
    extra: Mapping[str, Any],
    options: Mapping[str, Any],
    hooks: Mapping[str, Callable[..., Any]],
    plans: bool,
) -> SweepSpec:
    """Return the spec that is equivalent to the arguments.

    Args:
        budgets: None is no fault of the spec's; all others are found with a stand-in.
        options: keys of the spec's sections, by name.
        hooks: the options that are functions; the spec holds their names.
        plans: nothing will be run, so that one budget is enough.

    Raises:
        SpecError: an argument is missing, wrong or unknown; all at once.
    """
    faults = []
    if not callable(model_cls):
        faults.append(f"model_cls: {model_cls!r} cannot be called; give a class or a factory")
    for argument, data in (("dataset", dataset), ("eval_dataset", extra["eval_dataset"])):
        faults += data_faults(argument, data)
    faults += _loss_faults(loss_fn)
    faults += _mode_faults(mode, extra)
    homes = _option_homes()
    loss_name = loss_fn if isinstance(loss_fn, str) else describe(loss_fn)
    if mode == "mock":
        loss_name = SYNTHETIC_LOSS
    content: dict[str, Any] = {
        "model": {
            "target": describe(model_cls),
            "size_param": size_param,
            "kwargs": {name: describe_value(value) for name, value in model_kwargs.items()},
        },
        "data": {
            "train": NO_DATA if dataset is None or mode == "mock" else describe(dataset),
            "eval": None if extra["eval_dataset"] is None else describe(extra["eval_dataset"]),
        },
        "loss": loss_name,
        # A stand-in for none, so that all faults are found
        "budgets": [1.0, 2.0] if budgets is None else budgets if isinstance(budgets, str) else list(budgets),
    }
    named = {name: describe_target(value) for name, value in hooks.items()}
    for name, value in {**options, **named}.items():
        if name not in homes:
            known = sorted(known_arguments())
            faults.append(f"{name}: unknown option; {_way_out(name, known, homes)}")
        elif homes[name] == "":
            content[name] = value
        else:
            content.setdefault(homes[name], {})[name] = value
    try:
        spec = make_spec(content, SOURCE, one_budget=plans, open_budgets=True)
    except SpecError as e:
        raise SpecError(SOURCE, [*faults, *e.faults]) from e
    if faults:
        raise SpecError(SOURCE, faults)
    return spec


def refuse_wrong_types(**given: Any) -> None:
    """Check the types of those arguments that become no key of a spec.

    Raises:
        SpecError: some are of another type; all at once.
    """
    faults = [
        f"{name}: must be {_TYPES[name][0]} (got {reprlib.repr(value)})"
        for name, value in given.items()
        if name in _TYPES and not _TYPES[name][1](value)
    ]
    if faults:
        raise SpecError(SOURCE, faults)


def _is_flag(value: Any) -> bool:
    """Tell a truth value from what only has one: `"false"` is true."""
    return type(value).__name__ in ("bool", "bool_") or (isinstance(value, int) and value in (0, 1))


def _is_list(value: Any) -> bool:
    return (
        hasattr(value, "__iter__") and getattr(value, "ndim", 1) == 1 and not isinstance(value, str | bytes | Mapping)
    )


def _is_positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and 0 < float(value) < float("inf")


_TYPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "train": ("True or False", _is_flag),
    "resume": ("True or False", _is_flag),
    "quiet": ("True or False", lambda v: v is None or _is_flag(v)),
    "new": ("True or False", lambda v: v is None or _is_flag(v)),
    "output_dir": ("a path", lambda v: isinstance(v, str | os.PathLike)),
    "model_kwargs": ("a mapping of constructor arguments", lambda v: v is None or isinstance(v, Mapping)),
    "compute_budgets": (
        "a list of FLOPs, for example [1e15, 3e15, 1e16], or 'auto'",
        lambda v: v is None or (isinstance(v, str) and v == "auto") or _is_list(v),
    ),
    "address": ("text", lambda v: v is None or isinstance(v, str)),
    "until": ("text, for example '1.3@1e21'", lambda v: v is None or isinstance(v, str)),
    "from_checkpoint": ("text, KEY@STEP", lambda v: v is None or isinstance(v, str)),
    "at_most": ("a positive number of FLOPs", lambda v: v is None or _is_positive(v)),
    **dict.fromkeys(("minutes", "hours", "flops"), ("a positive number", lambda v: v is None or _is_positive(v))),
    "slots": (
        "a positive whole number",
        lambda v: v is None or (isinstance(v, numbers.Integral) and _is_positive(v)),
    ),
}


def _mode_faults(mode: str, extra: Mapping[str, Any]) -> Iterator[str]:
    if mode not in MODES:
        yield f"mode: must be one of {', '.join(MODES)} (got {mode!r}); output_dir comes after it"
    if mode == "mock" and extra["eval_dataset"] is not None:
        yield "mode: 'mock' trains nothing; leave out eval_dataset"


def _loss_faults(loss_fn: Any) -> Iterator[str]:
    if isinstance(loss_fn, type):
        yield f"loss_fn: {loss_fn.__name__} is a class; write {loss_fn.__name__}() with parentheses"
    elif not (isinstance(loss_fn, str) or callable(loss_fn)):
        yield (
            f"loss_fn must be callable, (outputs, targets) -> mean loss, or a name such as 'cross_entropy' "
            f"(got {reprlib.repr(loss_fn)})"
        )


def known_arguments() -> set[str]:
    """Return the names of all arguments of `find_optimal` but for `train`, `mode` and `resume`."""
    return {*_option_homes(), *CALL_OPTIONS, *PARAMETERS}


def _option_homes() -> dict[str, str]:
    """Return the section of every option that `find_optimal` takes; "" for the top level."""
    homes = {"sizes": "model", "axes": "model", "flops_per_token": "model"}
    top = (
        "name",
        "resources_per_trial",
        "device",
        "workers_per_trial",
        "shard_model",
        "max_retries",
        "stop_diverged",
        "metrics",
        "loss_unit",
    )
    homes |= dict.fromkeys((*top, "checkpoint", "grid", "trackers"), "")
    homes |= dict.fromkeys(set(DataSection.model_fields) - {"train", "eval", "kwargs"}, "data")
    homes |= dict.fromkeys(TrainSection.model_fields, "train")
    homes |= dict.fromkeys(set(FitSection.model_fields) - {"seed"}, "fit")
    return homes


def _way_out(name: str, known: Sequence[str], homes: Mapping[str, str]) -> str:
    """Return what to write instead of an unknown option."""
    if near := meant_key(name, known):
        return f"did you mean {near!r}?"
    paths, note = meant_paths(name)
    if options := [option for path in paths if (option := _option_of(path, homes))]:
        return f"write {' or '.join(options)}" + (f" ({note})" if note else "")
    if note and not paths:
        return f"remove it: {note}"
    return f"known: {', '.join(known)}"


def _option_of(path: str, homes: Mapping[str, str]) -> str:
    """Return the option that a key of a spec stands behind; empty where there is none."""
    if parameters := [name for name, paths in PARAMETERS.items() if path in paths]:
        return parameters[0]
    section, _, key = path.rpartition(".")
    if homes.get(key) == section:
        return key
    first, *keys = path.split(".")
    if homes.get(first) != "":
        return ""
    opened = "".join(f"{{{key!r}: " for key in keys)
    return f"{first}={opened}...{'}' * len(keys)}"


def name_arguments(fault: str) -> str:
    """Return a fault with the arguments of `find_optimal` in place of the keys of a spec that it names.

    What lies inside of an argument, such as `checkpoint.minutes`, is named alike in both.
    """
    homes = _option_homes()

    def argument(key: str) -> str:
        named = _option_of(key, homes)
        return named if named.isidentifier() else key

    first, colon, rest = fault.partition(":")
    fault = argument(first) + colon + rest
    return _SPEC_KEY.sub(lambda found: argument(found[0]), fault)


def describe(value: Any) -> str:
    """Return a name for an object that is the same in every process; part of the experiments' keys."""
    if isinstance(value, functools.partial):
        given = [*map(describe_value, value.args), *(f"{k}={describe_value(v)}" for k, v in value.keywords.items())]
        return f"partial({describe(value.func)}, {', '.join(map(str, given))})"
    qualname = getattr(value, "__qualname__", None)
    if qualname is None:
        settings = {k: v for k, v in vars(value).items() if _is_plain(v)} if hasattr(value, "__dict__") else {}
        inner = ", ".join(f"{k}={v!r}" for k, v in sorted(settings.items()))
        return f"{type(value).__module__}:{type(value).__qualname__}({inner})"
    code = getattr(value, "__code__", None)
    unnamed = code is not None and "<" in qualname  # a lambda's name says nothing; its code does
    module = getattr(value, "__module__", type(value).__module__)  # a generator has none
    return f"{module}:{qualname}" + (f"#{_code_digest(code)}" if unnamed else "")


def readable_name(described: str) -> str:
    """Return what `describe` made of data as people say it: a tuple, or a class with its settings."""
    found = _DESCRIBED.fullmatch(described)
    if found is None:
        return described
    module, name, settings = found.groups()
    return f"a {name}" if module == "builtins" else name + (f"({settings})" if settings else "")


def describe_target(value: Any) -> str:
    """Return a name in the form of a spec, `module:attribute`, for a function of this process."""
    name = describe(value)
    return name if ":" in name else f"{type(value).__module__}:{name}"


def describe_value(value: Any) -> Any:
    """Return a constructor argument as JSON: itself if JSON can hold it, else its name."""
    with contextlib.suppress(TypeError, ValueError):
        return json.loads(json.dumps(value, allow_nan=False))
    return describe(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | None)


def _code_digest(code: Any) -> str:
    constants = [c for c in code.co_consts if _is_plain(c)]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()[:8]
