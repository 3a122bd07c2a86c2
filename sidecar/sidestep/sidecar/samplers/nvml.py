"""Ask the NVIDIA driver for the values of its GPUs; what it does not answer is absent.

Only the GPU sampler's own process imports this: a call into a sick driver may never return.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import pynvml

GB = 1e9
KIB_PER_S_IN_MB_PER_S = 1024 / 1e6
ALL_LINKS = 0xFFFF_FFFF  # as the scope of an NVLink counter: the sum over the links
# Some drivers report success, and say in the value itself that they do not know it.
NOT_AVAILABLE = frozenset({0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF})

# After these nothing more is to be heard from the device, or from the driver, until NVML has been
# initialised anew. Every other error means one value that cannot be read.
GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)

HINTS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 is not on the loader's path: no "
    "NVIDIA driver here, or a container started without its libraries",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the kernel module is not loaded",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not open /dev/nvidiactl",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was updated and its kernel module not "
    "reloaded",
}

NVLINK_COUNTERS = (
    ("nvlink_tx_mb_s", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX),
    ("nvlink_rx_mb_s", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX),
)
UNSIGNED = {
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
}

# A MIG instance has memory of its own; of its chip's other values these hold for it as well. Power,
# utilization and traffic are the sum over all instances, and other people's.
SHARED_WITH_INSTANCES = ("temperature_c", "sm_clock_mhz", "throttle_reasons")

Values = dict[str, float]


class NvmlUnavailableError(Exception):
    """NVML cannot be used here; the message says what is missing."""


class Nvml:
    """The driver, from `nvmlInit` until the process ends.

    Args:
        clock: monotonic seconds, for rates.

    Raises:
        NvmlUnavailableError: there is no driver, or none that talks to us.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            hint = HINTS.get(_code(error))
            raise NvmlUnavailableError(f"{error} ({hint})" if hint else str(error)) from None
        self._clock = clock
        self._gone = ""  # what the last device said that is no more
        self._counters: dict[tuple[int, str], tuple[float, int]] = {}

    def query(self, name: str, *arguments: Any) -> Any:
        """What the NVML function `name` answers; None when it does not, whatever the reason.

        The reasons are many, and none may cost more than the one value: the device has no such
        sensor, or not under MIG or vGPU; the driver is older than the function, or newer and has
        dropped it; nvidia-ml-py is older than the function; a container or another user's device
        lacks permission; the device is busy, in reset, or fell off the bus; the driver is being
        unloaded; a name is no UTF-8.
        """
        try:
            return getattr(pynvml, name)(*arguments)
        except pynvml.NVMLError as error:
            if _code(error) in GONE:
                self._gone = str(error)
        except (AttributeError, ctypes.ArgumentError, OSError, TypeError, ValueError):
            pass
        return None

    def read(self) -> dict[str, object]:
        """One sample of all devices, as it is sent: see `gpu_sample.GpuSample`.

        Devices of other users (a cgroup, a container) are left out without a word. `error` names
        the first device that is gone or that answers nothing at all.
        """
        time_ns = time.time_ns()
        gpus: list[dict[str, object]] = []
        handles: list[tuple[Any, Values]] = []
        errors: list[str] = []
        self._gone = ""
        count = self.query("nvmlDeviceGetCount")
        if count is None:
            errors.append(f"NVML does not count its devices: {self._gone or 'no answer'}")
        for index in range(count or 0):
            self._gone = ""
            handle = self.query("nvmlDeviceGetHandleByIndex", index)
            values = {} if handle is None else self._values(index, handle)
            if handle is not None:
                gpu = self._named(index, handle, values)
                gpus.append(gpu)
                gpus.extend(self._instances(index, handle, gpu, values))
                handles.append((handle, values))
            if self._gone or (handle is not None and not values):
                errors.append(f"GPU {index}: {self._gone or 'answers nothing'}")
        # Last, since the driver watches the bus for 20 ms a call: the other values would be late.
        for handle, values in handles:
            self._pcie(handle, values)
        return {"time_ns": time_ns, "gpus": gpus, "error": errors[0] if errors else None}

    def _named(self, index: int, handle: Any, values: Values) -> dict[str, object]:
        uuid = self.query("nvmlDeviceGetUUID", handle)
        name = self.query("nvmlDeviceGetName", handle)
        return {"index": index, "uuid": uuid or "", "name": name or "", "values": values}

    def _values(self, index: int, handle: Any) -> Values:
        values: Values = {}
        utilization = self.query("nvmlDeviceGetUtilizationRates", handle)
        if utilization is not None:
            _put(values, "utilization", utilization.gpu)
            _put(values, "memory_utilization", utilization.memory)
        _put(values, "power_w", self.query("nvmlDeviceGetPowerUsage", handle), 1e-3)
        sensor = pynvml.NVML_TEMPERATURE_GPU
        celsius = self.query("nvmlDeviceGetTemperatureV", handle, sensor)
        if celsius is None:  # before driver 570
            celsius = self.query("nvmlDeviceGetTemperature", handle, sensor)
        _put(values, "temperature_c", celsius)
        clock = self.query("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM)
        _put(values, "sm_clock_mhz", clock)
        reasons = self.query("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:  # its name before driver 535
            reasons = self.query("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        _put(values, "throttle_reasons", reasons)
        self._memory(handle, values)
        self._nvlink(index, handle, values)
        return values

    def _memory(self, handle: Any, values: Values) -> None:
        # The second version does not count what the driver reserves as used, nor does nvidia-smi.
        version = getattr(pynvml, "nvmlMemory_v2", None)
        memory = self.query("nvmlDeviceGetMemoryInfo", handle, version)
        if memory is None:
            memory = self.query("nvmlDeviceGetMemoryInfo", handle)
        if memory is not None:
            _put(values, "memory_used_gb", memory.used, 1 / GB)
            _put(values, "memory_total_gb", memory.total, 1 / GB)

    def _nvlink(self, index: int, handle: Any, values: Values) -> None:
        wanted = [(field, ALL_LINKS) for _, field in NVLINK_COUNTERS]
        counters = self.query("nvmlDeviceGetFieldValues", handle, wanted)
        now = self._clock()
        for (key, _), counter in zip(NVLINK_COUNTERS, counters or (), strict=False):
            kind = UNSIGNED.get(counter.valueType)
            if counter.nvmlReturn != pynvml.NVML_SUCCESS or kind is None:
                self._counters.pop((index, key), None)
                continue
            total = int(getattr(counter.value, kind))
            before = self._counters.get((index, key))
            self._counters[index, key] = (now, total)
            # A counter that went back was reset: nothing is known of this interval.
            if before and now > before[0] and total >= before[1]:
                rate = (total - before[1]) / (now - before[0])
                values[key] = rate * KIB_PER_S_IN_MB_PER_S

    def _pcie(self, handle: Any, values: Values) -> None:
        for key, counter in (
            ("pcie_tx_mb_s", pynvml.NVML_PCIE_UTIL_TX_BYTES),
            ("pcie_rx_mb_s", pynvml.NVML_PCIE_UTIL_RX_BYTES),
        ):
            rate = self.query("nvmlDeviceGetPcieThroughput", handle, counter)
            _put(values, key, rate, KIB_PER_S_IN_MB_PER_S)

    def _instances(
        self, index: int, handle: Any, gpu: dict[str, object], chip: Values
    ) -> list[dict[str, object]]:
        """The MIG instances of one GPU: asked for each time, since they come and go."""
        mode = self.query("nvmlDeviceGetMigMode", handle)
        if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return []
        found: list[dict[str, object]] = []
        for place in range(self.query("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            instance = self.query("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
            if instance is None:
                continue
            values = {key: chip[key] for key in SHARED_WITH_INSTANCES if key in chip}
            self._memory(instance, values)
            found.append(self._named(index, instance, values) | {"parent": gpu["uuid"]})
        return found


def _code(error: pynvml.NVMLError) -> int:
    return int(getattr(error, "value", pynvml.NVML_ERROR_UNKNOWN))


def _put(values: Values, key: str, value: int | None, scale: float = 1.0) -> None:
    if value is not None and value not in NOT_AVAILABLE:
        values[key] = value * scale
