"""Messages to frames and back: magic, version, one MessagePack value, nothing more.

A frame is ``b"SDS"``, one byte of protocol version, then the MessagePack array
``[kind, {field: value, ...}]``. A field that the reader does not know is ignored, so that fields
can be added; a kind that it does not know is refused by name. The decoder's promise: a frame
yields a message, or `RemoteProtocolError`, never anything else, whatever its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, Final, cast

import msgpack

from . import messages as m
from ._unpack import unpack
from .errors import LocalProtocolError, RemoteProtocolError
from .limits import (
    MAX_CONFIG_BYTES,
    MAX_DATA_BYTES,
    MAX_FRAME_BYTES,
    MAX_NAME_BYTES,
    MAX_RANKS,
    MAX_RECORD_BYTES,
    MAX_SEQ,
    MAX_SUFFIX_BYTES,
    MAX_VIA,
    PROTOCOL_VERSION,
)
from .records import check_tag
from .tag_sets import ReducedTags, checked, plain as plain_tags

MAGIC: Final = b"SDS"
_PREFIX: Final = MAGIC + bytes([PROTOCOL_VERSION])

_KINDS: Final[Mapping[str, type[m.Message]]] = {
    "hello": m.Hello,
    "welcome": m.Welcome,
    "reject": m.Reject,
    "tags": m.Tags,
    "batch": m.Batch,
    "part": m.Part,
    "gap": m.Gap,
    "ack": m.Ack,
    "nack": m.Nack,
    "alarm": m.Alarm,
    "ping": m.Ping,
    "pong": m.Pong,
    "bye": m.Bye,
    "bye_ack": m.ByeAck,
}
_NAMES: Final = {cls: name for name, cls in _KINDS.items()}

_ONE: Final = b"\0"
"""Stands for bulk data while everything else of its message is encoded and checked."""

_PACKED_ONE: Final = cast("bytes", msgpack.packb(_ONE))


def encode(message: m.Message) -> bytes:
    """The frame that says `message`.

    Raises:
        LocalProtocolError: the other side would not decode it: it does not fit into a frame, a
            field is beyond its limits, or it holds what MessagePack cannot say.
    """
    cls = type(message)
    try:
        if isinstance(message, m.Batch | m.Part):
            return _encode_bulk(message)
        frame = _PREFIX + cast("bytes", msgpack.packb([_NAMES[cls], _plain(message)]))
        decode(frame)  # what it refuses must not leave
    except (RemoteProtocolError, TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot encode {cls.__name__}: {error}") from error
    return frame


def _encode_bulk(message: m.Batch | m.Part) -> bytes:
    """The frame of nearly all bytes that travel: `data` is copied once, and not decoded again.

    Whoever encodes holds the trainer's interpreter lock meanwhile.
    """
    head = cast(
        "bytes", msgpack.packb([_NAMES[type(message)], _plain(replace(message, data=_ONE))])
    )
    decode(_PREFIX + head)
    nbytes = memoryview(message.data).nbytes
    if not 1 <= nbytes <= MAX_DATA_BYTES:
        raise RemoteProtocolError("malformed", f"{nbytes} bytes of data, 1 to {MAX_DATA_BYTES}")
    # `data` is the last field, so that all before it stays as it is.
    before = head[: -len(_PACKED_ONE)]
    return b"".join((_PREFIX, before, _bin_header(nbytes), message.data))


def _bin_header(nbytes: int) -> bytes:
    """What stands before so many bytes in MessagePack."""
    if nbytes < 1 << 8:
        return b"\xc4" + nbytes.to_bytes(1)
    if nbytes < 1 << 16:
        return b"\xc5" + nbytes.to_bytes(2)
    return b"\xc6" + nbytes.to_bytes(4)


def decode(frame: bytes | memoryview) -> m.Message:
    """The message that `frame` says.

    Raises:
        RemoteProtocolError: with code ``too_large``, ``no_protocol``, ``version``,
            ``unknown_kind`` or ``malformed``.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise RemoteProtocolError(
            "too_large", f"frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES}"
        )
    view = memoryview(frame)
    if not MAGIC.startswith(bytes(view[: len(MAGIC)])):
        raise RemoteProtocolError("no_protocol", "the frame does not begin as sidestep's do")
    if len(view) < len(_PREFIX):
        raise RemoteProtocolError("malformed", "a frame that ends in its beginning")
    if view[3] != PROTOCOL_VERSION:
        raise RemoteProtocolError(
            "version", f"wire version {view[3]}, this side speaks {PROTOCOL_VERSION}"
        )
    envelope = unpack(view[len(_PREFIX) :])
    if not isinstance(envelope, list) or len(cast("list[object]", envelope)) != 2:
        raise RemoteProtocolError("malformed", "a message is [kind, fields]")
    kind, body = cast("list[object]", envelope)
    if not isinstance(kind, str) or not isinstance(body, dict):
        raise RemoteProtocolError("malformed", "a message is [kind, fields]")
    cls = _KINDS.get(kind)
    if cls is None:
        raise RemoteProtocolError("unknown_kind", f"unknown message kind {kind[:40]!r}")
    return _build(cls, cast("dict[str, object]", body))


