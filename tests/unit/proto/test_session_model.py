"""A trainer and a daemon agree on what is durable, whatever happens between them: a model."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings, strategies as st

from sidestep.proto import Reject
from sidestep.proto.session import ClientState

from .pair import CREDIT, PART_BYTES, POISON, Pair

WITHIN_S = 30.0
"""Silence (5 s), backoff (5 s), and retries of 2 s and more: no state takes longer to leave."""

Event = tuple[object, ...]
"""What happens: a name, and with how much of it."""

_UNIT = st.floats(0.0, 1.0, width=16)
_LITTLE = st.floats(0.0, 0.5, width=16)

_EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.tuples(st.just("run"), st.sampled_from([0.1, 0.5, 2.5, 6.0])),
    st.tuples(st.just("emit"), st.integers(1, 20), st.booleans()),
    st.tuples(st.just("emit large"), st.integers(1, 5 * PART_BYTES)),
    st.tuples(st.just("emit poison")),
    st.tuples(st.just("drop"), _UNIT, _UNIT),
    st.tuples(st.just("commit"), st.sampled_from(["always", "fail", "when told"])),
    st.tuples(st.just("crash"), st.sampled_from([0.0, 1.0, 8.0]), st.booleans()),
    st.tuples(st.just("link"), _LITTLE, _LITTLE, st.sampled_from([0.0, 0.3, 3.0])),
    st.tuples(st.just("cut")),
    st.tuples(st.just("credit"), st.sampled_from([0, 1, CREDIT, 100 * CREDIT])),
    st.tuples(st.just("finish")),
)


def happen(pair: Pair, event: Event) -> None:
    match event:
        case ("run", float() as seconds):
            pair.run(seconds)
        case ("emit", int() as count, bool() as new_tags):
            for n in range(count):
                pair.trainer.emit(float(n), new_tags and n == 0)
        case ("emit large", int() as nbytes):
            pair.trainer.emit_large(nbytes)
        case ("emit poison",):
            pair.trainer.emit(POISON)
        case ("drop", float() as first, float() as last):
            count = pair.trainer.last_seq
            pair.trainer.drop(1 + int(first * count), int(last * count))
        case ("commit", how):
            pair.daemon.committing = how == "always"
            pair.daemon.commit(fail=how == "fail")
        case ("crash", float() as down_s, bool() as fresh_journal):
            pair.daemon.crash(down_s, fresh_journal)
        case ("link", float() as loss, float() as repeat, float() as delay_s):
            pair.set_link(loss, repeat, delay_s)
        case ("cut",):
            pair.cut()
        case ("credit", int() as credit):
            pair.daemon.credit = credit
        case ("finish",):
            pair.trainer.finish()
        case ("reject",):
            pair.down.send(Reject("full", "too many clients"), pair.now)
        case _:
            raise AssertionError(f"no such event: {event}")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), events=st.lists(_EVENTS, max_size=30))
def test_nothing_is_lost_twice_there_or_stuck(seed: int, events: list[Event]) -> None:
    pair = Pair(seed)
    for event in events:
        happen(pair, event)
        pair.run(0.1)
    pair.settle(WITHIN_S)
    pair.check_settled()
