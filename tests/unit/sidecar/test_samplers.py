"""The GPU sampler's real process over a fake driver, and its samples as tags."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from sidestep.sidecar.samplers import nvml as nvml_module
from sidestep.sidecar.samplers.gpu_host import GpuSampler
from sidestep.sidecar.samplers.gpu_sample import Gpu, GpuSample, gpu_scalars
from tests.support.clock import Clock
from tests.support.fake_nvml import FakeNvml

UUID_0 = "GPU-00000000-0000-0000-0000-000000000000"
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(compiled: FakeNvml) -> FakeNvml:
    """A fake NVML with one GPU."""
    compiled.set()
    return compiled


@pytest.fixture
def samplers() -> Iterator[list[GpuSampler]]:
    started: list[GpuSampler] = []
    yield started
    for sampler in started:
        sampler.stop()


def started(samplers: list[GpuSampler], nvml: FakeNvml, **settings: Any) -> GpuSampler:
    quick = {"interval_s": 0.05, "retry_s": (0.05, 0.2), "missing_retry_s": (0.1, 0.2)}
    sampler = GpuSampler(**{**quick, **settings}, env=nvml.env())
    samplers.append(sampler)
    sampler.start()
    return sampler


def sample_when(sampler: GpuSampler, wanted: Callable[[GpuSample], bool]) -> GpuSample:
    """The first sample that is as wanted; the sampler is looked after in the meantime."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        select.select([sampler], [], [], 0.02)
        for sample in sampler.on_readable():
            if wanted(sample):
                return sample
        sampler.tick()
    raise AssertionError(f"no such sample; {sampler.status()}")


def status_when(
    sampler: GpuSampler, state: str, wanted: Callable[[dict[str, Any]], object] = bool
) -> dict[str, Any]:
    """The status once the sampler is in that state, and as wanted."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        select.select([sampler], [], [], 0.02)
        sampler.on_readable()
        sampler.tick()
        status = sampler.status()
        if status["state"] == state and wanted(status):
            return status
    raise AssertionError(f"never {state}; {sampler.status()}")


def with_error(status: dict[str, Any]) -> bool:
    return status["error"] is not None


def healthy(sample: GpuSample) -> bool:
    return sample.error is None


def gone(pid: int, timeout_s: float) -> bool:
    """Whether the process ends in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


