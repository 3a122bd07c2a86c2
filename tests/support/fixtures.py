"""Fixtures of the integration and chaos tests; their conftest.py imports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidestep import client

from .sandbox import Sandbox
from .training import Training


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Directories of the test's own, and the end of every process that lived in them."""
    with Sandbox() as made:
        yield made


Train = Callable[..., Training]


@pytest.fixture
def train(sandbox: Sandbox) -> Iterator[Train]:
    """Starts a trainer in the sandbox: `train(run=..., emits=..., ...)`, see `trainer.Plan`."""
    started: list[Training] = []

    def start(**plan: Any) -> Training:
        started.append(Training(sandbox, **plan))
        return started[-1]

    yield start
    for training in started:
        training.kill()
        training.record.close()


Connect = Callable[..., client.Client]


@pytest.fixture
def connect(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """`client.connect` of this process to the sandbox, without autostart unless asked for."""
    for name, value in sandbox.variables().items():
        monkeypatch.setenv(name, value)
    for name in ("SIDESTEP_RUN", "SIDESTEP_CONFIG", "SIDESTEP_STRICT", "SIDESTEP_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    made: list[client.Client] = []

    def connected(*arguments: Any, **named: Any) -> client.Client:
        made.append(client.connect(*arguments, **{"autostart": False, **named}))
        return made[-1]

    yield connected
    for one in made:
        one.finish(0)
