"""Decides which points of a run are new, whatever the feed and the daemon do in between. No I/O.

The feed is live and forgets; the journal remembers and has to be asked. To miss nothing and to
show nothing twice, rows of the journal are counted:

- `row` is the journal row up to which everything was shown.
- A feed says nothing until its subscription has reached the daemon, and nobody is told when that
  is. So its first message is the proof; before it is believed, history after `row` is asked for,
  which holds all that was published to nobody in the meantime. Messages that come while the answer
  is under way are held, and those that it covers are dropped.
- Another daemon id, or silence, means that the proof is void: the same again.
- Who reads too slowly misses messages. They are not asked for again, since that would cost the
  daemon more than they did before; how many records they held is counted (`missed`).

Events go in (`on_…`), blocks of points come out, and `request` says what to ask the daemon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from .missed import Missed

_MAX_HELD = 1000
"""Feed messages held while history is under way. History covers the oldest of them first."""

_MAX_CACHED_TAG_SETS: Final = 1000

STATUS_TOPIC: Final = b"\0status"


@dataclass(frozen=True, slots=True)
class Block:
    """Points that were emitted under the same tags, oldest first.

    Attributes:
        tags: k names.
        steps: n steps.
        wall_times: n times of emission, in seconds.
        values: n rows of k numbers.
    """

    run: str
    tags: Sequence[str]
    steps: Sequence[int]
    wall_times: Sequence[float]
    values: Sequence[Sequence[float]]


class TagFilter:
    """Which of a block's columns are wanted; without globs, all."""

    def __init__(self, globs: Sequence[str]) -> None:
        self._globs = tuple(globs)
        self._columns: dict[tuple[str, ...], tuple[int, ...]] = {}

    def __call__(self, block: Block) -> Block | None:
        """The wanted part of `block`, or None."""
        if not self._globs:
            return block
        tags = tuple(block.tags)
        columns = self._columns.get(tags)
        if columns is None:
            if len(self._columns) >= _MAX_CACHED_TAG_SETS:
                self._columns.clear()
            columns = self._columns[tags] = tuple(
                index
                for index, tag in enumerate(tags)
                if any(fnmatchcase(tag, glob) for glob in self._globs)
            )
        if len(columns) == len(tags):
            return block
        if not columns:
            return None
        return Block(
            block.run,
            [tags[column] for column in columns],
            block.steps,
            block.wall_times,
            [[row[column] for column in columns] for row in block.values],
        )


