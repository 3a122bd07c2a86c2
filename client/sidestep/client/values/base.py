"""What a value is to the emitter: something that says what of it travels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sidestep.proto import SidestepError


class InvalidValueError(SidestepError, ValueError):
    """A value that cannot be emitted: says what was wrong and what was expected."""


@dataclass(frozen=True, slots=True)
class Computation:
    """What is still to be computed of a value's arrays, where they live, before it travels.

    On a CUDA device `gather` runs in the trainer's stream, its results are copied into memory that
    the trainer cannot change, and `compute` runs on those in a stream of its own. Neither may read
    a result.

    Attributes:
        gather: from the value's arrays to those that are kept: views, and small selections.
        compute: from these to what travels: float32 tensors.
        gathered_bytes: of what `gather` returns.
        result_bytes: of what `compute` returns.
    """

    gather: Callable[[Sequence[Any]], Sequence[Any]]
    compute: Callable[[Sequence[Any]], Sequence[Any]]
    gathered_bytes: int
    result_bytes: int

    def at_once(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """Both, one after the other, in this thread and stream."""
        return self.compute(self.gather(arrays))


@dataclass(frozen=True, slots=True)
class Prepared:
    """What travels of a value.

    Attributes:
        kind: the name under which the sinks know it.
        info: its settings: MessagePack types only.
        arrays: torch tensors on any device, or numpy arrays.
        computation: what makes of them the tensors that travel; None: they travel as they are.
    """

    kind: str
    info: Mapping[str, object] = field(default_factory=dict[str, object])
    arrays: Sequence[Any] = ()
    computation: Computation | None = None


@dataclass(frozen=True, slots=True)
class Deferred:
    """What travels of a value that takes long to make and has been handed over: made later.

    Attributes:
        kind: of what will be made.
        nbytes: about as many bytes as it will have.
        make: makes it, in a thread of the client's own.
    """

    kind: str
    nbytes: int
    make: Callable[[], Prepared]


@dataclass(frozen=True, slots=True)
class EmitContext:
    """What a value may know of the `emit` it is part of.

    Attributes:
        step: the step.
        memory: kept by the client from one `emit` under this tag to the next.
        max_bytes: of one record, in this client's outbox.
    """

    step: int
    memory: dict[str, Any]
    max_bytes: int = 1 << 62


class Value(ABC):
    """Something that can be emitted and is not a plain number.

    Attributes:
        kind: the name under which the sinks know it.
        over_ranks: whether the ranks of a job are put together: never, when `reduce` is given, or
            always.
    """

    kind: ClassVar[str]
    over_ranks: ClassVar[Literal["never", "asked", "always"]] = "never"

    @abstractmethod
    def prepare(self, context: EmitContext) -> Prepared | Deferred:
        """What travels of it; it never reads a tensor that may lie on a device.

        Raises:
            InvalidValueError: it cannot be emitted.
        """
