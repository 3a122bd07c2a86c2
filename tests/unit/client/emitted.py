"""What lies in the outbox of a client that no daemon has answered."""

from __future__ import annotations

from dataclasses import dataclass

from sidestep import client as sidestep
from sidestep.proto import Scalars, Value
from sidestep.proto.records import HEADER, VALUE, decode_scalars, decode_value
from tests.unit.client.outboxes import adopted


@dataclass(frozen=True)
class Row:
    """Numbers of one record, by tag."""

    step: int
    time_ns: int
    numbers: dict[str, float]


def records(client: sidestep.Client) -> list[Scalars | Value]:
    """All records that `client` holds, in order."""
    data = bytes(client._memory.layout.buffer)
    found: list[Scalars | Value] = []
    for record in adopted(data).values():
        assert record is not None
        kind = HEADER.unpack_from(record)[1]
        found.append(decode_value(record) if kind == VALUE else decode_scalars(record))
    return found


def rows(client: sidestep.Client) -> list[Row]:
    """The numbers that `client` holds."""
    tag_sets = list(client._memory.layout.tag_sets())
    return [
        Row(r.step, r.time_ns, dict(zip(tag_sets[r.tag_set], r.values, strict=True)))
        for r in records(client)
        if isinstance(r, Scalars)
    ]


def numbers(client: sidestep.Client) -> list[dict[str, float]]:
    """The same, without steps and times."""
    return [row.numbers for row in rows(client)]


def values(client: sidestep.Client) -> list[Value]:
    """Everything else that `client` holds."""
    return [record for record in records(client) if isinstance(record, Value)]
