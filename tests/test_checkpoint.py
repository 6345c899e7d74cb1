"""Killed anywhere, resumed, and the same to the last bit; a damaged checkpoint is skipped with a warning."""

import json
import os
import random
import resource
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from flops_fit_ray.errors import ExperimentError, InterruptedSweepError, StorageError
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.data import eval_batches
from flops_fit_ray.training.data._feed import EPOCH_STEP
from flops_fit_ray.training.loop._evaluate import evaluate
from flops_fit_ray.training.loop.checkpoint import CheckpointStore, write_weights
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import BIGRAM, Bigram, planned, spec_of, text, user_parts_of
from tests.streams import Noisy, Stateful, every_kind, loader

KINDS = ["tensors", "augmented", "token file", "iterable", "iterable with state", "loader", "mappings"]
RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd, accumulated": {"optimizer": "sgd", "momentum": 0.9, "micro_batch_size": 2},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
}


class Dropping(Bigram):
    """With dropout and a running average, so that random states and buffers matter."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(nn.functional.dropout(self.norm(self.table(ids)), 0.1, self.training))
        return out


class Killed(BaseException):
    """Stands for the end of the process."""


class Killer(Observer):
    """Kills when batch number `at` is asked for."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.batches = at, 0
        self.events: list[str] = []

    def fetching(self) -> None:
        if self.batches == self.at:
            raise Killed
        self.batches += 1

    def event(self, words: str, *, level: Literal["info", "warning"] = "info") -> None:
        self.events.append(f"ALOUD {words}" if level == "warning" else words)


def experiment_of(data: Any, **train: Any) -> tuple[Experiment, UserParts, int]:
    """One of about 80 steps, over more than one epoch."""
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "max_epochs": 10, "eval_every_tokens": 1000},
        loss="cross_entropy",
        budgets=[1.8e7, 3e7],
        train={"batch_size": 8, "lr": 1e-2, "seed": 3, **train},
    )
    user = user_parts_of(spec, model=Dropping, train=data)
    plan = planned(spec, user)
    return plan.experiments[1], user, plan.measurements.data.eval_samples


def known_of(outcome: Outcome) -> tuple[Any, ...]:
    """All that must not depend on an interruption."""
    curve = [(p.step, p.tokens, p.train_loss, p.lr, p.grad_norm, p.eval_loss) for p in outcome.curve]
    return outcome.loss, outcome.loss_stderr, outcome.train_loss, outcome.tokens_seen, curve


def store_in(directory: Path, experiment: Experiment, **options: Any) -> CheckpointStore:
    return CheckpointStore(directory, key=experiment.key, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_anywhere_and_resumed_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)[kind])
    assert 70 < experiment.steps < 100
    whole = train_experiment(
        experiment, user, eval_samples=eval_samples, policy=SavePolicy(eval_every_tokens=1000), observer=Killer()
    )
    # Before, at and after a checkpoint, in the second epoch and in the last step: what only some data can get wrong
    # shows in two of them
    ways = [[8, 20], [71, 72, 70]] if kind != "tensors" else [[3], [7], [8, 20], [experiment.steps - 1], [71, 72, 70]]
    for number, kills in enumerate(ways):
        store = store_in(tmp_path / str(number), experiment)
        policy = SavePolicy(store=store, checkpoint_steps=7, eval_every_tokens=1000)
        for step in kills:
            killer = Killer(step - max(store.steps(), default=0))
            with pytest.raises(Killed):
                train_experiment(experiment, user, eval_samples=eval_samples, policy=policy, observer=killer)
        resumed = train_experiment(experiment, user, eval_samples=eval_samples, policy=policy)
        assert known_of(resumed) == known_of(whole)
        assert (resumed.resumed_from is not None) == (kills != [3])
    assert len(whole.curve) > 40 and any(p.eval_loss for p in whole.curve[:-1]) == bool(eval_samples)


