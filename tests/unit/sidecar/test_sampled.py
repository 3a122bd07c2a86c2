"""Whose machine is sampled, and under which tags, in a tree of daemons."""

from __future__ import annotations

from sidestep.proto import Hello, RunSpec, ServerSession
from sidestep.sidecar.ingest.roster import ClientEntry, RunEntry, Snapshot
from sidestep.sidecar.journal.writer import ClientRow
from sidestep.sidecar.samplers.sampled import Sampled

RUN = RunEntry(1, RunSpec("r", "/l"))


def client(rank: int, *, via: tuple[int, ...] = (), state: str = "live") -> ClientEntry:
    uuid = rank.to_bytes(16, "big")
    row = ClientRow(rank + 1, uuid, 1, rank, 0, 0, state, 0, 0, 0, 0, None)
    hello = Hello(uuid, 1, 1, RUN.spec, rank, via=via)
    return ClientEntry(row, ServerSession(1), hello, RUN.spec)


def sampled(found: Sampled, *clients: ClientEntry) -> list[tuple[int, str]]:
    snapshot = Snapshot(runs={1: RUN}, clients=clients)
    return [(entry.row.rank, prefix) for _, entry, prefix in found.of(snapshot)]


def test_a_daemon_alone_samples_as_ever() -> None:
    assert sampled(Sampled(passes_on=False), client(4), client(5)) == [(4, "")]


def test_a_node_says_whose_machine_it_is_and_rank_zero_needs_not() -> None:
    assert sampled(Sampled(passes_on=True), client(4), client(5)) == [(4, "rank_4/")]
    assert sampled(Sampled(passes_on=True), client(0), client(1)) == [(0, "")]


def test_its_tags_stay_when_the_lowest_rank_has_gone() -> None:
    node = Sampled(passes_on=True)
    sampled(node, client(4), client(5))
    assert sampled(node, client(4, state="finished"), client(5)) == [(5, "rank_4/")]
    assert sampled(node, client(5, state="lost")) == []
    assert sampled(node, client(6)) == [(6, "rank_6/")]


def test_the_head_leaves_other_machines_to_their_own_daemons() -> None:
    head = Sampled(passes_on=False)
    assert sampled(head, client(0, via=(9,)), client(1, via=(9,))) == []
    assert sampled(head, client(0, via=(9,)), client(2)) == [(2, "rank_2/")]
