"""What of the tags is looked at (filter, order, folds, place), and what each key does. No I/O.

A `Browser` holds what the user has chosen. `entries` makes of a model's tags the list that could be
shown, `window` the part of it that fits; the rows' values are asked for only when they are drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

from .tail_model import Row, TailModel

ORDERS: Final = ("tag", "newest", "value")
"""In groups by their prefix; the latest first; the greatest first."""

_SPREAD: Final = ("_std", "_min", "_max")
"""What stands beside a tag whose values are those of several ranks together."""

_RANKS: Final = "_ranks"
"""Beside it when not all ranks have taken part."""

_MAX_FILTER: Final = 200

_FAMILY: Final = 8
"""So many statistics of one thing stand behind what is said of others in few words."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table.

    Attributes:
        key: the tag, or the group's prefix with its slash.
        group: the prefix that the tag is shown below; "" when it stands alone.
        many: of a group's own line, how many tags it has; else 0.
        folded: of a group's own line, whether they are hidden.
        spread: whether the tags with `_std`, `_min` and `_max` are part of it.
    """

    key: str
    group: str = ""
    many: int = 0
    folded: bool = False
    spread: bool = False


class Frozen:
    """A model's rows as they were when the table was paused."""

    def __init__(self, model: TailModel, now: float) -> None:
        self.now = now
        self._rows = {tag: model.row(tag, now) for tag in model.names()}

    def __contains__(self, tag: str) -> bool:
        return tag in self._rows

    def names(self) -> list[str]:
        """The tags that there were."""
        return list(self._rows)

    def row(self, tag: str) -> Row:
        """One of them."""
        return self._rows[tag]


Mode = Literal["table", "typing", "help"]


class Browser:
    """What the user has chosen, and the entries that follow from it."""

    def __init__(self) -> None:
        self.mode: Mode = "table"
        self.filter = ""
        self.order = 0
        self.cursor: str | None = None
        self.frozen: Frozen | None = None
        self._folded: set[str] = set()
        self._top = 0
        self._at = 0  # the cursor's place the last time, for when its entry is gone
        self._page = 10
        self._moves: list[str] = []
        self._cached: tuple[object, list[Entry]] | None = None

    def reset(self) -> None:
        """Another run: its tags are others, what was chosen to see of them stays."""
        self.cursor, self.frozen, self._top, self._at = None, None, 0, 0
        self._cached = None

    def press(self, key: str, model: TailModel, now: float) -> str | None:
        """Do what a key says; ``quit``, ``next``, ``previous`` or ``redraw`` when others must."""
        if key == "quit":
            return "quit"
        if self.mode == "typing":
            self._type(key)
            return None
        if self.mode == "help":
            self.mode = "table"
            return "quit" if key == "q" else None
        if key == " ":
            self.frozen = None if self.frozen else Frozen(model, now)
            return None
        if key == "/":
            self.mode = "typing"
        elif key in ("?", "h"):
            self.mode = "help"
        elif key == "s":
            self.order = (self.order + 1) % len(ORDERS)
            self._moves.append("home")
        elif key == "esc":
            self._escape()
        elif key in _MOVES:
            self._moves.append(_MOVES[key])
        return _ACTIONS.get(key)

    def _type(self, key: str) -> None:
        if key == "enter":
            self.mode = "table"
        elif key == "esc":
            self.mode, self.filter = "table", ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif key == "clear":
            self.filter = ""
        elif len(key) == 1 and len(self.filter) < _MAX_FILTER:
            self.filter += key
        self._moves.append("top")

    def _escape(self) -> None:
        """Undo what was chosen last: the place, then the filter."""
        if self.cursor is not None:
            self.cursor = None
            self._moves.append("top")
        else:
            self.filter = ""

    # --- the list ------------------------------------------------------------------------------

    def entries(self, model: TailModel) -> list[Entry]:
        """All lines that could be shown, in order."""
        order = ORDERS[self.order]
        state = (
            *(model.tags_version, id(self.frozen), order, self.filter),
            frozenset(self._folded),
        )
        if self._cached is not None and self._cached[0] == state and order == "tag":
            return self._cached[1]
        names = self.frozen.names() if self.frozen else model.names()
        wanted = [name for name in names if _matches(name, self.filter)]
        shown, spread = _without_parts(wanted)
        if order == "tag":
            found = self._grouped(shown, spread)
        else:
            found = [Entry(tag, spread=tag in spread) for tag in self._sorted(shown, model, order)]
        self._cached = state, found
        return found

    def _sorted(self, tags: list[str], model: TailModel, order: str) -> list[str]:
        def key(tag: str) -> float:
            if self.frozen:
                row = self.frozen.row(tag)
                value, age = row.value, -row.age_s
            else:
                value, age = model.last(tag) or (0.0, 0.0)
            ranked = age if order == "newest" else value
            return -math.inf if math.isnan(ranked) else -ranked  # NaN first: look at it

        return sorted(tags, key=key)

    def _grouped(self, tags: Sequence[str], spread: set[str]) -> list[Entry]:
        groups: dict[str, list[str]] = {}
        for tag in tags:
            # What stands alone is a group of its own, without a line for it.
            groups.setdefault(prefix_of(tag) or f"\0{tag}", []).append(tag)
        families = Counter(map(_family, tags))
        found: list[Entry] = []
        for group, members in groups.items():
            if len(members) == 1:
                found.append(Entry(members[0], spread=members[0] in spread))
                continue
            folded = group in self._folded
            found.append(Entry(group, group, len(members), folded))
            if not folded:
                members.sort(key=lambda tag: _place(tag, families))
                found += [Entry(tag, group, spread=tag in spread) for tag in members]
        return found

    # --- the part of it that is shown ------------------------------------------------------------

    def window(self, entries: Sequence[Entry], height: int) -> tuple[int, list[Entry]]:
        """The index of the first entry that is shown, and those that fit, after the keys' moves.

        Where the list begins in the middle of a group, the first line is the group's own.
        """
        self._page = max(1, height - 1)
        for move in self._moves:
            entries = self._move(move, entries)
        self._moves.clear()
        at = self._index(entries)
        if at is not None:
            self._at = at
            lowest = at - (1 if entries[at].group and not entries[at].many else 0)
            self._top = max(min(self._top, lowest), at - height + 1)
        self._top = max(0, min(self._top, len(entries) - height))
        shown = list(entries[self._top : self._top + max(0, height)])
        if shown and shown[0].group and not shown[0].many:
            group = shown[0].group
            shown[0] = next(each for each in entries if each.many and each.group == group)
        return self._top, shown

    def _index(self, entries: Sequence[Entry]) -> int | None:
        if self.cursor is None or not entries:
            return None
        keys = [entry.key for entry in entries]
        if self.cursor in keys:
            return keys.index(self.cursor)
        at = min(self._at, len(entries) - 1)
        self.cursor = keys[at]
        return at

    def _move(self, move: str, entries: Sequence[Entry]) -> Sequence[Entry]:
        if move == "top":
            self._top = 0
            return entries
        if not entries:
            return entries
        at = self._index(entries)
        if move in ("fold", "fold all"):
            return self._fold(move, entries, at)
        if at is None and move in ("down", "pagedown"):
            # The first line is where one was all the time; a page goes on from there.
            to = self._top if move == "down" else self._top + self._page
        else:
            start = self._top if at is None else at
            to = {
                "down": start + 1,
                "up": start - 1,
                "pagedown": start + self._page,
                "pageup": start - self._page,
                "home": 0,
                "end": len(entries) - 1,
            }[move]
        self._at = max(0, min(to, len(entries) - 1))
        self.cursor = entries[self._at].key
        if move == "home":
            self._top, self.cursor = 0, None
        return entries

    def _fold(self, move: str, entries: Sequence[Entry], at: int | None) -> Sequence[Entry]:
        groups = {entry.group for entry in entries if entry.many}
        if move == "fold all":
            self._folded = set() if groups <= self._folded else self._folded | groups
        else:
            group = entries[self._top if at is None else at].group
            if not group:
                return entries
            self._folded ^= {group}
            self.cursor = group
        known = [e for e in entries if e.many or not e.group or e.group not in self._folded]
        self._cached = None
        return known


