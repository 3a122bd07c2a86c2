"""A value is shown, or skipped with a reason, in bounded time and memory, whatever it holds."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np

from sidestep.client.values import Value as ClientValue
from sidestep.client.values.audio import Audio
from sidestep.client.values.custom_scalars import CustomScalars
from sidestep.client.values.embedding import Embedding
from sidestep.client.values.histogram import Histogram
from sidestep.client.values.hparams import HParams
from sidestep.client.values.image import Image, Images
from sidestep.client.values.masked_image import MaskedImage
from sidestep.client.values.mesh import Mesh
from sidestep.client.values.pr_curve import PRCurve
from sidestep.client.values.series import Series
from sidestep.client.values.tensor import Tensor
from sidestep.client.values.text import Text
from sidestep.client.values.video import Video
from sidestep.proto import Array, LocalProtocolError, RemoteProtocolError, RunSpec, Value
from sidestep.proto.records import DTYPE_SIZES, decode_value, encode_value
from sidestep.sidecar.sinks.base import SinkContext
from sidestep.sidecar.sinks.tensorboard import TensorBoardSink
from tests.support.travelled import travelled

from .. import scratch
from ..mutator import mutate_packed

_MAX_BYTES = 256 << 10
"""Of all arrays of a value: a search takes small steps."""


def value_of(data: bytes) -> Value | None:
    """The value that an input describes, as a sink gets it; None for one that no client can send.

    An input is ``[kind, tag, step, info, [[dtype, shape, bytes], ...]]``; bytes that are too few
    for their shape are repeated.
    """
    try:
        kind, tag, step, info, specs = msgpack.unpackb(data)
        arrays = [_array(*spec) for spec in specs]
        if sum(array.nbytes for array in arrays) > _MAX_BYTES:
            return None
        record = Value(kind, tag, step, 10**18, info, arrays)
        return decode_value(b"".join(encode_value(record)[1]))
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        return None
    except (LocalProtocolError, RemoteProtocolError):
        return None


def _array(dtype: str, shape: list[int], data: bytes) -> Array:
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(shape)
    size = math.prod(shape) * DTYPE_SIZES[dtype]
    if size > _MAX_BYTES:
        raise ValueError(size)
    return Array(dtype, tuple(shape), (data * (size // max(1, len(data)) + 1) + bytes(size))[:size])


def packed(value: Value) -> bytes:
    """The input that describes `value`."""
    arrays = [[a.dtype, list(a.shape), bytes(a.data)] for a in value.arrays]
    return bytes(msgpack.packb([value.kind, value.tag, value.step, dict(value.info), arrays]))


def check(data: bytes) -> None:
    """One value, in a sink that must go on after it."""
    value = value_of(data)
    if value is None:
        return
    sink = TensorBoardSink()
    root = scratch.empty("values")
    said: list[str] = []
    context = SinkContext(RunSpec("run", str(root)), "run", None, lambda _: None, said.append)
    sink.open(context)
    sink.write([value])
    state: Any = sink.commit()
    msgpack.packb(state)
    assert state["skipped"] in (0, 1)
    sink.close(finished=True)
    for path in root.rglob("*"):
        assert path.is_relative_to(root / "tensorboard" / "run") or path in _above(root)


def _above(root: Any) -> tuple[Any, ...]:
    return root / "tensorboard", root / "tensorboard" / "run"


mutate = mutate_packed


def _some() -> Iterator[ClientValue]:
    """One value of most kinds, with small arrays."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=40)
    yield Histogram(numbers.astype(np.float32))
    yield Histogram(numbers, bins=10)
    yield Histogram(numbers, bins="fd")
    yield Histogram(numbers, bins=np.linspace(-1, 1, 5))
    pixels = rng.integers(0, 255, (3, 6, 8), np.uint8)
    yield Image(pixels, caption="c")
    yield Image(rng.random((6, 8)))
    yield Images(rng.integers(0, 255, (3, 3, 4, 4), np.uint8), captions=["a", "b", "c"])
    yield MaskedImage(pixels, np.arange(12) % 2, patch_size=2)
    yield Audio(rng.normal(size=30).astype(np.float32), sample_rate=8000)
    yield Video(rng.integers(0, 255, (1, 3, 3, 4, 4), np.uint8), fps=4)
    yield Text("# hello\n| a | b |")
    yield Mesh(rng.normal(size=(1, 4, 3)).astype(np.float32))
    yield PRCurve(np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.6]))
    yield Embedding(rng.normal(size=(4, 3)).astype(np.float32), metadata=list("abcd"))
    yield HParams({"lr": 0.1, "kind": "a"}, {"loss": 0.5})
    yield CustomScalars({"all": {"loss": ["Multiline", ["a", "b"]]}})
    yield Series(folder="x", name="y")
    yield Tensor(rng.normal(size=(2, 2)))


def seeds() -> Iterator[bytes]:
    """What clients send, and what only the daemon itself makes."""
    for value in _some():
        found = travelled(value, "t/v", 3)
        small = [Array(a.dtype, a.shape, bytes(a.data)[:64]) for a in found.arrays]
        arrays = [[a.dtype, list(a.shape), a.data] for a in small]
        yield bytes(msgpack.packb([found.kind, found.tag, 3, dict(found.info), arrays]))
    eigenvalues = np.array([5.0, 2.0, 0.5])
    spectrum = Array("float64", (3,), eigenvalues.tobytes())
    yield packed(Value("spectrum", "s", 1, 0, {"n": 5, "d": 3, "rank": 2.5}, [spectrum]))
    counts = Array("float64", (2,), np.array([1.0, 4.0]).tobytes())
    info = {"min": 0.5, "max": 5.0, "num": 5.0, "sum": 9.0, "sum_squares": 20.0}
    yield packed(Value("histogram_counts", "h", 1, 0, info, [spectrum, counts]))
    yield packed(Value("purge", "p", 1, 0, {}, []))
    alarm = {"representation": "r", "state": "COLLAPSED", "reason": "why"}
    yield packed(Value("alarm", "a", 1, 0, alarm, []))
    yield packed(Value("event", "e", 1, 0, {}, [Array("uint8", (2,), b"\x10\x01")]))
    yield packed(Value("graph", "g", 1, 0, {}, [Array("uint8", (2,), b"\x0a\0")] * 2))
    sprite = Array("uint8", (2, 1, 2, 2), b"12345678")
    matrix = Array("float32", (2, 2), np.eye(2, dtype=np.float32).tobytes())
    info = {"sprite": True, "metadata": False}
    yield packed(Value("embedding", "e", 1, 0, info, [matrix, sprite]))


def any_value(rng: random.Random) -> bytes:
    """A value of a kind that nobody knows."""
    return packed(Value("unknown", "t", rng.randrange(9), 0, {}, []))
