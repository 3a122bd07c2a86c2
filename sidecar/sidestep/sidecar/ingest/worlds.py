"""Which clients of a run are one world: the ranks of a job whose values are put together.

Whoever begins an attempt begins a world, or joins the newest one of the same size and restart: if
one of its members lives, or if its own rank has not come yet and the others went only just now (a
short job, whose first rank has ended before its last one has begun). So an attempt after a crash is
a world of its own, and its values never meet those that the dead had said of the same steps.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .roster import ClientEntry

_JOIN_S: Final = 30.0
"""How long after its last sign of life an empty world can still be joined."""

_MEMBERS: Final = (
    "SELECT clients.id, world, world_size, rank, state FROM clients "
    "JOIN worlds ON worlds.client_id = clients.id WHERE run_id = ?"
)


@dataclass(frozen=True, slots=True)
class Member:
    """A client as one rank of a world.

    Attributes:
        client_id: the journal's id.
        world: counts the run's worlds, from 1 on.
        size: ranks of the world.
        rank: its own, below `size`.
        gone: nothing more will come of it.
    """

    client_id: int
    world: int
    size: int
    rank: int
    gone: bool


def join(entry: ClientEntry, others: Iterable[ClientEntry]) -> int:
    """The world that a client belongs to.

    Args:
        entry: the client, which begins.
        others: the run's other clients, some of which have a world.
    """
    known = [other for other in others if other.world and other is not entry]
    mine = entry.hello.world_size, entry.hello.attempt
    same = [o.world for o in known if (o.hello.world_size, o.hello.attempt) == mine]
    if same:
        members = [other for other in known if other.world == max(same)]
        if any(other.row.state == "live" for other in members):
            return max(same)
        taken = any(other.row.rank == entry.row.rank for other in members)
        if not taken and min(entry.heard - other.heard for other in members) <= _JOIN_S:
            return max(same)
    return max((other.world for other in known), default=0) + 1


def put_world(connection: sqlite3.Connection, entry: ClientEntry) -> None:
    """Store which world a client belongs to."""
    row = entry.row.id, entry.world, entry.hello.world_size
    connection.execute("INSERT OR REPLACE INTO worlds VALUES (?, ?, ?)", row)


def stored_worlds(connection: sqlite3.Connection) -> dict[int, int]:
    """The worlds of all clients by their ids."""
    rows = connection.execute("SELECT client_id, world FROM worlds")
    return {int(client_id): int(world) for client_id, world in rows}


def members(connection: sqlite3.Connection, run_id: int) -> list[Member]:
    """The clients of a run that belong to a world, as they are in the journal."""
    return [
        Member(int(client_id), int(world), int(size), int(rank), state != "live")
        for client_id, world, size, rank, state in connection.execute(_MEMBERS, (run_id,))
    ]
