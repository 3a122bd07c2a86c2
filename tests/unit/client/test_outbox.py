"""What an outbox does at its limits: what goes first, what never goes, and after the end."""

from __future__ import annotations

import struct

import pytest

from sidestep.client.chunks import Slice
from sidestep.client.holes import Hole
from sidestep.client.outbox import OutboxClosedError
from sidestep.client.segment import Large
from sidestep.proto.limits import MAX_RECORD_BYTES
from sidestep.proto.segments import ACKED_DROPPED, ACKED_SEQ, LOST, REJECTED
from tests.unit.client.outboxes import Box, drain, new_box, value_record


def everything(_: int) -> bool:
    return True


def fill_with_numbers(box: Box) -> None:
    while not box.outbox.totals().dropped:
        box.fill(250)


def test_the_oldest_payload_goes_before_any_number() -> None:
    box = new_box()
    box.fill(1)
    payloads = 0
    while not box.outbox.totals().dropped:
        box.put_value(payloads, 9000)
        payloads += 1
    found = drain(box.outbox)
    assert found[2] is None
    assert all(data is not None for seq, data in found.items() if seq != 2)


def test_then_the_oldest_numbers() -> None:
    box = new_box()
    fill_with_numbers(box)
    found = drain(box.outbox)
    gone = [seq for seq, data in found.items() if data is None]
    assert gone == list(range(1, len(gone) + 1))
    assert len(gone) < len(found) / 2


@pytest.mark.parametrize("size", [9000, 4090])
def test_a_payload_never_pushes_out_numbers(size: int) -> None:
    box = new_box()
    fill_with_numbers(box)
    dropped = box.outbox.totals().dropped
    while box.outbox._store.limit - box.outbox._store.tail[0] >= 16:  # so that not even a stub fits
        total, pieces = value_record(1, 0)
        box.outbox.put_record(total, pieces)
        dropped = box.outbox.totals().dropped
    held = box.outbox.totals().held
    assert box.outbox.put_record(*value_record(1, size)) is False
    assert box.outbox.totals().held == held
    assert box.outbox.totals().dropped == dropped + 1


def test_what_was_sent_is_never_pushed_out() -> None:
    box = new_box()
    last = 0
    while not box.outbox._lost:
        box.fill(250)
        # All that there is goes out at once, and is not acknowledged.
        while (chunk := box.outbox.take(last + 1, everything)) is not None:
            assert isinstance(chunk, Slice)
            last = chunk.last_seq
    assert box.outbox.put_record(*value_record(1, 2500)) is False
    assert box.outbox.put_record(*value_record(1, 9000)) is False
    totals = box.outbox.totals()
    assert (totals.held, totals.dropped) == (last, 3)
    assert box.outbox._words[LOST] == 3
    box.outbox.release(last, 0)
    assert box.outbox.totals().held == 0
    assert box.outbox.put_record(*value_record(1, 9000)) is True


def test_what_is_being_read_is_not_written_over() -> None:
    box = new_box()
    box.fill(1)
    expected = box.put_value(1, 9000)
    box.outbox.take(1, everything)
    large = box.outbox.take(2, everything)
    assert isinstance(large, Large)
    first = box.outbox.read_piece(large, 0)
    for step in range(100):  # between two pieces the trainer goes on
        box.fill(250)
        box.put_value(step, 9000)
    whole = b"".join([first[1], *(box.outbox.read_piece(large, n)[1] for n in (1, 2))])
    assert whole == expected


def test_what_may_not_be_sent_is_not_counted_as_sent() -> None:
    box = new_box()
    box.put_value(1, 9000)
    for _ in range(30):
        assert box.outbox.take(1, lambda _: False) is None
        box.put_value(1, 9000)
    assert box.outbox.totals().dropped > 20  # it could be pushed out


def test_dropped_payloads_in_a_row_are_one_hole_of_bounded_length() -> None:
    box = new_box(4 << 20)  # room for thousands of stubs in a segment
    box.fill(1)
    for step in range(2000):
        box.put_value(step % 3, 200_000)
    hole = box.outbox.take(2, everything)
    assert hole == Hole(2, 1001, "outbox full")
    following = box.outbox.take(1002, everything)
    assert isinstance(following, Hole)
    assert following.last_seq > 1900


