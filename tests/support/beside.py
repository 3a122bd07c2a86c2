"""A client that behaves, beside whatever a test does to its daemon: it must lose nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from sidestep import client

from .fixtures import Connect
from .oracle import assert_balanced, assert_booked, assert_exactly, points, read_scalars
from .sandbox import Daemon, Sandbox


class Beside:
    """Emits numbers known in advance, and knows whether all of them have arrived.

    Args:
        sandbox: where its daemon lives.
        made: a client of run ``beside``.
    """

    def __init__(self, sandbox: Sandbox, made: client.Client) -> None:
        self.client = made
        self._sandbox = sandbox
        self._rows: list[tuple[str, int, float]] = []
        self._step = 0

    def emit(self, times: int = 50) -> None:
        """Emit so often."""
        for _ in range(times):
            values = {"a": self._step / 7, "b": -self._step / 3}
            self.client.emit(values, step=self._step)
            self._rows += [(tag, self._step, value) for tag, value in values.items()]
            self._step += 1

    def served(self, timeout_s: float = 20.0) -> None:
        """Emit, and see that it is taken."""
        self.emit()
        assert self.client.flush(timeout_s), self.client.stats()

    def assert_whole(self) -> None:
        """Finish; everything is in the event file, once, and in the books."""
        self.emit()
        assert self.client.finish(60)
        self._sandbox.drain(60)
        files = self._sandbox.event_files("beside")
        assert_exactly(read_scalars(files), points(self._rows))
        stats = asdict(self.client.stats())
        assert_balanced(stats)
        assert stats["dropped"] == stats["held"] == 0
        found = self._sandbox.run_status("beside")
        assert found
        assert_booked(found, self._step)


@pytest.fixture
def daemon(sandbox: Sandbox) -> Daemon:
    """A daemon in the sandbox."""
    return sandbox.serve()


@pytest.fixture
def beside(sandbox: Sandbox, daemon: Daemon, connect: Connect) -> Iterator[Beside]:
    """A client that behaves; at the end of each test it has lost nothing."""
    made = Beside(sandbox, connect("beside"))
    made.served()
    yield made
    assert daemon.process.poll() is None
    made.assert_whole()
