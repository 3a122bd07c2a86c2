"""What ingest knows of runs and clients, and what it lets the other threads know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sidestep.proto import Alarm, Hello, RunSpec, ServerSession, Value
from sidestep.proto.tag_sets import RANK_PART

from ..alarms import TagState
from ..journal.derive_state import DeriveState
from ..journal.resume import Trail
from ..journal.writer import ClientRow

DERIVER: Final = "derive"
"""Name of the derivers' cursor: one, since they are one process."""

NODE: Final = "node"
"""The state of what is no trainer, but a daemon that says something of its own machine."""

REDUCED: Final = "reduced"
"""Among the kinds of a journal row: it has numbers that are to be reduced over ranks."""

DERIVED_KINDS: Final = frozenset({"moments", "parameters", RANK_PART, REDUCED})
"""The kinds of value that the derivers read."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What ingest grants.

    Attributes:
        credit_bytes: unacknowledged bytes that each client may have under way.
        max_clients: clients that may be connected at once.
        max_connections: connections from this machine, of clients and strangers.
        why_clients: why there are not more clients.
        passes_on: whether all runs are another daemon's: nothing is derived or hidden here then.
    """

    credit_bytes: int = 8 << 20
    max_clients: int = 1024
    max_connections: int = 1280
    why_clients: str = "max_clients"
    passes_on: bool = False


@dataclass(slots=True)
class ClientEntry:
    """A client that this daemon has heard of."""

    row: ClientRow
    session: ServerSession
    hello: Hello
    run: RunSpec
    identity: bytes | None = None
    heard: float = 0.0
    tag_counts: dict[int, int] = field(default_factory=dict[int, int])
    reduced: set[int] = field(default_factory=set[int])  # tag sets that are reduced over ranks
    world: int = 0  # which of the run's worlds it belongs to (see `worlds`); 0 while unknown
    trail: Trail = field(default_factory=Trail)
    introduced: Hello | None = None  # as it is stored (see `introductions`)
    crowded: bool = False  # it wanted more tag sets than there may be
    changed: bool = True
    committing: bool = False


@dataclass(slots=True)
class RunEntry:
    """A run with its newest description."""

    id: int
    spec: RunSpec
    last_step: int | None = None
    records: int = 0  # of clients, durable
    to_derive_row: int = 0  # the newest row that the deriver must read
    # Before what it still awaits something of; None when there never was anything for it.
    derived_row: int | None = None
    derived: DeriveState = field(default_factory=DeriveState)
    reductions: Mapping[str, int] = field(default_factory=dict[str, int])  # counts, for status
    # By tag; replaced as a whole, since other threads look at it.
    alarms: Mapping[str, TagState] = field(default_factory=dict[str, TagState])


@dataclass(frozen=True, slots=True)
class DaemonPoints:
    """What a sampler or a deriver has to say of a run.

    Attributes:
        run_id: the run.
        source: who says it; numbers of one source share tag sets.
        scalars: (step, time in ns, values by tag).
        values: records that are not numbers.
        derived_row: the deriver's cursor, stored in the same transaction; None of another source.
        derived: the rest of its state, likewise.
        derived_after: the token of the message before it, that this one stands on.
        deriver: which of the derivers' processes says it.
        reductions: what it has counted of reductions over ranks.
        alarm_states: states of alarms by tag, stored in the same transaction.
    """

    run_id: int
    source: str
    scalars: Sequence[tuple[int, int, Mapping[str, float]]] = ()
    values: Sequence[Value] = ()
    derived_row: int | None = None
    derived: DeriveState = field(default_factory=DeriveState)
    derived_after: int = 0
    deriver: int = 0
    reductions: Mapping[str, int] = field(default_factory=dict[str, int])
    alarm_states: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


@dataclass(frozen=True, slots=True)
class PassedAlarm:
    """What the next daemon says of a run's health."""

    run_id: int
    alarm: Alarm


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the other threads may know; replaced as a whole after each round."""

    last_row: int = 0
    totals: Mapping[int, int] = field(default_factory=dict[int, int])
    runs: Mapping[int, RunEntry] = field(default_factory=dict[int, RunEntry])
    clients: tuple[ClientEntry, ...] = ()
    storage_error: str | None = None
    adopting: int = 0
    scanned: int = 0
    refused_frames: int = 0
    lost_rounds: int = 0
    old_row: int = 0  # rows up to here are no recent history
    refused_deriver: int = 0  # the derivers' process whose word did not fit the journal

    refused: Mapping[str, object] = field(default_factory=dict[str, object])

    def live_runs(self) -> list[tuple[RunEntry, ClientEntry]]:
        """Runs with a live client, each with that of the lowest rank."""
        found: dict[int, ClientEntry] = {}
        for entry in self.clients:
            if entry.row.state == "live":
                best = found.get(entry.row.run_id)
                if best is None or entry.row.rank < best.row.rank:
                    found[entry.row.run_id] = entry
        return [(self.runs[run_id], entry) for run_id, entry in found.items()]
