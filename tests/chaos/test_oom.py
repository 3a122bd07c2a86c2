"""The kernel kills a trainer that takes too much memory: what it had emitted is written."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support.fixtures import Train
from tests.support.memory_limit import memory_limit
from tests.support.oracle import assert_booked, assert_exactly, read_scalars
from tests.support.sandbox import Sandbox

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

LIMIT_BYTES = 256 << 20
EMITS = 2000


def test_killed_by_the_kernel_for_its_memory(sandbox: Sandbox, train: Train) -> None:
    """A real out-of-memory kill, in a cgroup; the daemon is outside of it."""
    sandbox.serve()
    with memory_limit(LIMIT_BYTES) as limit:
        run = train(run="oom", emits=EMITS, tags=5, interval_s=0.0005, end="eat", limit=1)
        run.await_begun(1)
        limit.add(run.process.pid)
        run.record["limit"] = 0
        assert run.wait() == -signal.SIGKILL
        ended = time.monotonic()
        assert limit.kills() >= 1, "something else has killed it"
        status = sandbox.await_run("oom", state="lost", clients=0)
        print(f"lost {time.monotonic() - ended:.1f} s after its end")
    sandbox.drain()
    assert run.returned == EMITS
    assert_exactly(read_scalars(sandbox.event_files("oom")), run.emitted())
    assert_booked(status, EMITS)
    assert sandbox.outboxes() == []