def _plain(value: object) -> object:
    """Dataclasses to maps, the rest as it is (MessagePack checks it)."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    if isinstance(value, ReducedTags):
        return plain_tags(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value


def _build(cls: type[m.Message], body: dict[str, object]) -> m.Message:
    return cls(**_checked(cls, body))


def _checked(cls: type[Any], body: Mapping[str, object]) -> dict[str, Any]:
    """The fields of `cls` out of `body`, each one checked; missing ones keep their default."""
    checked: dict[str, Any] = {}
    for name, check in _SCHEMA[cls].items():
        if name in body:
            try:
                checked[name] = check(body[name])
            except RemoteProtocolError as error:
                raise RemoteProtocolError(
                    error.code, f"{cls.__name__.lower()}.{name}: {error}"
                ) from None
        elif name in _REQUIRED[cls]:
            raise RemoteProtocolError("malformed", f"{cls.__name__.lower()} lacks {name!r}")
    if cls in _ORDERED and not 1 <= checked["first_seq"] <= checked["last_seq"]:
        raise RemoteProtocolError(
            "malformed", f"records {checked['first_seq']} to {checked['last_seq']}"
        )
    return checked


# --- the schema: for each field the function that checks it --------------------------------

_Check = Callable[[object], object]


def _integer(low: int = 0, high: int = MAX_SEQ) -> _Check:
    def check(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise RemoteProtocolError("malformed", f"expected an integer from {low} to {high}")
        return value

    return check


def _text(max_bytes: int = MAX_NAME_BYTES) -> _Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or len(value.encode()) > max_bytes:
            raise RemoteProtocolError("malformed", f"expected text of at most {max_bytes} bytes")
        return value

    return check


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise RemoteProtocolError("malformed", "expected true or false")
    return value


def _path(value: object) -> str:
    path = cast("str", _NAME(value))
    if "\0" in path:
        raise RemoteProtocolError("malformed", "a path holds no NUL")
    return path


def _blob(low: int, high: int) -> _Check:
    def check(value: object) -> bytes:
        if not isinstance(value, bytes) or not low <= len(value) <= high:
            raise RemoteProtocolError("malformed", f"expected {low} to {high} bytes")
        return value

    return check


def _settings(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise RemoteProtocolError("malformed", "expected a map")
    settings = cast("dict[str, object]", value)
    if len(cast("bytes", msgpack.packb(settings))) > MAX_CONFIG_BYTES:
        raise RemoteProtocolError("too_large", f"a map of over {MAX_CONFIG_BYTES} bytes")
    return settings


def _tensorboard(value: object) -> bool | dict[str, object]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        raise RemoteProtocolError("malformed", "expected true, false or a map")
    given = cast("dict[str, object]", value)
    checked: dict[str, object] = {}
    if given.get("folder") is not None:
        if given["folder"] != ".":
            raise RemoteProtocolError("malformed", "expected the folder '.' or none")
        checked["folder"] = "."
    if given.get("suffix") is not None:
        checked["suffix"] = _text(MAX_SUFFIX_BYTES)(given["suffix"])
    return checked or True


def _optional(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


def _many(check: _Check, low: int, high: int) -> _Check:
    def check_all(value: object) -> tuple[object, ...]:
        if not isinstance(value, list) or not low <= len(cast("list[object]", value)) <= high:
            raise RemoteProtocolError("malformed", f"expected a list of {low} to {high} items")
        return tuple(check(item) for item in cast("list[object]", value))

    return check_all


def _nested(cls: type[Any]) -> _Check:
    def check(value: object) -> object:
        if not isinstance(value, dict):
            raise RemoteProtocolError("malformed", "expected a map")
        return cls(**_checked(cls, cast("dict[str, object]", value)))

    return check


_UINT: Final = _integer()
_SEQ: Final = _integer(1)
_STEP: Final = _integer(-MAX_SEQ - 1)
_NAME: Final = _text()
_CODE: Final = _text(64)
_DATA: Final = _blob(1, MAX_DATA_BYTES)

_SCHEMA: Final[Mapping[type[Any], Mapping[str, _Check]]] = {
    m.RunSpec: {
        "name": _NAME,
        "log_dir": _path,
        "tensorboard": _tensorboard,
        "wandb": _optional(_settings),
        "config": _settings,
        "tags": _many(_NAME, 0, 1000),
    },
    m.Books: {
        "emitted": _UINT,
        "dropped": _UINT,
        "rejected": _UINT,
        "emit_ns": _UINT,
        "step": _optional(_STEP),
        "step_ns": _UINT,
    },
    m.Hello: {
        "uuid": _blob(16, 16),
        "instance": _UINT,
        "connection": _UINT,
        "run": _nested(m.RunSpec),
        "rank": _integer(0, MAX_RANKS - 1),
        "world_size": _integer(1, MAX_RANKS),
        "attempt": _UINT,
        "pid": _UINT,
        "host": _NAME,
        "device_uuids": _many(_NAME, 0, 1000),
        "outbox": _path,
        "acked_seq": _UINT,
        "acked_dropped": _UINT,
        "min_version": _UINT,
        "max_version": _UINT,
        "via": _many(_UINT, 0, MAX_VIA),
        "node": _flag,
    },
    m.Welcome: {
        "daemon_id": _UINT,
        "connection": _UINT,
        "durable_seq": _UINT,
        "dropped": _UINT,
        "credit": _UINT,
        "max_record_bytes": _UINT,
    },
    m.Reject: {"code": _CODE, "reason": _NAME},
    m.Tags: {
        "first_id": _UINT,
        "tag_sets": _many(checked, 1, 8192),
    },
    m.Batch: {"first_seq": _SEQ, "last_seq": _SEQ, "data": _DATA},
    m.Part: {
        "seq": _SEQ,
        "offset": _integer(0, MAX_RECORD_BYTES),
        "total": _integer(1, MAX_RECORD_BYTES),
        "data": _DATA,
    },
    m.Gap: {"first_seq": _SEQ, "last_seq": _SEQ, "reason": _NAME},
    m.Ack: {"durable_seq": _UINT, "dropped": _UINT, "credit": _UINT},
    m.Nack: {"code": _CODE, "reason": _NAME, "first_seq": _UINT, "last_seq": _UINT},
    m.Alarm: {"tag": check_tag, "state": _CODE, "step": _STEP, "reason": _NAME},
    m.Ping: {"books": _nested(m.Books)},
    m.Pong: {"pace_ms": _UINT},
    m.Bye: {"last_seq": _UINT, "books": _nested(m.Books), "lost": _flag},
    m.ByeAck: {"last_seq": _UINT},
}
_REQUIRED: Final = {
    cls: frozenset(
        f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING
    )
    for cls in _SCHEMA
}
_ORDERED: Final = frozenset({m.Batch, m.Gap})
