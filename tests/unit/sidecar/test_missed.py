"""What `tail` did not show is counted, to the record, whatever was lost on the way and why."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given, strategies as st

from sidestep.sidecar.cli.follow import Block, Follower
from sidestep.sidecar.cli.tail_output import LineOutput, json_lines
from tests.support.clock import Clock

RECORDS = 3


class Stream:
    """A journal of rows of three records each, and a feed that loses, around a follower of run a.

    Steps are numbers of records. Rows of another run lie between them, and of a second run that is
    called a, too.
    """

    def __init__(self, kept_rows: int) -> None:
        self.follower = Follower("a")
        self.seen: list[int] = []
        self.journal: list[tuple[int, int]] = []  # run id, its records with this row
        self.totals = {1: 0, 2: 0, 3: 0}
        self._kept_rows = kept_rows
        self.connected = False
        self._asked: dict[str, Any] | None = None
        self.started = 0  # records of the past, which nobody asked for

    def ask(self) -> None:
        self._asked = self._asked or self.follower.request()

    def answer(self) -> None:
        if self._asked is None:
            return
        after, self._asked = self._asked["after"], None
        spans: dict[int, tuple[int, int]] = {}
        points: list[dict[str, Any]] = []
        left = len(self.journal) - self._kept_rows  # rows up to here have left the journal
        for row, (run_id, total) in enumerate(self.journal, 1):
            if after is not None and row > max(after, left) and run_id != 3:
                spans[run_id] = spans.get(run_id, (total - RECORDS, 0))[0], total
                points += [
                    {"run": "a", "tag": "x", "step": n, "wall_time": 0.0, "value": 0.0}
                    for n in range(total - RECORDS, total)
                ]
        if after is None:
            self.started = self.totals[1] + self.totals[2]
        spans = {**{run: (many, many) for run, many in self.totals.items()}, **spans}
        named = [("a" if run != 3 else "b", run, *span) for run, span in spans.items()]
        reply = {"daemon_id": 1, "row": len(self.journal), "points": points, "spans": named}
        self._see(self.follower.on_history(reply))

    def emit(self, run_id: int, lost: bool) -> None:
        total = self.totals[run_id] = self.totals[run_id] + RECORDS
        self.journal.append((run_id, total))
        if lost or not self.connected:
            return
        steps = list(range(total - RECORDS, total))
        message = {
            "run": "a" if run_id != 3 else "b",
            "run_id": run_id,
            "records": RECORDS,
            "total": total,
            "row": len(self.journal),
            "daemon_id": 1,
            "scalars": [[["x"], steps, [0.0] * RECORDS, [[0.0]] * RECORDS]],
        }
        self._see(self.follower.on_feed(message))

    def status(self) -> None:
        if self.connected:
            totals = [(run, "a" if run != 3 else "b", many) for run, many in self.totals.items()]
            self.follower.on_status({"daemon": {"daemon_id": 1}, "runs": []}, totals)

    def silence(self) -> None:
        self.connected = False
        self.follower.on_silence()

    def _see(self, blocks: list[Block]) -> None:
        self.seen += [step for block in blocks for step in block.steps]


MOVES = st.one_of(
    st.tuples(st.just("emit"), st.sampled_from([1, 1, 2, 3]), st.booleans()),
    st.sampled_from([("status",), ("answer",), ("connect",), ("silence",)]),
)


@given(st.lists(MOVES), st.integers(0, 6))
def test_what_was_not_shown_is_counted_to_the_record(moves: list[Any], kept_rows: int) -> None:
    stream = Stream(kept_rows)
    stream.ask()
    stream.answer()
    for name, *arguments in moves:
        if name == "connect":
            stream.connected = True
        else:
            getattr(stream, name)(*arguments)
        stream.ask()
    stream.connected = True
    for _ in range(3):
        stream.status()
        stream.ask()
        stream.answer()
    emitted = stream.totals[1] + stream.totals[2] - stream.started
    assert len(stream.seen) + stream.follower.missed == emitted
    assert stream.follower.missed >= 0


def test_it_is_said_beside_the_lines_and_not_too_often() -> None:
    out, said, clock = io.BytesIO(), list[str](), Clock()
    lines = LineOutput(out, json_lines, said.append, "my run", clock)
    lines.missed(0)
    assert said == []
    lines.missed(1)
    (first,) = said
    assert first.startswith("1 record of 'my run' skipped, since this output is read too slowly")
    assert first.endswith("`sidestep export 'my run' -f jsonl` has them all")
    for many in range(2, 1200):
        lines.missed(many)
    assert len(said) == 1
    clock.now += 60
    lines.missed(1201)
    assert said[1].startswith("1,200 records of 'my run' skipped")
    lines.missed(1203)
    lines.close()
    assert said[2].startswith("2 records")
    lines.close()
    assert len(said) == 3
    assert out.getvalue() == b""
