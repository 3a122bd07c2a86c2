"""A tree of daemons in which everything is killed: the head has what was emitted, exactly once."""

from __future__ import annotations

import os
import random

import pytest

from tests.support.oracle import assert_balanced, assert_booked, assert_exactly, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.tree import Tree
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

TAGS = 20
LEEWAY = 300
"""Emits that go on while somebody is dead, before the trainer waits for the next kill."""

VICTIMS = ("node", "head", "worker", "node and head", "worker")


def test_kills_at_random_moments() -> None:
    seed = int(os.environ.get("CHAOS_SEED", "1"))
    with Tree() as tree:
        check_kills(tree, seed=seed, emits=1500, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_kills(seed: int) -> None:
    """A tree of three levels, twenty kills in each of six runs."""
    with Tree(2, chain=True) as tree:
        check_kills(tree, seed=seed, emits=10_000, kills=20)


def check_kills(tree: Tree, *, seed: int, emits: int, kills: int) -> None:
    """Kill daemons and workers at moments counted in emits, one in each equal part of the run."""
    choose = random.Random(seed)
    part = emits // kills
    moments = [k * part + choose.randrange(20, part - LEEWAY // 2) for k in range(kills)]
    print(f"seed {seed}: kills at emits {moments}")
    tree.serve_all()
    run = tree.train(
        tree.node, run="r", emits=emits, tags=TAGS, interval_s=0.001, limit=1, text_every=97
    )
    try:
        durable = 0
        for number, moment in enumerate(moments):
            durable = _await_more(tree.head, durable)
            run.record["limit"] = moment + LEEWAY // 2
            run.await_begun(moment)
            _kill(tree, VICTIMS[number % len(VICTIMS)], choose)
        run.record["limit"] = 0
        stats = run.finished(120)
        tree.drain(120)
        assert_balanced(stats)
        assert stats["dropped"] == 0
        assert_exactly(read_scalars(tree.head.event_files("r")), run.emitted())
        texts = run.plan.texts(emits)
        for place in (*tree.nodes, tree.head):
            status = place.run_status("r")
            assert status is not None
            assert_booked(status, emits + texts)
            assert status["state"] == "finished"
            assert status["clients"] == 0
    finally:
        run.kill()
        run.record.close()


def _kill(tree: Tree, victim: str, choose: random.Random) -> None:
    """SIGKILL; what has no daemon any more gets one, in any order."""
    node = choose.choice(tree.nodes)
    dead: list[Sandbox] = []
    if victim == "worker":
        for process in node.workers("forward"):
            process.kill()
    if "node" in victim:
        dead.append(node)
    if "head" in victim:
        dead.append(tree.head)
    for place in dead:
        for process in place.daemons():
            process.kill()
            process.wait(10)
    choose.shuffle(dead)
    for place in dead:
        if place is tree.head:
            place.serve()
        else:
            _serve_again(tree, place)


def _serve_again(tree: Tree, node: Sandbox) -> None:
    """A daemon by hand, unless the trainer has started one meanwhile."""
    address = tree.next_of(node).paths.data_endpoint
    daemon = node.serve_unready(SIDESTEP_FORWARD_TO=address)
    wait_until(
        lambda: "is ready" in daemon.said() or node.daemon_pid() is not None, 30, daemon.said, 0.05
    )


def _await_more(place: Sandbox, durable: int) -> int:
    """Wait until more of the run is durable there than before; how much."""

    def more() -> int:
        status = place.run_status("r")
        now = int(status["records"]["durable"]) if status else 0
        return now if now > durable else 0

    return wait_until(more, 60, lambda: f"stuck at {durable}: {place.run_status('r')}", 0.05)
