"""Several ranks on one daemon: one value a tag and step, whatever is killed; who holds up whom."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import psutil
import pytest

from sidestep import client
from sidestep.sidecar.archive.reader import find_run
from tests.support.archive import exact
from tests.support.event_reader import events, scalars
from tests.support.fixtures import Connect
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

WORLD = 4

RANK = """
import sys
from sidestep import client
client.connect("job", log_dir=None, outbox_bytes=1 << 20)
print("here", flush=True)
for line in sys.stdin:
    step = int(line)
    client.emit({"loss": 3.0 + step}, step=step, reduce="mean")
    client.emit({"mine": 3.0}, step=step)
    print(client.flush(20), flush=True)
client.finish()
"""


class OtherRank:
    """Rank 3 in a process of its own, which takes its identity from the environment."""

    def __init__(self, sandbox: Sandbox, rank: int = 3, world_size: int = WORLD) -> None:
        environ = {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RANK],
            cwd=sandbox.work,
            env=sandbox.env(**environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "here"

    def emit(self, step: int) -> None:
        """It emits a step, which is durable then."""
        assert self.process.stdin is not None
        print(step, file=self.process.stdin, flush=True)
        assert self._line() == "True"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other(sandbox: Sandbox) -> Iterator[list[OtherRank]]:
    started: list[OtherRank] = []
    yield started
    for one in started:
        one.kill()


def ranks(connect: Connect, size: int = WORLD, but: int | None = None) -> list[client.Client]:
    """The clients of a job's ranks."""
    return [
        connect("job", rank=rank, world_size=size, outbox_bytes=1 << 20)
        for rank in range(size)
        if rank != but
    ]


def curve(sandbox: Sandbox, tag: str) -> dict[int, float]:
    """The archive's values of a tag by step, each of which is there once."""
    run = find_run(sandbox.logs, "job")
    found = [] if run is None else [p for p in exact(run.blocks()) if p[0] == tag]
    steps = [step for _, step, _, _ in found]
    assert len(steps) == len(set(steps)), f"{tag} was shown twice: {sorted(steps)}"
    return {step: float(np.frombuffer(value)[0]) for _, step, _, value in found}


def tags(sandbox: Sandbox) -> set[str]:
    """All that the archive has."""
    run = find_run(sandbox.logs, "job")
    return set() if run is None else {tag for tag, _, _, _ in exact(run.blocks())}


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_four_ranks_and_every_process_of_the_daemon_killed(
    sandbox: Sandbox, connect: Connect
) -> None:
    daemon = sandbox.serve()
    job = ranks(connect)
    x = np.random.default_rng(0).normal(size=(WORLD, 16, 6)).astype(np.float32)

    def emit(first: int, last: int, lagging: int) -> None:
        for rank, one in enumerate(job):
            for step in range(first, last - (rank == lagging)):
                one.emit({"loss": step + 0.1 * rank, "lr": 0.1}, step=step, reduce="mean")
                one.emit({"mine": float(rank)}, step=step)
                one.emit({"t": float(rank)}, step=step, reduce="spread")
                if step % 10 == 0:
                    one.emit({"rep": client.Representation(x[rank])}, step=step)
                    one.emit({"h": client.Histogram(x[rank], bins=5)}, step=step, reduce="sum")
        assert all(one.flush(20) for one in job)

    def catch_up(step: int, rank: int) -> None:
        job[rank].emit({"loss": step + 0.1 * rank, "lr": 0.1}, step=step, reduce="mean")
        job[rank].emit({"t": float(rank)}, step=step, reduce="spread")

    emit(0, 20, lagging=2)
    derivers = wait_until(
        lambda: [p for p in sandbox.processes() if "sidestep.sidecar.derive.worker" in p.cmdline()],
        30,
        "no derivers came",
    )
    for process in derivers or ():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    catch_up(19, 2)
    emit(20, 40, lagging=1)
    daemon.kill()
    sandbox.serve()
    catch_up(39, 1)
    emit(40, 60, lagging=-1)
    for one in job:
        assert one.finish(20)
    sandbox.drain()

    steps = range(60)
    assert curve(sandbox, "loss") == {s: mean([s + 0.1 * r for r in range(4)]) for s in steps}
    assert curve(sandbox, "lr") == dict.fromkeys(steps, 0.1)
    assert curve(sandbox, "mine") == dict.fromkeys(steps, 0.0), "rank zero's"
    assert curve(sandbox, "t") == dict.fromkeys(steps, 1.5)
    assert curve(sandbox, "t_std") == dict.fromkeys(steps, math.sqrt(1.25))
    assert (curve(sandbox, "t_min")[5], curve(sandbox, "t_max")[5]) == (0.0, 3.0)
    assert curve(sandbox, "rep_n_rows") == dict.fromkeys(range(0, 60, 10), 64.0)
    assert curve(sandbox, "rep_std")[0] == pytest.approx(x.reshape(-1, 6).std(0).mean(), rel=0.02)
    for tag in ("loss_ranks", "t_ranks", "rep_ranks", "h_ranks", "rank_1/mine"):
        assert curve(sandbox, tag) == {}, tag
    (file, *more) = sandbox.event_files("job")
    assert sorted(s for tag, s, _ in scalars(file, *more) if tag == "loss") == list(steps)
    shown = [v.histo for e in events(file) for v in e.summary.value if v.tag == "h"]
    assert [h.num for h in shown] == [x.size] * 6
    counts, edges = np.histogram(x.astype(np.float64), 5)
    assert list(shown[0].bucket)[1:] == counts.tolist()
    np.testing.assert_allclose(shown[0].bucket_limit, edges, rtol=1e-12)
    status = sandbox.run_status("job")
    assert status is not None
    assert status["reductions"] == {"awaited": 0, "partial": 0, "late": 0, "pushed_out": 0}
    assert [one["rank"] for one in status["ranks"]] == [0, 1, 2, 3]