def batches_by_hand(kind: str, directory: Path, steps: int) -> list[Any]:
    """What a few lines of plain PyTorch would read, with the seed of the experiment."""
    data = every_kind(directory)[kind]
    if kind in ("iterable", "loader"):
        torch.manual_seed(3)
        np.random.seed(3)
        found: list[Any] = []
        for epoch in range(2):
            if epoch:
                torch.manual_seed(3 + EPOCH_STEP)
                np.random.seed((3 + EPOCH_STEP) % 2**32)
            read = list(data)
            ready = read if kind == "loader" else [default_collate(read[i : i + 8]) for i in range(0, 500, 8)]
            found += [batch for batch in ready if len(batch[0]) == 8]
        return found[:steps]
    if kind == "token file":
        tokens = np.memmap(directory / "train.bin", dtype=np.uint16, mode="r").astype(np.int64)
        rows = torch.from_numpy(np.stack([tokens[i * 16 : i * 16 + 17] for i in range(500)]))
        inputs, targets = rows[:, :-1], rows[:, 1:]
    else:
        inputs, targets = data.tensors
    kept = torch.randperm(500, generator=torch.Generator().manual_seed(0))[25:].sort().values  # 5 % are held out
    order = torch.cat(
        [kept[torch.randperm(475, generator=torch.Generator().manual_seed(3 + e * EPOCH_STEP))] for e in range(2)]
    )
    return [(inputs[order[i : i + 8]], targets[order[i : i + 8]]) for i in range(0, 8 * steps, 8)]


