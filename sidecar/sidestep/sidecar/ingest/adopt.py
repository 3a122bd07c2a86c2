"""Dead clients' outboxes: found by their lock, read as if the client had sent what lies in them."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from sidestep.proto import Batch, Books, Message, Part, RemoteProtocolError
from sidestep.proto.limits import MAX_SEQ, PROTOCOL_VERSION
from sidestep.proto.paths import OUTBOX_SUFFIX
from sidestep.proto.segments import ACKED_DROPPED, ACKED_SEQ, FINISHED, LOST, REJECTED, Outbox
from sidestep.proto.tag_sets import definitions

DAMAGED_SUFFIX: Final = ".damaged"
"""Ends the name of an outbox that could not be read to its end."""


class Adoption:
    """One dead client's outbox, locked by this daemon and mapped into its memory.

    Attributes:
        path: the file.
        hello: who the client was.
        lost: records that it dropped before they had a number.
        rejected: values that it rejected.
        finished: whether it ended well, and only found nobody to take its leave of.
        exhausted: whether everything in it was taken.
        damage: what is wrong with the rest, if not all of it could be read.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._map = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        self._outbox = Outbox.attach(memoryview(self._map))
        words = self._outbox.words
        self.hello = replace(
            self._outbox.hello(), acked_seq=words[ACKED_SEQ], acked_dropped=words[ACKED_DROPPED]
        )
        if not self.hello.min_version <= PROTOCOL_VERSION <= self.hello.max_version:
            raise RemoteProtocolError("version", "its client spoke another version")
        # Any 64 bits may lie there: what is no count of records must not get into the books.
        self.lost = min(words[LOST], MAX_SEQ)
        self.rejected = min(words[REJECTED], MAX_SEQ)
        self.finished = bool(words[FINISHED])
        self.exhausted = False
        self.damage: str | None = None
        self._messages = self._all()

    def take(self, nbytes: int) -> Iterator[Message]:
        """Messages of about `nbytes`; sets `exhausted` when there are no more, or none is whole."""
        try:
            for message in self._messages:
                yield message
                if isinstance(message, (Batch, Part)):
                    nbytes -= len(message.data)
                    if nbytes <= 0:
                        return
        except RemoteProtocolError as error:
            self.damage = str(error)
        self.exhausted = True

    def books(self, last_seq: int, dropped: int) -> Books:
        """The client's last books, given the numbers of what was taken from it in all."""
        lost = min(self.lost, MAX_SEQ - last_seq)
        return Books(last_seq + lost, dropped + lost, self.rejected)

    def remove(self) -> None:
        """Everything of it that is whole is durable: delete the file, or put it aside."""
        try:
            if self.damage is None:
                os.unlink(self.path)
            else:
                os.rename(self.path, self.path + DAMAGED_SUFFIX)
        except OSError:
            pass  # it is gone, or stays: what is in it is known by its numbers
        self.close()

    def told(self) -> str:
        """What became of it, as a sentence for the log."""
        sentence = f"adopted the outbox of a client of run {self.hello.run.name!r} that has gone"
        if self.damage is None:
            return sentence
        return f"{sentence}; not all of it: {self.damage}. Kept as {self.path}{DAMAGED_SUFFIX}"

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._messages.close()
        self._outbox.close()
        self._map.close()
        os.close(self._fd)

    def _all(self) -> Generator[Message]:
        sets = list(self._outbox.tag_sets())
        yield from definitions(sets, 0)
        yield from self._outbox.messages()


def find_dead(
    directories: Sequence[str], known: Collection[str], log: Callable[[str], None]
) -> list[Adoption]:
    """Outboxes whose client has gone, oldest first; a damaged one is put aside.

    Args:
        directories: where to look; missing ones are skipped.
        known: paths that are being adopted already.
        log: says something to the daemon's log.
    """
    found: list[Adoption] = []
    for path in sorted(_outboxes(directories), key=_age):
        if path in known:
            continue
        adoption = _try(path, log)
        if adoption is not None:
            found.append(adoption)
    return found


def _outboxes(directories: Sequence[str]) -> Iterator[str]:
    for directory in directories:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            if name.endswith(OUTBOX_SUFFIX):
                yield os.path.join(directory, name)


def _age(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _try(path: str, log: Callable[[str], None]) -> Adoption | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # The client holds this lock while it lives.
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Adoption(path, fd)
    except OSError:
        os.close(fd)
        return None
    except (RemoteProtocolError, ValueError) as error:
        log(f"outbox {path} is damaged ({error}): kept as {path}{DAMAGED_SUFFIX}")
        with suppress(OSError):
            os.rename(path, path + DAMAGED_SUFFIX)
        os.close(fd)
        return None
