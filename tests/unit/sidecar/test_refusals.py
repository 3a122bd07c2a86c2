"""What is refused is counted all, said seldom, and kept in few samples."""

from __future__ import annotations

import os
from pathlib import Path

from sidestep.sidecar.peers.quarantine import SAMPLE_BYTES, SAMPLES, Quarantine
from sidestep.sidecar.peers.refusals import Refusals
from tests.support.clock import Clock


def test_few_samples_the_oldest_replaced(tmp_path: Path) -> None:
    clock = Clock()
    folder = tmp_path / "quarantine"
    quarantine = Quarantine(str(folder), clock)
    kept = [quarantine.keep("frame", "malformed: x", bytes([i]) * 100_000) for i in range(40)]
    assert kept == [True] * SAMPLES + [False] * (40 - SAMPLES)
    clock.now += 2
    assert quarantine.keep("frame", "later", b"new")
    files = sorted(os.listdir(folder))
    assert len(files) == 2 * SAMPLES
    assert (folder / "00.bin").read_bytes() == b"new"  # in the place of the oldest
    assert (folder / "01.bin").read_bytes() == b"\1" * SAMPLE_BYTES
    assert "frame of 100000 bytes, refused: malformed: x" in (folder / "01.txt").read_text()
    # The next daemon goes on behind the newest.
    os.utime(folder / "00.bin", (4e9, 4e9))
    assert Quarantine(str(folder), clock).keep("frame", "next", b"next")
    assert (folder / "01.bin").read_bytes() == b"next"


def test_a_link_is_not_followed_and_no_disk_is_no_harm(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "quarantine"
    folder.mkdir()
    (folder / "00.bin").symlink_to(precious)
    assert Quarantine(str(folder)).keep("frame", "x", b"rubbish")
    assert precious.read_text() == "mine"
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert not Quarantine(str(tmp_path / "link")).keep("frame", "x", b"rubbish")
    (tmp_path / "file").write_text("")
    assert not Quarantine(str(tmp_path / "file")).keep("frame", "x", b"rubbish")


def test_counted_by_what_and_why_and_said_now_and_then(tmp_path: Path) -> None:
    clock, said = Clock(), list[str]()
    refusals = Refusals(Quarantine(str(tmp_path / "q"), clock), said.append, clock)
    for _ in range(100):
        refusals.note("frame", "malformed", "torn", b"x")
    refusals.note("record", "malformed", "torn", b"y", count=7, who="client 1")
    refusals.note("client", "full", "too many")
    clock.now += 10
    refusals.note("frame", "malformed", "torn again", b"x")
    assert refusals.status() == {
        "frames": {"malformed": 101},
        "records": {"malformed": 7},
        "clients": {"full": 1},
        "samples": SAMPLES + 1,
        "quarantine": str(tmp_path / "q"),
    }
    assert refusals.frames == 108
    assert len(said) == 4
    assert said[1].startswith("refused 7 record(s) of client 1, malformed: torn")
    assert "99 more since" in said[3]
