"""Readings by NVIDIA's own binding, from a driver's library that answers from a table."""

import ctypes
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flops_fit_ray.ledger import Ledger, Progress, hardware
from flops_fit_ray.ledger.hardware import Cluster, EnergyMeter, Gpu, Machine, Readings, read_gpus
from flops_fit_ray.report.facts import provenance
from tests.made_up_gpu import build
from tests.serving import serving
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_service import text_of

LOST, NO_PERMISSION, ANOTHER_VERSION = 15, 4, 18  # NVML's codes
H200 = "2147483648 151397597184 73 512300 700000 2500000 61 NVIDIA H200"
SLICE = "1000 5368709120 -1 -1 -1 -1 -1 NVIDIA A100 MIG 1g.5gb"  # it does not say its load

Write = Callable[..., None]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, loaded: who asks for the driver's by its name finds it."""
    made = build.build_driver(tmp_path_factory.mktemp("driver"))
    if made is None:
        pytest.skip("no C compiler: the binding was not tried")
    ctypes.CDLL(str(made), ctypes.RTLD_GLOBAL)
    return made


@pytest.fixture
def write(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write the driver's table, which it reads at every question."""
    monkeypatch.setenv("MADE_UP_DRIVER", str(tmp_path / "table"))

    def write(*gpus: str, code: int = 0) -> None:
        (tmp_path / "table").write_text("\n".join([f"{code} 570.86.15", *gpus, ""]))

    caches = (hardware._nvml, hardware._driver)
    for cache in caches:
        cache.cache_clear()
    yield write
    for cache in caches:
        cache.cache_clear()


def test_eight_gpus_and_a_slice_are_read_in_whole_units(write: Write) -> None:
    write(*(f"0 GPU-{n} {H200}" for n in range(8)), f"0 MIG-1 {SLICE}")
    machine = Readings().read()
    assert machine.driver == "570.86.15" and [gpu.index for gpu in machine.gpus] == list(range(9))
    assert machine.gpus[7] == Gpu(
        uuid="GPU-7", index=7, name="NVIDIA H200", utilisation=0.73, memory_used=2 << 30, memory_total=141 << 30,
        temperature=61.0, power=512.3, power_limit=700.0, energy=2500.0,
    )  # fmt: skip
    assert machine.gpus[8] == Gpu(
        uuid="MIG-1", index=8, name="NVIDIA A100 MIG 1g.5gb", memory_used=1000, memory_total=5 << 30
    )
    assert EnergyMeter().joules(read_gpus(["MIG-1"])) is None


def test_a_gpu_that_is_lost_is_no_longer_there_and_the_others_are(write: Write) -> None:
    write(f"0 GPU-0 {H200}", f"0 GPU-1 {H200}")
    assert len(read_gpus()) == 2
    write(f"0 GPU-0 {H200}", f"{LOST} GPU-1 {H200}")
    assert [gpu.uuid for gpu in read_gpus()] == ["GPU-0"]


@pytest.mark.parametrize("code", [NO_PERMISSION, ANOTHER_VERSION])
def test_a_driver_that_refuses_has_no_gpus(write: Write, code: int) -> None:
    write(f"0 GPU-0 {H200}", code=code)
    machine = Readings().read()
    assert machine.gpus == () and machine.driver is None and machine.memory_total


def running(key: str, machine: Machine) -> Progress:
    return Progress(
        key=key, tokens_seen=1, tokens=100, train_loss=1.0, host=machine.host, pid=1, updated_at=time.time(),
        machine=machine,
    )  # fmt: skip


def test_page_rest_and_report_show_what_the_driver_says(write: Write, tmp_path: Path) -> None:
    """Eight GPUs, one of them lost while it trained, and a slice; then a driver that refuses."""
    write(*(f"0 GPU-{n} {H200}" for n in range(8)), f"0 MIG-1 {SLICE}")
    spec = reference_spec()
    sweep = make_sweep(tmp_path / "runs" / "x", spec, reference_parts(spec), only=10)
    ledger = Ledger(sweep.paths)
    ledger.record_cluster(Cluster(slots=9, machines=(Readings().read(),)))
    write(*(f"{LOST if n == 3 else 0} GPU-{n} {H200}" for n in range(8)), f"0 MIG-1 {SLICE}")
    trains, on_slice = (e.key for e in sweep.plan.experiments[10:12])
    for key, uuids in ((trains, ["GPU-2", "GPU-3"]), (on_slice, ["MIG-1"])):
        ledger.record_progress(running(key, Readings().read(uuids)))
    with serving(tmp_path / "runs", at_once=0) as served:
        (machine,) = served.client.ask("GET", "/sweeps/x/devices")
        assert machine["driver"] == "570.86.15" and machine["running"] == 2
        gpus = {gpu["uuid"]: gpu for gpu in machine["gpus"]}
        assert list(gpus) == [*(f"GPU-{n}" for n in range(8)), "MIG-1"]
        assert gpus["GPU-2"]["utilisation"] == 0.73 and gpus["GPU-2"]["experiments"] == [trains]
        assert gpus["GPU-3"]["utilisation"] is None and gpus["GPU-3"]["experiments"] == []  # found once, and lost
        assert gpus["MIG-1"]["utilisation"] is None and gpus["MIG-1"]["experiments"] == [on_slice]
        table = text_of(served, "/sweeps/x").partition('<section id="devices"')[2].partition("</section>")[0]
        rows = [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in re.split("</?tr>", table)]
        assert "GPU 2 NVIDIA H200 73 % 2.15 GB of 151 GB 61 °C, 512 W 1 experiment" in rows
        assert "GPU 3 NVIDIA H200 not read not read – no experiment" in rows
        assert "GPU 8 NVIDIA A100 MIG 1g.5gb not read 1 kB of 5.37 GB – 1 experiment" in rows
    facts = dict(provenance(sweep))
    assert "8 x NVIDIA H200, 1 x NVIDIA A100 MIG 1g.5gb, driver 570.86.15" in facts["cluster"]
    write(f"0 GPU-0 {H200}", code=NO_PERMISSION)
    for cache in (hardware._nvml, hardware._driver):
        cache.cache_clear()
    ledger.record_cluster(Cluster(slots=2, machines=(Readings().read(),)))
    assert dict(provenance(sweep))["cluster"] == "1 node, 2 experiments at a time"
