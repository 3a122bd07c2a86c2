"""What a sink is: somebody who writes a run's points somewhere, and can say where it stood.

A state with ``closed: False`` says that what was written is complete only after the sink was opened
and closed once more, also when there is nothing more to write (W&B: what was not uploaded).

A sink runs in a worker of its own, one for each (run, sink). The worker reads the journal from
the sink's cursor, hands the points over, and stores the cursor together with what
`commit` returned in one atomic write; after a crash the sink is opened with that same state and
gets everything after the cursor again. A sink that can undo what it wrote after its last commit
(TensorBoard: truncate the file) is therefore exact; one that cannot (W&B) sees a few points twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sidestep.proto import RunSpec, SidestepError

from ..rows.points import Points

SinkState = Mapping[str, object]
"""What a sink needs to take up its work again: MessagePack types, a few hundred bytes."""


class SinkUnusableError(SidestepError):
    """The sink cannot work until a person has changed something: nobody waits for it any more.

    It is tried again every 30 s all the same, in case a person has.

    The message says what is wrong and what to do.
    """


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a sink is told when it is opened.

    Attributes:
        run: what the run's clients said of it.
        run_dir: the run's name, made safe as one component of a path.
        state: what the last `commit` returned, or None the first time.
        save: stores a state at once, with the cursor as it is: for a name that must be known
            before the first byte is written under it.
        log: says something to the daemon's log.
        settings: what the daemon's settings say of this sink.
    """

    run: RunSpec
    run_dir: str
    state: SinkState | None
    save: Callable[[SinkState], None]
    log: Callable[[str], None]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Sink(Protocol):
    """A destination of one run's points.

    Every method may raise: the worker opens the sink again, with backoff; not after
    `SinkUnusableError`.
    """

    def open(self, context: SinkContext) -> None:
        """Take up the work where `context.state` says; undo what came after it."""
        ...

    def write(self, points: Iterable[Points]) -> None:
        """Take points. They need not be anywhere yet when this returns."""
        ...

    def commit(self) -> SinkState:
        """See to it that everything written is where a crash of this process cannot take it."""
        ...

    def close(self, finished: bool) -> None:
        """Free everything; `finished` says that the run has ended. Called after a commit."""
        ...
