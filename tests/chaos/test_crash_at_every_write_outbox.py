"""A client that is killed at any write while it makes its outbox: no daemon is confused."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestep.client import outbox_file
from sidestep.proto import Hello, RunSpec
from sidestep.sidecar.ingest.adopt import find_dead
from tests.support import outbox_script as script
from tests.support.crash_at_write import Fault, Layer, kills

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    with Layer(tmp_path_factory.mktemp("layer"), "tests.support.outbox_script") as made:
        yield made


def test_killed_at_every_effect(layer: Layer, tmp_path: Path) -> None:
    undisturbed = layer.run("make", {"folder": str(tmp_path / "0" / "o")}, prefix=tmp_path)
    assert not undisturbed.error
    assert {effect.kind for effect in undisturbed.effects} == set("mcar")
    for number, fault in enumerate(kills(undisturbed.effects, every_part=True), 1):
        # What died before it, and what died right after it was done.
        for keep in (fault.keep, 1):
            folder = tmp_path / str(number) / str(keep) / "o"
            at = Fault(fault.effect, keep)
            outcome = layer.run("make", {"folder": str(folder)}, prefix=tmp_path, fault=at)
            assert outcome.killed
            assert outcome.said == []
            check_adopted(folder, done=fault.effect == len(undisturbed.effects) - 1 and keep == 1)


def check_adopted(folder: Path, *, done: bool) -> None:
    """An outbox is adopted when it is done; anything else is left alone, and goes in the end."""
    said: list[str] = []
    found = find_dead([str(folder)], (), said.append)
    assert said == []
    assert [adoption.hello.uuid for adoption in found] == [script.UUID] * done
    for adoption in found:
        assert [*adoption.take(1 << 20)] == []
        assert adoption.exhausted
        adoption.remove()
    names = os.listdir(folder) if folder.exists() else []
    assert [name for name in names if not name.endswith(".outbox.new")] == []
    # Its memory is given back by the next client that comes when it is old.
    for name in names:
        os.utime(folder / name, (time.time() - 3600,) * 2)
    hello = Hello(b"\x08" * 16, 0, 0, RunSpec("r", "/logs"))
    made = outbox_file.create([str(folder)], script.NBYTES, hello)
    assert made.path, "the folder serves the next client"
    assert os.listdir(folder) == [os.path.basename(made.path)]
    made.close(delete=True)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_effect_fails(layer: Layer, tmp_path: Path, error: int) -> None:
    """The client goes on in private memory, and leaves nothing behind."""
    undisturbed = layer.run("make", {"folder": str(tmp_path / "0" / "o")}, prefix=tmp_path)
    for number in range(len(undisturbed.effects)):
        folder = tmp_path / f"{number}.failed" / "o"
        fault = Fault(number, error=error)
        outcome = layer.run("make", {"folder": str(folder)}, prefix=tmp_path, fault=fault)
        assert not outcome.error
        assert outcome.said == [""]
        assert not folder.exists() or os.listdir(folder) == []
