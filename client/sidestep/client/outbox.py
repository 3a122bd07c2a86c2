"""The outbox: where every record waits, in memory that outlives the process, until it is durable.

`put_scalars` is the hot path of the whole project: it packs numbers straight into the segment
that is open, under a lock that is never held across a system call, and stores one word to commit
them. The sender takes slices of segments from the other side (`chunks`). What lies where, and what
goes when there is no room, is the store's business; here is only who may touch it when.

Threads, signals, finalizers. The lock is reentrant, so that a signal handler (or a `__del__` that
the garbage collector runs) cannot deadlock with the call of its own thread that it interrupted;
`_busy` tells it that it did, and its record is deferred to the end of that call.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from sidestep.proto import SidestepError
from sidestep.proto.records import SCALARS_HEAD
from sidestep.proto.segments import FINISHED, LOST, REJECTED, Outbox as OutboxBuffer

from . import chunks
from .books import Totals
from .segment import Large
from .store import Piece, Store
from .tag_sets import TagSet, TagSets

_T = TypeVar("_T")

_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MAX_DEFERRED: Final = 1000
"""Records that signal handlers may leave behind during one call."""


class OutboxClosedError(SidestepError):
    """A record came after the last one."""


class Outbox:
    """Records between `emit` and their acknowledgement.

    Args:
        buffer: the layout over the memory that holds them.
        prefix: what stands before each tag.

    Attributes:
        tag_sets: the tag sets that records may use.
    """

    def __init__(self, buffer: OutboxBuffer, prefix: str = "") -> None:
        self.tag_sets = TagSets(buffer, prefix)
        self._buffer = buffer
        self._words = buffer.words
        self._store = Store(buffer)
        self._lock = threading.RLock()
        self._busy = False
        self._sealed = self._closed = False
        self._deferred: deque[Callable[[], object]] = deque()
        self._lost = self._lost_bytes = 0

    @property
    def max_tags(self) -> int:
        """Most scalars that fit into one record here."""
        return (self._store.max_small_bytes - SCALARS_HEAD.size) // 8

    @property
    def max_record_bytes(self) -> int:
        """The largest record that can ever be held."""
        return self._store.max_record_bytes

    @property
    def last_seq(self) -> int:
        """Number of the newest record."""
        return self._store.tail[1]

    @property
    def acked_seq(self) -> int:
        """Everything up to here is durable, or was dropped and counted."""
        return self._store.acked_seq

    # --- the trainer's side --------------------------------------------------------------

    def put_scalars(
        self, tag_set: TagSet, step: int, time_ns: int, values: Sequence[float]
    ) -> bool:
        """Append one row of numbers.

        Returns:
            False when there was no room and it was dropped (and counted).

        Raises:
            struct.error, OverflowError: a value or the step is out of range; nothing was appended.
            OutboxClosedError: nothing may be appended any more.
        """
        with self._lock:
            if self._busy:
                return self._defer(lambda: self._append_scalars(tag_set, step, time_ns, values))
            self._busy = True
            try:
                return self._append_scalars(tag_set, step, time_ns, values)
            finally:
                try:
                    if self._deferred:
                        self._run_deferred()
                finally:
                    self._busy = False

    def put_row(
        self,
        tags: tuple[str, ...],
        step: int,
        time_ns: int,
        values: Sequence[float],
        reduce: str = "",
    ) -> tuple[str, ...]:
        """Append one row of numbers under tags that need not be defined yet.

        Returns:
            The tags that there was no room to define: their numbers were not taken.
        """
        with self._lock:
            if not self._busy:
                return self._alone(lambda: self._append_row(tags, step, time_ns, values, reduce))
            self._defer(lambda: self._append_row_late(tags, step, time_ns, values, reduce))
            return ()

    def put_record(self, total: int, pieces: Sequence[Piece]) -> bool:
        """Append an encoded record of `total` bytes, given as pieces to be joined.

        Returns:
            False when there was no room and it was dropped (and counted).
        """
        with self._lock:
            if not self._busy:
                return self._alone(lambda: self._append(total, pieces))
            whole = b"".join(pieces)
            return self._defer(lambda: self._append(total, [whole]))

    def has_room(self, nbytes: int) -> bool:
        """Whether a record of `nbytes` could be appended without dropping anything."""
        return self._alone(lambda: self._store.has_room(nbytes))

    def interrupted(self) -> bool:
        """Whether the caller has interrupted a call of its own thread: waiting would be in vain."""
        # As threading.Condition asks it; the types do not know of it.
        lock: Any = self._lock
        return self._busy and bool(lock._is_owned())

    def together(self, action: Callable[[], _T]) -> _T:
        """Do several things here in one step, as everybody else sees it; `action` must be short."""
        with self._lock:
            return action()

    def count_lost(self, records: int, nbytes: int = 0) -> None:
        """Count records that were emitted and dropped before they got a number."""
        with self._lock:
            self._lost += records
            self._lost_bytes += nbytes
            if not self._closed:
                self._words[LOST] = self._lost

    def count_rejected(self, rejected: int) -> None:
        """Leave the count of rejected values where a daemon can find it."""
        with self._lock:
            if not self._closed:
                self._words[REJECTED] = rejected

    # --- the sender's side ---------------------------------------------------------------

    def take(self, seq: int, may_send: Callable[[int], bool]) -> chunks.Chunk | None:
        """What comes from record `seq` on, if so many bytes may be sent; it counts as sent then."""
        return self._alone(lambda: chunks.take(self._store, seq, may_send))

    def read_piece(self, large: Large, number: int) -> tuple[int, memoryview]:
        """The bytes of piece `number` of a large record that was taken, and their offset in it."""
        return chunks.read_piece(self._store, large, number)

    def release(self, durable_seq: int, dropped: int) -> None:
        """Everything up to `durable_seq` is with the daemon, `dropped` of it as holes."""
        self._alone(lambda: self._store.release(durable_seq, dropped))

    def refuse(self, first_seq: int, last_seq: int, reason: str) -> None:
        """The daemon can never take these records: count them as dropped."""
        self._alone(lambda: self._store.refuse(first_seq, last_seq, reason))

    # --- the owner's side ----------------------------------------------------------------

    def totals(self) -> Totals:
        """The books, consistent with each other."""
        return self._alone(lambda: self._store.totals(self._lost, self._lost_bytes))

    def seal(self) -> int:
        """Take nothing more; the number of the last record."""

        def seal() -> int:
            self._sealed = True
            self._words[FINISHED] = 1
            return self.last_seq

        return self._alone(seal)

    def close(self) -> None:
        """Release the memory, after the sender has gone; the books can still be read."""

        def close() -> None:
            self._sealed = self._closed = True
            self._store.memory = memoryview(b"")
            self._buffer.close()

        self._alone(close)

    def abandon(self) -> None:
        """In a forked child: leave the parent's memory alone, even if this interrupted a call."""
        # The call goes on here when the fork returns, so it needs some memory to write to.
        memory = memoryview(mmap.mmap(-1, self._buffer.layout.total, flags=_PRIVATE))
        copy = OutboxBuffer(memory, self._buffer.layout)
        self._words = self._buffer.words = copy.words
        self._buffer.table = self._store.table = copy.table
        self._buffer.buffer = self._store.memory = memory

    # --- inside --------------------------------------------------------------------------

    def _alone(self, action: Callable[[], _T]) -> _T:
        """Do `action` while nothing else happens here, then what was put off because of it."""
        with self._lock:
            if self._busy:  # interrupted: it can only be one that looks
                return action()
            self._busy = True
            try:
                return action()
            finally:
                # An interrupt in what is put off must not leave this busy for ever.
                try:
                    if self._deferred:
                        self._run_deferred()
                finally:
                    self._busy = False

    def _append_scalars(
        self, tag_set: TagSet, step: int, time_ns: int, values: Sequence[float]
    ) -> bool:
        store = self._store
        at, seq = store.tail
        end = at + tag_set.size
        if end > store.limit or self._sealed:
            if self._sealed:
                raise OutboxClosedError("emitted after finish")
            if not store.roll():
                return self._lose(tag_set.size)
            at, seq = store.tail
            end = at + tag_set.size
        tag_set.pack_into(store.memory, at, tag_set.head, step, time_ns, *values)
        # All or nothing: no call and no loop here, so that no interrupt can part it.
        store.table[store.used_word] = end - store.base
        store.tail = (end, seq + 1)
        return True

    def _append_row(
        self,
        tags: tuple[str, ...],
        step: int,
        time_ns: int,
        values: Sequence[float],
        reduce: str,
    ) -> tuple[str, ...]:
        tag_set = self.tag_sets.define(tags, reduce)
        if tag_set is not None:
            self._append_scalars(tag_set, step, time_ns, values)
            return ()
        if len(tags) == 1:
            return tags
        # No room for the set: each number by itself, since half of the room is kept for that.
        homeless: list[str] = []
        for tag, value in zip(tags, values, strict=True):
            homeless += self._append_row((tag,), step, time_ns, (value,), reduce)
        return tuple(homeless)

    def _append_row_late(
        self,
        tags: tuple[str, ...],
        step: int,
        time_ns: int,
        values: Sequence[float],
        reduce: str,
    ) -> None:
        for _ in self._append_row(tags, step, time_ns, values, reduce):
            self._lose(0)

    def _append(self, total: int, pieces: Sequence[Piece]) -> bool:
        if self._sealed:
            raise OutboxClosedError("emitted after finish")
        return self._store.put(total, pieces) or self._lose(total)

    def _lose(self, nbytes: int) -> bool:
        self._lost += 1
        self._lost_bytes += nbytes
        if not self._closed:
            self._words[LOST] = self._lost
        return False

    def _defer(self, append: Callable[[], object]) -> bool:
        if len(self._deferred) >= _MAX_DEFERRED:
            return self._lose(0)
        self._deferred.append(append)
        return True

    def _run_deferred(self) -> None:
        while self._deferred:
            before = self._store.tail[1] + self._lost
            try:
                self._deferred[0]()
            except Exception:  # noqa: BLE001 - it must not fail the `emit` that it interrupted
                self._lose(0)
            finally:
                # What an interrupt has kept from being stored is left for the next call.
                if self._store.tail[1] + self._lost != before:
                    del self._deferred[0]
