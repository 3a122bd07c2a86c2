"""Emitting from signal handlers, finalizers and threads: no deadlock, nothing lost or doubled."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sidestep import client as sidestep
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import numbers, values
from tests.unit.client.interrupts import Interrupter, everywhere, interrupt

WHATS = ["known tags", "new tags", "a value", "a payload", "what is refused"]


def emit(client: sidestep.Client, what: str, number: int) -> None:
    match what:
        case "known tags":
            client.emit({"known": float(number)}, step=number)
        case "new tags":
            client.emit({f"new/{number}": float(number)}, step=number)
        case "a value":
            client.emit({"text": sidestep.Text(str(number))}, step=number)
        case "a payload":
            client.emit({"text": sidestep.Text(str(number) + " " * 9000)}, step=number)
        case _:
            client.emit({"bad": "x", "known": float(number)}, step=number)


def emitted(client: sidestep.Client) -> Counter[int]:
    """How often each number lies in the outbox."""
    pairs = [pair for row in numbers(client) for pair in row.items()]
    assert all(tag in ("known", f"new/{value:.0f}") for tag, value in pairs)
    found = [int(value) for _, value in pairs]
    return Counter(found + [int(str(value.info["text"])) for value in values(client)])


def books_balance(client: sidestep.Client) -> bool:
    stats = client.stats()
    return stats.emitted == stats.acked + stats.held + stats.dropped


@pytest.mark.parametrize("inner", WHATS)
@pytest.mark.parametrize("outer", WHATS)
def test_a_signal_handler_at_any_moment(connect: MakeClient, outer: str, inner: str) -> None:
    client = connect(outbox_bytes=16 << 20)
    emit(client, "known tags", 0)
    for at in everywhere():
        with Interrupter(at, lambda: emit(client, inner, 2 * at + 2)) as interrupter:
            emit(client, outer, 2 * at + 1)
        if not interrupter.done:
            break
    # Each exactly once; the last handler never ran.
    assert emitted(client) == Counter(range(2 * at + 2))
    assert client.stats().dropped == 0
    assert books_balance(client)


@pytest.mark.parametrize("what", WHATS)
def test_an_interrupt_at_any_moment(connect: MakeClient, what: str) -> None:
    client = connect(outbox_bytes=16 << 20)
    emit(client, "known tags", 0)
    interrupted = 0
    for at in everywhere():
        with Interrupter(at, interrupt) as interrupter:
            try:
                emit(client, what, 2 * at + 1)
            except KeyboardInterrupt:
                interrupted += 1
        emit(client, what, 2 * at + 2)
        if not interrupter.done:
            break
    found = emitted(client)
    assert set(found.values()) == {1}
    assert {2 * n + 2 for n in range(at + 1)} <= set(found)
    assert interrupted == at
    assert books_balance(client)
    assert len(found) == client.stats().held


@pytest.mark.parametrize("what", ["flush", "finish", "stats"])
def test_a_handler_that_interrupted_an_emit_does_not_wait_for_it(
    connect: MakeClient, what: str
) -> None:
    client = connect(outbox_bytes=1 << 20)
    emit(client, "known tags", 0)
    call = {
        "flush": lambda: client.flush(600),
        "finish": lambda: client.finish(600),
        "stats": client.stats,
    }[what]
    # Inside the short way's critical part: the handler's wait could never end.
    inside = [at for at in range(40) if _interrupts_the_outbox(client, at)]
    assert inside
    for at in inside:
        answers: list[object] = []
        with Interrupter(at, lambda: answers.append(call())):
            emit(client, "known tags", at)
        assert len(answers) == 1
        if what != "stats":
            assert answers == [False]
    emit(client, "known tags", 99)
    assert 99 in emitted(client)


def _interrupts_the_outbox(client: sidestep.Client, at: int) -> bool:
    found: list[bool] = []
    with Interrupter(at, lambda: found.append(client._outbox.interrupted())):
        emit(client, "known tags", 0)
    return found == [True]


@contextmanager
def every_so_often(handler: object, interval_s: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)  # type: ignore[arg-type]
    signal.setitimer(signal.ITIMER_REAL, interval_s, interval_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_real_signals(connect: MakeClient) -> None:
    client = connect(outbox_bytes=16 << 20)
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        emit(client, WHATS[handled % 3], 1_000_000 + handled)

    with every_so_often(handle, 0.0003):
        number = 0
        while handled < 200:
            number += 1
            emit(client, WHATS[number % 3], number)
    assert emitted(client) == Counter(
        [*range(1, number + 1), *range(1_000_001, 1_000_001 + handled)]
    )
    assert books_balance(client)


class EmitsAtItsEnd:
    """In a reference cycle, so that the garbage collector ends it, in the midst of anything."""

    ended = 0

    def __init__(self, client: sidestep.Client) -> None:
        self._client = client
        self._cycle = self

    def __del__(self) -> None:
        EmitsAtItsEnd.ended += 1
        emit(self._client, WHATS[EmitsAtItsEnd.ended % 3], 1_000_000 + EmitsAtItsEnd.ended)


def test_finalizers(connect: MakeClient) -> None:
    client = connect(outbox_bytes=16 << 20)
    EmitsAtItsEnd.ended = 0
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(1)
    try:
        for number in range(1, 1001):
            EmitsAtItsEnd(client)
            emit(client, WHATS[number % 3], number)
    finally:
        gc.set_threshold(*before)
        gc.collect()
    assert EmitsAtItsEnd.ended == 1000
    assert emitted(client) == Counter([*range(1, 1001), *range(1_000_001, 1_001_001)])


def test_many_threads(connect: MakeClient) -> None:
    client = connect(outbox_bytes=32 << 20)
    threads, each = 8, 300
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    begin = threading.Barrier(threads)

    def work(index: int) -> None:
        begin.wait()
        for n in range(each):
            number = index * each + n
            emit(client, WHATS[number % 3], number)
            if n % 50 == 0:
                assert books_balance(client)

    try:
        workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(switch)
    assert emitted(client) == Counter(range(threads * each))
    assert client.stats().dropped == 0


def test_a_dict_that_another_thread_changes_is_never_mixed_up(connect: MakeClient) -> None:
    client = connect(outbox_bytes=32 << 20)
    shared = {f"{i}": float(i) for i in range(20)}
    stop = threading.Event()

    def change() -> None:
        i = 20
        while not stop.is_set():
            shared.pop(next(iter(shared)))
            shared[f"{i}"] = float(i)
            i = (i + 1) % 100

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    changer = threading.Thread(target=change)
    changer.start()
    try:
        for step in range(1500):
            client.emit(shared, step=step)
    finally:
        stop.set()
        changer.join()
        sys.setswitchinterval(switch)
    found = numbers(client)
    assert found
    assert all(float(tag) == value for row in found for tag, value in row.items())
    assert client.stats().rejected == 0


def test_finish_while_others_emit(connect: MakeClient) -> None:
    for _ in range(20):
        client = connect()
        emitting = threading.Barrier(3)
        counts = [0, 0]

        def work(index: int) -> None:
            emitting.wait()
            while client._live:
                client.emit({"a": 1.0}, step=1)
                counts[index] += 1
            client.emit({"a": 1.0}, step=1)
            counts[index] += 1

        workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for worker in workers:
            worker.start()
        emitting.wait()
        client.finish(0)
        for worker in workers:
            worker.join()
        stats = client.stats()
        assert stats.emitted + stats.rejected == sum(counts)
        assert stats.emitted == stats.acked + stats.held + stats.dropped
