"""Daemons that pass on to a daemon: what trainers on nodes emit is written at the head, once."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from sidestep import client
from sidestep.proto import Alarm, Hello, RunSpec
from sidestep.proto.records import Scalars, encode_scalars
from sidestep.sidecar.ingest.introductions import put_introduction, stored_introductions
from sidestep.sidecar.journal.writer import ClientRow, Journal
from tests.support.oracle import (
    Point,
    assert_booked,
    assert_exactly,
    points,
    read_scalars,
    read_values,
)
from tests.support.tree import Tree
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

WARM = 24

Reach = Callable[..., client.Client]


def prefixed(emitted: Counter[Point], prefix: str) -> Counter[Point]:
    return Counter({(prefix + tag, step, bits): n for (tag, step, bits), n in emitted.items()})


def tags_of(files: list[Path]) -> set[str]:
    return {value.tag for _, _, value in read_values(files)}


def test_two_nodes_and_what_their_clients_and_machines_say_are_one_run() -> None:
    """Ranks 0 and 4; one ends well, one is killed, one emits nothing."""
    with Tree(2) as tree:
        tree.head.serve()
        for node in tree.nodes:
            tree.serve(node, SIDESTEP_SAMPLE_INTERVAL_S="0.3")
        both = {"world_size": 8, "ranks": "all"}
        runs = [
            tree.train(
                node,
                run="r",
                emits=400,
                seed=rank,
                interval_s=0.002,
                text_every=100,
                limit=399,
                end="wait" if rank else "finish",
                connect={"rank": rank, **both},
            )
            for node, rank in zip(tree.nodes, (0, 4), strict=True)
        ]
        silent = tree.train(
            tree.nodes[1], run="r", emits=0, end="finish", connect={"rank": 5, "world_size": 8}
        )
        try:
            assert silent.finished()["finish"]
            wait_until(
                lambda: (
                    {"system/cpu_percent", "rank_4/system/cpu_percent"}
                    <= tags_of(tree.head.event_files("r"))
                ),
                30,
                lambda: str(tags_of(tree.head.event_files("r"))),
                0.2,
            )
            for run in runs:
                run.record["limit"] = 0
            assert runs[0].finished()["finish"]
            wait_until(lambda: runs[1].returned == 400, 60, "emitted")
            runs[1].kill()
            for node in tree.nodes:
                node.await_run("r", clients=0)
            tree.drain()
            emitted = prefixed(runs[0].emitted(400), "rank_0/") + prefixed(
                runs[1].emitted(400), "rank_4/"
            )
            found = read_scalars(tree.head.event_files("r"))
            own = Counter({p: n for p, n in found.items() if p[0].startswith("rank_4/system/")})
            assert_exactly(found - own, emitted)
            assert own
            assert tree.head.status()["runs"][0]["state"] == "lost"
            assert_booked(tree.head.await_run("r", clients=0), 2 * 404)
            for node, state in zip(tree.nodes, ("finished", "lost"), strict=True):
                (run,) = node.status()["runs"]
                (sink,) = run["sinks"]
                assert run["state"] == state
                assert (sink["name"], sink["state"]) == ("forward", "closed")
                assert sink["address"] == tree.head.paths.data_endpoint
                assert not node.logs.exists()
                assert "forward to" in node.cli("status").stdout
        finally:
            for run in (*runs, silent):
                run.kill()
                run.record.close()


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reach]:
    """Connects this process to a node's daemon; the log directory is the head's."""
    made: list[client.Client] = []

    def reached(tree: Tree, run: str, node: int = 0, **arguments: Any) -> client.Client:
        for name, value in tree.nodes[node].variables().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SIDESTEP_RUN", raising=False)
        arguments = {"log_dir": str(tree.head.logs), "autostart": False, **arguments}
        made.append(client.connect(run, **arguments))
        return made[-1]

    yield reached
    for one in made:
        one.finish(0)


def test_a_collapse_is_seen_by_the_head_and_heard_by_the_trainer(reach: Reach) -> None:
    """Three levels: the derivers are the head's, the alarm comes all the way back."""
    with Tree(2, chain=True) as tree:
        tree.serve_all()
        made = reach(tree, "r")
        heard: list[Alarm] = []
        made.on_alarm(heard.append)
        generator = torch.Generator().manual_seed(1)
        for step in range(WARM + 12):
            x = torch.randn(32, 4, 16, generator=generator)
            x = torch.nn.functional.layer_norm(x + x[:, :1], (16,))
            found = x if step < WARM else torch.full((32, 4, 16), 0.5)
            made.emit({"context": client.Representation(found)}, step=step)
        wait_until(lambda: any(a.state == "COLLAPSED" for a in heard), 30, lambda: str(heard), 0.05)
        assert {(a.tag, a.state) for a in heard} == {("context", "COLLAPSED")} | {
            ("context", a.state) for a in heard
        }
        late = reach(tree, "r")
        told: list[Alarm] = []
        late.on_alarm(told.append)
        wait_until(lambda: [a for a in told if a.state == "COLLAPSED"], 30, "told at once", 0.05)
        for node in tree.nodes:
            assert node.status()["runs"][0]["alarm"] == "COLLAPSED"
        assert made.finish(20)
        assert late.finish(20)
        tree.drain()
        assert "context_std" in tags_of(tree.head.event_files("r"))
        assert_booked(tree.head.await_run("r", state="finished"), WARM + 12)


