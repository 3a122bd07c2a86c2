"""What `tail` shows points with, and the two that are for pipes: JSON lines and plain lines."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, Final, Protocol

from . import wording
from .follow import Block
from .tail_model import Presence

_NON_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Python's words for them, and those that Python's `json` writes and reads."""

_MISSED_EVERY_S: Final = 10.0


class Output(Protocol):
    """Where points go.

    Attributes:
        keys: the descriptor that keys are read from, None for none.
    """

    keys: int | None

    def run(self, name: str | None) -> None:
        """Which run is followed from now on."""

    def add(self, blocks: Sequence[Block]) -> None:
        """New points, oldest first."""

    def status(self, status: dict[str, Any]) -> None:
        """The daemon's status, once a second."""

    def presence(self, presence: Presence) -> None:
        """Whether there is a daemon."""

    def missed(self, records: int) -> None:
        """How many records were skipped so far, because this output takes too long."""

    def tick(self) -> float:
        """Do what is due; the seconds after which it wants to be called again."""
        ...

    def read_keys(self) -> None:
        """Something can be read from `keys`."""

    def chosen(self) -> str | None:
        """The run that the user has asked for since the last time."""

    def close(self) -> None:
        """Leave everything as it was."""


class LineOutput:
    """One line a point, flushed with every message; words about the daemon go elsewhere.

    Args:
        stdout: where lines go, as UTF-8.
        line: makes the lines of a block.
        note: says something to the user, beside the lines.
        run: the run that the user named.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        stdout: IO[bytes],
        line: Callable[[Block], str],
        note: Callable[[str], None],
        run: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys: int | None = None
        self._stdout = stdout
        self._line = line
        self._note = note
        self._run = run
        self._clock = clock
        self._presence: Presence = "there"
        self._missed = self._missed_said = 0
        self._missed_next = -math.inf

    def run(self, name: str | None) -> None:
        """Say which run it is when nobody named it."""
        if name != self._run and name is not None:
            self._note(f"following {wording.printable(name)!r}")
        self._run = name

    def add(self, blocks: Sequence[Block]) -> None:
        """Write the points of one message at once."""
        if blocks:
            self._stdout.write("".join(map(self._line, blocks)).encode())
            self._stdout.flush()

    def status(self, status: dict[str, Any]) -> None:
        """Nothing: lines are points."""

    def presence(self, presence: Presence) -> None:
        """Say when the daemon goes, and when it is back."""
        if presence != self._presence:
            self._presence = presence
            self._note(_PRESENCE_NOTES[presence])

    def missed(self, records: int) -> None:
        """Say how many were skipped, and then no more than every few seconds."""
        self._missed = records
        if records > self._missed_said and self._clock() >= self._missed_next:
            self._say_missed()

    def _say_missed(self) -> None:
        new, self._missed_said = self._missed - self._missed_said, self._missed
        self._missed_next = self._clock() + _MISSED_EVERY_S
        run = wording.printable(self._run or "")
        self._note(
            f"{wording.counted(new, 'record')} of {run!r} skipped, since this output is read too "
            f"slowly. `sidestep export {shlex.quote(run)} -f jsonl` has them all"
        )

    def tick(self) -> float:
        """Nothing is due, ever."""
        return 1.0

    def read_keys(self) -> None:
        """Nothing: there are none."""

    def chosen(self) -> str | None:
        """None: the run is the one that was named, or the latest."""
        return None

    def close(self) -> None:
        """Say what has not been said yet."""
        if self._missed > self._missed_said:
            self._say_missed()


_PRESENCE_NOTES: Final = {
    "absent": "no daemon just now; waiting for one",
    "silent": "the daemon says nothing (stopped, or overloaded); waiting",
    "there": "the daemon is there",
}


def json_lines(block: Block) -> str:
    """`block` as one JSON object a line, floats to the last bit."""
    run = json.dumps(block.run)
    heads = [f'{{"run": {run}, "tag": {json.dumps(tag)}, "step": ' for tag in block.tags]
    return "".join(
        f'{head}{step}, "wall_time": {_json_float(wall_time)}, "value": {_json_float(value)}}}\n'
        for step, wall_time, row in zip(block.steps, block.wall_times, block.values, strict=True)
        for head, value in zip(heads, row, strict=True)
    )


def _json_float(value: float) -> str:
    text = repr(float(value))
    return _NON_FINITE.get(text, text)


def plain_lines(block: Block) -> str:
    """`block` as lines of step, tag and value."""
    tags = [wording.printable(tag) for tag in block.tags]
    return "".join(
        f"{step} {tag} {float(value)!r}\n"
        for step, row in zip(block.steps, block.values, strict=True)
        for tag, value in zip(tags, row, strict=True)
    )


def note(text: str) -> None:
    """Say something to the user where no reader of lines takes it for one."""
    print(f"sidestep tail: {text}", file=sys.stderr, flush=True)
