"""All that a run's journal has, on its way to the next daemon: pure, but for what it is given.

The order of things, which makes it exact:

1. Clients are looked at first, rows are read after that. So when there are no more rows, all that
   a client was known to have is in them; where its numbers have holes, it has dropped something.
2. A row's records are handed to its client's delivery, under their own numbers.
3. The cursor passes a row when its client's next daemon has acknowledged its last record, and all
   rows before it are passed, too.
4. Who has gone says goodbye when everything of it is acknowledged. With the cursor stands who has
   not yet done so: ids grow, so everybody else up to the highest known id has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from sidestep.proto import Alarm, Batch, Books, RemoteProtocolError
from sidestep.proto.limits import MAX_DATA_BYTES
from sidestep.proto.session import ClientState

from ..ingest.roster import NODE
from ..journal.reader import Row
from ..supervision.cursor_file import Cursor
from .delivery import Delivery
from .passengers import OWN, Passenger
from .units import Unit, gap, units_of

_NOT_HERE: Final = "it had not come when the daemon that passes this on lost it or went past it"
_MERGED_BYTES: Final = 256 << 10
_MAX_ALARMS: Final = 10_000


@dataclass(slots=True)
class _Traveller:
    """A passenger that has not said goodbye to the next daemon."""

    passenger: Passenger
    delivery: Delivery
    finishing: bool = False
    goodbye: str = ""


@dataclass(frozen=True, slots=True)
class _Passing:
    """A row that was read and is not passed yet."""

    row: int
    total: int
    client: int
    last_seq: int


class Passage:
    """One run's way to the next daemon.

    Args:
        cursor: where it stood.
        deliver: begins a delivery: of whom, and what of it was acknowledged already (number, and
            how many of those were dropped).

    Attributes:
        cursor: where it stands; its state says who has not said goodbye yet.
        read_row: the last row that was read.
        skipped: records that could not be passed on.
    """

    def __init__(
        self, cursor: Cursor, deliver: Callable[[Passenger, tuple[int, int]], Delivery]
    ) -> None:
        self.cursor = cursor
        self.read_row = cursor.row
        self.skipped = 0
        self._deliver = deliver
        self._rows: deque[_Passing] = deque()
        self._travellers: dict[int, _Traveller] = {}
        self._passengers: Mapping[int, Passenger] = {}
        self._books: dict[int, Books] = {}
        self._alarms: dict[str, tuple[str, int]] = {}
        self._goodbyes: dict[int, str] = {}  # which state was the last word of a client
        self._changed = False
        self._known_to, self._acked, new = _stored(cursor)
        # Rows of the run have left already: what was in them, this daemon has written itself.
        self._begun_late = new and cursor.total > 0

    @property
    def deliveries(self) -> list[Delivery]:
        """All that are under way."""
        return [one.delivery for one in self._travellers.values()]

    @property
    def nbytes(self) -> int:
        """Of records that wait for their acknowledgement."""
        return sum(one.delivery.nbytes for one in self._travellers.values())

    @property
    def all_passed(self) -> bool:
        """Whether all that was read is durable there, and everybody who has gone said goodbye."""
        waiting = any(one.passenger.gone for one in self._travellers.values())
        return not self._rows and not waiting

    @property
    def empty(self) -> bool:
        """Whether nobody is under way any more."""
        return not self._rows and not self._travellers

    def look(self, passengers: Mapping[int, Passenger], books: Mapping[int, Books]) -> None:
        """How the run's clients stand; to be followed by `take` until there are no more rows.

        Args:
            passengers: all of them.
            books: what those that live have said last, by their ids.
        """
        self._passengers = passengers
        self._books.update(books)
        for number, passenger in passengers.items():
            known = self._travellers.get(number)
            if known is not None:
                known.passenger = passenger
            elif not self._begun_late and self._is_new(passenger):
                self._board(passenger)
        self._known_to = max([self._known_to, *passengers])

    def unknown(self, rows: Sequence[Row]) -> bool:
        """Whether there are rows of clients that have come since they were looked at."""
        return any(row.client_id not in self._passengers for row in rows if not row.damaged)

    def take(self, rows: Sequence[Row]) -> None:
        """The rows after `read_row`, in order."""
        batches: dict[int, list[Row]] = {}
        for row in rows:
            self.read_row = row.id
            passenger = self._passengers.get(row.client_id)
            if row.damaged or passenger is None or row.first_seq is None:
                # Its numbers are missing in what its client has; samples may be of a time when
                # nothing was passed on.
                self._rows.append(_Passing(row.id, row.total, 0, 0))
                if passenger is None or passenger.state not in (NODE, OWN):
                    self.skipped += row.records
                continue
            batches.setdefault(row.client_id, []).append(row)
            last = row.first_seq + row.records - 1
            self._rows.append(_Passing(row.id, row.total, row.client_id, last))
        for client, its_rows in batches.items():
            traveller = self._travellers.get(client)
            if traveller is None or traveller.finishing:
                if self._begun_late and client not in self._acked:
                    self._acked[client] = (its_rows[0].first_seq or 1) - 1, 0
                traveller = self._board(self._passengers[client])
            traveller.delivery.tags_changed()
            for unit in _merged(self._units(its_rows)):
                traveller.delivery.take(unit, _NOT_HERE)

    def no_more_rows(self) -> None:
        """All rows were read that there were when the clients were looked at last."""
        if self._begun_late:
            self._begun_late = False
            for number, passenger in self._passengers.items():
                if passenger.state == "live" and number not in self._travellers:
                    self._acked[number] = passenger.durable_seq, passenger.dropped
                    self._board(passenger)
        for one in self._travellers.values():
            last = one.passenger.durable_seq
            if last > one.delivery.end and not one.finishing:
                one.delivery.take(gap(one.delivery.end + 1, last, _NOT_HERE), _NOT_HERE)

    def advance(self, now: float, *, goodbyes: bool) -> bool:
        """See what was acknowledged; whether the cursor has changed.

        Args:
            now: monotonic time.
            goodbyes: whether those may take their leave that have gone; only while `no_more_rows`
                holds.
        """
        before = self.cursor
        row, total = before.row, before.total
        while self._rows and self._is_passed(self._rows[0]):
            passing = self._rows.popleft()
            row, total = passing.row, passing.total
        if goodbyes:
            self._say_goodbyes(now)
        if row == before.row and not self._changed:
            return False
        self._changed = False
        self.cursor = replace(before, row=row, total=total, state=self._state(before))
        return True

    def alarms(self) -> list[Alarm]:
        """What the next daemon has said of the run's health, and not said before."""
        news: list[Alarm] = []
        for one in self._travellers.values():
            while one.delivery.alarms:
                alarm = one.delivery.alarms.popleft()
                if self._alarms.get(alarm.tag) != (alarm.state, alarm.step):
                    if len(self._alarms) >= _MAX_ALARMS:
                        self._alarms.clear()
                    self._alarms[alarm.tag] = alarm.state, alarm.step
                    news.append(alarm)
        return news

    # --- inside --------------------------------------------------------------------------------

    def _board(self, passenger: Passenger) -> _Traveller:
        acked = self._acked.get(passenger.id, (0, 0))
        before = self._travellers.get(passenger.id)
        if before is not None:
            acked = before.delivery.acked_seq, before.delivery.acked_dropped
        traveller = _Traveller(passenger, self._deliver(passenger, acked))
        self._travellers[passenger.id] = traveller
        self._changed = True
        return traveller

    def _is_new(self, passenger: Passenger) -> bool:
        """Whether it has something to say, be it a goodbye."""
        if passenger.id in self._acked or passenger.state == "live":
            return True  # it has come back, if it was given up
        if passenger.gone and self._goodbyes.get(passenger.id, passenger.state) != passenger.state:
            return True  # it had, and has gone again
        return passenger.id > self._known_to and passenger.state not in (NODE, OWN)

    def _units(self, rows: Iterable[Row]) -> Iterable[Unit]:
        for row in rows:
            try:
                yield from units_of(row.first_seq or 0, row.records, row.data)
            except RemoteProtocolError as error:
                first = row.first_seq or 0
                self.skipped += row.records
                yield gap(first, first + row.records - 1, f"cannot be read: {error}")

    def _is_passed(self, passing: _Passing) -> bool:
        one = self._travellers.get(passing.client)
        return one is None or one.delivery.acked_seq >= passing.last_seq

    def _say_goodbyes(self, now: float) -> None:
        living = any(p.state == "live" for p in self._passengers.values())
        for number, one in list(self._travellers.items()):
            self._say_books(one)
            if one.delivery.state is ClientState.CLOSED:
                del self._travellers[number]
                self._acked.pop(number, None)
                self._books.pop(number, None)
                self._changed = True
                self._goodbyes[number] = one.goodbye
                continue
            ended = one.passenger.gone or (one.passenger.state == NODE and not living)
            if one.finishing and not ended:
                self._board(one.passenger)  # it has come back before its goodbye was heard
            elif ended and one.delivery.delivered and not one.finishing:
                one.finishing, one.goodbye = True, one.passenger.state
                one.delivery.finish(now, lost=one.passenger.state == "lost")

    def _say_books(self, one: _Traveller) -> None:
        passenger, delivery = one.passenger, one.delivery
        books = passenger.books if passenger.gone else self._books.get(passenger.id)
        if books is None:
            return
        if delivery.acked_seq >= passenger.durable_seq:
            # What was lost on this way, its client does not know of.
            more = max(0, delivery.acked_dropped - passenger.dropped)
            books = replace(books, dropped=books.dropped + more)
        delivery.say(books)

    def _state(self, cursor: Cursor) -> Mapping[str, object]:
        for number, one in self._travellers.items():
            self._acked[number] = one.delivery.acked_seq, one.delivery.acked_dropped
        waiting = [(number, *acked) for number, acked in self._acked.items()]
        return {
            "closed": not waiting and not self._rows,
            "journal": cursor.journal,
            "known_to": self._known_to,
            "waiting": waiting,
        }


