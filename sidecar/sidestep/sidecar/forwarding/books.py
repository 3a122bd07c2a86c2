"""Tells the workers that pass runs on what the living clients say of themselves.

Their books are stored when they have gone; while they live only ingest has them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from ..ingest.roster import Snapshot
from ..supervision.supervisor import Supervisor
from ..supervision.wanted import FORWARD

_INTERVAL_S: Final = 1.0


class BooksTelling:
    """Lives in the daemon's main thread.

    Args:
        supervisor: knows the workers.
        clock: monotonic seconds.
    """

    def __init__(self, supervisor: Supervisor, clock: Callable[[], float] = time.monotonic) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._next = 0.0
        self._told: dict[int, float] = {}

    def tick(self, snapshot: Snapshot) -> None:
        """When it is time, tell each worker that has listened to the last time."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _INTERVAL_S
        books = _of_the_living(snapshot)
        for sink in self._supervisor.children():
            # One message under way for each: a worker that hangs must not be written full.
            if sink.name == FORWARD and sink.heard > self._told.get(sink.run_id, -1.0):
                self._told[sink.run_id] = now
                clients = list(books.get(sink.run_id, {}).items())
                sink.child.tell({"op": "books", "clients": clients})


def _of_the_living(snapshot: Snapshot) -> Mapping[int, Mapping[int, Mapping[str, Any]]]:
    """By run and client."""
    found: dict[int, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for entry in snapshot.clients:
        if entry.row.state == "live":
            found[entry.row.run_id][entry.row.id] = asdict(entry.session.books)
    return found
