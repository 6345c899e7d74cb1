"""Every fault of a spec is found at once, with its key path, its value and the way out."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit_ray.errors import SpecError
from flops_fit_ray.spec import Ladder, SweepSpec, dump_spec, make_spec, parse_yaml, read_spec
from flops_fit_ray.spec._hints import all_paths, meant_paths
from flops_fit_ray.spec._vocabulary import HINTS, NO_KEYS

GOOD = """
model: {target: "model:GPT", size_param: d_model, sizes: [8, 16, 32]}
data: {train: "data:train"}
budgets: [1e18, 3e18]
"""


def faults(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        make_spec(parse_yaml(text, "s"), "s")
    return list(caught.value.faults)


def with_line(key: str, value: str) -> str:
    """GOOD with one section replaced or added."""
    lines = [line for line in GOOD.strip().splitlines() if not line.startswith(f"{key}:")]
    return "\n".join([*lines, f"{key}: {value}"])


def test_unquoted_exponents_are_numbers() -> None:
    spec = make_spec(parse_yaml(GOOD, "s"), "s")
    assert [b.flops for b in spec.budgets] == [1e18, 3e18]
    assert parse_yaml("[1e18, 1.5e-3, -2E+4, 1e, e5, 12, '1e5']", "s") == [1e18, 1.5e-3, -2e4, "1e", "e5", 12, "1e5"]


def test_budgets_are_sorted_and_may_have_sizes_of_their_own() -> None:
    spec = make_spec(parse_yaml(with_line("budgets", "[3e18, {flops: 1e18, sizes: [8, 16, 24]}]"), "s"), "s")
    assert [(b.flops, b.sizes) for b in spec.budgets] == [(1e18, [8, 16, 24]), (3e18, None)]


def test_mappings_need_no_size_param() -> None:
    text = with_line("budgets", "[{flops: 1e18, sizes: [{d: 1}, {d: 2}]}, {flops: 2e18, sizes: [{d: 3}]}]")
    text = text.replace(", size_param: d_model, sizes: [8, 16, 32]", "")
    assert make_spec(parse_yaml(text, "s"), "s").model.size_param is None
    assert faults(text.replace("{d: 3}", "3"))[0].startswith("spec: model.size_param is missing")


BAD = [
    ("budgets", "[]", "budgets: has no budgets"),
    (
        "budgets",
        "1e18",
        "budgets: must be a list of FLOPs, for example [1e18, 3e18, 1e19], or auto, or {minutes: 30} (got 1e+18)",
    ),
    ("budgets", "[1e18]", "budgets: has 1 budget"),
    ("fit", "{curve: quartic}", "fit.curve: must be 'auto', 'parabola', 'skewed', 'cubic' or 'akima' (got 'quartic')"),
    ("fit", "{window: 2}", "fit.window: must be greater than or equal to 3 (got 2)"),
    ("fit", "{pins: {A: 3}}", "fit.pins.A: must be 'E', 'alpha' or 'beta' (got 'A')"),
    ("train", "", "train: is empty; give keys such as batch_size, micro_batch_size, precision below it, or remove it"),
    ("train.lr", "1", "'train.lr': unknown key; a key holds no dots; write train: {lr: ...}"),
    ("budgets", "[1e18, 1e18]", "budgets: [1e+18] are given twice"),
    (
        "budgets",
        "[1e18, 1e18x]",
        "budgets.1: must be a number of FLOPs, or a mapping such as {flops: 1e18, sizes: [64, 128, 256]} (got '1e18x')",
    ),
    ("budgets", "[1e18, 0]", "budgets.1: must be a positive, finite number (got 0)"),
    ("budgets", "[1e18, -1]", "budgets.1: must be a positive, finite number (got -1)"),
    ("budgets", "[1e18, .nan]", "budgets.1: must be a positive, finite number (got nan)"),
    ("budgets", "[1e18, .inf]", "budgets.1: must be a positive, finite number (got inf)"),
    ("bugets", "[1e18]", "bugets: unknown key; did you mean 'budgets'?"),
    ("model", "{target: 'm:G', size_param: d, sizes: []}", "model.sizes: is empty"),
    ("model", "{target: 'm:G', size_param: d, sizes: [8, 0, 16]}", "model.sizes: [0] are not positive"),
    ("model", "{target: 'm:G', size_param: d, sizes: [8, -8]}", "model.sizes: [-8] are not positive"),
    ("model", "{target: 'm:G', size_param: d, sizes: [8, 16, 8]}", "model.sizes: [8] are given twice"),
    ("model", "{target: 'm:G', size_param: d, sizes: [8.5]}", "model.sizes.0: must be a whole number, or a mapping"),
    ("model", "{target: 'm:G', sizes: [8, 16, 32]}", "spec: model.size_param is missing"),
    ("model", "{target: 'm:G', sizes: [8, {d: 9}, {d: 10}]}", "spec: model.size_param is missing"),
    ("budgets", "[1e18, {flops: 2e18, sizes: [8, 8]}]", "budgets.1.sizes: [8] are given twice"),
    ("budgets", "[1e18, {flops: 2e18, sizes: [0, 8]}]", "budgets.1.sizes: [0] are not positive"),
    ("model", "{target: 'm:G', size_param: d, kwargs: {d: 3}}", "model: kwargs.d is the size parameter"),
    (
        "model",
        "{target: 'm:G', size_param: d, sizes: {start: 8, stp: 9}}",
        "model.sizes.stp: unknown key; did you mean 'stop'",
    ),
    ("model", "{target: 'm:G', size_parm: d}", "model.size_parm: unknown key; did you mean 'size_param'?"),
    ("train", "{batch_size: 0}", "train.batch_size: must be greater than 0 (got 0)"),
    ("train", "{lr: -1}", "train.lr: must be a positive, finite number (got -1)"),
    (
        "train",
        "{lr: fast}",
        "train.lr: must be a number, a rule, a table, auto or your own as module:attribute (got 'fast')",
    ),
    (
        "train",
        "{schedule: cosin}",
        "train.schedule: must be wsd, cosine, linear, constant or your own as module:attribute; did you mean 'cosine'?",
    ),
    ("train", "{optimizer: lion}", "train.optimizer: must be adamw, sgd or your own as module:attribute (got 'lion')"),
    ("train", "{optimizer: sgd}", "train: lr is missing"),
    ("train", "{decay_fraction: 1}", "train.decay_fraction: must be less than 1 (got 1)"),
    ("train", "{warmup_tokens: -3}", "train.warmup_tokens: must be greater than or equal to 0 (got -3)"),
    ("train", "{seed: -1}", "train.seed: must be greater than or equal to 0 (got -1)"),
    ("train", "{betas: [0.9, 1.0]}", "train.betas: must be two numbers in [0, 1), for example [0.9, 0.95]"),
    ("data", "{train: 'd:t', max_epochs: 0}", "data.max_epochs: must be a positive, finite number (got 0)"),
    ("data", "{}", "data.train: is missing"),
    ("resources_per_trial", "{gpu: 0}", "resources_per_trial: asks for nothing"),
    ("name", "a/b", "name: must match pattern"),
    ("schema_version", "2", "schema_version: must be 1 (got 2)"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=[f"{k}={v}" for k, v, _ in BAD])
def test_bad_values(key: str, value: str, message: str) -> None:
    assert [f for f in faults(with_line(key, value)) if f.startswith(message)], faults(with_line(key, value))


SIZES = "a list of sizes, a ladder such as {start: 64, stop: 1024}, or auto"
SIZE = "a whole number, or a mapping of the constructor's arguments such as {d_model: 64, n_layer: 2}"
LR = (
    "a number, a rule {base: 3e-4, at: 1e8, exponent: -0.3}, a table {table: {64: 3e-3}}, auto, or your own as "
    "module:attribute"
)
NUMBERS, TEXTS = [-1.5], ["no-such", ""]
MAPPINGS: list[Any] = [{"from": "x"}, {"fr-om (x).y": 1}, {}]
OTHERS: list[Any] = [None, True]
OF_NO_KIND = [  # a key that takes values of several kinds, what it must be, and values that are of none
    ("model.sizes", SIZES, [*NUMBERS, *MAPPINGS, *OTHERS, *TEXTS]),
    ("model.sizes.1", SIZE, [4.5, [1], *OTHERS, *TEXTS]),
    ("train.lr", LR, [[1], *MAPPINGS, *OTHERS]),
    ("train.compile", "true, false or auto", [*NUMBERS, 2, [True], *MAPPINGS, None, *TEXTS]),
    ("train.warmup_tokens", "a whole number or auto", [*NUMBERS, "4.5", [1], *MAPPINGS, *OTHERS, *TEXTS]),
    ("grid.seeds", "a whole number or auto", [*NUMBERS, [1], *MAPPINGS, *OTHERS, *TEXTS]),
    ("grid.lr_guard", "true, false or auto", [*NUMBERS, [True], *MAPPINGS, None, *TEXTS]),
    ("grid.rerun_outliers", "true, false or auto", [*NUMBERS, [True], *MAPPINGS, None, *TEXTS]),
    ("resources_per_trial", "a mapping such as {gpu: 1} or {cpu: 4}, or auto", [*NUMBERS, [1], *OTHERS, *TEXTS]),
]


def with_value(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one value at a path, of which a number is an index."""
    content: Any = parse_yaml(GOOD, "s")
    *parents, last = path.split(".")
    here = content
    for name in parents:
        here = here.setdefault(name, {})
    here[int(last) if last.isdecimal() else last] = value
    return dict(content)


