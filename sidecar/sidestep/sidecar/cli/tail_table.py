"""The live table of `tail`: takes what comes, draws when something is new, does what keys say."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

from .follow import Block
from .tail_browse import Browser
from .tail_keys import KeyReader
from .tail_model import Presence, TailModel
from .tail_screen import Screen
from .tail_view import ASCII_GLYPHS, Glyphs, frame

_REDRAW_S: Final = 0.125
_KEY_REDRAW_S: Final = 0.02
_IDLE_REDRAW_S: Final = 1.0
_LISTEN_S: Final = 0.25
"""Ctrl-Z or a new window size is noticed within this time."""
_ESCAPE_S: Final = 0.05
"""An escape that nothing follows for so long is the key of that name."""
_DRAWING_SHARE: Final = 10
"""Drawing takes at most one part in so many of a core: it shares the machine with training."""
_BYTES_PER_S: Final = 24_000
"""What frames may take of a slow line, on average."""


class TableOutput:
    """The live table, on the terminal's other screen; its last frame stays on the first one.

    Ctrl-Z leaves the other screen, too, and `fg` comes back to it.

    Args:
        clock: monotonic, in seconds.
        screen: where it is drawn; None for this process's terminal.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, screen: Screen | None = None
    ) -> None:
        encoding = (sys.stdout.encoding or "ascii").lower()
        self.keys = sys.stdin.fileno() if _is_terminal(sys.stdin) else None
        self._clock = clock
        self._model = TailModel()
        self._browser = Browser()
        self._reader = KeyReader()
        self._glyphs = Glyphs() if encoding.startswith("utf") else ASCII_GLYPHS
        self._screen = screen or Screen(
            sys.stdout.fileno(),
            self.keys,
            colour=not os.environ.get("NO_COLOR"),
            encoding=encoding,
        )
        self._dirty = True
        self._drawn_at = self._pressed_at = -math.inf
        self._rest_s = _REDRAW_S
        self._size = (0, 0)
        self._pause_wanted = False
        self._chosen: str | None = None
        signal.signal(signal.SIGTSTP, self._on_pause)
        self._screen.enter()

    # --- what comes --------------------------------------------------------------------------

    def run(self, name: str | None) -> None:
        """Show another run."""
        if name != self._model.run:
            self._model.show(name)
            self._browser.reset()
            self._dirty = True

    def add(self, blocks: Sequence[Block]) -> None:
        """Take points; they show with the next frame."""
        for block in blocks:
            self._model.add(block)
        self._dirty = self._dirty or bool(blocks)

    def status(self, status: dict[str, Any]) -> None:
        """Show what the daemon says of the run and the machine."""
        before, self._model.status = self._model.status, status
        shown = ("runs", "gpus", "host")  # the daemon's age is not
        self._dirty = self._dirty or any(before.get(key) != status.get(key) for key in shown)

    def missed(self, records: int) -> None:
        """Show how many points' records were skipped."""
        self._dirty = self._dirty or records != self._model.missed
        self._model.missed = records

    def presence(self, presence: Presence) -> None:
        """Show whether there is a daemon."""
        if presence != self._model.presence:
            self._model.presence = presence
            self._dirty = True

    # --- keys --------------------------------------------------------------------------------

    def read_keys(self) -> None:
        """Do what the keys say that were pressed.

        Raises:
            KeyboardInterrupt: one of them says to leave.
        """
        assert self.keys is not None
        data = os.read(self.keys, 1024)
        if not data:
            self.keys = None  # nobody will press any more
            return
        self._pressed_at = self._clock()
        self._press(self._reader.feed(data))

    def chosen(self) -> str | None:
        """The run that was asked for since the last time."""
        chosen, self._chosen = self._chosen, None
        return chosen

    def _press(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._dirty = True
            self._drawn_at = min(self._drawn_at, self._clock() - self._rest_s + _KEY_REDRAW_S)
            match self._browser.press(key, self._model, time.time()):
                case "quit":
                    raise KeyboardInterrupt
                case "next":
                    self._choose(1)
                case "previous":
                    self._choose(-1)
                case "redraw":
                    self._size = (0, 0)
                case _:
                    pass

    def _choose(self, by: int) -> None:
        runs = self._model.runs()
        current = self._chosen or self._model.run
        if not runs:
            return
        at = runs.index(current) + by if current in runs else 0
        if runs[at % len(runs)] != current:
            self._chosen = runs[at % len(runs)]

    # --- drawing -----------------------------------------------------------------------------

    def tick(self) -> float:
        """Draw a frame when something is new, or when ages have grown."""
        if self._pause_wanted:
            self._pause()
        now = self._clock()
        if self._reader.pending and now - self._pressed_at >= _ESCAPE_S:
            self._press(self._reader.flush())
        size = self._screen.size()
        if size != self._size:
            self._drawn_at = -math.inf
        idle = max(self._rest_s, _IDLE_REDRAW_S)
        due = self._drawn_at + (self._rest_s if self._dirty else idle)
        if now >= due:
            self._draw(now, size)
            due = self._drawn_at + self._rest_s
        wait = min(due - now, _LISTEN_S)
        return min(wait, _ESCAPE_S) if self._reader.pending else wait

    def _draw(self, now: float, size: tuple[int, int]) -> None:
        self._dirty = False
        lines = frame(self._model, *size, time.time(), self._glyphs, self._browser)
        if size != self._size:
            self._screen.forget()
        self._size = size
        nbytes = self._screen.draw(lines, size)
        self._drawn_at = now
        spent_s = self._clock() - now
        self._rest_s = max(_REDRAW_S, spent_s * _DRAWING_SHARE, nbytes / _BYTES_PER_S)

    def _on_pause(self, _signal: int, _frame: FrameType | None) -> None:
        self._pause_wanted = True

    def _pause(self) -> None:
        self._pause_wanted = False
        self._screen.leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._screen.enter()
        self._dirty, self._size = True, (0, 0)

    def close(self) -> None:
        """Give the terminal back, with the last frame on it."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self._screen.leave()
        width, height = self._screen.size()
        self._browser.mode = "table"
        # One line is the prompt's; the keys do nothing any more.
        self._screen.print(frame(self._model, width, height - 1, time.time(), self._glyphs))


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # it was closed
        return False
