"""Media through client and renderer: TensorBoard loads from them what it loads from torch's own."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter, _utils

from sidestep.client import Audio, Histogram, Image, Images, MaskedImage, Text, Video
from sidestep.client.values import EmitContext, Prepared, Value as ClientValue, to_host
from sidestep.proto import Array, Value
from sidestep.sidecar.sinks.event_file import record, version_record
from sidestep.sidecar.sinks.rendering.grids import frames_of, panels_of
from sidestep.sidecar.sinks.rendering.pixels import shades_of
from sidestep.sidecar.sinks.tensorboard_values import event_of

RNG = np.random.default_rng(7)


def travelled(value: ClientValue, tag: str = "tag") -> Value:
    """A value as the sink receives it."""
    prepared = value.prepare(EmitContext(3, {}))
    assert isinstance(prepared, Prepared)
    arrays = [to_host(array) for array in prepared.arrays]
    return Value(prepared.kind, tag, 3, 1_700_000_000_000_000_000, prepared.info, arrays)


def all_loaded(path: Path) -> list[Any]:
    """The values in the file, as TensorBoard's pages get them."""
    return [v for event in EventFileLoader(str(path)).Load() for v in event.summary.value]


def loaded(path: Path) -> Any:
    """The only one."""
    (value,) = all_loaded(path)
    return value


def ours(value: ClientValue, folder: Path) -> Any:
    path = folder / "events.out.tfevents.0.ours"
    path.write_bytes(version_record(0) + record(event_of(travelled(value))))
    return loaded(path)


def theirs(write: Callable[[SummaryWriter], object], folder: Path) -> Any:
    with SummaryWriter(str(folder / "theirs")) as writer:
        write(writer)
    (path,) = (folder / "theirs").glob("events*")
    return loaded(path)


def pictures(value: Any) -> list[np.ndarray]:
    """What an image's value shows: width and height, then the pixels."""
    assert value.metadata.plugin_data.plugin_name == "images"
    wide, high, *encoded = value.tensor.string_val
    sizes = np.array([int(wide), int(high)])
    return [sizes, *(np.asarray(PillowImage.open(io.BytesIO(data))) for data in encoded)]


def assert_same_picture(
    value: ClientValue, write: Callable[[SummaryWriter], object], folder: Path
) -> None:
    mine, torchs = pictures(ours(value, folder)), pictures(theirs(write, folder))
    assert len(mine) == len(torchs)
    for one, other in zip(mine, torchs, strict=True):
        np.testing.assert_array_equal(one, other)


# --- pictures ----------------------------------------------------------------------------------


def noise(*shape: int, dtype: Any = torch.float32) -> torch.Tensor:
    values = torch.from_numpy(RNG.uniform(-0.2, 1.2, shape))
    return (values.clip(0, 1) * 255).to(dtype) if dtype == torch.uint8 else values.to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("layout", ["CHW", "HWC", "HW"])
def test_an_image(tmp_path: Path, dtype: torch.dtype, layout: str) -> None:
    shape = {"CHW": (3, 9, 7), "HWC": (9, 7, 3), "HW": (9, 7)}[layout]
    pixels = noise(*shape, dtype=dtype)
    assert_same_picture(
        Image(pixels), lambda writer: writer.add_image("tag", pixels, 3, None, layout), tmp_path
    )


def test_bfloat16_goes_through_float32_and_bool_is_black_and_white(tmp_path: Path) -> None:
    pixels = noise(3, 9, 7).bfloat16()
    assert_same_picture(
        Image(pixels), lambda writer: writer.add_image("tag", pixels.float()), tmp_path
    )
    (_, shown) = pictures(ours(Image(torch.eye(3) > 0), tmp_path))
    np.testing.assert_array_equal(shown[:, :, 0], np.eye(3) * 255)