def test_reads_every_value_in_its_unit(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    driver.set(
        "gpus 2",
        "gpu1.uuid GPU-abc",
        "gpu1.name NVIDIA H100 80GB HBM3",
        "gpu1.utilization 97",
        "gpu1.memory_utilization 41",
        "gpu1.power_mw 654321",
        "gpu1.temperature_c 71",
        "gpu1.sm_clock_mhz 1755",
        "gpu1.throttle_reasons 0x24",
        "gpu1.memory_used 12345678900",
        "gpu1.memory_total 85899345920",
        "gpu1.pcie_tx_kib_s 1000000",
        "gpu1.pcie_rx_kib_s 2000000",
    )
    before_ns = time.time_ns()
    sample = sample_when(started(samplers, driver), healthy)

    assert before_ns < sample.time_ns < time.time_ns()
    assert [gpu.index for gpu in sample.gpus] == [0, 1]
    gpu = sample.gpus[1]
    assert (gpu.uuid, gpu.name) == ("GPU-abc", "NVIDIA H100 80GB HBM3")
    assert gpu.values == pytest.approx(
        {
            "utilization": 97,
            "memory_utilization": 41,
            "power_w": 654.321,
            "temperature_c": 71,
            "sm_clock_mhz": 1755,
            "throttle_reasons": 0x24,
            "memory_used_gb": 12.3456789,
            "memory_total_gb": 85.89934592,
            "pcie_tx_mb_s": 1024,
            "pcie_rx_mb_s": 2048,
        }
    )


def test_status_has_the_latest_values(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    sampler = started(samplers, driver)
    sample = sample_when(sampler, healthy)
    status = sampler.status()
    assert status["state"] == "running"
    assert status["error"] is None
    assert status["time_ns"] == sample.time_ns
    assert [gpu["uuid"] for gpu in status["gpus"]] == [UUID_0]
    assert status["gpus"][0]["values"] == sample.gpus[0].values


def test_an_older_driver_is_asked_by_the_older_names(
    samplers: list[GpuSampler], tmp_path: Path
) -> None:
    newer = (
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetMemoryInfo_v2",
    )
    lacking = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetMigMode", "nvmlDeviceGetFieldValues")
    old = FakeNvml.build(tmp_path / "old", without=(*newer, *lacking))
    sample = sample_when(started(samplers, old), lambda sample: True)

    assert sample.error is None
    values = sample.gpus[0].values
    assert "power_w" not in values
    assert values["temperature_c"] == 60
    assert values["throttle_reasons"] == 4
    assert values["memory_used_gb"] == 20.5  # the old call counts what the driver reserves
    assert values["utilization"] == 50


@pytest.mark.parametrize(
    "line",
    [
        f"return.nvmlDeviceGetPowerUsage {pynvml.NVML_ERROR_NOT_SUPPORTED}",
        f"return.nvmlDeviceGetPowerUsage {pynvml.NVML_ERROR_NO_PERMISSION}",
        f"return.nvmlDeviceGetPowerUsage {pynvml.NVML_ERROR_TIMEOUT}",
        f"return.nvmlDeviceGetPowerUsage {pynvml.NVML_ERROR_UNKNOWN}",
        "return.nvmlDeviceGetPowerUsage 12345",
        "gpu0.power_mw 0xFFFFFFFF",
    ],
)
def test_a_value_that_cannot_be_read_is_absent(
    samplers: list[GpuSampler], driver: FakeNvml, line: str
) -> None:
    driver.set(line)
    sample = sample_when(started(samplers, driver), lambda sample: True)
    assert sample.error is None
    assert "power_w" not in sample.gpus[0].values
    assert len(sample.gpus[0].values) == 9


def test_anothers_gpu_is_left_out(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    code = pynvml.NVML_ERROR_NO_PERMISSION
    driver.set("gpus 3", f"gpu1.return.nvmlDeviceGetHandleByIndex_v2 {code}")
    sample = sample_when(started(samplers, driver), lambda sample: True)
    assert sample.error is None
    assert [gpu.index for gpu in sample.gpus] == [0, 2]


def test_mig_instances_have_their_own_memory(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    not_supported = pynvml.NVML_ERROR_NOT_SUPPORTED
    driver.set(
        "gpu0.mig 2",
        f"gpu0.return.nvmlDeviceGetUtilizationRates {not_supported}",
        "gpu0.mig1.memory_used 3000000000",
    )
    sampler = started(samplers, driver)
    sample = sample_when(sampler, healthy)

    whole, first, second = sample.gpus
    assert whole.parent == ""
    assert first.parent == second.parent == UUID_0
    assert first.uuid != second.uuid
    assert second.uuid.startswith("MIG-")
    assert gpu_scalars(sample, [second.uuid]) == {
        "system/gpu0_memory_used_gb": 3.0,
        "system/gpu0_temperature_c": 60.0,
        "system/gpu0_sm_clock_mhz": 1980.0,
        "system/gpu0_throttle_reasons": 4.0,
    }

    driver.set("gpu0.mig 1")  # instances come and go
    assert len(sample_when(sampler, lambda sample: len(sample.gpus) == 2).gpus) == 2


def test_a_lost_gpu_is_absent_and_comes_back(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    driver.set("gpus 2")
    sampler = started(samplers, driver)
    sample_when(sampler, healthy)
    pid = sampler.status()["pid"]

    driver.set("gpus 2", "gpu0.lost 1")
    sample = sample_when(sampler, lambda sample: sample.error is not None)
    assert sample.error == "GPU 0: GPU is lost"
    assert [gpu.index for gpu in sample.gpus] == [1]
    assert not [tag for tag in gpu_scalars(sample, []) if tag.startswith("system/gpu0")]

    # NVML is initialised anew, in a new process; the other GPU is sampled all the while.
    sample_when(sampler, lambda sample: sampler.status()["restarts"] >= 2 and len(sample.gpus) == 1)
    assert sampler.status()["pid"] != pid
    assert sampler.status()["error"] == "GPU 0: GPU is lost"

    driver.set("gpus 2")
    assert len(sample_when(sampler, healthy).gpus) == 2
    assert sampler.status()["error"] is None


def test_a_gpu_lost_while_it_is_read_is_an_error(
    samplers: list[GpuSampler], driver: FakeNvml
) -> None:
    code = pynvml.NVML_ERROR_GPU_IS_LOST
    driver.set(f"gpu0.return.nvmlDeviceGetPowerUsage {code}")
    sample = sample_when(started(samplers, driver), lambda sample: True)
    assert sample.error == "GPU 0: GPU is lost"


def test_a_gpu_that_answers_nothing_is_an_error(
    samplers: list[GpuSampler], driver: FakeNvml
) -> None:
    asked = (
        "UtilizationRates PowerUsage TemperatureV Temperature ClockInfo CurrentClocksEventReasons "
        "CurrentClocksThrottleReasons MemoryInfo MemoryInfo_v2 PcieThroughput"
    )
    code = pynvml.NVML_ERROR_UNKNOWN
    driver.set("gpus 2", *(f"gpu1.return.nvmlDeviceGet{name} {code}" for name in asked.split()))
    sample = sample_when(started(samplers, driver), lambda sample: True)
    assert sample.error == "GPU 1: answers nothing"
    assert [len(gpu.values) for gpu in sample.gpus] == [10, 0]


def test_a_reloaded_driver_is_found_again(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    sampler = started(samplers, driver)
    sample_when(sampler, healthy)

    code = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    driver.set(f"return.nvmlDeviceGetCount_v2 {code}", f"return.nvmlInitWithFlags {code}")
    text = "Driver Not Loaded (the kernel module is not loaded)"
    status = status_when(sampler, "unavailable", lambda status: status["error"] == text)
    assert status["gpus"] == []

    driver.set()
    sample_when(sampler, healthy)


@pytest.mark.parametrize("call", ["nvmlDeviceGetPowerUsage", "nvmlInitWithFlags"])
def test_a_hung_call_is_killed_and_tried_again(
    samplers: list[GpuSampler], driver: FakeNvml, call: str
) -> None:
    driver.set(f"hang {call}")
    began = time.monotonic()
    sampler = started(samplers, driver, deadline_s=0.4, start_deadline_s=0.8)
    status = status_when(sampler, "killed")
    assert 0.8 <= time.monotonic() - began < 5
    assert status["error"].startswith("NVML did not answer for ")
    assert status["gpus"] == []
    assert gone(status["pid"], 5)

    driver.set()
    sample_when(sampler, healthy)
    assert sampler.status()["restarts"] >= 1

    driver.set("hang nvmlDeviceGetPowerUsage")  # and in the middle of the work
    status = status_when(sampler, "killed")
    assert gone(status["pid"], 5)


def test_a_crash_in_the_driver_is_survived(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    driver.set("crash nvmlDeviceGetUtilizationRates")
    sampler = started(samplers, driver)
    status = status_when(sampler, "waiting")
    assert status["error"] == "the GPU sampler was killed by SIGSEGV"
    driver.set()
    sample_when(sampler, healthy)


def test_no_library_is_said_and_looked_for_again(
    samplers: list[GpuSampler], tmp_path: Path
) -> None:
    driver = FakeNvml.build(tmp_path / "vanished")
    driver.vanish()
    sampler = started(samplers, driver)
    status = status_when(sampler, "unavailable", with_error)
    assert "libnvidia-ml.so.1" in status["error"]
    assert status["gpus"] == []
    assert status["pid"] is None
    assert 0 <= status["retry_in_s"] <= 0.2

    driver.library.unlink()
    FakeNvml.build(driver.folder)
    sample_when(sampler, healthy)


def test_a_library_that_vanishes_under_us_is_no_matter(
    samplers: list[GpuSampler], tmp_path: Path
) -> None:
    driver = FakeNvml.build(tmp_path / "vanishing")
    sampler = started(samplers, driver)
    sample_when(sampler, healthy)
    driver.vanish()
    sample = sample_when(sampler, healthy)
    assert sample_when(sampler, lambda later: later.time_ns > sample.time_ns).error is None


OWNER = """
import select, sys
from sidestep.sidecar.samplers.gpu_host import GpuSampler
sampler = GpuSampler(0.05)
sampler.start()
if sys.argv[1] == "sampling":
    select.select([sampler], [], [])
print(sampler.status()["pid"], flush=True)
select.select([], [], [])
"""


@pytest.mark.parametrize("activity", ["sampling", "hung"])
def test_ends_with_the_daemon(driver: FakeNvml, activity: str) -> None:
    driver.set("hang nvmlDeviceGetUtilizationRates" if activity == "hung" else "gpus 1")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, activity],
        env={**driver.env(), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.kill()
        began = time.monotonic()
        assert gone(pid, 5)
        assert time.monotonic() - began < 2  # a second, and one for a machine under load


def test_ctrl_c_and_a_closed_terminal_leave_it_alone(
    samplers: list[GpuSampler], driver: FakeNvml
) -> None:
    sampler = started(samplers, driver)
    sample_when(sampler, healthy)
    pid = sampler.status()["pid"]
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGHUP)
    now_ns = time.time_ns()
    sample_when(sampler, lambda sample: sample.time_ns > now_ns)
    sample_when(sampler, lambda sample: sample.time_ns > now_ns)
    assert sampler.status()["pid"] == pid


def test_stop_frees_everything(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    driver.set("hang nvmlDeviceGetUtilizationRates")
    sampler = started(samplers, driver)
    pid = sampler.status()["pid"]
    sampler.stop()
    assert gone(pid, 0)
    assert sampler.fileno() == -1
    assert sampler.on_readable() == []
    sampler.tick()
    sampler.stop()
    assert sampler.status()["state"] == "stopped"
    driver.set()
    sampler.start()  # and can begin again
    sample_when(sampler, healthy)


def test_its_process_is_small(samplers: list[GpuSampler], driver: FakeNvml) -> None:
    sampler = started(samplers, driver)
    sample_when(sampler, healthy)
    pid = sampler.status()["pid"]
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert not [name for name in ("numpy", "zmq", "psutil", "_ssl") if name in mapped]
    if "COVERAGE_PROCESS_CONFIG" not in os.environ and "COVERAGE_PROCESS_START" not in os.environ:
        bare = subprocess.run(
            [sys.executable, "-c", "print(open('/proc/self/statm').read())"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        pages = int(bare.stdout.split()[1])
        more = psutil.Process(pid).memory_info().rss - pages * os.sysconf("SC_PAGESIZE")
        assert more < 10e6


# --- a sample as tags -----------------------------------------------------------------------------


def gpu(index: int, uuid: str, parent: str = "") -> Gpu:
    return Gpu(index, uuid, "", {"power_w": 100.0 + index, "memory_total_gb": 80.0}, parent)


SAMPLE = GpuSample(
    1,
    (
        gpu(0, "GPU-aaaaaaaa-0000-0000-0000-000000000000"),
        gpu(1, "GPU-BBBBBBBB-0000-0000-0000-000000000000"),
        gpu(2, "GPU-bbbbbbbb-0000-0000-0000-000000000001"),
        Gpu(2, "MIG-cccccccc-0000-0000-0000-000000000000", "", {"memory_used_gb": 3.0}, "GPU-b…"),
        Gpu(
            2, "MIG-GPU-aaaaaaaa-0000-0000-0000-000000000000/1/0", "", {"memory_used_gb": 4.0}, "x"
        ),
        gpu(3, ""),
    ),
)


@pytest.mark.parametrize(
    ("uuids", "expected"),
    [
        (["GPU-aaaaaaaa-0000-0000-0000-000000000000"], {"gpu0_power_w": 100}),
        (["aaaaaaaa-0000-0000-0000-000000000000"], {"gpu0_power_w": 100}),
        (["AAAAAAAA00000000000000000000 0000".replace(" ", "")], {"gpu0_power_w": 100}),
        (["bbbbbbbb-0000-0000-0000-000000000000"], {"gpu0_power_w": 101}),
        (["GPU-bbbbbbbb"], {}),  # ambiguous
        (["GPU-aaaa"], {}),  # too short to be sure
        (["MIG-cccccccc-0000-0000-0000-000000000000"], {"gpu0_memory_used_gb": 3}),
        (["cccccccc"], {"gpu0_memory_used_gb": 3}),
        (["MIG-GPU-aaaaaaaa-0000-0000-0000-000000000000/1/0"], {"gpu0_memory_used_gb": 4}),
        (["dddddddd-0000-0000-0000-000000000000"], {}),  # unknown is not guessed
        ([""], {}),
        (["0"], {}),
        (
            ["bbbbbbbb-0000-0000-0000-000000000001", "", "aaaaaaaa-0000-0000-0000-000000000000"],
            {"gpu0_power_w": 102, "gpu2_power_w": 100},
        ),
        (
            [],
            {"gpu0_power_w": 100, "gpu1_power_w": 101, "gpu2_power_w": 102, "gpu3_power_w": 103},
        ),
    ],
)
def test_tags_follow_the_clients_order(uuids: list[str], expected: dict[str, float]) -> None:
    assert gpu_scalars(SAMPLE, uuids) == {f"system/{k}": v for k, v in expected.items()}


# --- NVML's counters ------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Callable[..., dict[str, float]]:
    """Reads the NVLink rates of a device whose counters (KiB) are given; None: it has none."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    nvml = nvml_module.Nvml(clock)

    def read(tx: int, rx: int | None) -> dict[str, float]:
        def answer(handle: object, wanted: list[tuple[int, int]]) -> list[Any]:
            assert {scope for _, scope in wanted} == {0xFFFFFFFF}
            return [
                SimpleNamespace(
                    nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED if value is None else 0,
                    valueType=pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
                    value=SimpleNamespace(ullVal=value),
                )
                for value in (tx, rx)
            ]

        monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", answer)
        values: dict[str, float] = {}
        nvml._nvlink(0, None, values)
        return values

    return read


def test_nvlink_rates_are_per_second(links: Callable[..., Any], clock: Clock) -> None:
    assert links(1_000, 5_000) == {}
    clock.now += 2
    rates = {"nvlink_tx_mb_s": 512.0, "nvlink_rx_mb_s": 0.0}
    assert links(1_001_000, 5_000) == pytest.approx(rates)


def test_nvlink_counters_that_were_reset_say_nothing(
    links: Callable[..., Any], clock: Clock
) -> None:
    links(1_000_000, None)
    clock.now += 1
    assert links(10, None) == {}
    clock.now += 1
    assert links(1_000_010, 7) == pytest.approx({"nvlink_tx_mb_s": 1024.0})


@pytest.mark.parametrize(
    "problem",
    [
        pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        OSError(5, "Input/output error"),
        AttributeError("no such function"),
        TypeError("this function takes at least 2 arguments"),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_every_refusal_is_no_answer(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def refuse(*_: object) -> None:
        raise problem

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", refuse)
    assert nvml_module.Nvml().query("nvmlDeviceGetName", None) is None
