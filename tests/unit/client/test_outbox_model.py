"""Whatever is emitted, sent, acknowledged and pushed out: the books balance, nothing is mixed up.

The model remembers every record with its bytes. After each step a copy of the memory is adopted as
if the process had been killed: it must hold exactly what is neither acknowledged nor dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sidestep.client.books import Totals
from sidestep.client.chunks import Slice
from sidestep.client.holes import Hole
from sidestep.client.segment import Large
from sidestep.proto.limits import MAX_SMALL_RECORD_BYTES
from tests.unit.client.outboxes import SMALLEST, Box, Held, drain, new_box, read, records_of

PAGE = 4096


@dataclass
class Record:
    data: bytes
    large: bool
    dropped: bool = False
    refused: bool = False


class OutboxMachine(RuleBasedStateMachine):
    """The trainer and the sender take turns at one outbox."""

    @initialize(nbytes=st.sampled_from([SMALLEST, 96 << 10, 200 << 10]))
    def begin(self, nbytes: int) -> None:
        self.box: Box = new_box(nbytes)
        self.outbox = self.box.outbox
        self.records: dict[int, Record] = {}
        self.lost = self.lost_bytes = 0
        self.next_seq = 1
        self.sent_seq = self.acked_seq = 0
        self.boundaries: list[int] = []
        self.sent_ranges: list[tuple[int, int]] = []
        self.step = 0

    # --- the trainer -------------------------------------------------------------------------

    @rule(count=st.sampled_from([1, 3, 20, 300]), times=st.integers(1, 40))
    def emit_numbers(self, count: int, times: int) -> None:
        for _ in range(times):
            self.step += 1
            was = self.outbox.last_seq
            self._emitted(was, self.box.put_row(self.step, count))

    @rule(size=st.integers(0, 3000) | st.integers(4000, 4100) | st.integers(4000, 30_000))
    def emit_value(self, size: int) -> None:
        self.step += 1
        was = self.outbox.last_seq
        dropped = self._dropped_numbers()
        self._emitted(was, self.box.put_value(self.step, size))
        if size > PAGE:
            assert self._dropped_numbers() == dropped, "a payload pushed out numbers"

    def _emitted(self, last_seq: int, data: bytes) -> None:
        if self.outbox.last_seq == last_seq:
            self.lost += 1
            self.lost_bytes += len(data)
        else:
            assert self.outbox.last_seq == last_seq + 1
            assert len(data) < MAX_SMALL_RECORD_BYTES
            self.records[last_seq + 1] = Record(data, large=len(data) > PAGE)
        self._learn_what_was_pushed_out()

    def _learn_what_was_pushed_out(self) -> None:
        found = self.box.adopted()
        gone = [
            seq
            for seq, record in self.records.items()
            if seq > self.acked_seq and found.get(seq) is None and not record.dropped
        ]
        for seq in gone:
            assert seq > self.sent_seq, "pushed out although the daemon may have it"
            self.records[seq].dropped = True
        if any(not self.records[seq].large for seq in gone):
            evictable = [
                seq
                for seq, record in self.records.items()
                if seq > self.sent_seq and record.large and not record.dropped
            ]
            assert not [seq for seq in evictable if seq < max(gone)], "numbers before payloads"

    def _dropped_numbers(self) -> int:
        return sum(record.dropped and not record.large for record in self.records.values())

    # --- the sender --------------------------------------------------------------------------

    @rule(times=st.integers(1, 4), credit=st.sampled_from([0, 5000, 1 << 20]))
    def send(self, times: int, credit: int) -> None:
        for _ in range(times):
            chunk = self.outbox.take(self.next_seq, lambda size: size <= credit)
            if chunk is None:
                waiting = self.records.get(self.next_seq)
                assert waiting is None or not waiting.dropped
                assert waiting is None or credit < 200 << 10
                return
            first, last = self._check(chunk, credit)
            self.boundaries.append(last)
            self.sent_ranges.append((first, last))
            self.sent_seq = max(self.sent_seq, last)
            self.next_seq = last + 1

    def _check(self, chunk: Slice | Large | Hole, credit: int) -> tuple[int, int]:
        match chunk:
            case Slice(first, last, data):
                assert first <= self.next_seq <= last
                assert len(data) <= credit
                for seq, record in records_of(first, last, data).items():
                    assert self.records[seq].data == record
                    assert seq < self.next_seq or not self.records[seq].dropped
                return self.next_seq, last
            case Hole(first, last):
                assert first == self.next_seq
                assert all(self.records[seq].dropped for seq in range(first, last + 1))
                return first, last
            case Large(seq, total):
                assert seq == self.next_seq
                assert total <= credit
                assert read(self.outbox, chunk) == self.records[seq].data
                assert not self.records[seq].dropped
                return seq, seq

    @precondition(lambda self: self.boundaries)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        durable = data.draw(st.sampled_from(self.boundaries))
        if durable > self.acked_seq:
            dropped = sum(r.dropped for seq, r in self.records.items() if seq <= durable)
            self.outbox.release(durable, dropped)
            self.acked_seq = durable
            self.next_seq = max(self.next_seq, durable + 1)
            self.boundaries = [seq for seq in self.boundaries if seq > durable]

    @rule()
    def go_back(self) -> None:
        self.next_seq = self.acked_seq + 1

    @precondition(lambda self: any(last > self.acked_seq for _, last in self.sent_ranges))
    @rule(data=st.data())
    def be_refused(self, data: st.DataObject) -> None:
        open_ranges = [r for r in self.sent_ranges if r[1] > self.acked_seq]
        first, last = data.draw(st.sampled_from(open_ranges))
        first = max(first, self.acked_seq + 1)
        for seq in range(first, last + 1):
            # In the middle of a segment they stay in memory; whoever adopts it is refused, too.
            self.records[seq].refused |= not self.records[seq].dropped
            self.records[seq].dropped = True
        # What it refuses it has not taken: it will acknowledge them as a gap, and as a whole.
        self.boundaries = [seq for seq in self.boundaries if not first <= seq < last]
        self.outbox.refuse(first, last, "bad")
        self.next_seq = self.acked_seq + 1

    # --- what always holds -------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "box"):
            return
        unacked = {seq: r for seq, r in self.records.items() if seq > self.acked_seq}
        held = [record for record in unacked.values() if not record.dropped]
        dropped = [record for record in self.records.values() if record.dropped]
        emitted = len(self.records) + self.lost
        emitted_bytes = sum(len(r.data) for r in self.records.values()) + self.lost_bytes
        gone = len(dropped) + self.lost
        held_bytes = sum(len(record.data) for record in held)
        gone_bytes = sum(len(record.data) for record in dropped) + self.lost_bytes
        assert self.outbox.totals() == Totals(
            emitted=emitted,
            acked=emitted - len(held) - gone,
            held=len(held),
            dropped=gone,
            emitted_bytes=emitted_bytes,
            acked_bytes=emitted_bytes - held_bytes - gone_bytes,
            held_bytes=held_bytes,
            dropped_bytes=gone_bytes,
        )

    @invariant()
    def a_kill_now_would_lose_nothing(self) -> None:
        if not hasattr(self, "box"):
            return
        expected: Held = {
            seq: None if record.dropped and not record.refused else record.data
            for seq, record in self.records.items()
            if seq > self.acked_seq
        }
        found = self.box.adopted()
        for seq, record in self.records.items():
            if record.refused and record.large and seq > self.acked_seq:
                expected[seq] = None  # its pieces were given back
        # Records at the very end that were dropped leave no trace: nobody waits for them.
        assert found == {seq: data for seq, data in expected.items() if seq in found}
        assert all(expected[seq] is None for seq in expected.keys() - found.keys())

    def teardown(self) -> None:
        if not hasattr(self, "box"):
            return
        found = drain(self.outbox)
        expected = {
            seq: None if record.dropped else record.data
            for seq, record in self.records.items()
            if seq > self.acked_seq
        }
        assert found == expected
        dropped = sum(record.dropped for record in self.records.values())
        self.outbox.release(self.outbox.last_seq, dropped)
        assert self.outbox.totals().held == self.outbox.totals().held_bytes == 0
        # All memory came back: the largest record fits again.
        self.lost = self.outbox.totals().dropped
        self.box.put_value(1, self.outbox.max_record_bytes - 200)
        assert self.outbox.totals().dropped == self.lost


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
