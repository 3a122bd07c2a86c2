"""A trainer and a daemon agree on what is durable, whatever happens between them: a model."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings, strategies as st

from .pair import CREDIT, PART_BYTES, Pair

WITHIN_S = 30.0
"""Silence (5 s), backoff (5 s), and retries of 2 to 8 s: no state takes longer to leave."""

_UNIT = st.floats(0.0, 1.0, width=16)
_LITTLE = st.floats(0.0, 0.5, width=16)


def _event(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Event]:
    return st.tuples(st.just(name), *arguments)


Event = tuple[object, ...]
"""What happens: a method of `Pair`, and its arguments."""

EVENTS = st.one_of(
    _event("run", st.sampled_from([0.1, 0.5, 2.5, 6.0])),
    _event("emit", st.integers(1, 20), st.booleans()),
    _event("emit_large", st.integers(1, 5 * PART_BYTES)),
    _event("emit_poison"),
    _event("drop", _UNIT, _UNIT),
    _event("commit", st.sampled_from(["always", "fail", "when told"])),
    _event("crash", st.sampled_from([0.0, 1.0, 8.0]), st.booleans()),
    _event("set_link", _LITTLE, _LITTLE, st.sampled_from([0.0, 0.3, 3.0])),
    _event("cut"),
    _event("set_credit", st.sampled_from([0, 1, CREDIT, 100 * CREDIT])),
    _event("finish"),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), events=st.lists(EVENTS, min_size=5, max_size=50))
def test_nothing_is_lost_twice_there_or_stuck(seed: int, events: list[Event]) -> None:
    pair = Pair(seed)
    for name, *arguments in events:
        getattr(pair, str(name))(*arguments)
        pair.run(0.1)
    pair.settle(WITHIN_S)
    pair.check_settled()