def test_the_largest_record() -> None:
    box = new_box()
    largest = box.outbox.max_record_bytes
    assert largest == 5 * 4096
    assert box.outbox.put_record(*value_record(1, largest - 100)) is True
    assert new_box(256 << 20).outbox.max_record_bytes == MAX_RECORD_BYTES


def test_most_tags_of_a_record() -> None:
    box = new_box(1 << 20)
    most = box.outbox.max_tags
    assert box.outbox.put_row(tuple(map(str, range(most))), 1, 1, (1.0,) * most) == ()
    assert box.outbox._store.tail[0] - box.outbox._store.base == box.outbox._store.max_small_bytes


def test_a_row_that_cannot_be_packed_leaves_nothing_behind() -> None:
    box = new_box()
    tag_set = box.tag_set(2)
    for step, values in [(1, (1.0, "x")), (1, (1.0,)), (1, (1.0, 10**400)), (2**63, (1.0, 2.0))]:
        with pytest.raises((struct.error, OverflowError)):
            box.outbox.put_scalars(tag_set, step, 1, values)  # type: ignore[arg-type]
    assert box.outbox.totals().emitted == 0
    box.fill(2)
    assert len(box.adopted()) == 1


def test_a_late_row_that_cannot_be_packed_is_counted() -> None:
    box = new_box()
    tag_set = box.tag_set(1)
    box.outbox._busy = True  # as seen from a signal handler
    assert box.outbox.put_scalars(tag_set, 1, 1, (10**400,)) is True
    box.outbox._busy = False
    box.fill(1)
    totals = box.outbox.totals()
    assert (totals.emitted, totals.held, totals.dropped) == (2, 1, 1)


def test_a_late_row_without_room_for_its_tags_is_counted() -> None:
    box = new_box()
    n = 0
    while not box.outbox.put_row((f"{n:0300}",), 1, 1, (1.0,)):
        n += 1
    emitted = box.outbox.totals().emitted
    box.outbox._busy = True
    assert box.outbox.put_row(("new" * 100, "newer" * 100), 1, 1, (1.0, 2.0)) == ()
    box.outbox._busy = False
    assert box.outbox.put_row(("0" * 300,), 1, 1, (1.0,)) == ()
    totals = box.outbox.totals()
    assert (totals.emitted - emitted, totals.dropped) == (3, 2)


def test_what_a_daemon_finds_in_the_words() -> None:
    box = new_box()
    fill_with_numbers(box)
    box.outbox.count_lost(2, 100)
    box.outbox.count_rejected(7)
    words = box.outbox._words
    assert (words[LOST], words[REJECTED]) == (2, 7)
    hole = box.outbox.take(1, everything)
    assert isinstance(hole, Hole)
    box.outbox.release(hole.last_seq, hole.last_seq)
    assert (words[ACKED_SEQ], words[ACKED_DROPPED]) == (hole.last_seq, hole.last_seq)


def test_books_of_a_daemon_that_counts_wrongly_still_balance() -> None:
    box = new_box()
    fill_with_numbers(box)
    last = box.outbox.last_seq
    drain(box.outbox)
    for durable, dropped in [(1, 500), (10, 0), (last + 1000, 3)]:
        box.outbox.release(durable, dropped)
        totals = box.outbox.totals()
        assert totals.emitted == totals.acked + totals.held + totals.dropped
        assert totals.held >= 0
    assert box.outbox.acked_seq == last


def test_sealed_it_takes_nothing_and_closed_it_touches_nothing() -> None:
    box = new_box()
    tag_set = box.tag_set(1)
    box.fill(1)
    assert box.outbox.seal() == 1
    for close in (False, True):
        if close:
            box.outbox.close()
            box.memory.append(0)  # nothing looks at it any more
        with pytest.raises(OutboxClosedError):
            box.outbox.put_scalars(tag_set, 1, 1, (1.0,))
        with pytest.raises(OutboxClosedError):
            box.outbox.put_row(("0",), 1, 1, (1.0,))
        for size in (10, 9000):
            with pytest.raises(OutboxClosedError):
                box.outbox.put_record(*value_record(1, size))
        box.outbox.count_lost(1)
        box.outbox.count_rejected(1)
        assert box.outbox.totals().held == 1
    box.outbox.close()
