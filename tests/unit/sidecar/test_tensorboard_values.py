"""Histograms, images and text: what TensorBoard shows equals what torch would have written."""

from __future__ import annotations

import io
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter, summary

from sidestep.proto import Array, Value
from sidestep.proto.records import DTYPE_SIZES
from sidestep.sidecar.sinks.tensorboard_values import event_of

calm = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def value(kind: str, array: Any, **info: object) -> Value:
    arrays = () if array is None else (Array(str(array.dtype), array.shape, array.tobytes()),)
    return Value(kind, "tag", -7, 1_700_000_000_250_000_000, info, arrays)


def shown(kind: str, array: Any = None, **info: object) -> Any:
    """The one Summary.Value that is written for a value."""
    event = Event.FromString(event_of(value(kind, array, **info)))
    assert (event.step, event.wall_time) == (-7, 1_700_000_000.25)
    (only,) = event.summary.value
    return only


# --- text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["", "plain", "**bold**\n\n| a | b |", "損失 🙂", "x" * 100_000])
def test_text_is_as_torch_writes_it(words: str) -> None:
    assert shown("text", text=words) == summary.text("tag", words).value[0]


def test_text_must_be_text() -> None:
    for info in ({}, {"text": 5}, {"text": b"bytes"}):
        with pytest.raises(TypeError, match="must be a string"):
            event_of(value("text", None, **info))


# --- images ------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
NOISE = RNG.random((5, 7, 4))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_is_as_torch_writes_it(dtype: str, layout: str, channels: int) -> None:
    pixels = (NOISE[:, :, :channels] * (255 if dtype == "uint8" else 1)).astype(dtype)
    array = {"HWC": pixels, "CHW": pixels.transpose(2, 0, 1), "HW": pixels[:, :, 0]}[layout]
    ours = shown("image", array, layout=layout)
    theirs = summary.image("tag", array, dataformats=layout).value[0]
    assert (ours.image.height, ours.image.width) == (5, 7)
    np.testing.assert_array_equal(decoded(ours), decoded(theirs))
    assert ours == theirs


@calm
@given(hnp.arrays(np.float32, (2, 3, 3), elements=st.floats(width=32)))
def test_floats_are_clipped_and_nan_is_black(pixels: Any) -> None:
    ours = decoded(shown("image", pixels, layout="HWC"))
    clean = np.where(np.isnan(pixels), np.float32(0), pixels).clip(0, 1)
    np.testing.assert_array_equal(ours, decoded(summary.image("tag", clean, 1, "HWC").value[0]))


def test_a_caption_is_the_description() -> None:
    ours = shown("image", NOISE, layout="HWC", caption="a **cat**")
    assert ours.metadata.summary_description == "a **cat**"
    ours.ClearField("metadata")
    assert ours == shown("image", NOISE, layout="HWC")


@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    [
        ((4, 4), "CHW", "uint8"),
        ((4, 4, 3), "HW", "uint8"),
        ((4, 4, 3), "NHWC", "uint8"),
        ((4, 4, 3), None, "uint8"),
        ((4, 4, 3), ["HWC"], "uint8"),
        ((4, 4, 2), "HWC", "uint8"),
        ((4, 4, 5), "HWC", "uint8"),
        ((0, 4, 3), "HWC", "uint8"),
        ((4, 4, 0), "HWC", "uint8"),
        ((4, 4, 3), "HWC", "int32"),
    ],
)
def test_what_is_no_image_is_refused(shape: tuple[int, ...], layout: object, dtype: str) -> None:
    with pytest.raises(ValueError, match=r"image|pixels"):
        event_of(value("image", np.zeros(shape, dtype), layout=layout))


def decoded(summary_value: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(summary_value.image.encoded_image_string)))


# --- histograms --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_bins() -> list[float]:
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        return list(writer.default_bins)


def assert_same_histogram(ours: Any, theirs: Any) -> None:
    assert list(ours.bucket) == list(theirs.bucket)
    assert list(ours.bucket_limit) == list(theirs.bucket_limit)
    assert (ours.min, ours.max, ours.num) == (theirs.min, theirs.max, theirs.num)
    # Not to the last bit: the order in which they add up differs.
    np.testing.assert_allclose(ours.sum, theirs.sum, rtol=1e-9, atol=1e-9 * ours.sum_squares**0.5)
    np.testing.assert_allclose(ours.sum_squares, theirs.sum_squares, rtol=1e-9)


FINITE = st.floats(-1e19, 1e19) | st.sampled_from([0.0, -0.0, 1e-12, -1e-12, 1e-13, 1.1e-12])


