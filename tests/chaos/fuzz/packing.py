"""The forms that inputs have: a list of pieces, and a large buffer that is mostly zeros."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from struct import Struct

from .mutator import Mutate, mutate_bytes

_PIECE = Struct("<BH")  # what is done with the piece, its length
_PATCH = Struct("<IH")  # where it lies, its length

Piece = tuple[int, bytes]


def pieces(data: bytes) -> list[Piece]:
    """(operation, bytes) of each piece; the last one may be cut off."""
    found: list[Piece] = []
    at = 0
    while at + _PIECE.size <= len(data):
        operation, size = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        found.append((operation, data[at : at + size]))
        at += size
    return found


def join(parts: Iterable[Piece]) -> bytes:
    """The input that holds these pieces."""
    return b"".join(
        _PIECE.pack(operation & 255, len(data[:65535])) + data[:65535] for operation, data in parts
    )


def pieces_mutator(mutate: Mutate) -> Mutate:
    """Changes, repeats, moves or removes a piece; `mutate` changes one within."""

    def mutated(data: bytes, rng: random.Random) -> bytes:
        found = pieces(data)
        if not found or rng.random() < 0.05:
            return mutate_bytes(data, rng)
        at = rng.randrange(len(found))
        operation, piece = found[at]
        match rng.randrange(8):
            case 0:
                found.insert(rng.randrange(len(found) + 1), found[at])
            case 1 if len(found) > 1:
                del found[at]
            case 2:
                found[at] = (rng.randrange(256), piece)
            case 3:
                other = rng.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case _:
                found[at] = (operation, mutate(piece, rng))
        return join(found)

    return mutated


def sparse(buffer: bytes | memoryview) -> bytes:
    """`buffer` as its length and its stretches that are not zero."""
    data = bytes(buffer)
    found = [Struct("<I").pack(len(data))]
    for match in re.finditer(rb"[^\0](?:\0{0,7}[^\0])*", data):
        for start in range(match.start(), match.end(), 65535):
            run = data[start : min(match.end(), start + 65535)]
            found.append(_PATCH.pack(start, len(run)) + run)
    return b"".join(found)


def dense(data: bytes, limit: int) -> bytes:
    """The buffer that `sparse` has described, of at most `limit` bytes."""
    if len(data) < 4:
        return b""
    total = min(int.from_bytes(data[:4], "little"), limit)
    buffer = bytearray(total)
    at = 4
    while at + _PATCH.size <= len(data):
        start, size = _PATCH.unpack_from(data, at)
        at += _PATCH.size
        patch = data[at : at + size]
        at += size
        if start < total:
            end = min(total, start + len(patch))
            buffer[start:end] = patch[: end - start]
    return bytes(buffer)
