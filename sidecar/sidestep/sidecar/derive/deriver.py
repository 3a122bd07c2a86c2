"""What a deriver is: values of one kind in, numbers and values of the daemon's own out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from sidestep.proto import Value


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from.

    Attributes:
        run_id: the journal's id of the run.
        client_id: that of the client that emitted it: of one rank, of one attempt.
        row: the journal's row.
    """

    run_id: int
    client_id: int
    row: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A representation at one step.

    Attributes:
        run_id: the journal's id of the run.
        tag: what was emitted, without a suffix.
        step: training step.
        time_ns: wall time in nanoseconds since the epoch.
        figures: by suffix, without its underscore (``variance_share``); what is undefined is
            absent. Beside them stand the figures of the spectrum, when it was due.
    """

    run_id: int
    tag: str
    step: int
    time_ns: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Derived:
    """What is made of a value.

    Attributes:
        step: training step.
        time_ns: wall time in nanoseconds since the epoch.
        scalars: numbers by their whole tags.
        values: records that are not numbers; each has its own step and time.
        observation: for those who watch representations.
        alarm_states: what a watcher must know again after a death, by the representation's tag.
    """

    step: int
    time_ns: int
    scalars: Mapping[str, float] = field(default_factory=dict[str, float])
    values: Sequence[Value] = ()
    observation: Observation | None = None
    alarm_states: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


Derive: TypeAlias = Callable[[Source, Value], Iterable[Derived]]
"""Makes what there is to make of a value.

Raises RemoteProtocolError when the value is not as its kind says: the worker counts it, says so in
the log, and goes on. It may keep what it can afford to lose, as a deriver is started again whenever
it dies; what must outlive it is journalled together with its cursor.
"""


class Watcher(Protocol):
    """Is shown every observation, in the order in which they were journalled."""

    def restore(self, run_id: int, states: Mapping[str, bytes]) -> None:
        """Begin a run with the `alarm_states` that are journalled."""
        ...

    def __call__(self, observation: Observation) -> Iterable[Derived]:
        """What is to be journalled beside the observation's own figures."""
        ...