_MOVES: Final = {
    "j": "down",
    "down": "down",
    "k": "up",
    "up": "up",
    "pagedown": "pagedown",
    "pageup": "pageup",
    "g": "home",
    "home": "home",
    "G": "end",
    "end": "end",
    "enter": "fold",
    "z": "fold",
    "Z": "fold all",
}
_ACTIONS: Final = {
    "q": "quit",
    "n": "next",
    "tab": "next",
    "right": "next",
    "p": "previous",
    "backtab": "previous",
    "left": "previous",
    "redraw": "redraw",
}

KEYS: Final = (
    ("/", "filter: a part of the tag, or a glob; Enter keeps it, Esc drops it"),
    ("Space", "pause the table, and go on"),
    ("n p, Tab, ← →", "the next run, the one before"),
    ("j k, ↑ ↓", "a line down, up"),
    ("PgDn PgUp", "a page down, up (Ctrl-F, Ctrl-B)"),
    ("g G", "to the beginning, to the end"),
    ("Enter, z", "fold and unfold the group; Z: all of them"),
    ("s", "order: by tag, the newest first, the greatest first"),
    ("Esc", "to the beginning; once more: without the filter"),
    ("Ctrl-L", "draw everything again"),
    ("?", "this help"),
    ("q, Ctrl-C", "leave"),
)
"""What each key does, for the help; the README has the same table."""


def prefix_of(tag: str) -> str:
    """A tag's group: what stands before its first slash, with that; "" without one."""
    head, slash, _ = tag.partition("/")
    return head + slash if slash else ""


def _family(tag: str) -> str:
    """What the statistics of one thing have in common, `train/context_` say; "" when nothing."""
    head, underscore, _ = tag.partition("/")[2].partition("_")
    return f"{prefix_of(tag)}{head}_" if underscore else ""


def _place(tag: str, families: Mapping[str, int]) -> int:
    """Within a group losses come first, and statistics that there are many of last."""
    family = _family(tag)
    if family and families[family] >= _FAMILY:
        return 2
    return 0 if "loss" in tag.lower() else 1


def _matches(tag: str, wanted: str) -> bool:
    if not wanted:
        return True
    tag, wanted = tag.lower(), wanted.lower()
    if any(char in wanted for char in "*?["):
        return fnmatchcase(tag, wanted)
    return wanted in tag


def _without_parts(tags: list[str]) -> tuple[list[str], set[str]]:
    """The tags without those that belong to another one's line, and those that have such parts."""
    known = set(tags)
    spread = {tag for tag in tags if all(tag + end in known for end in _SPREAD)}
    parts = {tag + end for tag in spread for end in (*_SPREAD, _RANKS)}
    return [tag for tag in tags if tag not in parts], spread - parts
