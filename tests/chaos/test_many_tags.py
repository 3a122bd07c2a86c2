"""More distinct tags than anybody can look at: a cap on each side, and all beyond it is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest
import zmq

from sidestep.proto import Ack, Nack, Ping, RunSpec, Tags
from sidestep.proto.limits import MAX_TAG_SETS
from tests.support.fixtures import Connect
from tests.support.hostile import MIB, MemoryOf, Peer, batch
from tests.support.oracle import assert_booked, points, read_scalars
from tests.support.sandbox import Sandbox

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


def emit_tags(
    sandbox: Sandbox,
    connect: Connect,
    many: int,
    look: Callable[[], None] = lambda: None,
    **arguments: int,
) -> tuple[int, int]:
    """Emit so many tags, one after the other, beside one that is always there; what was kept."""
    made = connect("tags", **arguments)
    emitted: Counter[tuple[str, int, int]] = Counter()
    for i in range(many):
        values = {"loss": i / 7, f"layer/{i:06}/norm": i / 3}
        made.emit({"loss": values.pop("loss")}, step=i)
        made.emit(values, step=i)
        emitted += points([("loss", i, i / 7), *((tag, i, v) for tag, v in values.items())])
        if i % 5000 == 0:
            made.flush(60)
            look()
    assert made.finish(60)
    sandbox.drain(100)
    stats = made.stats()
    found = read_scalars(sandbox.event_files("tags"))
    assert found - emitted == Counter()
    assert (stats.dropped, stats.held) == (0, 0)
    assert found.total() + stats.rejected == emitted.total()
    assert sum(tag == "loss" for tag, _, _ in found) == many  # what was there goes on
    status = sandbox.run_status("tags")
    assert status
    assert_booked(status, stats.emitted)
    assert status["records"]["rejected"] == stats.rejected
    kept = len({tag for tag, _, _ in found})
    return kept, stats.rejected


def test_more_tags_than_the_outbox_has_room_for(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    kept, rejected = emit_tags(sandbox, connect, 3000, outbox_bytes=1 << 19)
    assert kept + rejected == 3001
    assert rejected > 500
    assert kept > 500


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_tags(sandbox: Sandbox, connect: Connect) -> None:
    daemon = sandbox.serve()
    memory = MemoryOf(daemon.pid)
    most = 0

    def look() -> None:
        nonlocal most
        memory.look()
        for worker in sandbox.workers("tensorboard"):
            with suppress(psutil.Error):
                most = max(most, worker.memory_info().rss)

    kept, rejected = emit_tags(sandbox, connect, 120_000, look)
    print(
        f"{kept:,} tags kept, {rejected:,} values rejected; the daemon grew by "
        f"{memory.look() / MIB:.0f} MiB, TensorBoard's worker had {most / MIB:.0f} MiB at the most"
    )
    assert kept == MAX_TAG_SETS
    assert rejected == 120_001 - MAX_TAG_SETS
    assert memory.look() < 200 * MIB
    assert 0 < most < 400 * MIB


def test_a_peer_with_more_tag_sets_than_there_may_be(sandbox: Sandbox) -> None:
    """What it did not define for want of room is refused when it is used; the rest is taken."""
    sandbox.serve()
    with zmq.Context() as context:
        peer = Peer(context, sandbox.paths.data_endpoint, RunSpec("many", str(sandbox.logs)))
        peer.greet("x")
        peer.say(Tags(MAX_TAG_SETS - 1, (("last",), ("one too many",))))
        assert isinstance(peer.ask(batch(1, 5)), Ack)
        data = batch(6, 6).data
        beyond = bytes(data[:8]) + MAX_TAG_SETS.to_bytes(4, "little") + bytes(data[12:])
        answer = peer.ask(type(batch(6, 6))(6, 6, beyond))
        assert isinstance(answer, Nack)
        assert (answer.code, answer.first_seq, answer.last_seq) == ("refused", 6, 6)
        assert sandbox.status()["daemon"]["refused"]["records"] == {"undefined": 1}
        peer.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tag_sets_of_all_clients_of_a_run_together(sandbox: Sandbox) -> None:
    """Ever new clients, each with as many tag sets as one may have: the run has a cap, too."""
    daemon = sandbox.serve()
    memory = MemoryOf(daemon.pid)
    with zmq.Context() as context:
        peers = [
            Peer(context, sandbox.paths.data_endpoint, RunSpec("many", str(sandbox.logs)), uuid)
            for uuid in (bytes([i]) * 16 for i in range(6))
        ]
        refused = 0
        for peer in peers:
            peer.greet()
        for peer in peers:
            for first in range(0, MAX_TAG_SETS, 8000):
                sets = range(first, min(first + 8000, MAX_TAG_SETS))
                peer.say(Tags(first, tuple((f"t{i}",) for i in sets)))
                for other in peers:  # who is silent does not count
                    other.say(Ping())
                    while other.socket.poll(0):
                        other.socket.recv()
            data = batch(1, 1).data
            last = bytes(data[:8]) + (MAX_TAG_SETS - 1).to_bytes(4, "little") + bytes(data[12:])
            peer.say(type(batch(1, 1))(1, 1, last))
            while True:
                answer = peer.next(60)
                if isinstance(answer, Nack) or (isinstance(answer, Ack) and answer.durable_seq):
                    break
            refused += isinstance(answer, Nack)
        print(f"{refused} of 6 refused; grown by {memory.look() / MIB:.0f} MiB")
        assert refused == 2
        assert memory.look() < 256 * MIB
        for peer in peers:
            peer.close()
