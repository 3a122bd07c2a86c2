"""Two nodes and a head, joined by cables alone: CURVE, a cable that is pulled, a key not listed."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.far_node import FarNode, NoFarNodeError
from tests.support.oracle import Point, assert_booked, assert_exactly, read_scalars
from tests.support.sandbox import SIDESTEP, Sandbox
from tests.support.training import Training

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


class Network:
    """A head on this side of two cables, and a node's daemon behind each."""

    def __init__(self, stack: ExitStack) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        stack.callback(self._reap)  # last, when the sandboxes have ended them
        self.far = [stack.enter_context(FarNode(which)) for which in range(2)]
        self.head = stack.enter_context(Sandbox())
        self.nodes = [stack.enter_context(Sandbox()) for _ in self.far]
        self.keys = self.head.root / "k"
        self._run(self.head, "keygen", str(self.keys))
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            self.port = probe.getsockname()[1]
        self.folders = [self._new_client(f"node{n}") for n in range(2)]
        self.head.serve(
            SIDESTEP_ENDPOINT=f"tcp://0.0.0.0:{self.port}", SIDESTEP_KEYS=str(self.keys)
        )
        for which in range(2):
            self.serve(which)

    def serve(self, which: int) -> None:
        """Start a node's daemon, behind its cable."""
        node = self.nodes[which]
        with (node.root / "node.log").open("ab") as out:
            process = subprocess.Popen(
                [*self.far[which].prefix, *SIDESTEP, "serve"],
                cwd=node.work,
                env=node.env(
                    SIDESTEP_FORWARD_TO=f"tcp://{self.far[which].near}:{self.port}",
                    SIDESTEP_KEYS=str(self.folders[which]),
                ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        node.await_daemon()

    def train(self, which: int, emits: int) -> Training:
        """A trainer of rank `which` on a node, which waits for the last emit's leave."""
        connect = {"rank": which, "world_size": 2, "ranks": "all", "autostart": False}
        return Training(
            self.nodes[which],
            prefix=self.far[which].prefix,
            env={"SIDESTEP_LOG_DIR": str(self.head.logs)},
            run="r",
            emits=emits,
            seed=which,
            interval_s=0.002,
            limit=emits - 1,
            connect=connect,
        )

    def check(self, runs: list[Training]) -> None:
        """After the end of all: the head has what was emitted, once."""
        emitted: Counter[Point] = Counter()
        for rank, run in enumerate(runs):
            run.record["limit"] = 0
            assert run.finished()["dropped"] == 0
            for (tag, step, bits), count in run.emitted().items():
                emitted[f"rank_{rank}/{tag}", step, bits] += count
        for place in (*self.nodes, self.head):
            place.drain(120)
        found = read_scalars(self.head.event_files("r"))
        own = Counter({p: n for p, n in found.items() if p[0].startswith("rank_1/system/")})
        assert_exactly(found - own, emitted)
        records = sum(run.plan.emits for run in runs)
        assert_booked(self.head.await_run("r", state="finished"), records)

    def _reap(self) -> None:
        for process in self._processes:
            process.wait(30)

    def _new_client(self, name: str) -> Path:
        self._run(self.head, "keygen", str(self.keys), "--client", name)
        made = self.keys / "trainers" / name
        return Path(shutil.move(made, self.head.root / f"k-{name}"))

    def _run(self, place: Sandbox, *words: str) -> None:
        done = place.cli(*words)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        try:
            made = Network(stack)
        except NoFarNodeError as error:
            pytest.skip(f"no network namespace: {error}")
        yield made


def test_a_cable_is_pulled_and_plugged_in_again(network: Network) -> None:
    runs = [network.train(which, 600) for which in range(2)]
    try:
        runs[0].await_begun(200)
        network.far[0].cut()
        runs[0].await_begun(500)  # it does not notice
        runs[1].await_begun(599)
        network.far[0].mend()
        network.check(runs)
    finally:
        for run in runs:
            run.kill()
            run.record.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_long_cuts_dead_daemons_and_a_key_that_is_not_listed(network: Network) -> None:
    listed = network.keys / "clients" / "node1.public"
    away = listed.with_suffix(".away")
    listed.rename(away)
    runs = [network.train(which, 10_000) for which in range(2)]
    try:
        sink = network.nodes[1].await_sink("r", "degraded", "forward")
        assert "does not list" in sink["error"]
        away.rename(listed)
        network.nodes[1].await_sink("r", "ok", "forward")
        for round_ in range(3):
            for which in range(2):
                network.far[which].cut()
                sink = network.nodes[which].await_sink("r", "degraded", "forward")
                assert "does not answer" in sink["error"]
                if round_ == 1:
                    for process in network.nodes[which].daemons():
                        process.kill()
                        process.wait(10)
                    network.serve(which)
                network.far[which].mend()
                network.nodes[which].await_sink("r", "ok", "forward")
        network.check(runs)
    finally:
        for run in runs:
            run.kill()
            run.record.close()
