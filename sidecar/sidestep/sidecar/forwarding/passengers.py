"""Whom a run's journal knows: its clients and this machine's own samples, as they travel on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from sidestep.proto import Books, Hello, RunSpec

from ..ingest.introductions import read_introduction
from ..ingest.roster import NODE
from ..journal.reader import JournalReader

OWN: Final = "daemon"
"""The state of what the daemon itself says, and does not pass on."""

SAMPLES: Final = b"system/"
"""What the uuid of a daemon's own samples begins with; nothing else of its own is passed on."""


@dataclass(frozen=True, slots=True)
class Passenger:
    """One client of a run, as the journal knows it.

    Attributes:
        id: in the journal.
        state: as in the journal; `NODE` for what is no trainer.
        durable_seq: everything up to here is in the journal, or was dropped.
        dropped: how many of those were dropped.
        hello: its introduction, without its run.
        books: its last ones, if it has gone.
    """

    id: int
    state: str
    durable_seq: int
    dropped: int
    hello: Hello
    books: Books

    @property
    def gone(self) -> bool:
        """Whether nothing will come of it any more."""
        return self.state in ("finished", "lost")


class Passengers:
    """All clients of a run that are passed on.

    Args:
        reader: reads the journal.
        run_id: the run's id there.
        host: this machine's name.
    """

    def __init__(self, reader: JournalReader, run_id: int, host: str) -> None:
        self._reader = reader
        self._identity = reader.identity()
        self._run_id = run_id
        self._host = host
        self._read: dict[int, tuple[object, Hello | None]] = {}

    def all(self) -> dict[int, Passenger]:
        """By their ids; what is this daemon's own, and is not passed on, is of state ``daemon``."""
        rows = self._reader.clients_of(self._run_id)
        return {found.id: found for row in rows for found in self._of(row)}

    def introduced(self, passenger: Passenger, run: RunSpec, connection: int) -> Hello:
        """How it is introduced to the next daemon."""
        hello = passenger.hello
        via = (*hello.via, self._identity)
        return replace(hello, run=run, connection=connection, via=via, outbox="")

    def _of(self, row: tuple[object, ...]) -> Iterator[Passenger]:
        number, uuid, rank, attempt, pid, state, *_, known = row
        counts = [one if isinstance(one, int) and one >= 0 else 0 for one in row[6:11]]
        durable_seq, dropped, lost, rejected, emitted = counts
        if not isinstance(number, int) or not isinstance(uuid, bytes):
            return
        if state == OWN:
            own = NODE if uuid.startswith(SAMPLES) else OWN
            yield Passenger(number, own, durable_seq, 0, self._own(uuid), Books())
            return
        if self._read.get(number, (None, None))[0] != known:
            self._read[number] = known, read_introduction(known)
        hello = self._read.get(number, (None, None))[1]
        if hello is None:  # a journal that was begun before daemons passed anything on
            hello = Hello(
                uuid, 0, 0, RunSpec("", ""), int(str(rank)), 1, int(str(attempt)), int(str(pid))
            )
        books = Books(max(emitted, durable_seq + lost), dropped + lost, rejected)
        yield Passenger(number, str(state), durable_seq, dropped, hello, books)

    def _own(self, uuid: bytes) -> Hello:
        seed = b"%d/%s" % (self._identity, uuid)
        digest = hashlib.blake2b(seed, digest_size=16).digest()
        return Hello(digest, self._identity, 0, RunSpec("", ""), host=self._host, node=True)
