"""What the other threads see of clients and runs: copies, made anew of what a round has touched.

Copies, since what the next round has not committed must not be seen: a deriver that is told of a
row which it cannot read yet would not be told again. Of the touched alone, since a round costs as
much as all of them otherwise, and with many clients there are hundreds of rounds a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace

from .roster import ClientEntry, RunEntry


class Published:
    """The copies, and what they no longer agree with.

    Args:
        clients: all clients, by their uuids; looked at, never changed.
        runs: all runs, by their ids; likewise.
    """

    def __init__(self, clients: Mapping[bytes, ClientEntry], runs: Mapping[int, RunEntry]) -> None:
        self._of_clients = clients
        self._of_runs = runs
        self._clients: dict[bytes, ClientEntry] = {}
        self._shown: tuple[ClientEntry, ...] = ()
        self._runs: Mapping[int, RunEntry] = {}
        self._touched: dict[bytes, ClientEntry] = {}
        self._touched_runs: set[int] = set()

    def touch(self, entry: ClientEntry) -> None:
        """Something of a client, or of its run, is about to change."""
        self._touched[entry.row.uuid] = entry
        self._touched_runs.add(entry.row.run_id)

    def touch_run(self, run_id: int) -> None:
        """Something of a run is about to change."""
        self._touched_runs.add(run_id)

    def forget(self) -> None:
        """Nothing is as it was: everything is new."""
        self._clients.clear()
        self._shown, self._runs = (), {}
        self._touched = dict(self._of_clients)
        self._touched_runs = set(self._of_runs)

    def touched(self) -> tuple[ClientEntry, ...]:
        """The clients that were touched since they were shown last."""
        return tuple(self._touched.values())

    def clients(self) -> tuple[ClientEntry, ...]:
        """All clients, as they are now."""
        if self._touched:
            for entry in self._touched.values():
                self._touched_runs.add(entry.row.run_id)  # it may have gone to another
                self._clients[entry.row.uuid] = replace(
                    entry, row=copy(entry.row), session=copy(entry.session)
                )
            self._touched.clear()
            self._shown = tuple(self._clients.values())
        return self._shown

    def runs(self) -> Mapping[int, RunEntry]:
        """All runs, as they are now."""
        if self._touched_runs:
            new = {run_id: copy(self._of_runs[run_id]) for run_id in self._touched_runs}
            self._touched_runs.clear()
            self._runs = {**self._runs, **new}
        return self._runs
