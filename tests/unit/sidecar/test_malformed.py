"""Which records of a batch are at fault: those, and as few others as can be told apart."""

from __future__ import annotations

import random
import struct

import pytest

from sidestep.proto import RemoteProtocolError
from sidestep.proto.records import Scalars, Value, encode_scalars, encode_value
from sidestep.sidecar.rows.malformed import first_fault
from sidestep.sidecar.rows.points import check_rows

GOOD = encode_scalars(Scalars(0, 1, 1, (0.5,)))
TEXT = b"".join(encode_value(Value("text", "note", 1, 1, {"text": "x"}))[1])
BAD_META = TEXT[:32] + b"\xc1" * (len(TEXT) - 32)
UNKNOWN = struct.pack("<IBBHQ", 16, 9, 0, 0, 0)
UNDEFINED = encode_scalars(Scalars(7, 1, 1, (0.5,)))
MISCOUNTED = GOOD[:12] + struct.pack("<I", 2) + GOOD[16:]
TORN = struct.pack("<IBBH", 1 << 30, 1, 0, 0) + bytes(24)


def fault(
    *records: bytes, skip: int = 0, says: int | None = None
) -> tuple[int, int, int, int, str]:
    data = b"".join(records)
    many = len(records) - skip if says is None else says
    with pytest.raises(RemoteProtocolError):
        check_rows(data, {0: 1}, skip, many)
    found = first_fault(data, {0: 1}, skip, many)
    return found.index, found.count, found.start, found.end, found.error.code


@pytest.mark.parametrize("bad", [BAD_META, UNKNOWN, MISCOUNTED])
def test_one_bad_record_is_the_only_one(bad: bytes) -> None:
    n = len(GOOD)
    assert fault(GOOD, TEXT, bad, GOOD) == (2, 1, n + len(TEXT), n + len(TEXT + bad), "malformed")
    assert fault(bad, GOOD) == (0, 1, 0, len(bad), "malformed")
    assert fault(GOOD, bad) == (1, 1, n, n + len(bad), "malformed")
    assert fault(bad) == (0, 1, 0, len(bad), "malformed")


def test_neighbours_of_one_kind_are_one_fault() -> None:
    n = len(GOOD)
    assert fault(GOOD, UNKNOWN, BAD_META, GOOD)[:2] == (1, 2)
    assert fault(GOOD, UNDEFINED, UNDEFINED, UNKNOWN) == (1, 2, n, 3 * n, "undefined")
    assert fault(UNKNOWN, UNDEFINED)[:2] == (0, 1)


def test_behind_a_length_that_cannot_be_true_nothing_is_taken() -> None:
    n = len(GOOD)
    assert fault(GOOD, TORN, GOOD, GOOD) == (1, 3, n, 3 * n + len(TORN), "malformed")
    assert fault(GOOD, UNKNOWN, TORN, GOOD)[:3] == (1, 3, n)
    assert fault(GOOD, UNDEFINED, TORN, GOOD) == (1, 1, n, 2 * n, "undefined")
    assert fault(TORN) == (0, 1, 0, len(TORN), "malformed")


@pytest.mark.parametrize("says", [1, 3, 40])
def test_a_batch_of_other_records_than_it_says_is_refused_whole(says: int) -> None:
    assert fault(GOOD, GOOD, says=says) == (0, says, 0, 2 * len(GOOD), "malformed")


def test_what_is_journalled_already_is_not_looked_at() -> None:
    n = len(GOOD)
    assert fault(GOOD, GOOD, UNKNOWN, GOOD, skip=2) == (0, 1, 2 * n, 2 * n + 16, "malformed")
    assert fault(GOOD, TORN, GOOD, skip=1)[:3] == (0, 2, n)


def test_cutting_out_faults_leaves_what_is_good() -> None:
    rng = random.Random(5)
    for _ in range(300):
        kinds = [GOOD, TEXT, BAD_META, UNKNOWN, UNDEFINED, MISCOUNTED]
        records = rng.choices(kinds, [5, 3, 1, 1, 1, 1], k=rng.randrange(1, 12))
        data, many, kept, refused = b"".join(records), len(records), 0, 0
        while many:
            try:
                check_rows(data, {0: 1}, 0, many)
                kept, many = kept + many, 0
            except RemoteProtocolError:
                found = first_fault(data, {0: 1}, 0, many)
                if found.index:
                    check_rows(data[: found.start], {0: 1}, 0, found.index)
                kept, refused = kept + found.index, refused + found.count
                data, many = data[found.end :], many - found.index - found.count
        assert kept == sum(record in (GOOD, TEXT) for record in records)
        assert kept + refused == len(records)
