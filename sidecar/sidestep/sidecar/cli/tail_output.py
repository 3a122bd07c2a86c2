"""The three ways in which `tail` shows points: JSON lines, plain lines, and the live table."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO, Any, Final, Protocol

from . import wording
from .common import console
from .follow import Block
from .tail_model import Presence, TailModel

_NON_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Python's words for them, and those that Python's `json` writes and reads."""

_MISSED_EVERY_S: Final = 10.0
_REDRAW_S: Final = 0.125
_IDLE_REDRAW_S: Final = 1.0
_LISTEN_S: Final = 0.25
"""A key (Ctrl-Z) or a new window size is noticed within this time."""
_DRAWING_SHARE: Final = 10
"""Drawing takes at most one part in so many of a core: it shares the machine with training."""


class Output(Protocol):
    """Where points go."""

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


class TableOutput:
    """The live table, on the terminal's other screen; its last frame stays on the first one.

    Ctrl-Z leaves the other screen, too, and `fg` comes back to it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        from .tail_view import ASCII_GLYPHS, Glyphs

        self._clock = clock
        self._model = TailModel()
        self._console = console()
        unicode = self._console.encoding.lower().startswith("utf")
        self._glyphs = Glyphs() if unicode else ASCII_GLYPHS
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._dirty = True
        self._drawn_at = -math.inf
        self._rest_s = _REDRAW_S
        self._pause_wanted = False
        self._live.start()
        signal.signal(signal.SIGTSTP, self._on_pause)

    def run(self, name: str | None) -> None:
        """Show another run."""
        self._model.show(name)
        self._dirty = True

    def add(self, blocks: Sequence[Block]) -> None:
        """Take points; they show with the next frame."""
        for block in blocks:
            self._model.add(block)
        self._dirty = self._dirty or bool(blocks)

    def status(self, status: dict[str, Any]) -> None:
        """Show what the daemon says of the run and the machine."""
        self._model.status = status
        self._dirty = True

    def missed(self, records: int) -> None:
        """Show how many points' records were skipped."""
        self._dirty = self._dirty or records != self._model.missed
        self._model.missed = records

    def presence(self, presence: Presence) -> None:
        """Show whether there is a daemon."""
        if presence != self._model.presence:
            self._model.presence = presence
            self._dirty = True

    def tick(self) -> float:
        """Draw a frame when something is new, or when ages have grown."""
        if self._pause_wanted:
            self._pause()
        now = self._clock()
        idle = max(self._rest_s, _IDLE_REDRAW_S)
        due = self._drawn_at + (self._rest_s if self._dirty else idle)
        if now >= due:
            self._draw(now)
            due = self._drawn_at + self._rest_s
        return min(due - now, _LISTEN_S)

    def _draw(self, now: float) -> None:
        from rich.console import Group

        self._dirty = False
        self._live.update(Group(*self._frame(*self._measure())), refresh=True)
        self._drawn_at = now
        self._rest_s = max(_REDRAW_S, (self._clock() - now) * _DRAWING_SHARE)

    def _measure(self) -> tuple[int, int]:
        """The terminal's size now: $COLUMNS and $LINES, where exported, are of some time ago."""
        width, height = os.get_terminal_size(sys.stdout.fileno())
        self._console.width, self._console.height = size = width or 80, height or 24
        return size

    def _frame(self, width: int, height: int) -> list[Any]:
        from .tail_view import frame

        return list(frame(self._model, width, height, time.time(), self._glyphs))

    def _on_pause(self, _signal: int, _frame: FrameType | None) -> None:
        self._pause_wanted = True

    def _pause(self) -> None:
        self._pause_wanted = False
        self._live.stop()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._live.start()
        self._dirty = True

    def close(self) -> None:
        """Give the terminal back, with the last frame on it."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self._live.stop()
        width, height = self._measure()
        for line in self._frame(width, height - 1):  # one line is the prompt's
            self._console.print(line, no_wrap=True, overflow="crop")


def note(text: str) -> None:
    """Say something to the user where no reader of lines takes it for one."""
    print(f"sidestep tail: {text}", file=sys.stderr, flush=True)
