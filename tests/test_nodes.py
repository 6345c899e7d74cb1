"""Nodes of a cluster: which get experiments, how many at a time, and what is said of the others. Without Ray."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flops_fit_ray.engine._dispatch import Dispatcher
from flops_fit_ray.engine._gpus import those_left_out
from flops_fit_ray.engine._live_plan import LivePlan
from flops_fit_ray.engine._node_watch import NodeWatch
from flops_fit_ray.engine._nodes import Answer, FoundNodes, Mark, NodeProbe, differences
from flops_fit_ray.engine._rounds import _amounts
from flops_fit_ray.engine._searcher import ExperimentSearcher
from flops_fit_ray.engine._trainable import UNFIT_FAULT, UNFIT_NODE
from flops_fit_ray.engine.cluster import Head
from flops_fit_ray.engine.interrupt import StopRequest
from flops_fit_ray.engine.planned_code import PlannedCode
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import InterruptedSweepError, ResourceError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.ledger.hardware import Cluster, Machine
from flops_fit_ray.planning.code_facts import CodeFacts
from flops_fit_ray.storage.atomic import write_json
from flops_fit_ray.storage.paths import SweepPaths
from tests.worlds import planner_of

FINE = Answer(node="a", host="one (10.0.0.1)", sees_marker=True, wrote=True)


@pytest.fixture
def probe(tmp_path: Path) -> NodeProbe:
    return NodeProbe(tmp_path, Path("/code"), PlannedCode(CodeFacts(), None), gpus=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"error": "does not answer within 120 s"}, "does not answer within 120 s"),
        ({"sees_marker": False}, "does not see {root}: give --output a path on storage that all nodes share"),
        ({"wrote": False}, "sees {root} and cannot write there: give --output"),
        ({"has_code": False}, "does not have /code, where the spec's code is: put it on shared storage, or send it"),
        ({"differences": ("parts.py is another one", "b.py is missing")}, "(parts.py is another one, b.py is missing)"),
        ({"gpu_fault": "one: Ray counts 1 GPU, and torch sees 0"}, "Ray counts 1 GPU, and torch sees 0"),
    ],
)
def test_what_is_wrong_with_a_node_is_one_sentence(
    probe: NodeProbe, changes: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    write_json(probe._reply("a"), {"token": probe.mark.token})
    fault = probe.fault(replace(FINE, **changes))
    assert (fault is None) if words is None else (words.format(root=tmp_path) in str(fault) and "one" in str(fault))
    probe.remove_reply("a")
    probe.close()
    assert not list(tmp_path.iterdir())


def test_a_copy_of_the_directory_is_not_the_directory(probe: NodeProbe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit_ray.engine._nodes.SEE_SECONDS", 0.0)
    mark = probe.mark
    assert mark.is_seen()
    assert not Mark(mark.place, "of another run").is_seen()
    probe.close()
    assert not mark.is_seen()


def test_versions_that_differ_are_named_also_where_one_node_lacks_a_package() -> None:
    there = replace(FINE, host="two", versions={"torch": "2.13.0+cu130", "einops": "0.8"})
    assert differences([replace(FINE, versions={"torch": "2.13.0+cpu"}), there]) == [
        "einops is ? on one (10.0.0.1), 0.8 on two"
    ]


def nodes_of(**cpus: float) -> Mapping[str, Mapping[str, Any]]:
    return {name: {"NodeID": name, "Resources": {"CPU": count}} for name, count in cpus.items()}


def watched(
    tmp_path: Path, known: str, max_slots: int | None = None, *, local: bool = False
) -> tuple[NodeWatch, Dispatcher, StopRequest, list[Cluster]]:
    shown: list[Cluster] = []
    stop = StopRequest()
    live = LivePlan(planner_of(), Ledger(SweepPaths(tmp_path)), lambda _: None)
    dispatcher = Dispatcher(live, Slots(resources={"cpu": 1}, count=2, note="noted"), stop)
    probe = NodeProbe(tmp_path, None, None, gpus=False)
    machines = {name: Machine(host=name) for name in known}
    head = Head("127.0.0.1:1", local=local)
    found = FoundNodes(machines=machines, left_out={})
    return NodeWatch(probe, found, head, max_slots, shown.append), dispatcher, stop, shown


def test_slots_follow_the_nodes_that_may_run_experiments(tmp_path: Path) -> None:
    watch, dispatcher, stop, shown = watched(tmp_path, "abc")
    watch.follow(nodes_of(a=2), dispatcher, stop)
    assert dispatcher.slots.count == 2
    watch.follow(nodes_of(a=2, b=3, unknown=8), dispatcher, stop)  # it has not been looked at
    assert dispatcher.slots.count == 5
    dispatcher.leave_out("b", "node b has other code")
    watch.follow(nodes_of(a=2, b=3), dispatcher, stop)
    watch.follow(nodes_of(a=2, b=3), dispatcher, stop)  # nothing new
    assert dispatcher.slots.count == 2 and not stop.is_set
    watch.follow(nodes_of(), dispatcher, stop)  # what waits makes a cluster grow
    assert dispatcher.slots.count == 1 and not stop.is_set
    assert [(c.slots, len(c.machines)) for c in shown] == [(2, 1), (5, 2), (2, 1), (1, 0)]
    assert shown[2].note == "noted; left out: node b has other code"


def test_slots_that_were_asked_for_stay(tmp_path: Path) -> None:
    watch, dispatcher, stop, _ = watched(tmp_path, "ab", max_slots=2)
    watch.follow(nodes_of(a=2, b=3), dispatcher, stop)
    assert dispatcher.slots.count == 2


@pytest.mark.parametrize("local", [True, False])
def test_a_sweep_whose_nodes_all_have_other_code_by_now_ends_with_their_names(tmp_path: Path, local: bool) -> None:
    watch, dispatcher, stop, _ = watched(tmp_path, "a", local=local)
    dispatcher.leave_out("a", "node a has other code than the plan (parts.py is another one)")
    watch.follow(nodes_of(), dispatcher, stop)  # it may come back
    assert not stop.is_set
    watch.follow(nodes_of(a=2), dispatcher, stop)
    assert isinstance(stop.error, InterruptedSweepError) and "node a has other code than the plan" in str(stop.error)


def test_trials_ask_for_their_resources_on_nodes_that_are_not_left_out() -> None:
    slots = Slots(resources={"cpu": 1.0, "gpu": 0.5}, count=2, workers=2)
    plain = _amounts(slots, {"key": "k"})
    assert plain.bundles == 2 * [{"CPU": 1.0, "GPU": 0.5}] and plain.strategy == "PACK" and not plain._kwargs
    elsewhere = _amounts(slots, {"key": "k", "avoid": ["a", "b"]})
    assert elsewhere.bundles == plain.bundles and elsewhere != plain
    assert elsewhere._kwargs["bundle_label_selector"] == 2 * [{"ray.io/node-id": "!in(a,b)"}]
    shared = Slots(resources={"gpu": 1.0}, count=2, shares=((100, 0.25),))
    assert _amounts(shared, {"share": 0.25}).bundles == [{"GPU": 0.25}]


def test_a_worker_that_finds_its_node_unfit_gives_the_experiment_back(tmp_path: Path) -> None:
    _, dispatcher, _, _ = watched(tmp_path, "ab")
    with ExperimentSearcher.serving(dispatcher):
        searcher = ExperimentSearcher()
    first = searcher.suggest("1")
    assert "avoid" not in first and searcher.suggest("2")["key"] != first["key"]
    assert searcher.suggest("3") is None  # two at a time
    searcher.on_trial_complete("1", {UNFIT_NODE: "b", UNFIT_FAULT: "node b has other code"})
    assert searcher.suggest("4") == {**first, "avoid": ["b"]} and dispatcher.left_out == {"b": "node b has other code"}
    searcher.on_trial_complete("2", {UNFIT_NODE: "", UNFIT_FAULT: ""})
    assert list(dispatcher.left_out) == ["b"]


def test_a_head_that_does_not_answer_is_not_asked_for_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would try for a minute, and then end the process: the driver gives up long before."""
    asked: list[object] = []

    def noted(resources: object) -> dict[str, Mapping[str, Any]]:
        asked.append(resources)
        return {}

    monkeypatch.setattr("flops_fit_ray.engine._node_watch.live_nodes_for", noted)
    watch, dispatcher, stop, _ = watched(tmp_path, "a")  # nobody listens at its head's address
    watch._looked -= 100.0
    watch.look(dispatcher, stop)
    assert not asked and not stop.is_set
    monkeypatch.setattr(Head, "answers", lambda _: True)
    watch._looked -= 100.0
    watch.look(dispatcher, stop)
    assert asked


def test_nodes_whose_gpus_torch_cannot_use_are_left_out_unless_all_are() -> None:
    assert those_left_out({"a": "", "b": ""}) == {} == those_left_out({})
    assert those_left_out({"a": "", "b": "two: torch sees 0"}) == {"b": "two: torch sees 0"}
    with pytest.raises(
        ResourceError, match="experiments cannot run on these GPUs:\n  one: no driver\n  two: torch sees 0"
    ):
        those_left_out({"a": "one: no driver", "b": "two: torch sees 0"})
