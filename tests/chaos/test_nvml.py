"""NVML missing, forbidden, reloaded, hanging, a GPU lost: values are absent, the rest runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from sidestep import client
from tests.support.fake_nvml import FakeNvml
from tests.support.fixtures import Connect
from tests.support.oracle import assert_exactly, points, read_scalars, read_values
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

INTERVAL_S = 0.1
RUN = "gpus"


class Machine:
    """A daemon on a machine with a driver that obeys, and a run whose step says what went wrong.

    System values carry the run's latest step. A change is waited for before the next step is
    emitted, so that what stands at a step was sampled under its fault.
    """

    def __init__(self, sandbox: Sandbox, made: client.Client, driver: FakeNvml) -> None:
        self.sandbox = sandbox
        self.driver = driver
        self._made = made
        self.steps = 0

    def sampler(self) -> dict[str, Any]:
        """What status says of the GPU sampler."""
        found: dict[str, Any] = self.sandbox.status()["host"].get("gpu_sampler", {})
        return found

    def gpus(self) -> list[dict[str, Any]]:
        """What status says of the GPUs."""
        found: list[dict[str, Any]] = self.sandbox.status()["gpus"]
        return found

    def await_status(self, wanted: Callable[[], object], timeout_s: float = 40.0) -> None:
        """Wait until it has become known."""
        wait_until(wanted, timeout_s, lambda: f"{self.sampler()} {self.gpus()}", 0.02)

    def at_the_next_step(self, wanted: str) -> set[str]:
        """Emit a step; the system tags that are sampled at it until `wanted` has come twice."""
        self.steps += 1
        self._made.emit({"a": self.steps / 3}, step=self.steps)
        found: list[str] = []

        def seen() -> bool:
            files = self.sandbox.event_files(RUN)
            found[:] = [
                value.tag
                for step, _, value in read_values(files)
                if step == self.steps and value.tag.startswith("system/")
            ]
            return found.count(f"system/{wanted}") >= 2

        wait_until(seen, 40, lambda: f"{wanted} at step {self.steps}: {found}; {self.sampler()}")
        return {tag.removeprefix("system/") for tag in found}

    def assert_never_0(self) -> None:
        """No value of a GPU that could not be read was made up, and no number was lost."""
        files = self.sandbox.event_files(RUN)
        values = [
            (value.tag, step, value.simple_value)
            for step, _, value in read_values(files)
            if value.tag.startswith("system/gpu")
        ]
        assert not [value for value in values if value[2] == 0]
        assert_exactly(
            read_scalars(files), points(("a", n, n / 3) for n in range(1, self.steps + 1))
        )


@pytest.fixture
def machine(sandbox: Sandbox, connect: Connect) -> Callable[[FakeNvml], Machine]:
    """Starts the daemon over a driver, and a run."""

    def start(driver: FakeNvml) -> Machine:
        env = {
            name: value
            for name, value in driver.env().items()
            if name in ("LD_LIBRARY_PATH", "FAKE_NVML_CONTROL")
        }
        sandbox.serve(SIDESTEP_SAMPLE_INTERVAL_S=str(INTERVAL_S), **env)
        return Machine(sandbox, connect(RUN), driver)

    return start


def of_gpu(index: int, tags: set[str]) -> set[str]:
    return {tag for tag in tags if tag.startswith(f"gpu{index}_")}


def test_a_driver_in_trouble(sandbox: Sandbox, machine: Callable[[FakeNvml], Machine]) -> None:
    """One after the other, under one daemon: forbidden, divided, lost, hanging, and well again."""
    driver = FakeNvml.build(sandbox.root / "nvml")
    driver.set("gpus 2")
    node = machine(driver)
    healthy = node.at_the_next_step("gpu1_power_w")
    assert {"gpu0_power_w", "gpu0_utilization", "gpu0_temperature_c"} <= healthy

    # One function is forbidden: that value alone is absent, on every GPU.
    code = pynvml.NVML_ERROR_NO_PERMISSION
    driver.set("gpus 2", f"return.nvmlDeviceGetPowerUsage {code}")
    node.await_status(lambda: node.gpus() and "power_w" not in node.gpus()[0]["values"])
    assert node.at_the_next_step("gpu1_temperature_c") == healthy - {"gpu0_power_w", "gpu1_power_w"}

    # A GPU is divided (MIG): the instances are known, the chip's own values go on.
    driver.set("gpus 2", "gpu0.mig 2")
    node.await_status(lambda: len(node.gpus()) == 4)
    assert [bool(gpu["parent"]) for gpu in node.gpus()] == [False, True, True, False]
    assert of_gpu(1, node.at_the_next_step("gpu1_power_w")) == of_gpu(1, healthy)

    # A GPU is lost: nothing of it, the other one and the host go on; NVML is initialised anew.
    driver.set("gpus 2", "gpu1.lost 1")
    node.await_status(lambda: node.sampler()["error"] == "GPU 1: GPU is lost")
    tags = node.at_the_next_step("gpu0_power_w")
    assert of_gpu(1, tags) == set()
    assert of_gpu(0, tags) == of_gpu(0, healthy)
    restarts = node.sampler()["restarts"]
    node.await_status(lambda: node.sampler()["restarts"] > restarts)

    # A call hangs: its process is killed at the deadline. Until then nothing is said of the GPUs.
    driver.set("gpus 2", "hang nvmlDeviceGetUtilizationRates")
    node.await_status(lambda: not node.gpus())
    assert of_gpu(0, node.at_the_next_step("cpu_percent")) == set()
    node.await_status(lambda: "did not answer" in (node.sampler()["error"] or ""))
    assert node.sampler()["state"] in ("killed", "waiting", "starting")

    driver.set("gpus 2")
    assert node.at_the_next_step("gpu1_power_w") == healthy
    assert node.sampler()["error"] is None
    node.assert_never_0()


def test_no_library(sandbox: Sandbox, machine: Callable[[FakeNvml], Machine]) -> None:
    driver = FakeNvml.build(sandbox.root / "nvml")
    driver.vanish()
    node = machine(driver)
    tags = node.at_the_next_step("cpu_percent")
    assert not [tag for tag in tags if tag.startswith("gpu")]
    node.await_status(lambda: node.sampler()["state"] == "unavailable")
    assert "libnvidia-ml.so.1" in node.sampler()["error"]
    assert node.gpus() == []
    node.assert_never_0()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_driver_that_is_unloaded_and_reloaded(
    sandbox: Sandbox, machine: Callable[[FakeNvml], Machine]
) -> None:
    """Forbidden, unloaded in the middle, loaded again: found without a restart of the daemon."""
    driver = FakeNvml.build(sandbox.root / "nvml")
    driver.set(f"return.nvmlInitWithFlags {pynvml.NVML_ERROR_NO_PERMISSION}")
    node = machine(driver)
    node.at_the_next_step("cpu_percent")
    node.await_status(lambda: node.sampler()["state"] == "unavailable")
    assert "/dev/nvidiactl" in node.sampler()["error"]

    driver.set("gpus 1")
    healthy = node.at_the_next_step("gpu0_power_w")  # within the 15 s of the first retry

    unloaded = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    driver.set(f"return.nvmlDeviceGetCount_v2 {unloaded}", f"return.nvmlInitWithFlags {unloaded}")
    node.await_status(lambda: node.sampler()["state"] == "unavailable")
    assert "kernel module is not loaded" in node.sampler()["error"]
    assert of_gpu(0, node.at_the_next_step("cpu_percent")) == set()

    driver.set("gpus 1")
    assert node.at_the_next_step("gpu0_power_w") >= {t for t in healthy if t.startswith("gpu0")}
    node.assert_never_0()
