"""Interrupts sidestep's own code at each place where the interpreter would let a signal in.

CPython runs signal handlers (and raises KeyboardInterrupt) in the main thread when a function
begins, when a loop jumps back, and after a call. A trace function finds each such place in turn, so
that a test can have something happen at the first, the second, ... until there are no more.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FrameType
from typing import Any, Self

_LETS_SIGNALS_IN = ("RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD")


@cache
def _instructions(code: CodeType) -> dict[int, tuple[str, tuple[int, ...]]]:
    """By offset: the name of each instruction, and the `try` blocks that it lies in."""
    blocks = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    return {
        i.offset: (
            i.opname,
            tuple(n for n, block in enumerate(blocks) if block.start <= i.offset < block.end),
        )
        for i in dis.get_instructions(code)
    }


class Interrupter:
    """Counts the places in sidestep's code; at number `at` it calls `happen`, once."""

    def __init__(self, at: int, happen: Callable[[], object]) -> None:
        self.done = False
        self._left = at
        self._happen = happen
        self._previous: dict[FrameType, tuple[str, tuple[int, ...]]] = {}

    def __enter__(self) -> Self:
        self._outer = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._outer)
        self._previous.clear()

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if "/sidestep/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            opcode, blocks = self._previous.get(frame, ("RESUME", ()))
            known = _instructions(frame.f_code)
            here = self._previous[frame] = known.get(frame.f_lasti, ("", ()))
            # What is raised from here is raised by this instruction, and not, as it should be, by
            # the one before it: that is the same only where both lie in the same `try`.
            if opcode in _LETS_SIGNALS_IN and blocks == here[1] and not self.done:
                self._left -= 1
                if self._left < 0:
                    self.done = True
                    self._happen()
        return self._step


def everywhere(most: int = 2000) -> Iterator[int]:
    """Numbers of places; the caller stops when an `Interrupter` was not reached any more."""
    yield from range(most)
    raise AssertionError(f"more than {most} places: does the call end?")


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt
