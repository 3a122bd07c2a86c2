"""Adds what the machine does to each live run: GPUs, host and the trainer's own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..ingest.roster import ClientEntry, DaemonPoints, RunEntry
from ..outboxes.holder import holder
from .gpu_host import GpuSampler
from .gpu_sample import GpuSample, gpu_scalars
from .host import HostSampler

SOURCE = "system"

_FRESH_INTERVALS: Final = 2.0
_FRESH_S: Final = 1.0
"""A sample of the GPUs counts for so many intervals and so many seconds; then nothing is known."""


class Sampling:
    """All samplers; lives in the daemon's main thread.

    Args:
        interval_s: seconds between two samples of a run.
        submit: journals points.
        host_name: this machine's name.
        outbox_dirs: where its clients' outboxes are, by which their processes are known.
    """

    def __init__(
        self,
        interval_s: float,
        submit: Callable[[DaemonPoints], None],
        host_name: str,
        outbox_dirs: Sequence[str],
    ) -> None:
        self._interval_s = interval_s
        self._submit = submit
        self._host_name = host_name
        self._outbox_dirs = outbox_dirs
        self._host = HostSampler()
        self._gpus = GpuSampler(interval_s)
        self._latest: GpuSample | None = None
        self._latest_at = 0.0
        self._started = False
        self._next = 0.0
        self.host_values: dict[str, float] = {}

    def start(self) -> None:
        """Begin to sample: with the first run, not before."""
        if not self._started:
            self._started = True
            self._gpus.start()
            self._host.sample()  # rates count from here
            self._next = time.monotonic() + min(1.0, self._interval_s)

    def fileno(self) -> int:
        """The GPU sampler's socket for the poller, or -1."""
        return self._gpus.fileno()

    def hear(self) -> None:
        """The GPU sampler has said something."""
        for sample in self._gpus.on_readable():
            self._latest, self._latest_at = sample, time.monotonic()

    def tick(self, live: Sequence[tuple[RunEntry, ClientEntry, str]]) -> None:
        """Look after the samplers; when it is time, add a sample to each live run.

        Args:
            live: each live run with the client whose devices and process count (of the lowest
                rank here), and with what precedes its tags (see `sampled`).
        """
        if not self._started:
            return
        self._gpus.tick()
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval_s
        self.host_values = self._host.sample()
        time_ns = time.time_ns()
        for run, client, prefix in live:
            if run.last_step is None:
                continue  # nothing was emitted yet: there is no step to carry
            values = {**self.host_values, **self._of_client(client)}
            if values:
                values = {prefix + tag: value for tag, value in values.items()}
                self._submit(
                    DaemonPoints(run.id, SOURCE, scalars=[(run.last_step, time_ns, values)])
                )

    def _of_client(self, client: ClientEntry) -> dict[str, float]:
        values: dict[str, float] = {}
        if self._latest is not None and self._gpu_status()["gpus"]:
            values.update(gpu_scalars(self._latest, client.hello.device_uuids))
        pid = holder(self._outbox_dirs, client.hello.uuid)
        if pid is not None:
            values.update(self._host.process_sample(pid))
        return values

    def _gpu_status(self) -> dict[str, Any]:
        status = self._gpus.status()
        # While a call hangs in the driver, the last sample is not what the GPUs do now.
        fresh_s = _FRESH_INTERVALS * self._interval_s + _FRESH_S
        fresh = time.monotonic() - self._latest_at < fresh_s
        return status if fresh else {**status, "gpus": []}

    def status(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """GPUs, and the host with the GPU sampler's state, for `status`."""
        gpu = self._gpu_status()
        host: dict[str, Any] = {"name": self._host_name, **self.host_values}
        host["gpu_sampler"] = {key: gpu[key] for key in ("state", "error", "restarts")}
        return list(gpu["gpus"]), host

    def stop(self) -> None:
        """End the samplers."""
        self._gpus.stop()
