"""Mutations that know what they change: a MessagePack value stays one, a sequence a sequence."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

Mutate = Callable[[bytes, random.Random], bytes]
"""Makes another input out of one."""

_MAX_NODES = 400
_NUMBERS = (
    *(0, 1, -1, 2, 7, 127, 128, 255, 256, 1024, 4095, 4096, 4097, 8191, 8192, 8193, 65535, 65536),
    *(1 << 20, (1 << 20) - 4096, 64 << 20, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 32) - 1, 1 << 40),
    *((1 << 63) - 1, (1 << 63) - 2, 1 << 63, (1 << 64) - 1, -(1 << 63), -(1 << 31)),
)
_FLOATS = (0.0, -0.0, 1.5, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 2.0**63)
_TEXTS = ("", ".", "..", "/", "\0", "a/b", "é", "\U0001f600", "train/loss", "x" * 300, "-1", "*[a")
_BYTES = (b"", b"\0", b"\xff" * 8, b"\0" * 16, b"\x91" * 40, b"\x81\xa1a" * 40, b"\xdd\xff\xff\xff")
_CONTAINERS: tuple[Any, ...] = ([], {}, [[]], {"": None}, [None], None, True, False)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, insert, repeat: what a disk or a hostile peer does to bytes."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(7):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(found):
                found[at] = rng.randrange(256)
            case 2:
                del found[at : at + rng.choice((1, 2, 4, 8, 64))]
            case 3:
                found[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
            case 4:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)
                found[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case 5:
                start = rng.randrange(len(found) + 1)
                found[at:at] = found[start : start + rng.choice((4, 8, 32, 256))]
            case _:
                del found[at:]
    return bytes(found)


def mutate_packed(data: bytes, rng: random.Random) -> bytes:
    """Another MessagePack value near the one in `data`; any bytes when that is none."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogatepass")
        return bytes(msgpack.packb(changed(value, rng), unicode_errors="surrogatepass"))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException, RecursionError):
        return mutate_bytes(data, rng)


def changed(value: Any, rng: random.Random) -> Any:
    """`value` with one to three of its nodes replaced, moved, repeated or taken away."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        nodes = _nodes(value)
        if not nodes:
            return leaf(value, rng)
        holder, key = rng.choice(nodes)
        if isinstance(holder, list):
            _change_list(holder, key, nodes, rng)
        else:
            _change_map(holder, key, nodes, rng)
    return value


def leaf(old: Any, rng: random.Random) -> Any:
    """Something else in the place of `old`, mostly of its own type."""
    if isinstance(old, bytes) and rng.random() < 0.7:
        return mutate_bytes(old, rng)
    if isinstance(old, str) and old and rng.random() < 0.4:
        at = rng.randrange(len(old))
        return old[:at] + rng.choice(_TEXTS) + old[at + rng.randrange(2) :]
    if type(old) is int and rng.random() < 0.5:
        near = old + rng.choice((-1, 1, -8, 8, 4096))
        return near if -(1 << 63) <= near < 1 << 64 else 0
    pools: dict[type, Sequence[Any]] = {int: _NUMBERS, str: _TEXTS, bytes: _BYTES, float: _FLOATS}
    pool = pools.get(type(old))
    if pool is None or rng.random() < 0.3:
        pool = rng.choice((_NUMBERS, _FLOATS, _TEXTS, _BYTES, _CONTAINERS))
    return rng.choice(pool)


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of each node below `value`, the first few hundred."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < _MAX_NODES:
        one = waiting.pop()
        if isinstance(one, list):
            keys: Sequence[Any] = range(len(one))
        elif isinstance(one, dict):
            keys = list(one)
        else:
            continue
        found += [(one, key) for key in keys[:_MAX_NODES]]
        waiting += [one[key] for key in keys[:_MAX_NODES]]
    return found


def _change_list(
    holder: list[Any], key: int, nodes: list[tuple[Any, Any]], rng: random.Random
) -> None:
    if key >= len(holder):
        return
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder.insert(key, _copy(holder[key]))
        case 2:
            other, place = rng.choice(nodes)
            holder[key] = _copy(_at(other, place))
        case 3:
            holder[key] = [holder[key]]
        case _:
            holder[key] = leaf(holder[key], rng)


def _change_map(
    holder: dict[Any, Any], key: Any, nodes: list[tuple[Any, Any]], rng: random.Random
) -> None:
    if key not in holder:
        return
    match rng.randrange(7):
        case 0:
            del holder[key]
        case 1:
            holder[rng.choice(_TEXTS)] = holder.pop(key)
        case 2:
            other, place = rng.choice(nodes)
            holder[key] = _copy(_at(other, place))
        case 3:
            holder[key] = {"a": holder[key]}
        case _:
            holder[key] = leaf(holder[key], rng)


def _at(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except (IndexError, KeyError):
        return None


def _copy(value: Any) -> Any:
    """A copy, so that no value comes to hold itself."""
    return msgpack.unpackb(
        msgpack.packb(value, unicode_errors="surrogatepass"),
        strict_map_key=False,
        unicode_errors="surrogatepass",
    )
