"""What the client's tests share: places of their own, clients that end, no thread left."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidestep import client as sidestep
from sidestep.proto.paths import RuntimePaths, outbox_dirs

MakeClient = Callable[..., sidestep.Client]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimePaths]:
    """A runtime directory of the test's own (short: sockets live there), and nothing inherited."""
    directory = tempfile.mkdtemp(prefix="sd")
    for name in [name for name in os.environ if name.startswith("SIDESTEP_")]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIDESTEP_RUNTIME_DIR", os.path.join(directory, "rt"))
    monkeypatch.setenv("SIDESTEP_STATE_DIR", os.path.join(directory, "st"))
    monkeypatch.setenv("SIDESTEP_LOG_DIR", os.path.join(directory, "logs"))
    paths = RuntimePaths(os.path.join(directory, "rt"))
    yield paths
    shutil.rmtree(directory)
    shutil.rmtree(outbox_dirs(paths, "", os.getuid())[1], ignore_errors=True)


@pytest.fixture
def connect(places: RuntimePaths) -> Iterator[MakeClient]:
    """Makes clients that no daemon answers; ends them, and sees that their threads end."""
    made: list[sidestep.Client] = []
    others = _senders()  # of tests before this one, in the same process, that are ending

    def make(**arguments: Any) -> sidestep.Client:
        given = {"autostart": False, "outbox_bytes": 256 << 10, **arguments}
        made.append(sidestep.connect("test", **given))
        return made[-1]

    yield make
    for client in made:
        client.finish(0)
    assert not _senders() - others


def _senders() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "sidestep-sender"}
