"""Cursors that are ahead of their journal, brought back to its end.

A journal can lose its newest rows: a power cut takes what was not synced, a torn log ends where it
is torn. A sink that has written them stands behind the last row that is left, and the next rows
get numbers that it has passed: they would never be written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ..journal.writer import Journal
from . import cursor_file

_SINKS: Final = ("tensorboard", "wandb", "archive", "forward")


def rewind(directory: str, journal: Journal, log: Callable[[str], None]) -> None:
    """Bring back the cursors in `directory` that are behind the last row of `journal`.

    What their sinks have written stays. To be called before the journal takes anything.

    Raises:
        OSError: a cursor cannot be written.
    """
    identity = journal.identity()
    for run_id, spec in journal.runs().items():
        for sink in _SINKS:
            name = cursor_file.file_name(spec.name, spec.log_dir, sink)
            path = os.path.join(directory, name)
            cursor = cursor_file.load(path, identity)
            if cursor.row > journal.last_row:
                log(
                    f"the journal has lost its newest rows: {sink} of run {spec.name!r} has "
                    f"written row {cursor.row}, the last one is {journal.last_row}"
                )
                total = journal.totals.get(run_id, 0)
                cursor_file.store(path, replace(cursor, row=journal.last_row, total=total))
