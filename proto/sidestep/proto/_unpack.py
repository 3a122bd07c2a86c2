"""MessagePack from a peer that is not trusted: one value, within limits, or an error."""

from __future__ import annotations

from typing import Never, cast

import msgpack

from .errors import RemoteProtocolError
from .limits import MAX_CONTAINER, MAX_DEPTH, MAX_FRAME_BYTES


def unpack(data: bytes | memoryview) -> object:
    """Decode exactly one MessagePack value of plain types.

    Raises:
        RemoteProtocolError: `data` is torn, has bytes left over, nests deeper than
            `MAX_DEPTH`, holds a container over `MAX_CONTAINER`, an extension type, a map key
            that is no string, or text that is no UTF-8.
    """
    # The decoder allocates what a header claims; no element is shorter than a byte.
    most = min(MAX_CONTAINER, len(data))
    try:
        value = cast(
            "object",
            msgpack.unpackb(
                data,
                raw=False,
                use_list=True,
                strict_map_key=True,
                ext_hook=_no_extensions,
                max_str_len=MAX_FRAME_BYTES,
                max_bin_len=MAX_FRAME_BYTES,
                max_array_len=most,
                max_map_len=most,
                max_ext_len=0,
            ),
        )
    except RemoteProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - the decoder's own failures are of many types
        raise RemoteProtocolError(
            "malformed", f"not one MessagePack value: {type(error).__name__}: {error}"[:200]
        ) from None
    _check(value, MAX_DEPTH)
    return value


def _check(value: object, depth: int) -> None:
    """Refuse what MessagePack can say and we never do: deep nesting, keys that are no text."""
    if depth == 0:
        raise RemoteProtocolError("malformed", f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        for item in cast("list[object]", value):
            if isinstance(item, (list, dict)):
                _check(cast("object", item), depth - 1)
    elif isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            if not isinstance(key, str):
                raise RemoteProtocolError("malformed", "a map's key must be text")
            if isinstance(item, (list, dict)):
                _check(cast("object", item), depth - 1)


def _no_extensions(code: int, _data: bytes) -> Never:
    raise RemoteProtocolError("malformed", f"extension type {code} is not used here")
