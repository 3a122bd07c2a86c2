"""The parts of the W&B sink that need no W&B: its file, its rows, what becomes of values."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.client.settings import _WANDB_KEYS
from sidestep.proto import Array, Value
from sidestep.sidecar.sinks.base import SinkUnusableError
from sidestep.sidecar.sinks.rendering.pixels import pixels_of
from sidestep.sidecar.sinks.wandb import _files_of
from sidestep.sidecar.sinks.wandb_errors import without_key
from sidestep.sidecar.sinks.wandb_file import RecordReader, cut
from sidestep.sidecar.sinks.wandb_rows import Row, key_of
from sidestep.sidecar.sinks.wandb_run import SETTINGS, _writable_folder, checked_settings
from sidestep.sidecar.sinks.wandb_values import object_of
from sidestep.sidecar.sinks.wandb_values.histograms import _buckets
from tests.support.wandb_file import BLOCK, payloads

HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)


def log_of(records: list[bytes]) -> bytes:
    """A ``.wandb`` file of `records`."""
    data = bytearray(HEADER)
    for record in records:
        rest, first = record, True
        while rest or first:
            if (left := BLOCK - len(data) % BLOCK) < 7:
                data += bytes(left)
                left = BLOCK
            piece, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if not rest else 2) if first else (4 if not rest else 3)
            checksum = zlib.crc32(piece, zlib.crc32(bytes([kind])))
            data += struct.pack("<IHB", checksum, len(piece), kind) + piece
            first = False
    return bytes(data)


def all_of(reader: RecordReader) -> list[bytes]:
    found: list[bytes] = []
    while records := reader.read():
        found += [record for _, record in records]
    return found


sizes = st.lists(
    st.one_of(st.integers(1, 200), st.integers(BLOCK - 30, BLOCK + 30), st.integers(1, 4 * BLOCK)),
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(sizes=sizes, portion=st.integers(1000, 3 * BLOCK))
def test_a_file_is_followed_while_it_grows(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], portion: int
) -> None:
    expected = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    data = log_of(expected)
    assert list(payloads(data)) == expected
    path = tmp_path_factory.mktemp("log") / "run-x.wandb"
    path.write_bytes(b"")
    reader, found = RecordReader(str(path)), list[bytes]()
    with path.open("ab") as file:
        for start in range(0, len(data), portion):
            file.write(data[start : start + portion])
            file.flush()
            found += all_of(reader)
            assert found == list(payloads(path.read_bytes())) if path.stat().st_size > 7 else True
    assert found == expected
    cut(str(path), reader.offset)
    assert list(payloads(path.read_bytes())) == expected


def test_what_is_cut_off_at_an_offset_is_what_came_after_it(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(log_of([b"a" * 40_000, b"b" * 10]))
    reader = RecordReader(str(path))
    ((offset, _), *_) = reader.read()
    cut(str(path), offset)
    assert list(payloads(path.read_bytes())) == [b"a" * 40_000]
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        cut(str(tmp_path / "link"), 7)


def test_rows_take_what_belongs_to_their_step() -> None:
    row = Row(3, 0.0, {"a": 1.0}, {"b": object()})
    assert row.takes(3, ["c"])
    assert not row.takes(3, ["c", "a"])
    assert not row.takes(3, ["b"])
    assert not row.takes(4, ["c"])


def test_a_row_that_was_logged_can_be_logged_again() -> None:
    values = {
        "a": 1,
        "b": float("inf"),
        "h": {"_type": "histogram", "values": [1], "bins": [0, 1]},
        "global_step": -4,
        "_timestamp": 12.5,
        "_runtime": 3.0,
        "_step": 7,
    }
    assert Row.logged(values) == Row(-4, 12.5, {"a": 1, "b": float("inf")}, {"h": values["h"]})


@pytest.mark.parametrize("tag", ["global_step", "_step", "_timestamp", "_runtime", "_wandb"])
def test_names_of_wandbs_own_are_never_used(tag: str) -> None:
    assert key_of(tag) == f"emitted/{tag}"
    assert key_of(f"train/{tag}") == f"train/{tag}"


def test_settings_are_those_of_wandb() -> None:
    given = dict.fromkeys(SETTINGS, "x")
    assert checked_settings({**given, "notes": None}) == {
        key: "x" for key in SETTINGS if key != "notes"
    }
    with pytest.raises(
        SinkUnusableError, match=r"unknown setting 'proejct'; did you mean 'project'\?"
    ):
        checked_settings({"proejct": "x"})
    assert set(_WANDB_KEYS) == set(SETTINGS), "what connect takes is what the sink understands"


def test_a_log_dir_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """wandb itself would go to the temporary directory."""
    assert _writable_folder(str(tmp_path / "new")) == tmp_path / "new" / "wandb"
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        _writable_folder(str(tmp_path / "file"))
    with pytest.raises(OSError, match="proc"):
        _writable_folder("/proc/self")


def test_an_api_key_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    assert without_key(RuntimeError("bad\nkey s3cret")) == "bad key ***"


# --- values ------------------------------------------------------------------------------------

EXTREMES = [
    [0.0, 1.0, 1.0, 2.0],
    [5.0],
    [5.0] * 9,
    [-1.7e308, 1.7e308],
    [1.7976931348623157e308],
    [-1.7976931348623157e308] * 2,
    [5e-324, 1e-323],
    [1e16, 1e16 + 2],
    [0.0, -0.0],
]


@pytest.mark.parametrize("data", EXTREMES)
@pytest.mark.parametrize("bins", [1, 2, 64, 512])
def test_buckets_hold_every_finite_value(data: list[float], bins: int) -> None:
    counts, edges = _buckets(np.array([*data, np.nan, np.inf, -np.inf]), bins)
    assert counts.sum() == len(data)
    assert len(edges) == len(counts) + 1 <= bins + 1
    assert np.isfinite(edges).all()
    assert (edges[1:] > edges[:-1]).all()
    assert edges[0] <= min(data)
    assert edges[-1] >= max(data)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32"])
def test_buckets_of_large_arrays_are_numpys(dtype: str) -> None:
    data = (np.random.default_rng(1).normal(size=200_001) * 50 + 100).astype(dtype)
    counts, edges = _buckets(data, 64)
    expected = np.histogram(data.astype(np.float64), 64)
    assert (counts == expected[0]).all()
    assert (edges == expected[1]).all()


def test_pixels_of_every_layout() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert (pixels_of(pixels, "HWC") == pixels).all()
    assert (pixels_of(pixels.transpose(2, 0, 1), "CHW") == pixels).all()
    assert (pixels_of(pixels[:, :, 0], "HW")[:, :, 0] == pixels[:, :, 0]).all()
    shades = np.array([[np.nan, -1, 0, 0.5, 1, 2, np.inf]], np.float16)
    assert pixels_of(shades, "HW").ravel().tolist() == [0, 0, 0, 127, 255, 255, 255]


BAD = [
    Value("hologram", "t", 0, 0),
    Value("text", "t", 0, 0, {"text": 3}),
    Value("image", "t", 0, 0, {"layout": "HWC"}),
    Value("image", "t", 0, 0, {"layout": "HWC"}, [Array("uint8", (1, 1, 2), b"xx")]),
    Value("image", "t", 0, 0, {"layout": "HWC"}, [Array("int64", (1, 1, 1), bytes(8))]),
    Value("image", "t", 0, 0, {"layout": "HW"}, [Array("uint8", (5, 5), b"short")]),
    Value("histogram", "t", 0, 0, {"bins": 0}, [Array("uint8", (1,), b"x")]),
    Value("histogram", "t", 0, 0, {}, [Array("float64", (0,), b"")]),
    Value("histogram", "t", 0, 0, {}, [Array("float16", (1,), b"\x00\x7c")]),
]


@pytest.mark.parametrize("value", BAD, ids=lambda value: f"{value.kind}-{len(value.arrays)}")
def test_what_cannot_be_shown_is_a_value_error(value: Value) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match=r"\w"):
        object_of(value)


def test_files_of_what_was_logged_are_all_found() -> None:
    boxes = {"boxes": {"_type": "boxes2D", "path": "media/boxes.json"}}
    image = {"_type": "image-file", "path": "media/a.png", "boxes": boxes}
    several = {"filenames": ["media/b.png", "media/c.png"], "all_boxes": [None, boxes]}
    assert list(_files_of(image)) == ["media/a.png", "media/boxes.json"]
    assert list(_files_of(several)) == ["media/b.png", "media/c.png", "media/boxes.json"]
    assert list(_files_of({"path": 5, "count": 1})) == list(_files_of("x")) == []
