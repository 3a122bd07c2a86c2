"""Which runs get samples of this machine, and under which tags where they have others, too.

In a tree of daemons each samples its own machine, for the trainers that run on it: not for those
that another daemon has passed on. Rank 0's machine is ``system/*``, as that of a run on a single
machine; any other goes under ``rank_K/``, K being the lowest rank there.
"""

from __future__ import annotations

from ..ingest.roster import ClientEntry, RunEntry, Snapshot


class Sampled:
    """Remembers the lowest rank of each run, so that its tags stay the same while it lives.

    Args:
        passes_on: whether all runs are passed on: other machines may be in any of them.
    """

    def __init__(self, *, passes_on: bool) -> None:
        self._passes_on = passes_on
        self._ranks: dict[int, int] = {}

    def of(self, snapshot: Snapshot) -> list[tuple[RunEntry, ClientEntry, str]]:
        """Each live run of this machine, its client of the lowest rank, what precedes its tags."""
        lowest: dict[int, ClientEntry] = {}
        spread: set[int] = set()  # runs that have clients on other machines, too
        for entry in snapshot.clients:
            run_id = entry.row.run_id
            if entry.row.state != "live":
                continue
            if entry.hello.via:
                spread.add(run_id)
            elif run_id not in lowest or entry.row.rank < lowest[run_id].row.rank:
                lowest[run_id] = entry
        self._ranks = {
            run_id: min(entry.row.rank, self._ranks.get(run_id, entry.row.rank))
            for run_id, entry in lowest.items()
        }
        return [
            (snapshot.runs[run_id], entry, self._prefix(run_id, run_id in spread))
            for run_id, entry in lowest.items()
        ]

    def _prefix(self, run_id: int, spread: bool) -> str:
        rank = self._ranks[run_id]
        return f"rank_{rank}/" if rank and (spread or self._passes_on) else ""
