"""A client's books: how many records and bytes were emitted, and what became of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Totals:
    """What became of all records; `emitted = acked + held + dropped`, in records and in bytes."""

    emitted: int = 0
    acked: int = 0
    held: int = 0
    dropped: int = 0
    emitted_bytes: int = 0
    acked_bytes: int = 0
    held_bytes: int = 0
    dropped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stats(Totals):
    """A client's books: counts of records, and of their bytes.

    Attributes:
        emitted: records that `emit` accepted. ``emitted = acked + held + dropped``, always.
        acked: records that are durable in the daemon.
        held: records that wait in the outbox, on a device, or to be drawn.
        dropped: records that will not arrive: the outbox was full, a device's slots were busy, too
            much waited to be drawn.
        rejected: values that `emit` refused, or that were emitted where nobody listens (in a
            forked process, after `finish`).
        emitted_bytes: bytes of the emitted records, without those on a device or to be drawn;
            likewise the others.
    """

    rejected: int = 0
