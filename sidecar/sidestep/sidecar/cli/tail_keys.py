"""Turns what a terminal sends for pressed keys into names of keys, however it is cut into reads."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Final

_ESC: Final = "\x1b"
_MAX_SEQUENCE: Final = 32
"""No key's sequence is as long: what is, is thrown away."""

_CONTROL: Final = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x03": "quit",  # where Ctrl-C makes no signal
    "\x04": "quit",
    "\x02": "pageup",  # Ctrl-B and Ctrl-F, as in vi and less
    "\x06": "pagedown",
    "\x0c": "redraw",
    "\x15": "clear",
}
_FINAL: Final = {
    "A": "up",
    "B": "down",
    "C": "right",
    "D": "left",
    "H": "home",
    "F": "end",
    "Z": "backtab",
}
_NUMBERED: Final = {
    "1": "home",
    "4": "end",
    "5": "pageup",
    "6": "pagedown",
    "7": "home",
    "8": "end",
}


class KeyReader:
    """Reads keys out of bytes.

    A printable character is its own name; other keys are called `up`, `pagedown`, `enter` and so
    on. The escape key is a prefix of most others: it is `esc` only when nothing follows, which
    `flush` says.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    @property
    def pending(self) -> bool:
        """Whether something is held that may be the beginning of a key."""
        return bool(self._held)

    def feed(self, data: bytes) -> list[str]:
        """The keys that `data` completes."""
        self._held += self._decoder.decode(data)
        return list(self._keys(over=False))

    def flush(self) -> list[str]:
        """Nothing more has come for a while: what is held stands for itself."""
        return list(self._keys(over=True))

    def _keys(self, *, over: bool) -> Iterator[str]:
        while self._held:
            if self._held[0] != _ESC:
                char, self._held = self._held[0], self._held[1:]
                name = _CONTROL.get(char, char if char.isprintable() else None)
                if name is not None:
                    yield name
                continue
            length = _sequence_length(self._held)
            if length is None and not over:
                if len(self._held) > _MAX_SEQUENCE:
                    self._held = ""
                return
            if length is None or length == 1:
                yield "esc"
                # A torn sequence is no text.
                self._held = "" if length is None else self._held[1:]
                continue
            sequence, self._held = self._held[:length], self._held[length:]
            name = _named(sequence)
            if name is not None:
                yield name


def _sequence_length(text: str) -> int | None:
    """How long the sequence is that `text` begins with; 1 for a key of its own, None: more comes.

    A sequence has parameters of the characters from "0" on, and ends with one from "@" on.
    """
    if len(text) < 2:
        return None
    if text[1] == "O":
        return 3 if len(text) >= 3 else None
    if text[1] != "[":
        return 1
    for index, char in enumerate(text[2:], 2):
        if "@" <= char <= "~":
            return index + 1
        if not " " <= char <= "?":
            return index  # broken off by something else
    return None


def _named(sequence: str) -> str | None:
    final = sequence[-1]
    if final == "~":
        return _NUMBERED.get(sequence[2:-1].partition(";")[0])
    return _FINAL.get(final)