class Follower:
    """Follows one run: the one named, or else the most recently active.

    Without a name it stays with its run as long as that is running; when that is over and another
    one has points, it goes over to that one.

    Args:
        run: the run to follow, or None.
        tags: globs of the tags that are wanted; none means all.
        history: how many points of each tag to begin with.
    """

    def __init__(self, run: str | None, tags: Sequence[str] = (), history: int = 0) -> None:
        self.run = run
        self._named = run is not None
        self._tags = tuple(tags)
        self._wanted = TagFilter(tags)
        self._history = history
        self._row: int | None = None
        self._row_daemon: int | None = None  # whose journal it counts in
        self._first_row = 0  # what came after it is new to who started this tail
        self._was_absent = False
        self._heard: int | None = None  # the daemon whose feed is proven to reach us
        self._caught_up = False
        self._asked_after: int | None = None
        self._asked_heard: int | None = None
        self._held: deque[Mapping[str, Any]] = deque(maxlen=_MAX_HELD)
        self._last_active: str | None = None
        self._missed = Missed()

    @property
    def missed(self) -> int:
        """Records of the followed run, and of those before it, that were not shown."""
        return self._missed.records

    @property
    def topics(self) -> tuple[bytes, ...]:
        """What to subscribe to, once and for all."""
        if self._named and self.run is not None:
            return (self.run.encode(errors="replace") + b"\0", STATUS_TOPIC)
        return (b"",)

    def follow(self, run: str) -> None:
        """Go over to a run, and stay with it; the feed must be subscribed to anew."""
        self.run, self._named = run, True
        self._row, self._first_row, self._was_absent = None, 0, False
        self._missed.forget()
        self.on_silence()

    def request(self) -> dict[str, object] | None:
        """The fields of the history request to make now, if there is one."""
        if self._caught_up or (self._row is not None and self._heard is None):
            return None
        after, points = self._row, 0
        if after is None and self._was_absent:
            after = 0  # all that it has: what came before us cannot be told from what came after
        elif after is None:
            points = self._history
        self._asked_after, self._asked_heard = after, self._heard
        return {"run": self.run, "tags": list(self._tags), "points": points, "after": after}

    def on_history(self, reply: Mapping[str, Any]) -> list[Block]:
        """The answer to the latest request."""
        row, daemon_id = int(reply["row"]), reply.get("daemon_id")
        after = self._asked_after
        if after is not None and row < after and daemon_id != self._row_daemon:
            # A daemon with another journal, which counts from the start.
            self._row, self._first_row, self._row_daemon = 0, 0, daemon_id
            self._missed.forget()
            return []
        if self._row is None:
            self._first_row = after if after is not None else row
        self._row, self._row_daemon = max(row, self._row or 0), daemon_id
        if self.run is None:
            self.run = _most_recent(reply)
        spans = (rest for run, *rest in reply.get("spans") or () if run == self.run)
        self._missed.on_history(spans, complete=not reply.get("more"))
        points = (point for point in reply["points"] if point["run"] == self.run)
        blocks = self._filtered(map(_block_of_point, points))
        same = self._asked_heard == self._heard == daemon_id
        if self._heard is not None and same and not reply.get("more"):
            self._caught_up = True
            held = list(self._held)
            self._held.clear()
            for message in held:
                blocks += self._take(message)
        return blocks

    def on_feed(self, message: Mapping[str, Any]) -> list[Block]:
        """A message with points, of this run or another."""
        self._hear(message.get("daemon_id"))
        if not self._caught_up:
            self._held.append(message)
            return []
        return self._take(message)

    def on_status(self, status: Mapping[str, Any], totals: Iterable[Sequence[Any]] = ()) -> None:
        """The daemon's status, once a second.

        Args:
            status: as `sidestep status --json` prints it.
            totals: (run id, run, records) of all that the feed has published or skipped.
        """
        daemon: Mapping[str, Any] = status.get("daemon") or {}
        self._hear(daemon.get("daemon_id"))
        if self._caught_up:
            self._missed.on_totals((one, many) for one, run, many in totals if run == self.run)
        if self._named or self.run is None or self._last_active in (None, self.run):
            return
        states = {run.get("run"): run.get("state") for run in status.get("runs") or ()}
        if states.get(self.run) != "running" and states.get(self._last_active) == "running":
            self.run = self._last_active
            self._row = self._first_row
            self._caught_up = False
            self._missed.forget()

    def on_silence(self) -> None:
        """The feed says nothing any more: whatever it says next may come after a hole."""
        self._heard = None
        self._caught_up = False
        self._held.clear()

    def on_absence(self) -> None:
        """There is no daemon."""
        self._was_absent = True
        self.on_silence()

    def _hear(self, daemon_id: int | None) -> None:
        if daemon_id is not None and daemon_id != self._heard:
            self.on_silence()
            self._heard = daemon_id

    def _take(self, message: Mapping[str, Any]) -> list[Block]:
        row, run = int(message["row"]), message["run"]
        self._last_active = run
        if self._row is not None and row <= self._row:
            return []
        self._row = row
        if self.run is None:
            self.run = run
        if run != self.run:
            return []
        if (run_id := message.get("run_id")) is not None:
            self._missed.on_rows(int(run_id), int(message["records"]), int(message["total"]))
        return self._filtered(Block(run, *table) for table in message["scalars"])

    def _filtered(self, blocks: Iterable[Block]) -> list[Block]:
        return [wanted for block in blocks if (wanted := self._wanted(block)) is not None]


def _most_recent(reply: Mapping[str, Any]) -> str | None:
    """The run to follow when none was named: the last to have points, or to be known at all."""
    named: str | None = reply.get("run")
    if named is not None:
        return named
    runs = reply.get("runs") or ()
    running = [run for run in runs if run.get("state") == "running"]
    for candidates in (reply["points"], running, runs):
        if candidates:
            last: str = candidates[-1]["run"]
            return last
    return None


def _block_of_point(point: Mapping[str, Any]) -> Block:
    return Block(
        point["run"], (point["tag"],), (point["step"],), (point["wall_time"],), ((point["value"],),)
    )
