"""What the daemon says of the GPUs while their sampler says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidestep.sidecar.samplers import sampling
from sidestep.sidecar.samplers.gpu_sample import GpuSample
from sidestep.sidecar.samplers.sampling import Sampling
from tests.support.clock import Clock

if TYPE_CHECKING:
    import pytest


class Silent:
    """A GPU sampler that has spoken once and now waits for a call that hangs."""

    def on_readable(self) -> list[GpuSample]:
        return [GpuSample(0, ())]

    def status(self) -> dict[str, Any]:
        gpus = [{"index": 0, "values": {"power_w": 300.0}}]
        return {"state": "running", "error": None, "restarts": 0, "gpus": gpus}


def test_an_old_sample_is_not_what_the_gpus_do_now(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(sampling.time, "monotonic", clock)
    samplers = Sampling(10.0, lambda _: None, "here", ())
    monkeypatch.setattr(samplers, "_gpus", Silent())
    samplers.hear()
    clock.now += 20  # one that is late is not yet one that hangs
    assert samplers.status()[0]
    clock.now += 2
    gpus, host = samplers.status()
    assert gpus == []
    assert host["gpu_sampler"]["state"] == "running"