@pytest.mark.parametrize("kind", ["tensors", "token file", "iterable", "loader"])
def test_our_loop_is_a_bare_pytorch_loop_bit_for_bit(kind: str, tmp_path: Path) -> None:
    recipe = {"optimizer": "sgd", "lr": 0.05, "schedule": "constant", "grad_clip": None}
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)[kind], **recipe)
    batches = batches_by_hand(kind, tmp_path, experiment.steps)
    assert len(batches) == experiment.steps
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = Dropping(width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        losses.append(loss.item())
    outcome = train_experiment(experiment, user, eval_samples=eval_samples)
    assert [p.train_loss for p in outcome.curve if p.train_loss is not None] == losses


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_resumes_to_the_same_bits(recipe: dict[str, Any], tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["augmented"], **recipe)
    whole = train_experiment(experiment, user, eval_samples=eval_samples)
    policy = SavePolicy(store=store_in(tmp_path / "s", experiment), checkpoint_steps=10)
    with pytest.raises(Killed):
        train_experiment(experiment, user, eval_samples=eval_samples, policy=policy, observer=Killer(25))
    resumed = train_experiment(experiment, user, eval_samples=eval_samples, policy=policy)
    assert resumed.resumed_from == 20
    assert known_of(resumed) == known_of(whole)


def test_a_loader_with_workers_resumes_to_the_same_bits(tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(loader(workers=1))
    whole = train_experiment(experiment, user, eval_samples=eval_samples)
    policy = SavePolicy(store=store_in(tmp_path, experiment), checkpoint_steps=10)
    with pytest.raises(Killed):
        train_experiment(experiment, user, eval_samples=eval_samples, policy=policy, observer=Killer(25))
    assert known_of(train_experiment(experiment, user, eval_samples=eval_samples, policy=policy)) == known_of(whole)


class Known(Noisy):
    """A map-style dataset with a state that is none of the loader's business."""

    def state_dict(self) -> dict[str, int]:
        return {"nothing": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == {"nothing": 0}


def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    inputs, targets = text().tensors
    rows = {"ids": inputs.tolist(), "labels": targets.tolist()}
    return datasets.Dataset.from_dict(rows).to_iterable_dataset().shuffle(seed=1, buffer_size=50)


MORE: dict[str, Any] = {
    "a loader over an iterable with state": lambda: DataLoader(Stateful(), batch_size=8),
    "a loader over a map-style dataset with a state": lambda: DataLoader(Known(), batch_size=8, shuffle=True),
    "a loader with a generator of its own": lambda: DataLoader(
        Noisy(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(9)
    ),
    "a shuffled stream of Hugging Face's": hugging_face,
}


@pytest.mark.parametrize("make", MORE.values(), ids=MORE)
def test_more_streams_resume_to_the_same_bits(make: Any, tmp_path: Path) -> None:
    experiment, user, _ = experiment_of(make())
    whole = train_experiment(experiment, user, eval_samples=0)
    policy = SavePolicy(store=store_in(tmp_path, experiment), checkpoint_steps=10)
    for batches in (25, 58):  # the second one is in the second epoch
        with pytest.raises(Killed):
            train_experiment(experiment, user, eval_samples=0, policy=policy, observer=Killer(batches))
    resumed = train_experiment(experiment, user, eval_samples=0, policy=policy)
    assert resumed.resumed_from == 70
    assert known_of(resumed) == known_of(whole)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    share, _, what = how.partition(" ")
    at = int(int(share) / 100 * (len(content) - 1))
    new = {
        "cut": content[:at],
        "flipped": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "garbage": content[:at] + b"\xff" * (len(content) - at),
        "zeros": content[:at] + b"\0" * (len(content) - at),
    }[what]
    path.write_bytes(new)


DAMAGE = [f"{share} {what}" for share in (0, 1, 25, 50, 99) for what in ("cut", "flipped", "garbage", "zeros")]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_aloud(how: str, tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    store = store_in(tmp_path / "s", experiment)
    policy = SavePolicy(store=store, checkpoint_steps=10)
    with pytest.raises(Killed):
        train_experiment(experiment, user, eval_samples=eval_samples, policy=policy, observer=Killer(35))
    assert store.steps() == [20, 30]
    damage(tmp_path / "s" / "0000000030.pt", how)
    observer = Killer()
    resumed = train_experiment(experiment, user, eval_samples=eval_samples, policy=policy, observer=observer)
    assert resumed.resumed_from == 20
    assert observer.events[0].startswith("ALOUD checkpoint of step 30 is damaged (")
    assert observer.events[0].endswith("); skipped, using the previous checkpoint")
    assert known_of(resumed) == known_of(train_experiment(experiment, user, eval_samples=eval_samples))


def test_without_a_note_with_another_key_or_none_whole_it_starts_over(tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    store = store_in(tmp_path / "s", experiment)
    policy = SavePolicy(store=store, checkpoint_steps=10)
    with pytest.raises(Killed):
        train_experiment(experiment, user, eval_samples=eval_samples, policy=policy, observer=Killer(35))
    assert store_in(tmp_path / "s", replace(experiment, key="f" * 16)).newest()[0] is None
    (tmp_path / "s" / "0000000030.json").unlink()
    (tmp_path / "s" / "0000000020.json").write_text("{")
    state, words = store.newest()
    assert state is None  # the one without a note was never finished, which is nothing to speak of
    assert words == [
        "checkpoint of step 20 is damaged (its manifest is incomplete); skipped, using the previous checkpoint"
    ]
    assert train_experiment(experiment, user, eval_samples=eval_samples, policy=policy).resumed_from is None


def test_a_checkpoint_of_another_model_is_refused_in_words(tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    policy = SavePolicy(store=store_in(tmp_path / "s", experiment), checkpoint_steps=10)
    with pytest.raises(Killed):
        train_experiment(experiment, user, eval_samples=eval_samples, policy=policy, observer=Killer(15))
    other = replace(user, model=lambda width: Dropping(width + 1))
    with pytest.raises(
        ExperimentError, match=r"checkpoint at step 10 does not fit this model \(.*; if its code changed"
    ):
        train_experiment(experiment, other, eval_samples=eval_samples, policy=policy)


def test_a_poisoned_checkpoint_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Poison:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    store = CheckpointStore(tmp_path / "s", key="k")
    store.save({"step": 1, "poison": Poison()}, 1)
    state, (words,) = store.newest()
    assert state is None and "UnpicklingError" in words
    assert not marker.exists()


def test_the_last_k_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, key="k", keep=2, best=True)
    for step, loss in [(1, None), (2, 0.5), (3, 0.9), (4, None), (5, float("nan")), (6, None)]:
        store.save({"step": step}, step, loss)
    assert store.steps() == [2, 5, 6]
    assert not list(tmp_path.glob("*.tmp")) and len(list(tmp_path.iterdir())) == 6
    store.clear()
    assert store.steps() == [2]
    plain = CheckpointStore(tmp_path / "plain", key="k", keep=1)
    for step in (1, 2, 3):
        plain.save({"step": step}, step)
    assert plain.steps() == [3]
    plain.clear()
    assert not (tmp_path / "plain").exists()


def test_the_best_checkpoint_is_of_the_lowest_held_out_loss(tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"], schedule="constant", lr=0.2)
    store = store_in(tmp_path / "s", experiment, keep=1, best=True)
    policy = SavePolicy(store=store, checkpoint_steps=5, eval_every_tokens=640, keep_best=True)
    outcome = train_experiment(experiment, user, eval_samples=eval_samples, policy=policy)
    losses = {p.step: p.eval_loss for p in outcome.curve if p.eval_loss is not None}
    assert list(losses)[-1] == experiment.steps
    best = min(losses, key=lambda step: losses[step])
    assert best in store.steps()
    note = json.loads((tmp_path / "s" / f"{best:010d}.json").read_text())
    assert note["eval_loss"] == losses[best]


def test_the_last_evaluation_may_be_the_best(tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    store = store_in(tmp_path / "s", experiment, best=True)
    policy = SavePolicy(store=store, eval_every_tokens=1000, keep_best=True)
    outcome = train_experiment(experiment, user, eval_samples=eval_samples, policy=policy)
    store.clear()
    assert store.steps() == [experiment.steps]
    note = json.loads((tmp_path / "s" / f"{experiment.steps:010d}.json").read_text())
    assert note["eval_loss"] == outcome.loss == min(p.eval_loss for p in outcome.curve if p.eval_loss is not None)
    again = train_experiment(experiment, user, eval_samples=eval_samples, policy=policy)  # its result was not recorded
    assert known_of(again) == known_of(outcome)


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al. 2024): it trains at y, between the steps z and their mean x."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "training": False})

    def _move(self, *, training: bool) -> None:
        for group in self.param_groups:
            if group["training"] != training:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.data.lerp_(self.state[p]["z"], 0.1 if training else 1 - 1 / 0.9)
                group["training"] = training

    def train(self) -> None:
        self._move(training=True)

    def eval(self) -> None:
        self._move(training=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            assert group["training"]
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 1 - 1 / 0.9)  # x
                z.sub_(p.grad, alpha=group["lr"])
                p.lerp_(z, 1 / group["k"]).lerp_(z, 0.1)


def schedule_free_and_adamw(model: nn.Module, lr: float) -> tuple[torch.optim.Optimizer, ...]:
    assert isinstance(model, Dropping)
    return (
        torch.optim.AdamW(model.table.parameters(), lr=lr),
        ScheduleFree([*model.head.parameters(), *model.norm.parameters()], lr=10 * lr),
    )


def test_a_list_of_optimizers_and_one_with_an_eval_mode_resume_to_the_same_bits(tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    user = replace(user, optimizer=schedule_free_and_adamw)
    plain = train_experiment(experiment, user, eval_samples=eval_samples)
    policy = SavePolicy(
        store=store_in(tmp_path / "s", experiment), checkpoint_steps=7, eval_every_tokens=1000,
        weights=tmp_path / "w.safetensors",
    )  # fmt: skip
    for kill in (20, 9):
        with pytest.raises(Killed):
            train_experiment(experiment, user, eval_samples=eval_samples, policy=policy, observer=Killer(kill))
    resumed = train_experiment(experiment, user, eval_samples=eval_samples, policy=policy)
    assert (resumed.loss, resumed.train_loss) == (plain.loss, plain.train_loss)  # evaluating on the way changes no bit
    assert resumed.resumed_from and plain.loss < 3.4
    model = Dropping(8)  # the weights that are written are those that were evaluated
    model.load_state_dict(load_file(tmp_path / "w.safetensors"))
    held_out = eval_batches(cast(Any, user.eval_data), eval_samples, 8)
    found = evaluate(model, user, experiment.recipe, held_out, torch.device("cpu"))
    assert found.loss == plain.loss


def test_a_state_of_other_optimizers_is_refused(tmp_path: Path) -> None:
    experiment, user, _ = experiment_of(every_kind(tmp_path)["tensors"])
    policy = SavePolicy(store=store_in(tmp_path / "s", experiment), checkpoint_steps=7)
    two = replace(user, optimizer=schedule_free_and_adamw)
    with pytest.raises(Killed):
        train_experiment(experiment, two, eval_samples=0, policy=policy, observer=Killer(9))
    three = replace(user, optimizer=lambda m, lr: [torch.optim.SGD([p], lr=lr) for p in m.parameters()])
    with pytest.raises(ExperimentError, match=r"saved state has 2 parameter groups, and these optimizers 4"):
        train_experiment(experiment, three, eval_samples=0, policy=policy)


def test_stopping_from_outside_saves_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopper(Observer):
        def progress(self, tokens_seen: int, train_loss: float | None) -> None:
            if tokens_seen >= 20 * 128:
                raise InterruptedSweepError("stop")

    monkeypatch.setattr("flops_fit_ray.training.loop.loop.PROGRESS_SECONDS", 0.0)
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["augmented"])
    store = store_in(tmp_path / "s", experiment)
    with pytest.raises(InterruptedSweepError):
        train_experiment(
            experiment, user, eval_samples=eval_samples, policy=SavePolicy(store=store), observer=Stopper()
        )
    assert store.steps() == [20]
    resumed = train_experiment(experiment, user, eval_samples=eval_samples, policy=SavePolicy(store=store))
    assert known_of(resumed) == known_of(train_experiment(experiment, user, eval_samples=eval_samples))


def train_in_a_child(arguments: tuple[Experiment, UserParts, int], directory: Path) -> int:
    """Start a process that trains with a checkpoint at every third step and leaves its loss behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads; ours are idle
        child = os.fork()
    if child:
        return child
    try:
        experiment, user, eval_samples = arguments
        policy = SavePolicy(store=store_in(directory / "s", experiment), checkpoint_steps=3)
        outcome = train_experiment(experiment, user, eval_samples=eval_samples, policy=policy)
        (directory / "loss").write_text(f"{outcome.loss.hex()} {outcome.resumed_from}")
    finally:
        os._exit(0)


@pytest.mark.parametrize("kind", ["augmented", "iterable"])
def test_sigkill_at_any_moment_loses_no_more_than_the_steps_since_the_last_checkpoint(
    kind: str, tmp_path: Path
) -> None:
    arguments = experiment_of(every_kind(tmp_path)[kind])
    whole = train_experiment(arguments[0], arguments[1], eval_samples=arguments[2])
    draw = random.Random(1)
    store = store_in(tmp_path / "s", arguments[0])
    kills, furthest = 0, 0
    while kills < 8:
        child = train_in_a_child(arguments, tmp_path)
        while max(store.steps(), default=0) <= furthest and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        if (tmp_path / "loss").exists():
            break  # it was quicker than we
        time.sleep(draw.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        state, words = store.newest()
        assert words == []  # killed in the middle of writing, and still none is torn
        step = 0 if state is None else state["step"]
        assert step >= furthest
        furthest = step
    os.waitpid(train_in_a_child(arguments, tmp_path), 0)
    loss, resumed_from = (tmp_path / "loss").read_text().split()
    assert float.fromhex(loss) == whole.loss
    assert kills >= 2 and int(resumed_from) >= furthest > 0
    assert not list((tmp_path / "s").glob(".*.tmp"))


def test_what_cannot_be_read_back_is_said_at_the_first_checkpoint(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "mine": Path("x")}

    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    odd = replace(user, optimizer=lambda model, lr: Odd(model.parameters(), lr=lr))
    with pytest.raises(ExperimentError, match="a checkpoint of this experiment cannot be read back: UnpicklingError"):
        train_experiment(
            experiment,
            odd,
            eval_samples=eval_samples,
            policy=SavePolicy(store=store_in(tmp_path / "s", experiment), checkpoint_steps=5),
        )


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, key="k")
    store.save({"step": 1}, 1)
    (tmp_path / "0000000002.pt").mkdir()
    with pytest.raises(StorageError, match="0000000002.pt: cannot be written"):
        store.save({"step": 2}, 2)
    (tmp_path / "0000000002.pt").rmdir()
    assert store.newest()[0] == {"format": 1, "key": "k", "step": 1}


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint_is_said_to_be_full(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, key="k")
    store.save({"step": 1, "weights": torch.zeros(10_000)}, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in (100, 10_000, 41_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # no file may be larger
            with pytest.raises(StorageError, match=r"0000000002.pt: cannot be written: File too large; fix that"):
                store.save({"step": 2, "weights": torch.zeros(10_000)}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    state, words = store.newest()
    assert state is not None and state["step"] == 1 and words == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000000001.json", "0000000001.pt"]


def test_weights_are_safetensors_with_tied_ones_once(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    model = Bigram(8, tied=True)
    write_weights(model.state_dict(), tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert set(found) == {"table.weight"} and torch.equal(found["table.weight"], model.table.weight)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata()["head.weight"] == "table.weight"
