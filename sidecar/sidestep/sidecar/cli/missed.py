"""Counts the records of a run that nobody showed, from what each message says of it. No I/O.

Every row of the journal knows how many records its run had with it. Two rows that follow one
another leave no gap between these numbers; where there is one, so many records were skipped: by the
feed, which fell behind, or by ZeroMQ, since the subscriber did not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class Missed:
    """The records skipped in one run.

    A name may stand for several runs (of different log directories): they are told apart by their
    ids in the journal.

    Attributes:
        records: how many were skipped so far.
    """

    def __init__(self) -> None:
        self.records = 0
        self._totals: dict[int, int] = {}
        self._counting = False

    def forget(self) -> None:
        """Another run, or another journal: there is nothing to compare with any more."""
        self._totals.clear()
        self._counting = False

    def on_history(self, spans: Iterable[Sequence[Any]], complete: bool) -> None:
        """History was shown.

        Args:
            spans: (run id, records before the first row of it, records up to its last row).
            complete: whether it goes as far as the journal does.
        """
        for run_id, before, upto in spans:
            if self._counting:
                self._skipped_to(int(run_id), int(before))
            self._totals[int(run_id)] = int(upto)
        # From the first complete answer on, a run that is not known has only just begun.
        self._counting = self._counting or complete

    def on_rows(self, run_id: int, records: int, total: int) -> None:
        """Rows of `records` were shown, with which their run had `total`."""
        self._skipped_to(run_id, total - records)
        self._totals[run_id] = total

    def on_totals(self, totals: Iterable[Sequence[Any]]) -> None:
        """The feed says how many records each run had in all that it has published or skipped."""
        for run_id, total in totals:
            self._skipped_to(int(run_id), int(total))

    def _skipped_to(self, run_id: int, total: int) -> None:
        known = self._totals.get(run_id, 0)
        if self._counting and total > known:
            self.records += total - known
            self._totals[run_id] = total