@calm
@given(
    values=st.lists(FINITE | st.floats(-1, 1, width=16), min_size=1, max_size=30),
    bins=st.sampled_from([None, None, 1, 7, 64]),
)
def test_a_histogram_is_as_torch_writes_it(
    torch_bins: list[float], values: list[float], bins: int | None
) -> None:
    array = np.array(values)
    try:
        theirs = summary.histogram("tag", array, torch_bins if bins is None else bins).value[0]
    except ValueError as error:
        assert "Too many bins" in str(error)  # noqa: PT017  # see the next test
    else:
        assert_same_histogram(shown("histogram", array, bins=bins).histo, theirs.histo)


@pytest.mark.parametrize("array", [[1.0, np.nextafter(1.0, 2.0)], [-1.5e308, 1.5e308]])
def test_a_range_that_has_no_such_bins_gets_the_usual_ones(array: list[float]) -> None:
    ours = shown("histogram", np.array(array), bins=30)
    assert ours == shown("histogram", np.array(array), bins=None)
    assert sum(ours.histo.bucket) == 2


@pytest.mark.parametrize("dtype", DTYPE_SIZES)
@pytest.mark.parametrize("bins", [None, 1, 30])
def test_any_dtype_and_shape(torch_bins: list[float], dtype: str, bins: int | None) -> None:
    array = (RNG.normal(size=(4, 5, 6)) * 10).clip(0).astype(dtype)
    theirs = summary.histogram("tag", array, torch_bins if bins is None else bins).value[0]
    assert_same_histogram(shown("histogram", array, bins=bins).histo, theirs.histo)


def test_more_values_than_are_looked_at_at_once(torch_bins: list[float]) -> None:
    array = RNG.normal(size=200_000).astype(np.float32)
    theirs = summary.histogram("tag", array, torch_bins).value[0]
    assert_same_histogram(shown("histogram", array).histo, theirs.histo)


def test_what_is_not_finite_is_left_out() -> None:
    array = np.array([1.0, np.nan, 2.0, np.inf, -np.inf])
    assert shown("histogram", array) == shown("histogram", np.array([1.0, 2.0]))


@pytest.mark.parametrize("array", [np.array([]), np.full(5, np.nan), np.array([np.inf])])
@pytest.mark.parametrize("bins", [None, 10])
def test_nothing_finite_is_an_empty_histogram(array: Any, bins: int | None) -> None:
    ours = shown("histogram", array, bins=bins)
    assert ours.HasField("histo")
    assert ours.histo.num == 0
    assert list(ours.histo.bucket) == []


def test_huge_values_are_counted_too() -> None:
    # torch leaves out what is beyond its last bucket, and fails when that is everything.
    ours = shown("histogram", np.array([1e300, -1e300, 1e308, 1.0])).histo
    assert sum(ours.bucket) == ours.num == 4
    assert (ours.min, ours.max) == (-1e300, 1e308)


def test_tensorboard_shows_an_empty_histogram_and_huge_values() -> None:
    from tensorboard.data_compat import migrate_value
    from tensorboard.util.tensor_util import make_ndarray

    empty = migrate_value(shown("histogram", np.array([np.nan])))
    assert make_ndarray(empty.tensor).shape == (0, 3)
    huge = make_ndarray(migrate_value(shown("histogram", np.array([1e30, 2.0]))).tensor)
    assert huge[0, 0] == 2.0
    assert huge[-1, 1] == np.float32(1e30)
    assert huge[:, 2].sum() == 2


@pytest.mark.parametrize("bins", [0, -1, 4097, 2.5, "automatic", "edges ", [1, 2]])
def test_bins_are_a_number_of_them(bins: object) -> None:
    with pytest.raises(ValueError, match="bins must be"):
        event_of(value("histogram", np.ones(3), bins=bins))


def test_one_array_is_asked_for() -> None:
    with pytest.raises(ValueError, match="not 0 arrays"):
        event_of(value("histogram", None))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="hologram"):
        event_of(value("hologram", None))


# --- events as they are ------------------------------------------------------------------------


def packed(message: Any) -> Any:
    return np.frombuffer(message.SerializeToString(), np.uint8)


def test_a_summary_of_somebody_elses_is_written_as_it_is() -> None:
    made = summary.scalar("other", 0.5)
    assert shown("event", packed(made), part="summary") == made.value[0]


def test_an_event_of_somebody_elses_keeps_all_but_its_step_and_time() -> None:
    made = Event(step=5, wall_time=1.0, graph_def=b"graph")
    found = Event.FromString(event_of(value("event", packed(made), part="event")))
    assert (found.step, found.wall_time, found.graph_def) == (-7, 1_700_000_000.25, b"graph")


@pytest.mark.parametrize("info", [{}, {"part": "other"}, {"part": 3}])
def test_an_event_says_what_it_is(info: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="sent whole, or its summary"):
        event_of(value("event", packed(Event(step=5)), **info))


def test_an_event_must_be_one() -> None:
    with pytest.raises(Exception, match=r"(?i)parsing"):
        event_of(value("event", np.full(9, 255, np.uint8), part="event"))
