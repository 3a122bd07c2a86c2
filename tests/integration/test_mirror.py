"""What is written reaches a real S3 server, all of it, whoever is killed and whatever is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fixtures import Connect
from tests.support.object_storage import BUCKET, ObjectStorage
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def storage() -> Iterator[ObjectStorage]:
    with ObjectStorage() as server:
        yield server


def settings(storage: ObjectStorage, prefix: str, **more: str) -> dict[str, str]:
    return {**storage.variables, "SIDESTEP_MIRROR": f"s3://{BUCKET}/{prefix}", **more}


def copied(storage: ObjectStorage, prefix: str) -> dict[str, bytes]:
    return {
        key.removeprefix(f"{prefix}/"): data
        for key, data in storage.objects().items()
        if key.startswith(f"{prefix}/")
    }


def local(sandbox: Sandbox) -> dict[str, bytes]:
    return {
        str(path.relative_to(sandbox.logs)): path.read_bytes()
        for path in sorted(sandbox.logs.rglob("*"))
        if path.is_file()
    }


def rows(first: int, last: int) -> list[tuple[str, int, float]]:
    return [("loss", step, step / 8) for step in range(first, last)]


def test_everything_is_there_when_the_daemon_has_stopped(
    sandbox: Sandbox, connect: Connect, storage: ObjectStorage, tmp_path: Path
) -> None:
    # An interval that nobody awaits: what hurries is that somebody waits.
    daemon = sandbox.serve(**settings(storage, "a/b", SIDESTEP_MIRROR_INTERVAL_S="100000"))
    made = connect("vit/b ü")
    for tag, step, value in rows(0, 100):
        made.emit({tag: value}, step=step)
    assert made.flush(30)
    sandbox.drain()  # of a run that lives
    found = copied(storage, "a/b")
    copy = tmp_path / "events.out.tfevents.1.copy"
    (name,) = (key for key in found if key.startswith("tensorboard/"))
    copy.write_bytes(found[name])
    assert_exactly(read_scalars([copy]), points(rows(0, 100)))

    # Files grow, and neither the interval nor a killed daemon keeps the tail from being copied.
    for tag, step, value in rows(100, 200):
        made.emit({tag: value}, step=step)
    assert made.flush(30)
    daemon.kill()
    daemon = sandbox.serve(**settings(storage, "a/b", SIDESTEP_MIRROR_INTERVAL_S="100000"))
    assert made.finish(30)
    sandbox.await_sink("vit/b ü", "closed", name="mirror")
    assert copied(storage, "a/b") == local(sandbox)
    assert daemon.terminate() == 0
    copy.write_bytes(copied(storage, "a/b")[name])
    assert_exactly(read_scalars([copy]), points(rows(0, 200)))


def test_a_storage_that_is_away_delays_nobody_and_gets_all_of_it(
    sandbox: Sandbox, connect: Connect, storage: ObjectStorage
) -> None:
    storage.remove_bucket()
    sandbox.serve(**settings(storage, "late", SIDESTEP_HISTORY_MB="0"))
    made = connect("r")
    for tag, step, value in rows(0, 50):
        made.emit({tag: value}, step=step)
    assert made.finish(30)
    sink = sandbox.await_sink("r", "degraded", name="mirror")
    assert sink["lag_records"] >= 50
    assert "s3://runs/late" in sink["error"]
    sandbox.await_sink("r", "closed", name="tensorboard")
    assert_exactly(read_scalars(sandbox.event_files("r")), points(rows(0, 50)))
    assert sandbox.cli("drain", "--timeout", "1").returncode == 1
    storage.make_bucket()
    sandbox.drain()
    assert copied(storage, "late") == local(sandbox)


def test_a_storage_without_its_package_is_said(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve(SIDESTEP_MIRROR="nonsense://x/y")
    made = connect("r")
    made.emit({"loss": 1.0}, step=1)
    assert made.finish(30)
    sink = sandbox.await_sink("r", "failed", name="mirror")
    assert "nonsense" in sink["error"]
    assert sandbox.cli("drain", "--timeout", "30").returncode == 1
    wait_until(lambda: sandbox.event_files("r"), 30, "no event file")


def test_many_ended_runs_are_caught_up_with_a_few_at_a_time(
    sandbox: Sandbox, connect: Connect, storage: ObjectStorage
) -> None:
    sandbox.serve(SIDESTEP_ARCHIVE="false")
    for number in range(10):
        made = connect(f"r{number}")
        made.emit({"loss": 1.0}, step=1)
        assert made.finish(30)
    assert sandbox.cli("stop").returncode == 0
    sandbox.serve(**settings(storage, "many", SIDESTEP_ARCHIVE="false"))
    most = 0

    def all_copied() -> bool:
        nonlocal most
        most = max(most, len(sandbox.workers("mirror")))
        return len(copied(storage, "many")) == len(local(sandbox))

    wait_until(all_copied, 60, "not all of them are copied")
    assert copied(storage, "many") == local(sandbox)
    assert 0 < most <= 8
