"""The derivers' process: reads values from the journal, sends back what is made of them.

The daemon journals what it says together with the cursor, in one transaction, and tells a new
process where to begin: what was said before a death is not said twice, and what was not is said
then. Its linear algebra runs on one thread, so that it does not take the trainer's cores. Nobody
waits for it: a deriver that falls behind is a cursor that stands still.

To add a kind: a function `Derive` in a module of its own, a line in `deriver_of`, and its name in
`roster.DERIVED_KINDS`. To watch representations: a `Watcher`, in `watchers`.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sidestep.proto import LocalProtocolError, RemoteProtocolError, Value
from sidestep.proto.limits import MAX_TAG_BYTES, MAX_TAGS_PER_RECORD
from sidestep.proto.records import encode_value
from sidestep.proto.tag_sets import RANK_PART

from ..ingest.roster import DERIVED_KINDS, DERIVER
from ..ingest.worlds import members
from ..journal.reader import JournalReader, Row
from ..service.terminal import leave_signals_to_the_daemon, make_printing_harmless
from ..supervision.channel import Channel, ChannelClosedError

if TYPE_CHECKING:
    from .deriver import Derive, Derived, Watcher
    from .reducer import Reducer

_MAX_BYTES: Final = 16 << 20
_LOOK_S: Final = 0.2
"""How often it is looked who has gone, while values of several ranks are awaited."""

_PART_BYTES: Final = 4 << 20
"""A message of more is divided: neither end has to hold much twice."""

_MAX_VALUE_BYTES: Final = 32 << 20
"""A record that no message has room for; nothing that a deriver makes is near it."""

_MAX_TAG: Final = 2 * MAX_TAG_BYTES
"""The longest tag that a client may have, with what a deriver puts behind it."""


def deriver_of(kind: str) -> Derive | None:
    """What derives from values of `kind`; numpy is loaded with the first, not at the start."""
    if kind == "moments":
        from .moments import derive as of_moments

        return of_moments
    if kind == "parameters":
        from .parameters import derive as of_parameters

        return of_parameters
    return None


def watchers(rules: Mapping[str, Any] | None) -> Sequence[Watcher]:
    """Those who are shown every observation of a representation.

    Args:
        rules: the alarms' thresholds; None when there are to be none.
    """
    if rules is None:
        return ()
    from ..alarms import Rules
    from .alarms import AlarmWatcher

    return (AlarmWatcher(Rules.from_plain(rules)),)


def main() -> None:
    """Run as a process: ``python -m sidestep.sidecar.derive.worker FD``."""
    leave_signals_to_the_daemon()
    make_printing_harmless()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        _serve(channel)
    except ChannelClosedError:
        os._exit(0)


def _serve(channel: Channel) -> NoReturn:
    worker: Worker | None = None
    waiting: dict[int, int] = {}
    while True:
        # With something to do, a look is enough.
        awaits = worker is not None and worker.awaits
        patience_s = 0.0 if waiting else _LOOK_S if awaits else None
        ready = bool(select.select([channel], [], [], patience_s)[0])
        for message in channel.receive() if ready else ():
            if message["op"] == "start":
                reader = JournalReader(str(message["journal"]))
                timeout_s = float(message["reduce_timeout_s"])
                worker = Worker(channel, reader, watchers(message["rules"]), timeout_s)
            elif message["op"] == "rows":
                waiting.setdefault(int(message["run_id"]), int(message["after"]))
        if waiting and worker is not None:
            # In turns: a run with much to derive must not delay the alarms of another.
            run_id, after = next(iter(waiting.items()))
            del waiting[run_id]
            if worker.derive(run_id, after):
                waiting[run_id] = after
        if worker is not None:
            worker.look()


class Worker:
    """Derives what the journal has, a few megabytes of a run at a time.

    Args:
        channel: to the daemon.
        reader: of the journal, for this process alone.
        watching: is shown every observation.
        timeout_s: how long a reduction waits for a rank.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        channel: Channel,
        reader: JournalReader,
        watching: Sequence[Watcher],
        timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._reader = reader
        self._watching = watching
        self._timeout_s = timeout_s
        self._clock = clock
        self._looked_s = clock()
        self._runs: dict[int, _Run] = {}

    @property
    def awaits(self) -> bool:
        """Whether a rank of some run is waited for."""
        return any(run.reducer for run in self._runs.values())

    def derive(self, run_id: int, after: int) -> bool:
        """Send what can be made of a run's next rows after `after`; whether there were any."""
        run = self._runs.get(run_id) or self._begin(run_id)
        after = max(after, run.done)
        rows = self._reader.rows(after, run_id, kinds=DERIVED_KINDS, max_bytes=_MAX_BYTES)
        for row in rows:
            self._row(run, row, is_last=row is rows[-1])
        return bool(rows)

    def look(self) -> None:
        """Now and then: who has gone, and what need not be waited for any more."""
        if self._clock() - self._looked_s < _LOOK_S:
            return
        self._looked_s = self._clock()
        for run in self._runs.values():
            if run.reducer:
                self._settle(run)

    # --- inside ----------------------------------------------------------------------------------

    def _begin(self, run_id: int) -> _Run:
        # Row and states at one moment: what a process before this one has sent may still be
        # on its way into the journal.
        from .reducer import Reducer

        row, alarms, state = self._reader.deriving(DERIVER, run_id)
        for watcher in self._watching:
            watcher.restore(run_id, alarms)
        run = self._runs[run_id] = _Run(run_id, row, max(row, state.read_row), state.token)
        run.reducer = Reducer(
            run_id,
            self._timeout_s,
            run.read_before,
            state.state,
            run.refuse,
            lambda text: print(f"run {run_id}: {text}", flush=True),
        )
        return run

    def _row(self, run: _Run, row: Row, *, is_last: bool) -> None:
        """Send what is made of a row, all of it before what is made of the next one."""
        for derived in self._made(run, row):
            self._say(run, derived)
        run.done = row.id
        if is_last or not run.part.is_empty:
            self._close(run)

    def _made(self, run: _Run, row: Row) -> Iterable[Derived]:
        """What is made of a row."""
        from ..rows.points import read_points
        from .known_tags import KnownTags

        try:
            if row.damaged:
                raise RemoteProtocolError("malformed", "its checksum is another")
            points = list(
                read_points(row.data, KnownTags(self._reader, row.client_id), reduced=True)
            )
        except RemoteProtocolError as error:
            run.part.refuse(f"journal row {row.id}", error)
            return
        parts = [p for p in points if not isinstance(p, Value) or p.kind == RANK_PART]
        if row.id > run.read_before:
            for value in points:
                if isinstance(value, Value) and value.kind != RANK_PART:
                    yield from self._value(run, row, value)
        if parts:
            now = self._clock()
            if not run.reducer.knows(row.client_id):
                run.reducer.see(members(self._reader.connection, run.id), now)
            yield from run.reducer.take(row.id, row.client_id, parts, now)

    def _value(self, run: _Run, row: Row, value: Value) -> Iterable[Derived]:
        derive = deriver_of(value.kind)
        if derive is None:
            return
        from .deriver import Source

        try:
            yield from derive(Source(run.id, row.client_id, row.id), value)
        except Exception as error:  # noqa: BLE001 - it must not be met again and again, for ever
            run.part.refuse(f"{value.kind} {value.tag!a:.100} at step {value.step}", error)

    def _settle(self, run: _Run) -> None:
        """Who has gone has said all that it ever will, once everything was read after that."""
        now = self._clock()
        run.reducer.see(members(self._reader.connection, run.id), now)
        if self.derive(run.id, 0):
            return
        for derived in run.reducer.settle(now):
            self._say(run, derived)
        if not run.part.is_empty:
            self._close(run)

    def _say(self, run: _Run, derived: Derived) -> None:
        """Take what was made, and what the watchers make of it, into the message."""
        run.part.add(derived)
        if derived.observation is not None:
            for watcher in self._watching:
                try:
                    for more in watcher(derived.observation):
                        run.part.add(more)
                except Exception as error:  # noqa: BLE001 - as above
                    run.part.refuse(f"{derived.observation.tag!a:.100}", error)
        if run.part.nbytes > _PART_BYTES:
            self._channel.send(run.part.message())
            run.part = Part(run.id, run.part.refused)

    def _close(self, run: _Run) -> None:
        """Send what was made, with all that the next process must know."""
        state = run.reducer.packed()
        read_row = max(run.done, run.read_before)
        token, run.token = run.token, secrets.randbits(62) | 1
        last = {
            "row": run.reducer.cursor(read_row),
            "read": read_row,
            "after": token,
            "token": run.token,
            "state": state,
            "reductions": dict(run.reducer.report()),
            "refused": run.part.refused,
        }
        self._channel.send({**run.part.message(), **last})
        run.part = Part(run.id)


