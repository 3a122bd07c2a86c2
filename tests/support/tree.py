"""Daemons that pass on what they get: a head that writes, and nodes, each in its own sandbox."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from .sandbox import Daemon, Sandbox
from .training import Training
from .waiting import wait_until


class Tree:
    """A head and nodes on this machine; the nodes' next daemon is the head, or another node.

    Attributes:
        head: where the runs are written.
        nodes: where the trainers are.
    """

    def __init__(self, nodes: int = 1, *, chain: bool = False) -> None:
        self._stack = ExitStack()
        self.head = self._stack.enter_context(Sandbox())
        self.nodes = [self._stack.enter_context(Sandbox()) for _ in range(nodes)]
        self._chain = chain

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def node(self) -> Sandbox:
        """The first node."""
        return self.nodes[0]

    def next_of(self, node: Sandbox) -> Sandbox:
        """The sandbox of the daemon that a node's passes on to."""
        after = self.nodes.index(node) + 1
        return self.nodes[after] if self._chain and after < len(self.nodes) else self.head

    def serve(self, node: Sandbox, **env: str) -> Daemon:
        """Start a node's daemon."""
        address = self.next_of(node).paths.data_endpoint
        return node.serve(**{"SIDESTEP_FORWARD_TO": address, **env})

    def serve_all(self) -> None:
        """Start every daemon."""
        self.head.serve()
        for node in reversed(self.nodes):
            self.serve(node)

    def train(self, node: Sandbox, *, env: dict[str, str] | None = None, **plan: Any) -> Training:
        """Start a trainer on a node; its log directory is the head's."""
        settings = {
            "SIDESTEP_LOG_DIR": str(self.head.logs),
            "SIDESTEP_FORWARD_TO": self.next_of(node).paths.data_endpoint,  # if it starts a daemon
        }
        env = {**settings, **(env or {})}
        return Training(node, env=env, **plan)

    def drain(self, timeout_s: float = 60.0) -> None:
        """Everything is written at the head when this returns."""
        for node in self.nodes:
            node.drain(timeout_s)
        self.head.drain(timeout_s)

    def await_forwarded(self, node: Sandbox, run: str, timeout_s: float = 30.0) -> None:
        """Wait until a node's daemon has passed everything on."""

        def done() -> bool:
            found = node.run_status(run)
            return bool(found) and all(not sink["lag_records"] for sink in found["sinks"])

        wait_until(done, timeout_s, lambda: f"not passed on: {node.run_status(run)}", 0.05)
