"""What this daemon refused: counted by why, said in the log now and then, a few samples kept."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Literal

from .quarantine import Quarantine

What = Literal["frame", "record", "client"]

_LOG_S: Final = 5.0
"""Refusals of one kind are said at most as often."""

_MAX_KINDS: Final = 200
"""Kinds that are told apart: codes come from here, but one day somebody forgets."""


class Refusals:
    """The books of what was refused; one thread's.

    Args:
        quarantine: where samples go; None to keep none.
        log: says something to the daemon's log.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        quarantine: Quarantine | None,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quarantine = quarantine
        self._log = log
        self._clock = clock
        self._counts: dict[What, Counter[str]] = {
            "frame": Counter(),
            "record": Counter(),
            "client": Counter(),
        }
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        self._samples = 0

    @property
    def frames(self) -> int:
        """Frames, and records that came in a frame which was none to be refused."""
        return self._counts["frame"].total() + self._counts["record"].total()

    def note(
        self,
        what: What,
        code: str,
        why: str,
        data: bytes | memoryview | None = None,
        *,
        count: int = 1,
        who: str = "",
    ) -> None:
        """Count a refusal, and log and keep the sample if it is time for one.

        Args:
            what: what was refused.
            code: the kind of reason.
            why: the sentence that says it.
            data: what came, if it is worth to be kept.
            count: how many.
            who: whose it was, for the log.
        """
        counts = self._counts[what]
        if code not in counts and len(counts) >= _MAX_KINDS:
            code = "other"
        counts[code] += count
        kept = ""
        quarantine = self._quarantine
        if data and quarantine is not None and quarantine.keep(what, f"{code}: {why}", data):
            self._samples += 1
            kept = f"; a sample is in {quarantine.folder}"
        now = self._clock()
        last, before = self._said.get((what, code), (-_LOG_S, 0))
        if now - last >= _LOG_S:
            more = counts[code] - before - count
            since = f" ({more:,} more since the last such line)" if more else ""
            whose = f" of {who}" if who else ""
            self._log(f"refused {count:,} {what}(s){whose}, {code}: {why}{kept}{since}")
            self._said[what, code] = (now, counts[code])

    def status(self) -> Mapping[str, object]:
        """The counts by what and why, and how many samples were kept."""
        return {
            **{f"{what}s": dict(counts) for what, counts in self._counts.items()},
            "samples": self._samples,
            "quarantine": self._quarantine.folder if self._quarantine else None,
        }