def test_ranks_on_two_nodes_meet_at_the_head(reach: Reach) -> None:
    """What each node has is parts; the mean is made where they meet."""
    with Tree(2) as tree:
        tree.serve_all()
        ranks = [reach(tree, "r", rank, rank=rank, world_size=2) for rank in range(2)]
        for step in range(20):
            for rank, made in enumerate(ranks):
                made.emit({"loss": float(step + rank)}, step=step, reduce="mean")
        for made in ranks:
            assert made.finish(20)
        tree.drain()
        wanted = points(("loss", step, step + 0.5) for step in range(20))
        assert_exactly(read_scalars(tree.head.event_files("r")), wanted)


def test_what_waits_for_an_absent_head_is_shown_and_kept(reach: Reach) -> None:
    with Tree() as tree:
        daemon = tree.serve(tree.node)
        made = reach(tree, "r")
        for step in range(50):
            made.emit({"a": float(step)}, step=step)
        assert made.finish(20)  # what is durable here is out of the trainer's hands
        sink = tree.node.await_sink("r", "degraded", "forward")
        assert tree.head.paths.data_endpoint in sink["error"]
        assert 50 <= sink["lag_records"] <= 52  # and what the daemon says of itself
        late = tree.node.cli("drain", "--timeout", "0.5")
        assert late.returncode == 1
        assert "forward" in late.stdout + late.stderr
        daemon.kill()
        tree.serve(tree.node)
        tree.head.serve()
        tree.drain()
        emitted = points(("a", step, step) for step in range(50))
        assert_exactly(read_scalars(tree.head.event_files("r")), emitted)
        assert tree.node.await_sink("r", "closed", "forward")["error"] is None


def test_a_circle_of_daemons_is_refused(reach: Reach) -> None:
    with Tree() as tree:
        address = tree.node.paths.data_endpoint
        own = tree.node.cli("serve", SIDESTEP_FORWARD_TO=address)
        assert own.returncode == 1
        assert "itself listens" in own.stderr
        tree.head.serve(SIDESTEP_FORWARD_TO=address)
        tree.serve(tree.node)
        made = reach(tree, "r")
        made.emit({"a": 1.0}, step=1)
        sink = tree.head.await_sink("r", "failed", "forward")
        assert "circle" in sink["error"]
        assert made.finish(20)


def test_256_clients_of_a_run_cross_in_one_process() -> None:
    """A backlog of 256 ranks, as a node's daemon has it in its journal when the head comes."""
    ranks, batches, rows = 256, 8, 5
    with Tree() as tree:
        tree.node.state.mkdir()
        spec = RunSpec("r", str(tree.head.logs))
        emitted: Counter[Point] = Counter()
        with closing(Journal(str(tree.node.state / "journal.sqlite"))) as journal:
            journal.begin()
            run_id = journal.put_run(spec)
            stored_introductions(journal.connection)
            ids = [_put_rank(journal, run_id, rank, batches * rows) for rank in range(ranks)]
            for batch in range(batches):
                for rank, client_id in enumerate(ids):
                    steps = range(batch * rows, (batch + 1) * rows)
                    found = [Scalars(0, step, 1, (rank + step / 1e3,)) for step in steps]
                    emitted += points((f"rank_{rank}/a", s.step, s.values[0]) for s in found)
                    data = b"".join(map(encode_scalars, found))
                    journal.append(run_id, client_id, rows, data, (), batch * rows + 1)
            journal.commit()
        tree.head.serve()
        began = time.monotonic()
        tree.serve(tree.node)
        tree.node.drain()
        print(f"{ranks} clients, {emitted.total()} records: {time.monotonic() - began:.1f} s")
        tree.head.drain()
        assert_exactly(read_scalars(tree.head.event_files("r")), emitted)
        status = tree.head.await_run("r", state="finished")
        assert_booked(status, ranks * batches * rows)


def _put_rank(journal: Journal, run_id: int, rank: int, records: int) -> int:
    uuid = rank.to_bytes(16, "big")
    row = ClientRow(0, uuid, run_id, rank, 0, 0, "finished", records, 0, 0, 0, records)
    row.id = journal.put_client(row)
    journal.put_tag_set(row.id, 0, (f"rank_{rank}/a",))
    hello = Hello(uuid, 1, 1, RunSpec("", ""), rank, 256, host=socket.gethostname())
    put_introduction(journal.connection, row.id, hello)
    return row.id
