"""A KeyboardInterrupt or a signal at any moment leaves an outbox that balances and works."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sidestep.client.outbox import Outbox
from tests.unit.client.interrupts import Interrupter, everywhere, interrupt
from tests.unit.client.outboxes import Box, drain, new_box, value_record

PAGE = 4096

Prepare = Callable[[], Box]
Act = Callable[[Outbox], object]


def empty() -> Box:
    box = new_box()
    box.put_row(1)
    return box


def fill_segment(box: Box) -> Box:
    room = box.outbox._store.limit - box.outbox._store.tail[0]
    while room >= 40:
        box.fill(250 if room >= 2100 else 1)
        room = box.outbox._store.limit - box.outbox._store.tail[0]
    return box


def at_the_end_of_a_segment() -> Box:
    return fill_segment(empty())


def full_of_numbers() -> Box:
    box = empty()
    while not box.outbox.totals().dropped:
        box.fill(250)
    return fill_segment(box)


def full_of_payloads() -> Box:
    box = empty()
    while not box.outbox.totals().dropped:
        box.put_value(1, 9000)
    return fill_segment(box)


def number(outbox: Outbox) -> object:
    return outbox.put_scalars(outbox.tag_sets.plans["0",], 7, 7, (7.0,))


def new_tags(outbox: Outbox) -> object:
    return outbox.put_row(("new", "tags"), 7, 7, (7.0, 8.0))


def small_value(outbox: Outbox) -> object:
    return outbox.put_record(*value_record(7, 50))


def payload(outbox: Outbox) -> object:
    return outbox.put_record(*value_record(7, 9000))


def looks_then_emits(outbox: Outbox) -> object:
    outbox.totals()
    outbox.has_room(1 << 20)
    return number(outbox)


SCENES: list[tuple[Prepare, Act]] = [
    (empty, number),
    (empty, new_tags),
    (empty, small_value),
    (empty, payload),
    (at_the_end_of_a_segment, number),
    (at_the_end_of_a_segment, payload),
    (full_of_numbers, number),
    (full_of_numbers, small_value),
    (full_of_numbers, payload),
    (full_of_payloads, number),
    (full_of_payloads, payload),
]


def name(scene: object) -> str:
    return getattr(scene, "__name__", "")


def check(box: Box) -> None:
    """The books balance, others can go on, what is in memory is what is in the books."""
    outbox = box.outbox
    totals = outbox.totals()
    assert totals.emitted == totals.acked + totals.held + totals.dropped
    assert totals.emitted_bytes == totals.acked_bytes + totals.held_bytes + totals.dropped_bytes
    assert not outbox.interrupted()
    assert "count=0" in repr(outbox._lock)
    held = {seq: data for seq, data in box.adopted().items() if data is not None}
    taken = {seq: data for seq, data in drain(outbox).items() if data is not None}
    assert held == taken
    assert len(held) == totals.held
    assert sum(map(len, held.values())) == totals.held_bytes


def still_works(box: Box) -> None:
    """It goes on for several rounds of its memory, and gives all of it back."""
    for step in range(100, 160):
        box.fill(250)
        if step % 10 == 0:
            box.put_value(step, 9000)
    check(box)
    totals = box.outbox.totals()
    box.outbox.release(box.outbox.last_seq, totals.dropped - box.outbox._lost)
    assert box.outbox.totals().held == box.outbox.totals().held_bytes == 0
    dropped = box.outbox.totals().dropped
    box.put_value(1, box.outbox.max_record_bytes - 200)
    assert box.outbox.totals().dropped == dropped
    check(box)


@pytest.mark.parametrize(("prepare", "act"), SCENES, ids=name)
def test_an_interrupt_happens_before_all_of_it_or_after(prepare: Prepare, act: Act) -> None:
    for at in everywhere():
        box = prepare()
        before = box.outbox.totals()
        with Interrupter(at, interrupt) as interrupter:
            try:
                act(box.outbox)
            except KeyboardInterrupt:
                pass
        assert before.emitted <= box.outbox.totals().emitted <= before.emitted + 1
        check(box)
        box.outbox.put_record(*value_record(8, 5000))  # one of fewer pieces takes its place
        check(box)
        if at % 3 == 0:
            still_works(box)
        if not interrupter.done:
            assert at > 3
            return


@pytest.mark.parametrize(("prepare", "act"), SCENES, ids=name)
def test_two_interrupts_in_a_row(prepare: Prepare, act: Act) -> None:
    for at in everywhere():
        box = prepare()
        for _ in range(2):
            with Interrupter(at, interrupt) as interrupter:
                try:
                    act(box.outbox)
                except KeyboardInterrupt:
                    pass
        check(box)
        if at % 5 == 0:
            still_works(box)
        if not interrupter.done:
            return


@pytest.mark.parametrize("inner", [looks_then_emits, new_tags, small_value, payload], ids=name)
@pytest.mark.parametrize(("prepare", "act"), SCENES, ids=name)
def test_a_signal_handler_that_emits(prepare: Prepare, act: Act, inner: Act) -> None:
    for at in everywhere():
        box = prepare()
        before = box.outbox.totals()
        with Interrupter(at, lambda: inner(box.outbox)) as interrupter:
            act(box.outbox)
        emitted = box.outbox.totals().emitted - before.emitted
        assert emitted == (2 if interrupter.done else 1)
        check(box)
        if at % 7 == 0:
            still_works(box)
        if not interrupter.done:
            return


@pytest.mark.parametrize("inner", [number, new_tags, payload], ids=name)
@pytest.mark.parametrize("prepare", [full_of_numbers, full_of_payloads], ids=name)
@pytest.mark.parametrize("what", ["take", "release", "refuse", "totals", "has_room"])
def test_a_finalizer_that_emits_in_the_senders_calls(
    prepare: Prepare, what: str, inner: Act
) -> None:
    for at in everywhere():
        box = prepare()
        outbox = box.outbox
        before = outbox.totals()
        last = 0
        for _ in range(3):  # a hole, then two chunks
            chunk = outbox.take(last + 1, lambda _: True)
            assert chunk is not None
            last = getattr(chunk, "last_seq", last + 1)
        dropped = sum(data is None for seq, data in drain(outbox).items() if seq <= last)
        sender = {
            "take": lambda: outbox.take(last + 1, lambda _: True),
            "release": lambda: outbox.release(last, dropped),
            "refuse": lambda: outbox.refuse(last, last, "bad"),
            "totals": outbox.totals,
            "has_room": lambda: outbox.has_room(100),
        }[what]
        with Interrupter(at, lambda: inner(outbox)) as interrupter:
            sender()
        assert outbox.totals().emitted - before.emitted == int(interrupter.done)
        totals = outbox.totals()
        assert totals.emitted == totals.acked + totals.held + totals.dropped
        found = drain(outbox)
        assert sum(data is not None for data in found.values()) == totals.held
        if not interrupter.done:
            return


@pytest.mark.parametrize("size", [10, 9000])
def test_what_was_put_off_is_not_lost_by_an_interrupt(size: int) -> None:
    late = value_record(77, size)
    for at in everywhere():
        box = empty()
        box.outbox._busy = True  # as inside a call
        box.outbox.put_record(*late)
        box.outbox._busy = False
        with Interrupter(at, interrupt) as interrupter:
            try:
                number(box.outbox)
            except KeyboardInterrupt:
                pass
        box.put_row(9)
        assert not box.outbox._deferred
        assert list(box.adopted().values()).count(b"".join(late[1])) == 1
        # With the number that was interrupted before or after it was stored.
        assert box.outbox.totals().held in (3, 4)
        check(box)
        if not interrupter.done:
            assert box.outbox.totals().held == 4
            return


def test_handlers_leave_no_more_than_is_bounded() -> None:
    box = new_box()
    box.put_row(1)
    box.outbox._busy = True  # as inside a call
    for _ in range(1500):
        number(box.outbox)
    assert box.outbox.totals().dropped == 500
    box.outbox._busy = False
    number(box.outbox)
    assert box.outbox.totals().emitted == 1 + 1500 + 1
    check(box)
