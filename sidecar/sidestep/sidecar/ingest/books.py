"""A run's books: emitted = durable + held + dropped, and what to think when it is not so.

What is durable the daemon knows; what was emitted and dropped each client says once a second, at
its end, or by its outbox. While it lives, or its outbox lies there, what it emitted and what is
neither durable nor dropped is held. After that nothing is: a rest is `unaccounted`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidestep.proto import Books

from .roster import ClientEntry


@dataclass(frozen=True, slots=True)
class RunBooks:
    """What became of the records of a run's clients.

    Attributes:
        emitted: records that `emit` accepted, as far as the daemon has heard.
        durable: records that are in the journal, or were.
        held: records that wait with the clients.
        dropped: records that will not arrive, counted by the clients.
        rejected: values that `emit` refused; they are no records.
        unaccounted: what is left of `emitted` when the clients have gone, 0 if the books balance.
            Less than 0: more came than was emitted.
        elsewhere: those of `durable` that another journal has acknowledged, which was damaged, or
            is in another state directory.
    """

    emitted: int = 0
    durable: int = 0
    held: int = 0
    dropped: int = 0
    rejected: int = 0
    unaccounted: int = 0
    elsewhere: int = 0

    def __add__(self, other: RunBooks) -> RunBooks:
        """The books of both."""
        return RunBooks(
            self.emitted + other.emitted,
            self.durable + other.durable,
            self.held + other.held,
            self.dropped + other.dropped,
            self.rejected + other.rejected,
            self.unaccounted + other.unaccounted,
            self.elsewhere + other.elsewhere,
        )


def of_clients(clients: Iterable[ClientEntry]) -> RunBooks:
    """The books of `clients` together."""
    return sum((of_client(entry) for entry in clients), RunBooks())


def of_client(entry: ClientEntry) -> RunBooks:
    """The books of one client, as far as they have come here."""
    session, said = entry.session, entry.session.books
    durable = session.durable_seq - session.dropped
    # What it said last is a second old; what has come since counts too.
    dropped = max(said.dropped, session.dropped)
    rest = said.emitted - durable - dropped
    gone = entry.row.state != "live"
    # Only a client that has taken its leave has said all that it emitted.
    unaccounted = rest if entry.row.state == "finished" else max(0, rest)
    return RunBooks(
        emitted=durable + dropped + (unaccounted if gone else max(0, rest)),
        durable=durable,
        held=0 if gone else max(0, rest),
        dropped=dropped,
        rejected=said.rejected,
        unaccounted=unaccounted if gone else 0,
        elsewhere=session.elsewhere,
    )


def stored(entry: ClientEntry) -> tuple[int, int] | None:
    """What of a client's books `ClientRow` has no place for; None when it need not be stored.

    While a client lives it says it again, to whatever daemon.
    """
    if entry.row.state == "live" and not entry.session.elsewhere:
        return None
    return entry.session.books.emitted, entry.session.elsewhere


def restore(entry: ClientEntry, found: tuple[int, int] | None) -> None:
    """Give a client that an earlier daemon knew the books that it stored of it."""
    row, session = entry.row, entry.session
    emitted, session.elsewhere = found or (0, 0)
    if row.state == "live" or not emitted:
        emitted = row.durable_seq + row.lost
    session.books = Books(emitted, row.dropped + row.lost, row.rejected)