def _stored(cursor: Cursor) -> tuple[int, dict[int, tuple[int, int]], bool]:
    """Up to which id clients are known, who of them has not said goodbye, whether that is new."""
    state = cast("Mapping[str, Any]", cursor.state or {})
    if state.get("journal") != cursor.journal:
        return 0, {}, True  # ids of another journal, or none
    try:
        waiting = {int(n): (int(seq), int(dropped)) for n, seq, dropped in state["waiting"]}
        return int(state["known_to"]), waiting, False
    except (KeyError, TypeError, ValueError):
        return 0, {}, True


def _merged(units: Iterable[Unit]) -> Iterable[Unit]:
    """Small batches that follow each other, put together: each message has its price."""
    held: list[Unit] = []
    nbytes = 0
    for unit in units:
        fits = nbytes + unit.nbytes <= min(_MERGED_BYTES, MAX_DATA_BYTES)
        follows = bool(held) and held[-1].last + 1 == unit.first
        if held and not (fits and follows and isinstance(unit.messages[0], Batch)):
            yield _together(held, nbytes)
            held, nbytes = [], 0
        if not isinstance(unit.messages[0], Batch):
            yield unit
            continue
        held.append(unit)
        nbytes += unit.nbytes
    if held:
        yield _together(held, nbytes)


def _together(units: Sequence[Unit], nbytes: int) -> Unit:
    if len(units) == 1:
        return units[0]
    data = b"".join(m.data for unit in units for m in unit.messages if isinstance(m, Batch))
    first, last = units[0].first, units[-1].last
    return Unit(first, last, nbytes, (Batch(first, last, data),))
