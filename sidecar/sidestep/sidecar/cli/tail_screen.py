"""The terminal as `tail` uses it: its other screen, each key as it comes, and few bytes a frame.

A frame is compared with the one before, and only the pieces that differ are written, each at its
place, inside a synchronized update where the terminal knows those. Nothing scrolls and nothing is
cleared first: it cannot flicker, and over a slow line a quiet screen costs next to nothing.
"""

from __future__ import annotations

import os
import select
import termios
from collections.abc import Sequence
from typing import Any, Final

from .tail_spans import Line, Span, columns, sgr

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[0m\x1b[2J"
_LEAVE: Final = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_BEGIN: Final = "\x1b[?2026h"
_END: Final = "\x1b[?2026l"
_LEAVE_S: Final = 1.0
"""A terminal that takes nothing keeps nobody from leaving."""

_CHUNK_BYTES: Final = 4096


class Screen:
    """A terminal's screen and keyboard.

    Args:
        out: where it is written.
        keys: where keys are read, None for nowhere.
        colour: whether colours are wanted.
        encoding: the terminal's.
    """

    def __init__(
        self, out: int, keys: int | None, *, colour: bool = True, encoding: str = "utf-8"
    ) -> None:
        self._out = out
        self._keys = keys
        self._colour = colour
        self._encoding = encoding
        self._saved: list[Any] | None = None
        self._shown: list[tuple[Span, ...]] = []
        self._shown_size = (0, 0)

    def size(self) -> tuple[int, int]:
        """Columns and lines now: $COLUMNS and $LINES, where exported, are of some time ago."""
        width, height = os.get_terminal_size(self._out)
        return width or 80, height or 24

    def enter(self) -> None:
        """Go to the other screen, and have keys at once and not echoed; signals stay as they are.

        Raises:
            OSError: the terminal has gone.
        """
        if self._keys is not None:
            self._saved = termios.tcgetattr(self._keys)
            raw = termios.tcgetattr(self._keys)
            raw[3] &= ~(termios.ICANON | termios.ECHO)
            raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._keys, termios.TCSANOW, raw)
        self._shown, self._shown_size = [], (0, 0)
        self._write(_ENTER)

    def leave(self) -> None:
        """Give everything back as it was; what was typed and not read is nobody's."""
        if self._saved is not None and self._keys is not None:
            saved, self._saved = self._saved, None
            try:
                termios.tcflow(self._keys, termios.TCOON)  # Ctrl-S may hold up what we write
                termios.tcflush(self._keys, termios.TCIFLUSH)
                termios.tcsetattr(self._keys, termios.TCSANOW, saved)
            except termios.error:
                pass  # it has gone, and its modes with it
        self._shown = []
        if select.select([], [self._out], [], _LEAVE_S)[1]:
            self._write(_LEAVE)

    def forget(self) -> None:
        """What is on the screen is not known: the next frame is drawn as a whole."""
        self._shown_size = (0, 0)

    def draw(self, lines: Sequence[Line], size: tuple[int, int]) -> int:
        """Show `lines`; how many bytes that took."""
        parts: list[str] = []
        if size != self._shown_size or not self._shown:
            parts.append("\x1b[0m\x1b[2J")
            self._shown, self._shown_size = [()] * size[1], size
        shown = [tuple(line) for line in lines[: size[1]]]
        shown += [()] * (size[1] - len(shown))
        for index, (old, new) in enumerate(zip(self._shown, shown, strict=True)):
            if old != new:
                self._change(parts, index + 1, old, new)
        self._shown = shown
        if not parts:
            return 0
        return self._write(f"{_BEGIN}{''.join(parts)}{_END}")

    def print(self, lines: Sequence[Line]) -> None:
        """Write lines where the cursor is, as ordinary output."""
        text = "".join("".join(map(self._styled, line)) + "\n" for line in lines)
        self._write(text)

    def _change(
        self, parts: list[str], row: int, old: tuple[Span, ...], new: tuple[Span, ...]
    ) -> None:
        """Turn one line into another. Pieces that keep their place are written alone."""
        widths = [columns(text) for text, _ in new]
        same_places = len(old) == len(new) and widths == [columns(text) for text, _ in old]
        column = 1
        for index, (span, width) in enumerate(zip(new, widths, strict=True)):
            if index < len(old) and old[index] == span:
                column += width
                continue
            if not same_places:
                # Erased first: behind the last column the cursor stays on it.
                parts.append(f"\x1b[{row};{column}H\x1b[K{''.join(map(self._styled, new[index:]))}")
                return
            before, after = _ends(old[index], span)
            text = span[0][before : len(span[0]) - after]
            parts.append(f"\x1b[{row};{column + before}H{self._styled((text, span[1]))}")
            column += width
        if not same_places and column <= self._shown_size[0]:
            parts.append(f"\x1b[{row};{column}H\x1b[K")

    def _styled(self, span: Span) -> str:
        text, style = span
        if not text.isprintable():  # who draws has seen to that; a terminal obeys what it gets
            text = "".join(char if char.isprintable() else "?" for char in text)
        begin = sgr(style, colour=self._colour)
        return f"{begin}{text}\x1b[0m" if begin else text

    def _write(self, text: str) -> int:
        data = text.encode(self._encoding, "replace")
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._out, view[:_CHUNK_BYTES]) :]
            except BlockingIOError:  # somebody who shares the terminal has made it so
                select.select([], [self._out], [])
        return len(data)


_NARROW: Final = frozenset("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉")


def _ends(old: Span, new: Span) -> tuple[int, int]:
    """How many characters at both ends need not be written again; all are one column wide."""
    if old[1] != new[1] or len(old[0]) != len(new[0]):
        return 0, 0
    if not all(text.isascii() or set(text) <= _NARROW | {" "} for text in (old[0], new[0])):
        return 0, 0
    pairs = list(zip(old[0], new[0], strict=True))
    before = next((index for index, (a, b) in enumerate(pairs) if a != b), 0)
    after = next((index for index, (a, b) in enumerate(reversed(pairs)) if a != b), 0)
    return before, after
