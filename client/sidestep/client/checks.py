"""What may be emitted: tags, numbers, steps and times; each check says what it expected."""

from __future__ import annotations

import operator
from typing import Any

from sidestep.proto.limits import MAX_SEQ, MAX_TAG_BYTES
from sidestep.proto.tag_sets import REDUCTIONS

from .values import InvalidValueError, is_tensor, on_device


def tag_of(tag: Any, prefix_bytes: int) -> str:
    """`tag` as a plain str, if it can be one after a prefix of so many bytes.

    Raises:
        InvalidValueError: it is no str, empty, no valid Unicode or too long.
    """
    if not isinstance(tag, str) or not tag:
        raise InvalidValueError(f"a tag must be a non-empty str, not {shown(tag)}")
    try:
        size = len(str.encode(tag))
    except UnicodeEncodeError:
        raise InvalidValueError("a tag must be valid Unicode text") from None
    if size + prefix_bytes > MAX_TAG_BYTES:
        raise InvalidValueError(f"a tag of {size} bytes: at most {MAX_TAG_BYTES - prefix_bytes}")
    # A subclass could have a hash or an equality of its own.
    return tag if type(tag) is str else str.__str__(tag)


def number(value: Any) -> float:
    """A number that the CPU can read, as float64.

    Raises:
        InvalidValueError: it is no number, or beyond float64.
    """
    if is_tensor(value):
        check_number_tensor(value)
        value = value.item()
    elif hasattr(value, "dtype") and hasattr(value, "item"):  # numpy
        if getattr(value, "ndim", 0) != 0:
            raise InvalidValueError(f"array of shape {value.shape}: emit a scalar or a Histogram")
        # float() and not .item(), which returns a longdouble as it is.
        value = float(value) if value.dtype.kind == "f" else value.item()
    if not isinstance(value, (int, float)):
        raise InvalidValueError(
            f"{type(value).__name__} is no value: expected int, float, bool, a numpy scalar, a "
            "0-d tensor, or a sidestep value such as Histogram, Image, Text"
        )
    try:
        return float(value)
    except OverflowError:
        raise InvalidValueError("an integer beyond the range of float64") from None


def check_number_tensor(tensor: Any) -> None:
    """See that `tensor` is one real number.

    Raises:
        InvalidValueError: it has dimensions, or is complex.
    """
    if tensor.ndim != 0:
        shape = tuple(tensor.shape)
        raise InvalidValueError(f"tensor of shape {shape}: emit a 0-d tensor or a Histogram")
    if tensor.is_complex():
        raise InvalidValueError("complex tensor: emit its .abs(), .real or .imag")


def step_number(step: Any) -> int:
    """`step` as an int.

    Raises:
        InvalidValueError: it is no integer, does not fit into 64 bits, or lies on a device.
    """
    if on_device(step):
        raise InvalidValueError("step is a tensor on a device: reading it would synchronize")
    try:
        number = operator.index(step)
    except TypeError:
        raise InvalidValueError(f"step must be an int, not {type(step).__name__}") from None
    if not -MAX_SEQ - 1 <= number <= MAX_SEQ:
        raise InvalidValueError(f"step {shown(number)} does not fit into 64 bits")
    return number


def nanoseconds(wall_time: Any) -> int:
    """Seconds since the epoch as nanoseconds.

    Raises:
        InvalidValueError: it is no number, negative, not finite, or beyond the year 2262.
    """
    if not isinstance(wall_time, (int, float)) or not 0 <= wall_time < MAX_SEQ / 1e9:
        raise InvalidValueError(
            f"wall_time must be seconds since the epoch, not {shown(wall_time)}"
        )
    # The whole seconds apart: the product would be rounded to 256 ns.
    return int(wall_time) * 1_000_000_000 + round(wall_time % 1 * 1_000_000_000)


def check_reduce(reduce: Any) -> None:
    """See that values can be combined over ranks as `reduce` says.

    Raises:
        InvalidValueError: there is no such reduction.
    """
    if reduce is None:
        return
    if reduce not in REDUCTIONS:
        expected = f"{', '.join(REDUCTIONS[:-1])} or {REDUCTIONS[-1]}"
        raise InvalidValueError(f"reduce must be {expected}, not {shown(reduce)}")


def shown(value: object) -> str:
    """`value` for a message: short, and without asking anybody else's code how it looks."""
    # The repr of a tensor on a device would synchronize.
    if value is None or type(value) in (bool, int, float, str, bytes):
        try:
            return f"{value!r:.100}"
        except ValueError:
            pass  # an integer of thousands of digits
    return f"<{type(value).__name__}>"
