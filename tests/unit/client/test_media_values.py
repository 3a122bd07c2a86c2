"""What travels of pictures, sounds, videos and histograms, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sidestep import client as sidestep
from sidestep.client import (
    Audio,
    Histogram,
    Image,
    Images,
    InvalidValueError,
    MaskedImage,
    Value,
    Video,
)
from sidestep.client.values import EmitContext, Prepared
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import numbers, values
from tests.unit.client.fake_device import FakeTensor


def prepare(value: Value) -> Prepared:
    prepared = value.prepare(EmitContext(0, {}))
    assert isinstance(prepared, Prepared)
    return prepared


# --- what travels ------------------------------------------------------------------------------

RGB = np.zeros((3, 8, 6), np.uint8)


@pytest.mark.parametrize(
    ("value", "kind", "info", "shapes"),
    [
        (Image(RGB, boxes=[[0, 0, 4, 4]]), "image", {"layout": "CHW"}, [(3, 8, 6), (1, 4)]),
        (Image(RGB, boxes=[], labels=[]), "image", {"labels": []}, [(3, 8, 6), (0, 4)]),
        (Image(RGB, rescale=0.5), "image", {"rescale": 0.5}, [(3, 8, 6)]),
        (Image(RGB > 0), "image", {"layout": "CHW"}, [(3, 8, 6)]),
        (Images(RGB[None]), "images", {"layout": "NCHW", "per_row": 8}, [(1, 3, 8, 6)]),
        (Images(RGB), "images", {"layout": "NHW"}, [(3, 8, 6)]),
        (Images(RGB.reshape(1, 8, 6, 3)), "images", {"layout": "NHWC"}, [(1, 8, 6, 3)]),
        (Images([RGB, RGB]), "images", {"layout": "NCHW"}, [(2, 3, 8, 6)]),
        (Images([torch.zeros(4, 4)] * 3), "images", {"layout": "NHW"}, [(3, 4, 4)]),
        (Images(RGB[None], captions=["é"]), "images", {"captions": ["é"]}, [(1, 3, 8, 6)]),
        (Images(RGB[None], per_row=np.int64(2)), "images", {"per_row": 2}, [(1, 3, 8, 6)]),
        (Audio(np.zeros(9)), "audio", {"sample_rate": 44100}, [(9,)]),
        (Audio(np.zeros((2, 9), np.int16), sample_rate=8), "audio", {"sample_rate": 8}, [(2, 9)]),
        (Video(RGB[None, None]), "video", {"layout": "NTCHW", "fps": 4.0}, [(1, 1, 3, 8, 6)]),
        (Video(RGB[None]), "video", {"layout": "TCHW"}, [(1, 3, 8, 6)]),
        (Video(np.zeros((5, 8, 6, 3))), "video", {"layout": "THWC"}, [(5, 8, 6, 3)]),
        (Video(np.zeros((1, 3, 5, 5, 3)), layout="NTHWC"), "video", {"layout": "NTHWC"}, None),
        (Histogram([1.0], bins="tensorflow"), "histogram", {"bins": None}, [(1,)]),
        (Histogram([1.0], bins="fd"), "histogram", {"bins": "fd"}, [(1,)]),
        (Histogram([1.0], bins=np.int32(7)), "histogram", {"bins": 7}, [(1,)]),
        (Histogram([1.0], bins=[0, 1, 1, 2]), "histogram", {"bins": "edges"}, [(1,), (4,)]),
        (Histogram([1.0], max_bins=3), "histogram", {"bins": None, "max_bins": 3}, [(1,)]),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Value) else None,
)
def test_what_travels(
    value: Value, kind: str, info: dict[str, Any], shapes: list[tuple[int, ...]] | None
) -> None:
    prepared = prepare(value)
    assert prepared.kind == kind
    assert {name: prepared.info[name] for name in info} == info
    if shapes is not None:
        assert [tuple(array.shape) for array in prepared.arrays] == shapes


def test_a_masked_image() -> None:
    image, mask = torch.zeros(3, 8, 12), torch.zeros(2, 3, dtype=torch.bool)
    prepared = prepare(MaskedImage(image, mask, patch_size=4))
    assert prepared.info == {"layout": "CHW", "patch_size": [4, 4], "predicted": None}
    whole = MaskedImage(image, mask.flatten(), patch_size=(4, 4), predicted=image, caption="x")
    assert prepare(whole).info["predicted"] == "image"
    patches = MaskedImage(image, mask, patch_size=4, predicted=torch.zeros(6, 48))
    assert prepare(patches).info["predicted"] == "patches"
    grey = MaskedImage(torch.zeros(8, 12), mask, patch_size=4, predicted=torch.zeros(6, 16))
    assert prepare(grey).info["predicted"] == "patches"


def test_counts_travel_with_what_is_known_of_them() -> None:
    counts, edges = np.histogram(np.arange(10.0), 4)
    prepared = prepare(Histogram.from_counts(counts, edges))
    assert (prepared.kind, prepared.info) == ("histogram_counts", {})
    assert [array.shape for array in prepared.arrays] == [(5,), (4,)]
    known = {"low": 0, "high": 9, "num": 10, "total": 45.0, "sum_squares": torch.tensor(285.0)}
    raw = prepare(Histogram.from_counts([1, 2], [3.0, 4.0], **known))
    assert raw.info == {"min": 0, "max": 9, "num": 10, "sum": 45, "sum_squares": 285}


DEVICE = [
    lambda: Image(FakeTensor(torch.zeros(3, 8, 8)), boxes=FakeTensor(torch.zeros(2, 4))),
    lambda: Images(FakeTensor(torch.zeros(2, 3, 8, 8))),
    lambda: MaskedImage(
        FakeTensor(torch.zeros(3, 8, 8)),
        FakeTensor(torch.zeros(2, 2)),
        patch_size=4,
        predicted=FakeTensor(torch.zeros(4, 48)),
    ),
    lambda: Audio(FakeTensor(torch.zeros(8))),
    lambda: Video(FakeTensor(torch.zeros(1, 2, 3, 8, 8))),
    lambda: Histogram(FakeTensor(torch.zeros(8)), bins=FakeTensor(torch.arange(3.0))),
    lambda: Histogram.from_counts(FakeTensor(torch.ones(3)), FakeTensor(torch.arange(4.0))),
]


@pytest.mark.parametrize("make", DEVICE)
def test_nothing_is_read_of_what_lies_on_a_device(make: Any) -> None:
    assert all(isinstance(array, FakeTensor) for array in prepare(make()).arrays)


# --- what is refused ---------------------------------------------------------------------------

MASK = np.zeros((2, 2), bool)
SQUARE = np.zeros((3, 8, 8))

REFUSED = [
    (lambda: Image(RGB, boxes=[[1, 2, 3]]), r"boxes of shape \(1, 3\): expected \(n, 4\)"),
    (lambda: Image(RGB, boxes=np.zeros((4097, 4))), "4097 boxes: at most 4096"),
    (lambda: Image(RGB, boxes=[["a", "b", "c", "d"]]), "expected real numbers"),
    (lambda: Image(RGB, boxes=[[0, 0, 1, 1]], labels=["a", "b"]), "2 labels for 1 boxes"),
    (lambda: Image(RGB, boxes=[[0, 0, 1, 1]], labels="a"), "labels must be a sequence of str"),
    (lambda: Image(RGB, boxes=[[0, 0, 1, 1]], labels=[1]), "each of labels must be a str, not int"),
    (lambda: Image(RGB, labels=["a"]), "labels but no boxes"),
    (lambda: Image(RGB, rescale=0), "rescale must be a number over 0"),
    (lambda: Image(RGB, rescale=float("nan")), "rescale must be a number over 0"),
    (lambda: Image(RGB, rescale=0.1), "cannot be rescaled by 0.1"),
    (lambda: Image(np.zeros((5000, 5000), np.uint8), rescale=2), "cannot be rescaled by 2"),
    (lambda: Image(RGB, caption=5), "caption must be a str, not int"),
    (lambda: Image(RGB, caption="x" * 65537), "caption of 65537 bytes"),
    (lambda: Image(np.zeros((3, 0, 8))), "non-empty"),
    (lambda: Images(np.zeros((0, 3, 8, 8))), "non-empty NCHW, NHWC or NHW"),
    (lambda: Images([]), "expected a non-empty"),
    (lambda: Images([torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)]), "expected one shape"),
    (lambda: Images([np.zeros((4, 4)), np.zeros((4, 5))]), "expected one shape and dtype"),
    (lambda: Images([np.zeros((4, 4)), torch.zeros(4, 4)]), "tensors beside arrays"),
    (lambda: Images(RGB[None], captions=["a", "b"]), "2 captions for 1 images"),
    (lambda: Images(RGB[None], per_row=0), "per_row must be an int from 1"),
    (lambda: Images(np.zeros((9000, 8, 8), np.uint8), per_row=1), "at most 65500 either way"),
    (lambda: Images(RGB[None].astype(int)), "Images of int64: expected uint8"),
    (lambda: MaskedImage(SQUARE, MASK, patch_size=3), "does not divide into patches of 3 by 3"),
    (lambda: MaskedImage(SQUARE, MASK, patch_size=(4,)), "patch_size must be a positive int"),
    (lambda: MaskedImage(SQUARE, MASK, patch_size=0), "patch_size must be a positive int"),
    (lambda: MaskedImage(SQUARE, MASK, patch_size=2), r"expected .* \(4, 4\) or \(16,\)"),
    (lambda: MaskedImage(SQUARE, "x", patch_size=4), "mask of dtype <U1"),
    (
        lambda: MaskedImage(SQUARE, MASK, patch_size=4, predicted=np.zeros((4, 16))),
        r"predicted of shape \(4, 16\): expected the image's own \(3, 8, 8\), or patches \(4, 48\)",
    ),
    (lambda: Audio(np.zeros(5, np.int32)), "Audio of int32: expected floats"),
    (lambda: Audio(np.zeros((5, 2, 2))), "non-empty"),
    (lambda: Audio(np.zeros((0,))), "non-empty"),
    (lambda: Audio(np.zeros((44100, 2))), r"if it is \(T, C\), transpose it"),
    (lambda: Audio(np.zeros(5), sample_rate=0), "sample_rate must be an int from 1"),
    (lambda: Audio(np.zeros(5), sample_rate=44.1), "sample_rate must be an int"),
    (lambda: Video(np.zeros((2, 3, 8))), "non-empty NTCHW, NTHWC, TCHW or THWC"),
    (lambda: Video(np.zeros((2, 4, 8, 8))), "with 1 or 3 channels"),
    (lambda: Video(RGB[None], layout="NCHW"), "as NCHW"),
    (lambda: Video(RGB[None], fps=0), "fps must be a number over 0"),
    (lambda: Video(RGB[None], fps=float("inf")), "fps must be a number over 0"),
    (lambda: Histogram([1.0], bins="many"), "bins 'many': expected tensorflow, auto"),
    (lambda: Histogram([1.0], bins=[1.0]), "expected 2 to 100,001 numbers"),
    (lambda: Histogram([1.0], bins=[2.0, 1.0]), "do not decrease"),
    (lambda: Histogram([1.0], bins=[0.0, float("nan")]), "do not decrease"),
    (lambda: Histogram([1.0], max_bins=0), "max_bins must be an int from 1"),
    (lambda: Histogram.from_counts([1, 2], [1.0, 2.0, 3.0, 4.0]), r"expected \(n,\) with"),
    (lambda: Histogram.from_counts([[1]], [1.0, 2.0]), r"expected \(n,\) with"),
    (lambda: Histogram.from_counts([1], [1.0, 2.0], num="x"), "num must be a number"),
    (
        lambda: Histogram.from_counts([1], [1.0, 2.0], total=FakeTensor(1.0)),
        "total is a tensor on a device",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        prepare(make())


def test_one_bad_value_harms_only_itself_and_the_message_names_its_tag(
    connect: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(outbox_bytes=4 << 20)
    bad = {f"bad/{number}": make() for number, (make, _) in enumerate(REFUSED)}
    client.emit({**bad, "loss": 0.5, "é" * 500: Image(RGB), "huge": Video(VAST)}, step=3)
    assert client.stats().rejected == len(bad) + 1
    assert numbers(client) == [{"loss": 0.5}]
    assert [value.tag for value in values(client)] == ["é" * 500]
    assert all(f"rejected 'bad/{number}'" in caplog.text for number in range(len(bad)))
    assert "rejected 'huge': video of 3000000 bytes: this outbox takes up to" in caplog.text
    strict = connect(strict=True)
    with pytest.raises(InvalidValueError, match="'sound': Audio of shape"):
        strict.emit({"sound": Audio(np.zeros(0)), "loss": 1.0})
    assert numbers(strict) == [{"loss": 1.0}]


VAST = np.zeros((10, 3, 1000, 100), np.uint8)


def test_all_are_offered() -> None:
    for name in ["Histogram", "Image", "Images", "MaskedImage", "Audio", "Video", "Figure", "Text"]:
        assert issubclass(getattr(sidestep, name), Value)
        assert name in sidestep.__all__