class _Run:
    """How far the derivers are with a run.

    Attributes:
        id: the journal's id of the run.
        done: the row up to which this process has read.
        read_before: the row up to which a process before it had.
        token: of the newest message.
        part: the message that is being made.
        reducer: of its ranks.
    """

    reducer: Reducer

    def __init__(self, run_id: int, done: int, read_before: int, token: int) -> None:
        self.id = run_id
        self.done = done
        self.read_before = read_before
        self.token = token
        self.part = Part(run_id)

    def refuse(self, what: str, error: Exception) -> None:
        """Count and say what cannot be used."""
        self.part.refuse(what, error)


class Part:
    """Some of what is made of a row, as one message.

    Attributes:
        nbytes: about how long the message is.
        refused: values of the row, up to here, of which nothing can be made.
    """

    def __init__(self, run_id: int, refused: int = 0) -> None:
        self._run_id = run_id
        self._scalars: list[tuple[int, int, dict[str, float]]] = []
        self._values: list[bytes] = []
        self._alarm_states: dict[str, bytes] = {}
        self.nbytes = 0
        self.refused = refused

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self._scalars or self._values or self._alarm_states or self.refused)

    def add(self, derived: Derived) -> None:
        """Take what a deriver or a watcher has made."""
        try:
            _check(derived.scalars)
            if derived.scalars:
                self._scalars.append((derived.step, derived.time_ns, dict(derived.scalars)))
                self.nbytes += 64 * len(derived.scalars)
        except LocalProtocolError as error:
            self.refuse(f"a value at step {derived.step}", error)
        self._alarm_states.update(derived.alarm_states)
        for value in derived.values:
            try:
                length, pieces = encode_value(value)
                if length > _MAX_VALUE_BYTES:
                    raise LocalProtocolError(f"{length} bytes, at most {_MAX_VALUE_BYTES}")
            except LocalProtocolError as error:
                self.refuse(f"{value.kind} {value.tag!a:.100}", error)
                continue
            self._values.append(b"".join(pieces))
            self.nbytes += length

    def refuse(self, what: str, error: Exception) -> None:
        """Count and say what cannot be used."""
        self.refused += 1
        print(f"nothing can be derived of {what}: {type(error).__name__}: {error}", flush=True)

    def message(self) -> dict[str, Any]:
        """For the daemon."""
        return {
            "run_id": self._run_id,
            "scalars": self._scalars,
            "values": self._values,
            "alarm_states": self._alarm_states,
        }


def _check(scalars: Mapping[str, float]) -> None:
    """See that numbers can be journalled: a client may name as many statistics as it likes."""
    if len(scalars) > MAX_TAGS_PER_RECORD:
        raise LocalProtocolError(f"{len(scalars)} numbers, a record has {MAX_TAGS_PER_RECORD}")
    longest = max(map(len, scalars), default=0)
    if longest > _MAX_TAG:
        raise LocalProtocolError(f"a tag of {longest} characters, at most {_MAX_TAG}")


def start_message(
    journal_path: str, rules: Mapping[str, Any] | None, reduce_timeout_s: float = 30.0
) -> dict[str, Any]:
    """What a new process is told first."""
    return {
        "op": "start",
        "journal": journal_path,
        "rules": rules,
        "reduce_timeout_s": reduce_timeout_s,
    }


if __name__ == "__main__":
    main()
