"""Makes the wire's test vectors, `proto/vectors/*.json`: bytes, and what they say.

    make generated          # or python -m tests.support.generated

They are for clients in other languages; `tests/unit/test_generated.py` holds this code to them, so
that the wire does not change unnoticed, and a daemon is told `conversation.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from sidestep import proto as p
from sidestep.proto.errors import RemoteProtocolError
from sidestep.proto.limits import MAX_SEQ
from sidestep.proto.records import encode_scalars, encode_value
from sidestep.proto.session import common, server
from sidestep.proto.tag_sets import ReducedTags

UUID = bytes(range(16))
TIME_NS = 1_700_000_000_123_456_789
DAEMON_ID = 4711
CREDIT = 8 << 20

RUN = p.RunSpec(
    "vit-b",
    "/home/me/results/logs",
    tensorboard=True,
    wandb={"project": "jepa", "mode": "offline"},
    config={"lr": 0.001, "layers": [2, 4], "name": "ünïcode"},
    tags=("baseline",),
)
HELLO = p.Hello(UUID, instance=99, connection=1, run=p.RunSpec("vit-b", "/home/me/results/logs"))
FULL_HELLO = p.Hello(
    *(UUID, 99, 3, RUN, 1, 4, 2, 4242, "node7", ("GPU-0a1b",), "/dev/shm/sidestep-0/x.outbox"),
    acked_seq=17,
    acked_dropped=2,
)
NUMBERS = p.Scalars(0, 7, TIME_NS, (0.5, -0.0, float("nan"), float("inf"), 5e-324, 1 / 3))
PICTURE = p.Value(
    "image",
    "input",
    7,
    TIME_NS,
    {"layout": "HW", "caption": "a ramp"},
    [p.Array("uint8", (2, 3), bytes(range(6)))],
)
NOTE = p.Value("text", "note", -1, TIME_NS, {"text": "**first** step"})
TAGS = (("a", "b", "c", "d", "e", "f"), ("train/loss", "train/lr"))


def files() -> dict[str, str]:
    """Each file's text, by its name."""
    made = {
        "frames.json": frames(),
        "refused.json": refused(),
        "records.json": records(),
        "conversation.json": conversation(),
    }
    return {
        name: json.dumps(vectors, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for name, vectors in made.items()
    }


def frames() -> list[dict[str, Any]]:
    """One of each message, from its shortest to its fullest."""
    books = p.Books(100, 3, 1, 2500, 99, 4_000_000)
    messages: dict[str, Any] = {
        "hello, only what must be there": HELLO,
        "hello, all of it": FULL_HELLO,
        "welcome": p.Welcome(DAEMON_ID, 1, 0, 0, CREDIT, 64 << 20),
        "reject": p.Reject("version", "this daemon speaks version 1"),
        "tags": p.Tags(0, TAGS),
        "tags of a reduction over ranks": p.Tags(2, (ReducedTags(("train/loss",), "mean"),)),
        "batch of two records": p.Batch(1, 2, encode_scalars(NUMBERS) + joined(NOTE)),
        "part of a large record": p.Part(3, 0, 70_000, bytes(16)),
        "gap": p.Gap(4, 9, "outbox full"),
        "ack": p.Ack(9, 6, CREDIT),
        "nack": p.Nack("out_of_order", "records are missing", 5, 0),
        "alarm": p.Alarm("train/target", "COLLAPSED", 220, "variance share 0.0007 < 0.001"),
        "ping with books": p.Ping(books),
        "ping at its shortest": p.Ping(),
        "pong": p.Pong(),
        "bye": p.Bye(9, books),
        "bye_ack": p.ByeAck(9),
        "the largest numbers": p.Ack(MAX_SEQ, MAX_SEQ, MAX_SEQ),
    }
    return [frame(name, message) for name, message in messages.items()]


def frame(name: str, message: p.Message) -> dict[str, Any]:
    """A frame, and the message that it is."""
    encoded = p.encode(message)
    kind, fields = msgpack.unpackb(encoded[4:])
    assert p.decode(encoded) == message
    return {"name": name, "kind": kind, "fields": _json(fields), "hex": encoded.hex()}


def refused() -> list[dict[str, Any]]:
    """Frames that no reader takes, with the code that it answers."""
    good = p.encode(p.Ping())

    def said(*envelope: Any) -> bytes:
        return good[:4] + msgpack.packb(list(envelope))

    ack = {"durable_seq": 1, "dropped": 0, "credit": 1}
    wrong = {
        "another protocol": b"GET / HTTP/1.1\r\n",
        "another version": b"SDS\x02" + good[4:],
        "nothing": b"",
        "cut off": good[:-1],
        "bytes left over": good + b"\0",
        "a kind that is not known": said("pink", {}),
        "fields that are no map": said("ack", [1, 0, 1]),
        "a field that is missing": said("ack", {"durable_seq": 1, "dropped": 0}),
        "a negative number": said("ack", {**ack, "credit": -1}),
        "a number beyond 63 bits": said("ack", {**ack, "credit": 1 << 63}),
        "a bool for a number": said("ack", {**ack, "credit": True}),
        "a float for a number": said("ack", {**ack, "credit": 1.0}),
        "text for bytes": said("batch", {"first_seq": 1, "last_seq": 1, "data": "x" * 8}),
        "an extension type": said("ping", {"books": msgpack.Timestamp(1)}),
        "a map key that is no text": said("ack", {**ack, 1: 2}),
        "text that is no UTF-8": said("reject", {"code": "x", "reason": "ÿ"}).replace(
            "ÿ".encode(), b"\xff\xff"
        ),
        "a tag set without a tag": said("tags", {"first_id": 0, "tag_sets": [[]]}),
        "a reduction that is not known": said(
            "tags", {"first_id": 0, "tag_sets": [{"reduce": "median", "tags": ["a"]}]}
        ),
    }
    return [{"name": n, "code": code_of(data), "hex": data.hex()} for n, data in wrong.items()]


def code_of(data: bytes) -> str:
    """The code with which a frame is refused."""
    try:
        message = p.decode(data)
    except RemoteProtocolError as error:
        return error.code
    raise AssertionError(f"this is taken: {message}")


def records() -> list[dict[str, Any]]:
    """Records as they lie in the outbox and in a BATCH."""
    return [
        {"name": "numbers", **_record(NUMBERS), "hex": encode_scalars(NUMBERS).hex()},
        {"name": "an image", **_record(PICTURE), "hex": joined(PICTURE).hex()},
        {"name": "a text, at a negative step", **_record(NOTE), "hex": joined(NOTE).hex()},
    ]


def conversation() -> list[dict[str, Any]]:
    """A client's whole life, as the daemon's session answers it.

    It sends a row of numbers, a text, a record in two PARTs, drops one, and leaves.
    """
    parted = joined(PICTURE)  # so small a record would go in a BATCH; the file stays short
    half = 64
    session = server.ServerSession(DAEMON_ID)
    session.credit = CREDIT
    talk: list[dict[str, Any]] = []
    row = encode_scalars(p.Scalars(1, 1, TIME_NS, (0.25, 0.001)))
    says: list[tuple[str, Any]] = [
        ("introduces itself", HELLO),
        ("defines its tag sets", p.Tags(0, TAGS)),
        ("sends records 1 and 2", p.Batch(1, 2, row + joined(NOTE))),
        ("sends them again: the ACK was lost", p.Batch(1, 2, row + joined(NOTE))),
        ("sends the first part of record 3", p.Part(3, 0, len(parted), parted[:half])),
        ("sends the rest of it", p.Part(3, half, len(parted), parted[half:])),
        ("has dropped record 4", p.Gap(4, 4, "outbox full")),
        ("sends record 6 before record 5", p.Batch(6, 6, row)),
        ("sends records 5 and 6", p.Batch(5, 6, row + row)),
        ("is silent for a second", p.Ping(p.Books(6, 1, 0))),
        ("leaves", p.Bye(6, p.Books(6, 1, 0))),
    ]
    for what, message in says:
        talk.append({"from": "client", **frame(what, message)})
        actions = session.receive(message)
        if any(isinstance(action, server.Append | server.CountGap) for action in actions):
            actions = [*actions, *session.committed()]
        answers = [action.message for action in actions if isinstance(action, common.Send)]
        talk += [{"from": "daemon", **frame("answers", answer)} for answer in answers]
    return talk


def joined(record: p.Value) -> bytes:
    """A VALUE record's bytes."""
    length, pieces = encode_value(record)
    data = b"".join(pieces)
    assert len(data) == length
    return data


def _record(record: p.Scalars | p.Value) -> dict[str, Any]:
    return {"record": type(record).__name__.upper(), "fields": _json(dataclasses.asdict(record))}


def _json(value: Any) -> Any:
    """What MessagePack says, in JSON: bytes as {"hex"}, floats as text that Python reads back."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float):
        return {"float64": repr(value)}
    if isinstance(value, Mapping):
        return {str(key): _json(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_json(one) for one in value]
    return value