def faults_with(path: str, value: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        make_spec(with_value(path, value), "s")
    return list(caught.value.faults)


@pytest.mark.parametrize(
    ("path", "expected", "value"), [(path, expected, value) for path, expected, many in OF_NO_KIND for value in many]
)
def test_a_value_of_no_kind_is_one_fault(path: str, expected: str, value: Any) -> None:
    assert faults_with(path, value) == [f"{path}: must be {expected} (got {value!r})"]


BUDGETS = "budgets: must be a list of FLOPs, for example [1e18, 3e18, 1e19], or auto, or {minutes: 30}"
BUDGET = "budgets.1: must be a number of FLOPs, or a mapping such as {flops: 1e18, sizes: [64, 128, 256]}"
WANDB = "trackers.wandb: must be a mapping with keys such as project, entity, mode; {} takes every default"
BETAS = "train.betas: must be two numbers in [0, 1), for example [0.9, 0.95]"
ONE_FAULT: list[tuple[str, Any, str]] = [
    ("model.sizes", {"start": 8}, "model.sizes.stop: is missing"),
    ("model.sizes", {"start": 8, "stp": 9}, "model.sizes.stp: unknown key; did you mean 'stop'?"),
    ("model.sizes", {"start": "a", "stop": 9}, "model.sizes.start: must be a whole number (got 'a')"),
    (
        "model.sizes",
        {"start": 8, "stop": 16, "ratio-x": 2},
        "model.sizes.ratio-x: unknown key; did you mean 'ratio'?",
    ),
    ("model.sizes", {"start": 9, "stop": 8}, "model.sizes: stop (8) must be larger than start (9)"),
    ("model.sizes.1", {1: 2}, "model.sizes.1.1: must be text (got 1)"),
    ("train.lr", -1.5, "train.lr: must be a positive, finite number (got -1.5)"),
    ("train.lr", {"base": 1}, "train.lr: at and exponent are missing"),
    ("train.lr", {"base": 1, "at": 2}, "train.lr.exponent: is missing"),
    ("train.lr", {"base": 1, "at": 2, "exponent": "x"}, "train.lr.exponent: must be a number (got 'x')"),
    ("train.lr", {"base": 1, "at": 2, "exponent": 0, "off": 1}, "train.lr.off: unknown key; did you mean 'of'?"),
    ("train.lr", {"tabel": {}}, "train.lr.tabel: unknown key; did you mean 'table'?"),
    ("train.lr", {"table": 3}, "train.lr.table: must be a mapping (got 3)"),
    ("train.lr", {"table": {8: -1}}, "train.lr.table.8: must be a positive, finite number (got -1)"),
    ("train.lr", {"table": {"d-x=1": "y"}}, "train.lr.table.'d-x=1': must be a number (got 'y')"),
    (
        "train.lr",
        {"table": {8.5: 1}},
        "train.lr.table.'8.5': must be a size: a whole number, or its name such as d_model=64,n_layer=2 (got 8.5)",
    ),
    ("train.lr", {"table": {8: 1}, "at": 1}, "train.lr.at: unknown key; known keys: table"),
    ("train.lr", "a:", "train.lr: must be written module:attribute, for example model:GPT (got 'a:')"),
    ("train.warmup_tokens", -1, "train.warmup_tokens: must be greater than or equal to 0 (got -1)"),
    ("grid.seeds", 21, "grid.seeds: must be less than or equal to 20 (got 21)"),
    ("budgets", {"hour": 8}, "budgets.hour: unknown key; did you mean 'hours'?"),
    ("budgets", {"hours": -8}, "budgets.hours: must be a positive, finite number (got -8)"),
    ("budgets", None, f"{BUDGETS} (got None)"),
    ("budgets", True, f"{BUDGETS} (got True)"),
    ("budgets", "1e18", f"{BUDGETS} (got '1e18')"),
    ("budgets.1", [1], BUDGET),
    ("budgets.1", None, f"{BUDGET} (got None)"),
    ("budgets.1", True, f"{BUDGET} (got True)"),
    ("budgets.1", {}, "budgets.1.flops: is missing"),
    ("budgets.1", {"flop": 2e18}, "budgets.1.flop: unknown key; did you mean 'flops'?"),
    ("budgets.1", {"sizes": [8]}, "budgets.1.flops: is missing"),
    ("resources_per_trial", {"gpu": "x"}, "resources_per_trial.gpu: must be a number (got 'x')"),
    ("resources_per_trial", {"gpu": None}, "resources_per_trial.gpu: must be a number (got None)"),
    (
        "resources_per_trial",
        {"a-b (c)": -1},
        "resources_per_trial.'a-b (c)': must be greater than or equal to 0 (got -1)",
    ),
    ("resources_per_trial", {}, "resources_per_trial: asks for nothing; give {gpu: 1} or {cpu: 1}"),
    ("trackers.wandb", True, f"{WANDB} (got True)"),
    ("trackers.wandb", "my-project", f"{WANDB} (got 'my-project')"),
    ("trackers.wandb", ["x"], WANDB),
    ("trackers.wandb", {"pro-ject": "x"}, "trackers.wandb.pro-ject: unknown key; did you mean 'project'?"),
    ("trackers", {"wand-b": {}}, "trackers.wand-b: unknown key; did you mean 'wandb'?"),
    ("fit.pins", {"A-0": 1}, "fit.pins.A-0: must be 'E', 'alpha' or 'beta' (got 'A-0')"),
    ("metrics", {"a b": "x"}, "metrics.'a b': must be written module:attribute, for example model:GPT (got 'x')"),
    ("train.betas", [1, 2, 3], BETAS),
    ("train.betas", [[1]], BETAS),
    ("train.betas", "adam", f"{BETAS} (got 'adam')"),
]


@pytest.mark.parametrize(("path", "value", "fault"), ONE_FAULT)
def test_a_wrong_value_of_a_kind_is_one_fault(path: str, value: Any, fault: str) -> None:
    assert faults_with(path, value) == [fault]


def test_each_kind_of_value_is_read() -> None:
    for path, value in [
        ("model.sizes", {"start": 8, "stop": 16}),
        ("model.sizes", [8, "16", 32.0, {"d": 64}]),
        ("train.lr", "1e-3"),
        ("train.lr", {"table": {8: 1, "16": 2}}),
        ("train.lr", {"base": 1, "at": 2, "exponent": 3}),
        ("train.lr", "rates:rate"),
        ("train.compile", "auto"),
        ("train.warmup_tokens", 1e3),
        ("resources_per_trial", {"cpu": 2, "tpu-v4": 1}),
    ]:
        spec = make_spec(with_value(path, value), "s")
        assert make_spec(spec.model_dump(), "s") == spec
    assert make_spec(with_value("train.lr", "1e-3"), "s").train.lr == 1e-3
    assert make_spec(with_value("model.sizes", [8, "16", 32.0]), "s").model.sizes == [8, 16, 32]


WAYS_OUT: list[tuple[str, str]] = [  # an unknown key, and what it is answered with
    ("train.learning_rate", "write train.lr"),
    ("learning-rate", "write train.lr"),
    ("train.peakLr", "write train.lr"),
    ("train.max_grad_norm", "write train.grad_clip"),
    (
        "train.gradient_accumulation_steps",
        "write train.micro_batch_size (micro_batch_size = batch_size / (workers_per_trial * accumulation steps))",
    ),
    (
        "num_train_epochs",
        "write data.max_epochs (D follows from the budget; this only allows samples to be repeated)",
    ),
    ("train.max_steps", "write budgets (steps and D of every experiment follow from its budget)"),
    (
        "train.steps",
        "write budgets or checkpoint.steps (steps and D of every experiment follow from its budget)",
    ),
    (
        "train.warmup_steps",
        "write train.warmup_tokens (tokens = warmup steps * batch_size * tokens per sample, or auto)",
    ),
    ("train.lr_scheduler_type", "write train.schedule"),
    ("wandb_project", "write trackers.wandb.project"),
    ("trackers.project", "write trackers.wandb.project"),
    (
        "per_device_train_batch_size",
        "write train.batch_size (batch_size = batch of a device * devices * accumulation steps)",
    ),
    ("bf16", "write train.precision (fp32, bf16, fp16 or auto)"),
    ("train.dtype", "write train.precision or data.dtype (fp32, bf16, fp16 or auto)"),
    ("train.adam_beta1", "write train.betas (both, as [beta1, beta2])"),
    ("weight_decay", "write train.weight_decay"),
    ("model.batch_size", "write train.batch_size"),
    ("seed", "write train.seed or fit.seed"),
    ("train.torch_compile", "write train.compile"),
    ("num_gpus", "write resources_per_trial (a mapping such as {gpu: 1} or {cpu: 4})"),
    ("output_dir", "write output"),
    ("data.valid", "write data.eval"),
    ("data.train_dataset", "write data.train"),
    ("dataset", "write data.train"),
    ("data.val", "did you mean 'eval'?"),
    ("model.class", "write model.target"),
    ("criterion", "write loss"),
    ("compute_budgets", "write budgets (each in FLOPs)"),
    ("num_samples", "write grid.max_experiments"),
    ("learnig_rate", "write train.lr"),
    ("batch_sise", "write train.batch_size"),
    ("hidden_size", "write model.kwargs (arguments of the model's constructor stand under it)"),
    ("max-retries", "did you mean 'max_retries'?"),
    ("Workers Per Trial", "did you mean 'workers_per_trial'?"),
    ("trainLr", "write train.lr"),
    ("data/train", "write data.train"),
    ("train.logging_steps", "remove it: the line of progress, curve and checkpoints are written anyway"),
    (
        "tensor-parallel-degree",
        "remove it: a model is trained by data parallel workers (workers_per_trial), whole or sharded (shard_model)",
    ),
    ("adam_epsilon", "write train.eps"),
    ("gradient_checkpointing", "write train.activation_checkpointing (true or false, for the blocks of the model)"),
    (
        "nesterov",
        "write train.optimizer (your own as module:attribute, (model, lr) -> optimizer, sets what has no key)",
    ),
    ("target_param_data_ratio", "write grid.tokens_per_param"),
    ("train.batch-size", "did you mean 'batch_size'?"),
    ("train.batchSize", "did you mean 'batch_size'?"),
    ("train.batch size", "did you mean 'batch_size'?"),
    ("train.batch_size[0]", "did you mean 'batch_size'?"),
    ("model.kwarg", "did you mean 'kwargs'?"),
    (
        "model.frobnicate",
        "known keys: target, size_param, kwargs, sizes, axes, flops_per_token; arguments of the constructor belong in "
        "model.kwargs",
    ),
    ("checkpoint.frobnicate", "known keys: minutes, steps, keep, best, weights"),
]


@pytest.mark.parametrize(("path", "way_out"), WAYS_OUT)
def test_an_unknown_key_is_answered_with_the_key_that_was_meant(path: str, way_out: str) -> None:
    *parents, key = path.split(".")
    written = key if key.replace("-", "").isidentifier() else repr(key)
    assert faults_with(path, 1) == [f"{'.'.join([*parents, written])}: unknown key; {way_out}"]


def test_a_key_that_is_said_otherwise_is_not_missing_as_well() -> None:
    assert faults("model: {class: 'm:G', size_param: d}\ndata: {dataset: 'd:t'}\nflops: [1e18, 2e18]") == [
        "model.class: unknown key; write model.target",
        "data.dataset: unknown key; write data.train",
        "flops: unknown key; write budgets (each in FLOPs)",
    ]
    assert faults("modle: {target: 'm:G'}\ndata.train: 'd:t'\nbudgets: [1e18, 2e18]") == [
        "modle: unknown key; did you mean 'model'?",
        "'data.train': unknown key; a key holds no dots; write data: {train: ...}",
    ]


def test_overrides_have_the_same_ways_out(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(GOOD)
    with pytest.raises(SpecError, match="train.learning_rate: unknown key; write train.lr"):
        read_spec(path, ["train.learning_rate=1"])


def respelt(key: str) -> Iterator[str]:
    """A key as YAML files, TOML files and command lines of others spell it."""
    words = key.split("_")
    yield from ("-".join(words), "--" + "-".join(words), " ".join(words).title(), key.upper(), "".join(words))
    yield words[0] + "".join(word.title() for word in words[1:])


@pytest.mark.parametrize("path", [path for path in all_paths(SweepSpec) if "trackers.mlflow" not in path])
def test_every_key_is_known_in_other_spellings(path: str) -> None:
    *sections, key = path.split(".")
    for written in respelt(key):
        if written == key:
            continue
        content: Any = parse_yaml(GOOD, "s")
        inner = content
        for section in sections:
            inner[section] = inner = dict(inner.get(section) or {})
        inner[written] = inner.pop(key, None)
        with pytest.raises(SpecError) as caught:
            make_spec(content, "s")
        assert f"unknown key; did you mean {key!r}?" in str(caught.value), written


def test_every_hint_names_a_key_and_is_needed() -> None:
    paths = set(all_paths(SweepSpec))
    names = [name for hint in HINTS for name in hint.names.split()]
    assert len(names) == len(set(names)) > 300
    assert {hint.path for hint in HINTS} <= paths
    without = [name for words in NO_KEYS.values() for name in words.split()]
    keys = {path.rpartition(".")[2] for path in paths}
    assert len(without) == len(set(without)) > 80 and not set(without) & ({*names} | keys)
    assert all(meant_paths(name) == ((), words) for words, found in NO_KEYS.items() for name in found.split())
    for hint in HINTS:
        for name in hint.names.split():
            assert re.fullmatch(r"[a-z0-9_]+", name) and meant_paths(name)[0][0] == hint.path
            assert name not in SweepSpec.model_fields


def test_all_faults_at_once() -> None:
    text = "modle: 1\nmodel: {target: 'm:G', size_param: d, sizes: [1, 2, 1]}\ndata: {}\nbudgets: [1, x]\n"
    text += "train: {seed: -1}"
    assert len(faults(text)) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: duplicate key 'a'"),
        ("a: [1\nb: 2", "line 2, column 2"),
        ("a:\n\t- 1", "line 2, column 1"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("x: &x [1]\na: [" + "*x, " * 65 + "]", "more than 64 aliases"),
    ],
)
def test_bad_yaml(text: str, message: str) -> None:
    with pytest.raises(SpecError, match="^s: ") as caught:
        parse_yaml(text, "s")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"- 1\n- 2\n", "holds a list"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"a" * (1 << 20) + b"aa", "a spec is at most"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        read_spec(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file; `flops-fit-ray init`"):
        read_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(tmp_path)


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(GOOD)
    spec = read_spec(path, ["train.lr=3e-4", "budgets=[1e15, 2e15]", "model.kwargs.n_head=2"])
    assert (spec.train.lr, spec.budgets[1].flops, spec.model.kwargs) == (3e-4, 2e15, {"n_head": 2})
    for bad, message in [("train.lr", "not of the form"), ("name.x=1", "name"), ("train.lrr=1", "did you mean 'lr'")]:
        with pytest.raises(SpecError, match=message):
            read_spec(path, [bad])


def test_the_demo_spec_is_valid() -> None:
    demo = Path(__file__).parent.parent / "examples" / "bytes" / "sweep.yaml"
    spec = read_spec(demo)
    assert [b.flops for b in spec.budgets] == [6e10, 2e11, 6e11, 2e12] and spec.is_adaptive


def test_ladder() -> None:
    assert Ladder(start=8, stop=64, multiple_of=4).sizes() == [8, 12, 16, 24, 32, 44, 64]
    assert Ladder(start=1, stop=1000, ratio=10).sizes() == [1, 10, 100, 1000]


NUMBER = st.floats(min_value=1e-3, max_value=1e30)


@settings(max_examples=50)
@given(
    budgets=st.lists(NUMBER, min_size=2, max_size=6, unique=True),
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=9, unique=True),
    lr=NUMBER,
    kwargs=st.dictionaries(st.text("abc_", min_size=1, max_size=5), st.one_of(st.integers(), st.booleans(), st.text())),
)
def test_a_dumped_spec_reads_back_equal(
    budgets: list[float], sizes: list[int], lr: float, kwargs: dict[str, Any]
) -> None:
    spec = make_spec(
        {
            "model": {"target": "m:G", "size_param": "d", "sizes": sizes, "kwargs": kwargs},
            "data": {"train": "d:t"},
            "budgets": budgets,
            "train": {"lr": lr},
        },
        "s",
    )
    assert make_spec(parse_yaml(dump_spec(spec), "s"), "s") == spec


def test_published_schema_names_every_section() -> None:
    assert set(SweepSpec.model_json_schema()["properties"]) == set(SweepSpec.model_fields)
    assert yaml.safe_load(dump_spec(make_spec(parse_yaml(GOOD, "s"), "s")))["schema_version"] == 1
