"""The deriver's process: reads moments from the journal, sends back the scalars made of them.

It keeps nothing: the daemon journals what it says together with the cursor, in one transaction,
and tells a new process where to begin. Its linear algebra runs on one thread, so that it does not
take the trainer's cores.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from sidestep.proto import RemoteProtocolError, Value

from ..channel import Channel, ChannelClosedError
from ..journal_reader import JournalReader, Row

_MAX_BYTES = 16 << 20


def main() -> None:
    """Run as a process: ``python -m sidestep.sidecar.derive.worker FD``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    reader: JournalReader | None = None
    done: dict[int, int] = {}
    try:
        while True:
            for message in channel.receive():
                if message["op"] == "start":
                    reader = JournalReader(str(message["journal"]))
                elif reader is not None and message["op"] == "rows":
                    run_id, after = int(message["run_id"]), int(message["after"])
                    after = max(after, done.get(run_id, 0))
                    done[run_id] = _derive(channel, reader, run_id, after)
    except ChannelClosedError:
        os._exit(0)


def _derive(channel: Channel, reader: JournalReader, run_id: int, after: int) -> int:
    """Send what can be made of a run's rows after `after`; returns the last row."""
    while rows := reader.rows(after, run_id, kind="moments", max_bytes=_MAX_BYTES):
        for row in rows:
            channel.send({"run_id": run_id, "row": row.id, "scalars": _scalars(reader, row)})
        after = rows[-1].id
    return after


def _scalars(reader: JournalReader, row: Row) -> list[tuple[int, int, dict[str, float]]]:
    # numpy is loaded with the first moments, not at the start.
    from ..points import read_points
    from .moments import scalars

    found: list[tuple[int, int, dict[str, float]]] = []
    try:
        found.extend(
            (points.step, points.time_ns, scalars(points))
            for points in read_points(row.data, reader.tag_sets(row.client_id, refresh=True))
            if isinstance(points, Value) and points.kind == "moments"
        )
    except RemoteProtocolError as error:
        print(f"moments in journal row {row.id} cannot be read: {error}", flush=True)
    return found


def start_message(journal_path: str) -> dict[str, Any]:
    """What a new deriver process is told first."""
    return {"op": "start", "journal": journal_path}


if __name__ == "__main__":
    main()
