"""The tag sets of a client: each distinct tuple of tags gets an id, once, stored where it survives.

Their room is bounded, so half of it is kept for sets of a single tag: a trainer that emits ever
new combinations of the same tags uses up the one half, and goes on with the other.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from sidestep.proto.limits import MAX_TAG_SET_BYTES, MAX_TAG_SETS, MAX_TAGS_PER_RECORD
from sidestep.proto.records import SCALARS, SCALARS_HEAD
from sidestep.proto.segments import TAGS_USED, Outbox as OutboxBuffer
from sidestep.proto.tag_sets import REDUCTIONS, ReducedTags

_HEAD: Final = Struct("<IBBHII")
"""The part of a SCALARS record that is the same for all records of a tag set."""

_TAG_OVERHEAD_BYTES: Final = 5
"""What MessagePack adds to a string, at most."""


class TagSet:
    """How the numbers of one tuple of tags are packed: made once, used at every `emit`.

    Attributes:
        size: bytes of a record.
        head: the first 16 of them.
        pack_into: packs (memory, offset, head, step, time in ns, number, ...).
    """

    __slots__ = ("head", "pack_into", "size")

    def __init__(self, number: int, count: int) -> None:
        self.size = SCALARS_HEAD.size + 8 * count
        self.head = _HEAD.pack(self.size, SCALARS, 0, 0, number, count)
        self.pack_into = Struct(f"<{_HEAD.size}sqq{count}d").pack_into


class TagSets:
    """All tag sets of a client.

    Args:
        buffer: the outbox that they are stored in.
        prefix: what stands before each tag where it is stored, unless it is reduced over ranks.

    Attributes:
        plans: tag set by tags as they are emitted, without the prefix.
        reduced_plans: by reduction, the same of those that are reduced.
        stored: tags by id, with the prefix; grows, and nothing else.
    """

    def __init__(self, buffer: OutboxBuffer, prefix: str) -> None:
        self.plans: dict[tuple[str, ...], TagSet] = {}
        self.reduced_plans: dict[str, dict[tuple[str, ...], TagSet]] = {
            reduce: {} for reduce in REDUCTIONS
        }
        self.stored: list[tuple[str, ...]] = []
        self._buffer = buffer
        self._prefix = prefix
        self._used = 0

    def plans_of(self, reduce: str) -> dict[tuple[str, ...], TagSet]:
        """The tag sets that are reduced so; with "" those that are shown as they are."""
        return self.reduced_plans[reduce] if reduce else self.plans

    def define(self, tags: tuple[str, ...], reduce: str = "") -> TagSet | None:
        """The tag set of `tags`, made if need be; None when there is no room for it."""
        plans = self.plans_of(reduce)
        known = plans.get(tags)
        if known is not None:
            return known
        if self._buffer.words[TAGS_USED] != self._used:
            # An interrupt came between storing the last one and taking note of it here.
            self.stored += list(self._buffer.tag_sets())[len(self.stored) :]
            self._used = self._buffer.words[TAGS_USED]
        share = 1 if len(tags) == 1 else 2
        if len(self.stored) >= MAX_TAG_SETS // share:
            return None
        if len(tags) > 1 and self._used >= self._buffer.layout.tags_bytes // share:
            return None
        named: tuple[str, ...] = ReducedTags(tags, reduce) if reduce else self._named(tags)
        tag_set = TagSet(len(self.stored), len(tags))
        if not self._buffer.define_tags(named):
            return None
        # All or nothing: no call and no loop here, so that no interrupt can part it.
        self._used = self._buffer.words[TAGS_USED]
        self.stored += (named,)
        plans[tags] = tag_set
        return tag_set

    def _named(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._prefix + tag for tag in tags)

    def groups(self, tags: tuple[str, ...], max_tags: int) -> list[tuple[str, ...]]:
        """`tags` in as few tuples as fit into a record of `max_tags` and into a definition."""
        groups: list[tuple[str, ...]] = []
        start = nbytes = 0
        for end, tag in enumerate(tags):
            size = _TAG_OVERHEAD_BYTES + len((self._prefix + tag).encode())
            nbytes += size
            full = nbytes > MAX_TAG_SET_BYTES or end - start >= min(max_tags, MAX_TAGS_PER_RECORD)
            if full and end > start:
                groups.append(tags[start:end])
                start, nbytes = end, size
        groups.append(tags[start:])
        return groups
