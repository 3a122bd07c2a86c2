"""What a value is to the emitter: something that says what of it travels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sidestep.proto import SidestepError


class InvalidValueError(SidestepError, ValueError):
    """A value that cannot be emitted: says what was wrong and what was expected."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What travels of a value.

    Attributes:
        kind: the name under which the sinks know it.
        info: its settings: MessagePack types only.
        arrays: torch tensors on any device, or numpy arrays.
    """

    kind: str
    info: Mapping[str, object] = field(default_factory=dict[str, object])
    arrays: Sequence[Any] = ()


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
    """

    step: int
    memory: dict[str, Any]


class Value(ABC):
    """Something that can be emitted and is not a plain number."""

    kind: ClassVar[str]

    @abstractmethod
    def prepare(self, context: EmitContext) -> Prepared | Deferred:
        """What travels of it; it never reads a tensor that may lie on a device.

        Raises:
            InvalidValueError: it cannot be emitted.
        """