def test_a_rank_that_is_killed_holds_up_nobody(
    sandbox: Sandbox, connect: Connect, other: list[OtherRank]
) -> None:
    """Nor does a job that goes on with another world size meet what the dead had said."""
    sandbox.serve(SIDESTEP_REDUCE_TIMEOUT_S="600")
    job = ranks(connect, but=3)
    other.append(OtherRank(sandbox))

    def emit(step: int, clients: list[client.Client]) -> None:
        for rank, one in enumerate(clients):
            one.emit({"loss": float(step + rank)}, step=step, reduce="mean")
        assert all(one.flush(20) for one in clients)

    def shown(steps: int) -> None:
        def all_there() -> bool:
            status = sandbox.run_status("job")
            return (
                status is not None
                and not status["reductions"].get("awaited", 1)
                and len(curve(sandbox, "loss")) == steps
            )

        wait_until(all_there, 30, lambda: f"{curve(sandbox, 'loss')} {sandbox.run_status('job')}")

    emit(0, job)
    other[0].emit(0)
    shown(1)
    other[0].emit(1)
    other[0].kill()
    emit(1, job)
    for step in (2, 3):
        emit(step, job)
    shown(4)  # far before the timeout
    assert curve(sandbox, "loss") == {0: 1.5, 1: 2.5, 2: 3.0, 3: 4.0}
    assert curve(sandbox, "loss_ranks") == {2: 3.0, 3: 3.0}
    status = sandbox.run_status("job")
    assert status is not None
    assert status["reductions"]["partial"] == 2
    assert [one["state"] for one in status["ranks"]] == ["live", "live", "live", "lost"]
    assert status["ranks"][3]["step"] == 1
    assert "2 values shown without all ranks" in sandbox.cli("status").stdout

    # Step 4 of two ranks alone; then they die, and the job goes on with two.
    emit(4, job[:2])
    for one in job:
        one.finish(20)
    job = ranks(connect, size=2)
    emit(4, job)
    emit(5, job)
    for one in job:
        assert one.finish(20)
    sandbox.drain()
    run = find_run(sandbox.logs, "job")
    assert run is not None
    fours = [np.frombuffer(v)[0] for tag, s, _, v in exact(run.blocks()) if (tag, s) == ("loss", 4)]
    assert sorted(fours) == [4.5, 4.5], "of each attempt its own"
    assert curve(sandbox, "loss_ranks") == {2: 3.0, 3: 3.0, 4: 2.0}


def test_a_rank_that_hangs_is_late_and_holds_up_nobody_for_ever(
    sandbox: Sandbox, connect: Connect, other: list[OtherRank]
) -> None:
    sandbox.serve(SIDESTEP_REDUCE_TIMEOUT_S="0.3", SIDESTEP_SAMPLE_INTERVAL_S="0.2")
    job = ranks(connect, but=3)
    other.append(OtherRank(sandbox))
    other[0].emit(0)
    os.kill(other[0].process.pid, signal.SIGSTOP)
    step = 0

    def behind() -> bool:
        nonlocal step
        for one in job:
            one.emit({"loss": 1.0}, step=step, reduce="mean")
        step += 1
        status = sandbox.run_status("job")
        times = [] if status is None else [one["step_time_s"] for one in status["ranks"]]
        return len(times) == WORLD and all(times[:3]) and step > 20

    try:
        wait_until(behind, 30, lambda: str(sandbox.run_status("job")), poll_s=0.05)
    finally:
        os.kill(other[0].process.pid, signal.SIGCONT)
    for one in job:
        assert one.flush(20)
    sandbox.drain()
    marked = curve(sandbox, "loss_ranks")
    marked.pop(0, None)  # when rank 3 was there
    assert marked == dict.fromkeys(range(1, step), 3.0)
    before = curve(sandbox, "loss")
    other[0].emit(1)

    def late() -> bool:
        status = sandbox.run_status("job")
        return status is not None and status["reductions"]["late"] == 1

    wait_until(late, 30, lambda: str(sandbox.run_status("job")))
    assert curve(sandbox, "loss") == before
    assert "rank 3 spoke of 'loss' at step 1 when that had been shown" in sandbox.said()
    status = sandbox.run_status("job")
    assert status is not None
    assert status["ranks"][0]["step_time_s"] > 0.04
    assert status["ranks"][0]["host"]
    assert abs(status["ranks"][0]["step"] - step) <= 1 / 0.04, "as it was a second ago"
    times = ["sidestep/step_time_s", *(f"sidestep/step_time_s_{x}" for x in ("std", "min", "max"))]
    wait_until(lambda: tags(sandbox).issuperset(times), 30, "no step times")
