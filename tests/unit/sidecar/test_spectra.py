"""Drawn spectra: the curve is where it belongs, in both sinks, and nothing malformed is drawn."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event

from sidestep.proto import Array, Value
from sidestep.sidecar.sinks.rendering.spectra import spectrum_pixels
from sidestep.sidecar.sinks.tensorboard_values import event_of
from sidestep.sidecar.sinks.wandb_values import object_of

LEFT, TOP, RIGHT, BOTTOM = 74, 38, 622, 366  # the frame
INFO = {"n": 4096, "d": 768, "rank": 152.123, "pr": 23.4, "alpha": 1.0}


def spectrum(eigenvalues: Any, tag: str = "train/context_spectrum", **info: object) -> Value:
    array = np.asarray(eigenvalues, np.float64)
    data = Array("float64", array.shape, array.tobytes())
    return Value("spectrum", tag, 3, 10**18, info or INFO, [data])


def curve(pixels: Any) -> tuple[Any, Any]:
    """x and y of the curve's pixels."""
    y, x = np.nonzero((pixels == (23, 104, 180)).all(axis=2))
    return x, y


def test_a_power_law_is_a_straight_line() -> None:
    pixels = spectrum_pixels(spectrum(np.arange(1, 1001) ** -1.0))
    assert pixels.shape == (420, 640, 3)
    x, y = curve(pixels)
    # From (1, 1) in one corner to (1000, 1e-3) in the other.
    expected = TOP + (x - LEFT) / (RIGHT - LEFT) * (BOTTOM - TOP)
    assert np.abs(y - expected).max() <= 4
    assert (x.min(), x.max()) == (pytest.approx(LEFT, abs=3), pytest.approx(RIGHT, abs=3))


def test_equal_eigenvalues_are_a_level_line_and_then_a_fall() -> None:
    x, y = curve(spectrum_pixels(spectrum([100.0] * 10 + [1.0] * 90)))
    tenth = LEFT + (RIGHT - LEFT) / 2
    assert np.abs(y[x < tenth - 3] - TOP).max() <= 3
    assert np.abs(y[x > tenth + 40] - BOTTOM).max() <= 3


def test_noise_far_below_does_not_flatten_the_rest() -> None:
    x, y = curve(spectrum_pixels(spectrum([1.0, 0.1, 1e-300])))
    assert y.max() < TOP + (BOTTOM - TOP) / 4
    assert x.max() < RIGHT


@pytest.mark.parametrize(
    "eigenvalues",
    [[5.0], [1.0], [1e-300], [1e300, 1e-300], [1e300], np.linspace(2, 1, 5000), [5e-324]],
    ids=lambda e: f"{len(e)}:{e[0]:g}",
)
def test_anything_positive_can_be_drawn(eigenvalues: Any) -> None:
    pixels = spectrum_pixels(spectrum(eigenvalues))
    assert len(curve(pixels)[0])
    ink = (pixels < 120).all(axis=2)
    assert ink[:, : LEFT - 6].any()  # labels of the upright axis
    assert ink[BOTTOM + 6 :].any()  # and of the level one
    assert ink[: TOP - 1].any()  # what it is a spectrum of


def test_tags_and_info_of_any_kind() -> None:
    spectrum_pixels(spectrum([2.0, 1.0], "損失/" + "x" * 900 + "_spectrum"))
    spectrum_pixels(spectrum([2.0, 1.0], rank=None, n="many" * 100, pr=float("nan")))


@pytest.mark.parametrize(
    "eigenvalues", [[], [[1.0]], [1.0, 2.0], [1.0, 0.0], [np.inf, 1.0], [np.nan], [1.0, -1.0]]
)
def test_what_is_no_spectrum_is_refused(eigenvalues: Any) -> None:
    with pytest.raises(ValueError, match="a spectrum"):
        event_of(spectrum(eigenvalues))
    with pytest.raises(ValueError, match="a spectrum"):
        object_of(spectrum(eigenvalues))


def test_tensorboard_shows_it_as_an_image() -> None:
    value = spectrum(np.arange(1, 769) ** -1.0)
    event = Event.FromString(event_of(value))
    (shown,) = event.summary.value
    assert (event.step, shown.tag) == (3, "train/context_spectrum")
    picture = Image.open(io.BytesIO(shown.image.encoded_image_string))
    assert picture.size == (shown.image.width, shown.image.height) == (640, 420)
    np.testing.assert_array_equal(np.asarray(picture), spectrum_pixels(value))
    assert len(shown.image.encoded_image_string) < 32_000


def test_wandb_shows_it_as_an_image() -> None:
    value = spectrum(np.arange(1, 769) ** -1.0)
    shown: Any = object_of(value)
    np.testing.assert_array_equal(np.asarray(shown.image), spectrum_pixels(value))