@pytest.mark.parametrize("count", [1, 5, 8, 17])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid(tmp_path: Path, count: int, layout: str, channels: int) -> None:
    pixels = noise(count, channels, 5, 4)
    if layout == "NHWC":
        pixels = pixels.permute(0, 2, 3, 1)
    assert_same_picture(
        Images(pixels, layout=layout),
        lambda writer: writer.add_images("tag", pixels, 3, None, layout),
        tmp_path,
    )


def test_rows_of_a_grid_and_its_captions(tmp_path: Path) -> None:
    pixels = [noise(3, 5, 4, dtype=torch.uint8) for _ in range(7)]
    names = [f"*{number}*" for number in range(7)]
    value = ours(Images(pixels, per_row=3, captions=names), tmp_path)
    _, shown = pictures(value)
    expected = _utils.make_grid(torch.stack(pixels).numpy(), ncols=3).transpose(1, 2, 0)
    np.testing.assert_array_equal(shown, expected)
    assert value.metadata.summary_description.splitlines()[6] == "7. *6*"


@pytest.mark.parametrize("labels", [None, ["cat", "Straße gpq"]])
@pytest.mark.parametrize("rescale", [1, 2, 0.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_boxes(tmp_path: Path, labels: list[str] | None, rescale: float, channels: int) -> None:
    pixels = noise(channels, 60, 80, dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 5.5, 40.0, 50.0], [-10.0, 20.0, 200.0, 30.25]])
    assert_same_picture(
        Image(pixels, boxes=boxes, labels=labels, rescale=rescale),
        lambda writer: writer.add_image_with_boxes(
            "tag", pixels, boxes, 3, None, rescale, "CHW", labels
        ),
        tmp_path,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_box_that_is_nowhere_is_left_out_and_one_far_away_is_not(
    tmp_path: Path, bad: float
) -> None:
    pixels = noise(3, 20, 20)
    boxes = [[2, 2, 9, 9], [0, 0, bad, 5], [-1e300, 3, 1e300, 1e300]]
    some = Image(pixels, boxes=boxes, labels=["", "b", ""])
    fewer = Image(pixels, boxes=[boxes[0], [-1e5, 3, 1e5, 1e5]])
    for one, other in zip(
        pictures(ours(some, tmp_path)), pictures(ours(fewer, tmp_path)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_shades_of_whatever_is_no_shade() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, -1, 2, 1e300, 0.5])
    assert shades_of(odd).tolist() == [0, 255, 0, 0, 255, 255, 127]
    large = RNG.uniform(-1, 2, 600_000).astype(np.float16).reshape(2, -1, 3)
    expected = (large.astype(np.float32).clip(0, 1) * np.float32(255)).astype(np.uint8)
    np.testing.assert_array_equal(shades_of(large), expected)


# --- a mask ------------------------------------------------------------------------------------


def test_the_panels_of_a_mask() -> None:
    image = RNG.integers(1, 255, (4, 6, 3), np.uint8)
    mask = np.array([[True, False, False], [False, False, True]])
    patches = RNG.random((6, 12)).astype(np.float32)
    panels = panels_of(
        travelled(MaskedImage(image, mask, patch_size=2, predicted=patches, layout="HWC"))
    )
    assert panels.shape == (4, 4 * 6 + 3 * 2, 3)
    original, hidden, masked, predicted = (panels[:, at : at + 6] for at in (0, 8, 16, 24))
    assert (panels[:, 6:8] == 255).all()
    np.testing.assert_array_equal(original, image)
    large = mask.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(hidden, large[:, :, None] * np.uint8([255, 255, 255]))
    np.testing.assert_array_equal(masked[~large], image[~large])
    assert (masked[large] == 128).all()
    np.testing.assert_array_equal(predicted[~large], image[~large])
    shades = (patches * np.float32(255)).astype(np.uint8).reshape(6, 2, 2, 3)
    np.testing.assert_array_equal(predicted[:2, :2], shades[0])
    np.testing.assert_array_equal(predicted[2:, 4:], shades[5])


@pytest.mark.parametrize("layout", ["CHW", "HWC", "HW"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_mask_over_any_layout(tmp_path: Path, layout: str, channels: int) -> None:
    hwc = RNG.integers(0, 255, (4, 6, channels), np.uint8)
    image = {"HWC": hwc, "CHW": hwc.transpose(2, 0, 1), "HW": hwc[:, :, 0]}[layout]
    mask = np.array([0, 1, 0, 0, 0, 1.0])
    value = MaskedImage(image, mask, patch_size=2, predicted=255 - image, layout=layout)
    _, shown = pictures(ours(value, tmp_path))
    large = mask.reshape(2, 3).repeat(2, axis=0).repeat(2, axis=1) != 0
    painted = hwc[:, :, :1] if layout == "HW" else hwc
    expected = np.where(large[:, :, None], 255 - painted, painted)
    np.testing.assert_array_equal(shown[:, -6:], np.broadcast_to(expected, shown[:, -6:].shape))


# --- sound -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1000,), (1, 1000)])
def test_sound_is_torchs_to_the_byte(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    samples = torch.from_numpy(RNG.uniform(-1.2, 1.2, shape)).to(dtype)
    mine = ours(Audio(samples, sample_rate=8000), tmp_path)
    torchs = theirs(lambda writer: writer.add_audio("tag", samples, 3, 8000), tmp_path)
    assert make_ndarray(mine.tensor).tolist() == make_ndarray(torchs.tensor).tolist()
    assert mine.metadata.plugin_data == torchs.metadata.plugin_data


def test_int16_is_taken_as_it_is_and_channels_are_kept(tmp_path: Path) -> None:
    samples = np.array([[0, 1, -32768], [32767, -5, 7]], np.int16)
    value = ours(Audio(samples), tmp_path)
    with wave.open(io.BytesIO(value.tensor.string_val[0])) as wav:
        assert wav.getparams()[:4] == (2, 2, 44100, 3)
        frames = np.frombuffer(wav.readframes(3), "<i2").reshape(3, 2)
    np.testing.assert_array_equal(frames.T, samples)


def test_sound_that_is_no_number(tmp_path: Path) -> None:
    samples = np.array([np.nan, np.inf, -np.inf, 0.5], np.float16)
    value = ours(Audio(samples), tmp_path)
    with wave.open(io.BytesIO(value.tensor.string_val[0])) as wav:
        frames = np.frombuffer(wav.readframes(4), "<i2")
    assert frames.tolist() == [0, 32767, -32767, 16383]


# --- videos ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
def test_videos_are_tiled_as_torch_tiles_them(count: int) -> None:
    videos = RNG.random((count, 3, 3, 4, 5)).astype(np.float32)
    mine = frames_of(travelled(Video(videos)))
    tiled = _utils._prepare_video(videos).astype(np.float32)
    np.testing.assert_array_equal(mine, (tiled * 255).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("layout", ["TCHW", "THWC", "NTCHW", "NTHWC"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_has_every_frame_and_its_time(tmp_path: Path, layout: str, channels: int) -> None:
    shades = RNG.integers(0, 256, (9, 6, 8, channels), np.uint8)  # few enough to be exact
    pixels = shades.transpose(0, 3, 1, 2) if "TCHW" in layout else shades
    video = Video(pixels[None] if layout[0] == "N" else pixels, fps=30, layout=layout)
    sizes, *_ = pictures(value := ours(video, tmp_path))
    assert sizes.tolist() == [8, 6]
    gif = PillowImage.open(io.BytesIO(value.tensor.string_val[2]))
    assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 9, 0)
    total_ms = 0
    for number in range(9):
        gif.seek(number)
        frame = np.asarray(gif.convert("RGB"))
        np.testing.assert_array_equal(frame, np.broadcast_to(shades[number], frame.shape))
        total_ms += gif.info["duration"]
    assert total_ms == 300


def test_a_gif_of_many_colors_is_nearly_right(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frame = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=-1)
    gif = ours(Video(frame[None].repeat(2, axis=0), fps=1000), tmp_path)
    shown = np.asarray(PillowImage.open(io.BytesIO(gif.tensor.string_val[2])).convert("RGB"))
    assert np.abs(shown.astype(int) - frame).mean() < 8


# --- histograms --------------------------------------------------------------------------------

SAMPLES = {
    "normal": RNG.normal(size=5000).astype(np.float32),
    "integers": RNG.integers(-50, 50, 700),
    "one value": np.full(10, 2.5),
    "skewed": RNG.exponential(size=(30, 40)) ** 3,
}
BINS: list[Any] = [
    *("tensorflow", "auto", "fd", "doane", "scott", "stone", "rice", "sturges", "sqrt"),
    *(1, 30, [-1.0, 0.0, 0.5, 0.5, 2.0, 1000.0], np.linspace(-3, 3, 50)),
]


def assert_same_histogram(mine: Any, torchs: Any) -> None:
    assert mine.metadata.plugin_data == torchs.metadata.plugin_data
    np.testing.assert_array_equal(make_ndarray(mine.tensor), make_ndarray(torchs.tensor))


@pytest.mark.filterwarnings("ignore:The number of bins estimated:RuntimeWarning")
@pytest.mark.parametrize("bins", BINS, ids=str)
def test_every_rule_for_bins(tmp_path: Path, bins: Any) -> None:
    cases = {f"{name}/{most}": (data, most) for name, data in SAMPLES.items() for most in (None, 7)}
    path = tmp_path / "events.out.tfevents.0.ours"
    with path.open("wb") as file, SummaryWriter(str(tmp_path / "theirs")) as writer:
        file.write(version_record(0))
        for tag, (data, most) in cases.items():
            value = travelled(Histogram(data, bins=bins, max_bins=most), tag)
            file.write(record(event_of(value)))
            writer.add_histogram(tag, data, 3, bins, None, most)
    (torchs,) = (tmp_path / "theirs").glob("events*")
    pairs = list(zip(all_loaded(path), all_loaded(torchs), strict=True))
    assert [one.tag for one, _ in pairs] == list(cases)
    for one, other in pairs:
        assert_same_histogram(one, other)


def test_counts_are_shown_as_they_are(tmp_path: Path) -> None:
    limits, counts = [0.5, 1.0, 1.7976931348623157e308], [0, 4, 2]
    moments = {"num": 6, "sum_squares": 30.0}
    mine = Histogram.from_counts(counts, limits, low=0.5, high=4, total=12.0, **moments)
    raw = {"min": 0.5, "max": 4, "sum": 12.0, **moments}
    torchs = theirs(
        lambda writer: writer.add_histogram_raw(
            "tag", bucket_limits=limits, bucket_counts=counts, global_step=3, **raw
        ),
        tmp_path,
    )
    assert_same_histogram(ours(mine, tmp_path), torchs)


def test_counts_of_numpy_are_the_histogram_itself(tmp_path: Path) -> None:
    data = SAMPLES["normal"]
    counts, edges = np.histogram(data.astype(float), 30)
    mine = ours(Histogram.from_counts(counts, edges), tmp_path)
    assert_same_histogram(mine, ours(Histogram(data, bins=30), tmp_path))


def test_a_rule_that_asks_for_more_than_there_is() -> None:
    data = np.concatenate([np.linspace(0, 1e-9, 1000), [1e12]])
    (shown,) = histograms(Histogram(data, bins="fd"))
    assert sum(shown.bucket) == shown.num == 1001
    assert len(shown.bucket) <= 100_001


def test_edges_that_nothing_lies_between(tmp_path: Path) -> None:
    value = Histogram(np.arange(5.0), bins=[10.0, 11.0, np.inf])
    (shown,) = histograms(value)
    assert (shown.num, shown.max, sum(shown.bucket)) == (5, 4, 0)
    assert make_ndarray(ours(value, tmp_path).tensor).shape[1] == 3


def histograms(value: ClientValue) -> list[Any]:
    from tensorboard.compat.proto.event_pb2 import Event

    event = Event.FromString(event_of(travelled(value)))
    return [shown.histo for shown in event.summary.value]


# --- what a client would not send --------------------------------------------------------------


def array(*shape: int, dtype: str = "uint8") -> Array:
    return Array(dtype, shape, np.zeros(shape, dtype).tobytes())


@pytest.mark.parametrize(
    ("kind", "info", "arrays"),
    [
        ("image", {"layout": "HW"}, []),
        ("image", {"layout": "HW"}, [array(2, 2), array(1, 3)]),
        ("image", {"layout": "HW", "labels": ["a"]}, [array(2, 2), array(2, 4)]),
        ("image", {"layout": "HW", "rescale": "2"}, [array(2, 2)]),
        ("image", {"layout": "HW", "rescale": 1e9}, [array(2, 2)]),
        ("image", {"layout": "HW", "rescale": 0.1}, [array(2, 2)]),
        ("images", {"layout": "NHW", "per_row": 0}, [array(2, 2, 2)]),
        ("images", {"layout": "CHW"}, [array(3, 2, 2)]),
        ("images", {"layout": "NCHW"}, [array(1, 5, 2, 2)]),
        ("masked_image", {"layout": "HW", "patch_size": [2, 2]}, [array(4, 4)]),
        ("masked_image", {"layout": "HW", "patch_size": [0, 2]}, [array(4, 4), array(4)]),
        ("masked_image", {"layout": "HW", "patch_size": 2}, [array(4, 4), array(4)]),
        ("masked_image", {"layout": "HW", "patch_size": [2, 2]}, [array(4, 4), array(5)]),
        (
            "masked_image",
            {"layout": "HW", "patch_size": [2, 2], "predicted": "patches"},
            [array(4, 4), array(4), array(3)],
        ),
        (
            "masked_image",
            {"layout": "HW", "patch_size": [2, 2], "predicted": "image"},
            [array(4, 4), array(4), array(4, 8)],
        ),
        ("audio", {"sample_rate": 0}, [array(5, dtype="int16")]),
        ("audio", {"sample_rate": 8}, [array(5, dtype="int32")]),
        ("audio", {"sample_rate": 8}, [array(50, 5, dtype="int16")]),
        ("audio", {"sample_rate": 8}, [array(0, dtype="int16")]),
        ("video", {"layout": "TCHW", "fps": 0}, [array(1, 1, 2, 2)]),
        ("video", {"layout": "TCWH", "fps": 4}, [array(1, 1, 2, 2)]),
        ("video", {"layout": "TCHW", "fps": 4}, [array(1, 4, 2, 2)]),
        ("video", {"layout": "TCHW", "fps": 4}, [array(0, 1, 2, 2)]),
        ("histogram", {"bins": "edges"}, [array(5)]),
        ("histogram", {"bins": "edges"}, [array(5), Array("uint8", (2,), b"\2\1")]),
        ("histogram_counts", {}, [array(5)]),
        ("histogram_counts", {}, [array(5), array(2)]),
        ("histogram_counts", {}, [array(1), Array("int8", (1,), b"\xff")]),
        ("histogram_counts", {"min": "x"}, [array(2), array(1)]),
    ],
)
def test_what_is_not_as_its_kind_asks_is_an_error(
    kind: str, info: dict[str, object], arrays: list[Array]
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        event_of(Value(kind, "tag", 3, 0, info, arrays))


# --- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["損失 🙂\n\n| a |\n|---|\n| é |", "x" * (512 << 10), "a\0b"])
def test_long_texts_and_other_scripts(tmp_path: Path, words: str) -> None:
    mine = ours(Text(words), tmp_path)
    torchs = theirs(lambda writer: writer.add_text("tag", words, 3), tmp_path)
    assert mine.tag == torchs.tag
    assert make_ndarray(mine.tensor).tolist() == make_ndarray(torchs.tensor).tolist()
