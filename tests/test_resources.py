"""How many trials fit where."""

from pathlib import Path
from typing import Any

import pytest

from flops_fit_ray.engine.cluster import check_reachable
from flops_fit_ray.engine.resources import choose_slots, gpu_kinds, greatest_needs, on_cpus, on_gpus
from flops_fit_ray.errors import ResourceError
from flops_fit_ray.ledger.hardware import Gpu, Machine
from tests.parts import spec_of

Amounts = dict[str, float]
BOX = {"CPU": 16.0, "GPU": 8.0}
LAPTOP = {"CPU": 2.0}


@pytest.mark.parametrize(
    ("wanted", "nodes", "count", "resources"),
    [
        ({"gpu": 1}, [BOX], 8, {"gpu": 1}),
        ({"gpu": 1}, [{"CPU": 1.0, "GPU": 8.0}], 8, {"gpu": 1}),  # CPUs never reduce GPU slots
        ({"gpu": 0.25}, [BOX, BOX], 64, {"gpu": 0.25}),
        ({"gpu": 1 / 3}, [{"GPU": 1.0}], 3, {"gpu": 1 / 3}),
        ({"gpu": 0.3}, [{"GPU": 2.0}], 6, {"gpu": 0.3}),
        ({"gpu": 2}, [{"GPU": 3.0}, {"GPU": 3.0}], 2, {"gpu": 2}),  # per node: no trial spans two
        ({"gpu": 1}, [LAPTOP], 2, {"cpu": 1.0}),
        ({"gpu": 1, "cpu": 2}, [LAPTOP], 1, {"cpu": 2}),
        ({"cpu": 2}, [BOX, LAPTOP], 9, {"cpu": 2}),
        ({"cpu": 1, "big_memory": 1}, [{**BOX, "big_memory": 4.0}, LAPTOP], 4, {"cpu": 1, "big_memory": 1}),
    ],
)
def test_slots(
    wanted: dict[str, float], nodes: list[dict[str, float]], count: int, resources: dict[str, float]
) -> None:
    slots = choose_slots(wanted, nodes)
    assert (slots.count, slots.resources) == (count, resources)
    assert bool(slots.note) == ("gpu" in wanted and not slots.uses_gpu)


def test_small_models_share_a_gpu_and_large_ones_do_not() -> None:
    whole = choose_slots({"gpu": 1}, [BOX])
    slots = on_gpus(whole, [BOX, BOX], [(10**6, 0.1), (10**8, 0.4), (10**9, 0.7)])
    assert [slots.share(n) for n in (10**5, 10**6, 10**7, 10**8, 10**9, 10**10)] == [1 / 8, 1 / 8, 1 / 2, 1 / 2, 1, 1]
    assert slots.count == 16 * 8 and slots.uses_gpu
    assert (
        slots.note
        == "experiments per GPU: up to N = 1,000,000: 8, up to N = 100,000,000: 2, up to N = 1,000,000,000: 1"
    )


def test_every_kind_of_gpu_is_measured_and_the_least_of_them_counts() -> None:
    """A model that an H200 could hold eight times is alone on a T4, so it has a whole GPU everywhere."""

    def machine(name: str, gib: int | None) -> Machine:
        memory = None if gib is None else gib << 30
        return Machine(host="h", gpus=(Gpu(uuid="u", index=0, name=name, memory_total=memory),))

    machines = {"a": machine("H200", 141), "b": machine("T4", 15), "c": machine("H200", 141), "d": Machine(host="d")}
    assert gpu_kinds(machines) == {"H200 (141 GiB)": {"a", "c"}, "T4 (15 GiB)": {"b"}, "unknown GPUs": {"d"}}
    assert set(gpu_kinds({"e": machine("V100", 16), "f": machine("V100", 32), "g": machine("V100", None)})) == {
        "V100 (16 GiB)", "V100 (32 GiB)", "V100"
    }  # fmt: skip
    needs = greatest_needs([[(10**6, 0.02), (10**8, 0.11)], [(10**6, 0.2), (10**8, 0.9)]])
    assert needs == [(10**6, 0.2), (10**8, 0.9)]
    slots = on_gpus(choose_slots({"gpu": 1}, [BOX]), [BOX], needs)
    assert [slots.share(n) for n in (10**6, 10**8)] == [1 / 4, 1]


def test_nodes_without_a_gpu_beside_some_with_are_said_to_be_idle() -> None:
    assert choose_slots({"gpu": 1}, [BOX, LAPTOP]).note == "experiments run on the nodes with GPUs alone"
    assert choose_slots({"gpu": 1}, [BOX, {"CPU": 0.0}]).note == ""  # a head that is for nothing else
    assert choose_slots({"cpu": 1}, [BOX, LAPTOP]).note == ""


@pytest.mark.parametrize(
    ("node", "peak", "cores", "count"),
    [
        ({"CPU": 8.0, "memory": 64e9}, 2e9, 1, 8),
        ({"CPU": 8.0, "memory": 5e9}, 2e9, 4, 2),  # room for two
        ({"CPU": 8.0, "memory": 1e9}, 2e9, 8, 1),  # for none: one can try
        ({"CPU": 2.0}, 2e9, 1, 2),
    ],
)
def test_slots_on_cpus_are_cores_as_far_as_memory_goes(node: Amounts, peak: float, cores: int, count: int) -> None:
    slots = on_cpus([node], peak)
    assert (slots.resources, slots.count) == ({"cpu": cores}, count)


def test_a_cluster_that_grows_is_asked_for_what_it_has_not_yet() -> None:
    slots = choose_slots({"gpu": 1}, [LAPTOP], max_slots=8)  # never on the CPU instead
    assert (slots.count, slots.resources) == (8, {"gpu": 1})
    assert slots.note == "0 of 8 slots fit now; waiting for the cluster to grow ({gpu: 1} each)"
    assert choose_slots({"gpu": 1}, [BOX], max_slots=4).note == ""  # and fewer than fit are as good


@pytest.mark.parametrize(
    ("wanted", "nodes"),
    [({"gpu": 2}, [{"GPU": 1.0}]), ({"cpu": 4}, [LAPTOP, LAPTOP]), ({"tpu": 1}, [BOX]), ({"cpu": 1}, [])],
)
def test_what_no_node_can_give_is_refused(wanted: Amounts, nodes: list[Amounts]) -> None:
    with pytest.raises(ResourceError, match="resources_per_trial is .*, but the largest node has"):
        choose_slots(wanted, nodes)


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ({"gpu": 2}, "auto", {"gpu": 2}),
        ({"gpu": 2, "cpu": 3, "big": 1}, "cpu", {"cpu": 3, "big": 1}),
        ({"gpu": 0.5}, "cpu", {"cpu": 1}),
        ("auto", "cpu", {"cpu": 1}),
        ("auto", "cuda", {"gpu": 1}),
    ],
)
def test_experiments_on_the_cpu_ask_for_no_gpu(asked: Any, device: Any, expected: Amounts) -> None:
    spec = spec_of(resources_per_trial=asked, device=device)
    assert spec.whole_resources == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "is a Ray client address, which is not supported"),
        ("head", "is not host:port, 'auto' or 'local'"),
        ("127.0.0.1:1", "nobody answers at 127.0.0.1:1"),
        ("auto", "no Ray cluster runs on this machine"),
    ],
)
def test_an_address_where_nobody_answers_is_refused_at_once(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ResourceError, match=message):
        check_reachable(address)
    if address == "auto":  # a note of a cluster that is gone
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        with pytest.raises(ResourceError, match="nobody answers at 127.0.0.1:1"):
            check_reachable(address)
