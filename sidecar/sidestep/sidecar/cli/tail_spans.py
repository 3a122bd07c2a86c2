"""Lines for a terminal: pieces of text with a style each, measured and cut in columns. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size

Span = tuple[str, str]
"""Text, and words for how it looks: `bold`, `dim`, `reverse`, `underline`, or a colour."""

Line = list[Span]

_SGR: Final = {
    "bold": "1",
    "dim": "2",
    "underline": "4",
    "reverse": "7",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "magenta": "35",
    "cyan": "36",
}
_COLOURS: Final = frozenset({"red", "green", "yellow", "magenta", "cyan"})


def columns(text: str) -> int:
    """How many columns `text` takes."""
    return len(text) if text.isascii() else cell_len(text)


def width_of(line: Sequence[Span]) -> int:
    """How many columns a line takes."""
    return sum(columns(text) for text, _ in line)


def plain(line: Sequence[Span]) -> str:
    """A line's text alone."""
    return "".join(text for text, _ in line)


def sized(text: str, width: int) -> str:
    """`text` in exactly `width` columns: cut, or with spaces after it."""
    if text.isascii():
        return text[:width].ljust(width)
    return set_cell_size(text, width)


def fitted(line: Sequence[Span], width: int, ellipsis: str) -> Line:
    """`line` in at most `width` columns, with an ellipsis where it was cut."""
    if width_of(line) <= width:
        return list(line)
    room = max(0, width - columns(ellipsis))
    kept: Line = []
    for text, style in line:
        size = columns(text)
        if size > room:
            kept.append((sized(text, room), style))
            break
        kept.append((text, style))
        room -= size
    return [*kept, (ellipsis[:width], "dim")]


def sgr(style: str, *, colour: bool) -> str:
    """The sequence that a style begins with, after everything was reset; "" for none."""
    codes = [
        _SGR[word] for word in style.split() if word in _SGR and (colour or word not in _COLOURS)
    ]
    return f"\x1b[{';'.join(codes)}m" if codes else ""
