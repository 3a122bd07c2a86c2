"""Holes are what a set of numbers with reasons would be, kept as few ranges."""

from __future__ import annotations

import itertools

from hypothesis import given, strategies as st

from sidestep.client.holes import Hole, Holes

LAST = 30
ranges = st.tuples(st.integers(1, LAST), st.integers(1, LAST)).map(sorted).map(tuple)
additions = st.lists(st.tuples(ranges, st.sampled_from("ab")), max_size=12)


def build(added: list[tuple[tuple[int, int], str]]) -> tuple[Holes, dict[int, str]]:
    holes, model = Holes(), {}
    for (first, last), reason in added:
        holes = holes.adding(first, last, reason)
        model |= dict.fromkeys(range(first, last + 1), reason)
    return holes, model


def as_model(holes: Holes) -> dict[int, str]:
    return {seq: hole.reason for hole in holes for seq in range(hole.first_seq, hole.last_seq + 1)}


@given(additions)
def test_they_hold_what_was_added_last(added: list[tuple[tuple[int, int], str]]) -> None:
    holes, model = build(added)
    assert as_model(holes) == model


@given(additions)
def test_they_are_in_order_disjoint_and_as_few_as_can_be(
    added: list[tuple[tuple[int, int], str]],
) -> None:
    holes = list(build(added)[0])
    assert all(hole.first_seq <= hole.last_seq for hole in holes)
    for hole, following in itertools.pairwise(holes):
        assert hole.last_seq < following.first_seq
        assert hole.reason != following.reason or hole.last_seq + 1 < following.first_seq


@given(additions, st.integers(0, LAST + 1))
def test_looking_up(added: list[tuple[tuple[int, int], str]], seq: int) -> None:
    holes, model = build(added)
    found = holes.at(seq)
    assert (found.reason if found else None) == model.get(seq)
    assert found is None or found.first_seq <= seq <= found.last_seq
    after = holes.after(seq)
    firsts = [hole.first_seq for hole in holes if hole.first_seq > seq]
    assert (after.first_seq if after else None) == min(firsts, default=None)


@given(additions, ranges)
def test_what_lies_between(
    added: list[tuple[tuple[int, int], str]], bounds: tuple[int, int]
) -> None:
    holes, model = build(added)
    between = holes.between(*bounds)
    numbers = [seq for first, last in between for seq in range(first, last + 1)]
    assert numbers == [seq for seq in range(bounds[0], bounds[1] + 1) if seq not in model]


@given(additions, st.integers(0, LAST + 1))
def test_those_that_do_not_end_before(added: list[tuple[tuple[int, int], str]], seq: int) -> None:
    holes, _ = build(added)
    assert list(holes.since(seq)) == [hole for hole in holes if hole.last_seq >= seq]


@given(additions, ranges)
def test_adding_changes_nothing_that_is_there(
    added: list[tuple[tuple[int, int], str]], bounds: tuple[int, int]
) -> None:
    holes, model = build(added)
    holes.adding(*bounds, "c")
    assert as_model(holes) == model


def test_neighbours_with_one_reason_become_one() -> None:
    holes = Holes().adding(1, 2, "a").adding(5, 6, "a").adding(3, 4, "a")
    assert list(holes) == [Hole(1, 6, "a")]
