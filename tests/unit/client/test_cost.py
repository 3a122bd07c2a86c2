"""One call a second is timed, and the average follows."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from sidestep.client.cost import EmitCost
from tests.unit.client.conftest import MakeClient


class Clock:
    """A clock that stands still."""

    now_ns = 5

    def __call__(self) -> int:
        return self.now_ns


def test_one_call_a_second() -> None:
    clock = Clock()
    cost = EmitCost(clock)
    cost.look()
    assert not cost.wanted
    clock.now_ns += 1_000_000_000
    cost.look()
    assert cost.wanted
    with cost:
        clock.now_ns += 3_000
    assert (cost.wanted, cost.mean_ns) == (False, 3_000)
    cost.look()
    assert not cost.wanted
    with cost:
        clock.now_ns += 8_000
    assert cost.mean_ns == 4_000


def test_an_emit_is_timed_when_that_is_wanted(connect: MakeClient) -> None:
    client = connect()
    for value in (1.0, "no number"):  # the short way, and the long one
        client.emit({"a": 1.0}, step=0)
        before = client._cost.mean_ns
        client._cost.wanted = True
        client.emit({"a": value}, step=1)
        assert not client._cost.wanted
        assert client._cost.mean_ns not in (0, before)
    assert client._books().emit_ns == client._cost.mean_ns
