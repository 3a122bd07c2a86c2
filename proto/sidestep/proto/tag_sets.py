"""Tag sets: the tags of a record's numbers, and how these are combined over the ranks of a job.

A tag set is plain, and its numbers are shown as they are; or it names a reduction, and its numbers
are one rank's part of it: nobody shows them, the daemon's derivers put them together. In
MessagePack a plain one is a list of tags, the other the map ``{"reduce": name, "tags": [...]}``:
whoever does not know of reductions takes it for malformed, and so never for plain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Self, cast

import msgpack

from .errors import RemoteProtocolError
from .limits import MAX_TAG_SET_BYTES, MAX_TAGS_PER_RECORD
from .messages import Tags
from .records import check_tag

REDUCTIONS: Final = ("mean", "sum", "min", "max", "spread")
"""What can be made of the numbers of several ranks."""

RANK_PART: Final = "rank_part"
"""Kind of a value that is one rank's part of a reduction.

Its ``info`` is ``{"kind", "info", "reduce"}``: kind and info of what the parts make together.
"""

_PER_MESSAGE: Final = 1000


class ReducedTags(tuple[str, ...]):  # noqa: SLOT001 - a tuple has no room for slots
    """The tags of numbers that are one rank's part of a reduction.

    Attributes:
        reduce: one of `REDUCTIONS`.
    """

    reduce: str

    def __new__(cls, tags: Iterable[str], reduce: str) -> Self:
        """The tags, and what is made of their numbers."""
        made = super().__new__(cls, tags)
        made.reduce = reduce
        return made


def reduction_of(tags: Sequence[str]) -> str:
    """How the numbers of a tag set are combined; "" when they are shown as they are."""
    return tags.reduce if isinstance(tags, ReducedTags) else ""


def plain(tags: Sequence[str]) -> object:
    """A tag set in MessagePack's types."""
    if isinstance(tags, ReducedTags):
        return {"reduce": tags.reduce, "tags": list(tags)}
    return list(tags)


def packed(tags: Sequence[str]) -> bytes:
    """A tag set as MessagePack."""
    return cast("bytes", msgpack.packb(plain(tags)))


def parsed(item: object) -> tuple[str, ...]:
    """A tag set out of MessagePack's types, its tags not looked at.

    Raises:
        RemoteProtocolError: it is none.
    """
    reduce: object = ""
    if isinstance(item, dict):
        fields = cast("dict[str, object]", item)
        reduce, item = fields.get("reduce"), fields.get("tags")
        if reduce not in REDUCTIONS:
            raise RemoteProtocolError("malformed", f"unknown reduction {reduce!a:.40}")
    if not isinstance(item, list):
        raise RemoteProtocolError("malformed", "a tag set must be a list of tags")
    tags = cast("list[str]", item)
    return ReducedTags(tags, cast("str", reduce)) if reduce else tuple(tags)


def checked(item: object) -> tuple[str, ...]:
    """A tag set that a client defines.

    Raises:
        RemoteProtocolError: it is none, or has no tag, too many, or one that cannot be.
    """
    tags = parsed(item)
    if not 0 < len(tags) <= MAX_TAGS_PER_RECORD:
        raise RemoteProtocolError("malformed", "a tag set of too many tags, or none")
    for tag in tags:
        check_tag(tag)
    return tags


def definitions(tag_sets: Sequence[tuple[str, ...]], first_id: int) -> Iterator[Tags]:
    """The messages that define the tag sets from `first_id` on.

    Plain ones and others never share a message: a daemon that does not know of reductions refuses
    the whole of it.
    """
    while first_id < len(tag_sets):
        chosen: list[tuple[str, ...]] = []
        nbytes, reduced = 0, bool(reduction_of(tag_sets[first_id]))
        for tags in tag_sets[first_id : first_id + _PER_MESSAGE]:
            nbytes += sum(len(tag) * 4 + 5 for tag in tags)
            if chosen and (nbytes > MAX_TAG_SET_BYTES or bool(reduction_of(tags)) != reduced):
                break
            chosen.append(tags)
        yield Tags(first_id, tuple(chosen))
        first_id += len(chosen)
