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
import select
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sidestep.proto import LocalProtocolError, RemoteProtocolError, Value
from sidestep.proto.limits import MAX_TAG_BYTES, MAX_TAGS_PER_RECORD
from sidestep.proto.records import encode_value

from ..channel import Channel, ChannelClosedError
from ..journal_reader import JournalReader, Row
from ..roster import DERIVED_KINDS, DERIVER
from ..terminal import leave_signals_to_the_daemon, make_printing_harmless

if TYPE_CHECKING:
    from .deriver import Derive, Derived, Watcher

_MAX_BYTES: Final = 16 << 20
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
        ready = not waiting or bool(select.select([channel], [], [], 0)[0])
        for message in channel.receive() if ready else ():
            if message["op"] == "start":
                reader = JournalReader(str(message["journal"]))
                worker = Worker(channel, reader, watchers(message["rules"]))
            elif message["op"] == "rows":
                waiting.setdefault(int(message["run_id"]), int(message["after"]))
        if waiting and worker is not None:
            # In turns: a run with much to derive must not delay the alarms of another.
            run_id, after = next(iter(waiting.items()))
            del waiting[run_id]
            if worker.derive(run_id, after):
                waiting[run_id] = after


class Worker:
    """Derives what the journal has, a few megabytes of a run at a time.

    Args:
        channel: to the daemon.
        reader: of the journal, for this process alone.
        watching: is shown every observation.
    """

    def __init__(
        self, channel: Channel, reader: JournalReader, watching: Sequence[Watcher]
    ) -> None:
        self._channel = channel
        self._reader = reader
        self._watching = watching
        self._done: dict[int, int] = {}

    def derive(self, run_id: int, after: int) -> bool:
        """Send what can be made of a run's next rows after `after`; whether there were any."""
        if run_id not in self._done:
            # Row and states at one moment: what a process before this one has sent may still be
            # on its way into the journal.
            self._done[run_id], states = self._reader.derived(DERIVER, run_id)
            for watcher in self._watching:
                watcher.restore(run_id, states)
            after = self._done[run_id]
        after = max(after, self._done[run_id])
        rows = self._reader.rows(after, run_id, kinds=DERIVED_KINDS, max_bytes=_MAX_BYTES)
        for row in rows:
            self._row(run_id, row, after)
            self._done[run_id] = after = row.id
        return bool(rows)

    def _row(self, run_id: int, row: Row, after: int) -> None:
        """Send what is made of a row: parts, the last of which says that the row is done."""
        from ..points import read_points

        part = Part(run_id)
        try:
            if row.damaged:
                raise RemoteProtocolError("malformed", "its checksum is another")
            points = list(read_points(row.data, self._tag_sets(row)))
        except RemoteProtocolError as error:
            part.refuse(f"journal row {row.id}", error)
            points = []
        for value in points:
            if isinstance(value, Value):
                for derived in self._value(run_id, row, value, part):
                    part.add(derived)
                    if part.nbytes > _PART_BYTES:
                        self._channel.send(part.message())
                        part = Part(run_id, part.refused)
        last = {"row": row.id, "after": after, "refused": part.refused}
        self._channel.send({**part.message(), **last})

    def _value(self, run_id: int, row: Row, value: Value, part: Part) -> list[Derived]:
        derive = deriver_of(value.kind)
        if derive is None:
            return []
        from .deriver import Source

        found: list[Derived] = []
        try:
            for derived in derive(Source(run_id, row.client_id, row.id), value):
                found.append(derived)
                if derived.observation is not None:
                    for watcher in self._watching:
                        found.extend(watcher(derived.observation))
        except Exception as error:  # noqa: BLE001 - it must not be met again and again, for ever
            part.refuse(f"{value.kind} {value.tag!a:.100} at step {value.step}", error)
        return found

    def _tag_sets(self, row: Row) -> Any:
        return self._reader.tag_sets(row.client_id, refresh=True)


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


def start_message(journal_path: str, rules: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a new process is told first."""
    return {"op": "start", "journal": journal_path, "rules": rules}


if __name__ == "__main__":
    main()
