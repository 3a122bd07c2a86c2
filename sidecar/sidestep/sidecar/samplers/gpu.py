"""The GPU sampler's process: at each interval, read all GPUs and send one message.

    python -m sidestep.sidecar.samplers.gpu FD INTERVAL_S

FD is an inherited SOCK_SEQPACKET socket; a packet is one MessagePack map, `gpu_sample.GpuSample`.

This is a process of its own because a call into the driver can hang for ever, and only a process
can be killed. It decides nothing: whether to kill it, and when to start it again, is up to
`gpu_host.GpuSampler`. When the daemon is gone, so is it: a thread waits for the socket's end, and
NVML is called without the GIL, so that even a hung call does not keep the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import cast

import msgpack

EXIT_NO_NVML = 69
"""NVML is not there, and will not be soon: the last message says what is missing."""


def main(arguments: list[str]) -> int:
    """Sample until the daemon ends; return the exit code."""
    fd, interval_s = int(arguments[0]), float(arguments[1])
    # Ctrl-C and a closed terminal are the daemon's affair: it still has things to write.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_exit_at_end, args=(fd,), daemon=True).start()
    try:
        return _sample(fd, interval_s)
    except (BrokenPipeError, ConnectionResetError):
        return 0


def _exit_at_end(fd: int) -> None:
    """Wait until the daemon has closed its end, then leave from whatever the main thread is in."""
    try:
        while os.read(fd, 1):
            pass
    finally:
        os._exit(0)


def _sample(fd: int, interval_s: float) -> int:
    try:
        from .nvml import Nvml, NvmlUnavailableError
    except ImportError as error:
        text = f"{error}: install it with `pip install 'sidestep[sidecar]'`"
        _send(fd, {"time_ns": time.time_ns(), "gpus": [], "error": text})
        return EXIT_NO_NVML
    try:
        nvml = Nvml()
    except NvmlUnavailableError as error:
        _send(fd, {"time_ns": time.time_ns(), "gpus": [], "error": str(error)})
        return EXIT_NO_NVML
    due = time.monotonic()
    while True:
        _send(fd, nvml.read())
        now = time.monotonic()
        due = max(due + interval_s, now)  # what was missed is not made up for
        time.sleep(due - now)


def _send(fd: int, message: dict[str, object]) -> None:
    os.write(fd, cast("bytes", msgpack.packb(message)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
