"""Media in a real W&B run, kept offline: each as W&B's own kind, and no library but wandb's own."""

from __future__ import annotations

import json
import os
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

pytest.importorskip("wandb")

from sidestep.proto import Array, Value
from sidestep.sidecar.sinks.wandb_values import object_of
from tests.support.wandb_file import is_complete, read_history, wandb_files
from tests.support.wandb_worker import WandbWorker, value

UNWANTED = ("matplotlib", "moviepy", "soundfile", "torch")

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (9, 7, 3), np.uint8)
BATCH = RNG.random((3, 1, 5, 4)).astype(np.float32)
MANY = np.zeros((110, 2, 2), np.uint8)
HOSTILE = "../../a\0b\n" + "x" * 900


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The one row of a run that has everything, and the folder of its files."""
    home = tmp_path_factory.mktemp("home")
    blocked = home / "blocked"
    blocked.mkdir()
    code = f"import sys\nsys.modules.update(dict.fromkeys({UNWANTED!r}))\n"
    (blocked / "sitecustomize.py").write_text(code)
    path = os.pathsep.join([str(blocked), os.environ.get("PYTHONPATH", "")])
    with WandbWorker(home, PYTHONPATH=path) as worker:
        worker.open(home / "logs")
        worker.write(
            value(
                "image",
                "boxed",
                3,
                (RGB, np.array([[1, 2, 5, 6], [0, 0, 3, 3], [1, 1, np.nan, 2]])),
                layout="HWC",
                labels=["cat", "", "nowhere"],
            ),
            value("images", "batch", 3, BATCH, layout="NCHW", captions=["a", "", "c"], per_row=2),
            value("images", HOSTILE, 3, BATCH, layout="NCHW", per_row=8),
            value("images", "many", 3, MANY, layout="NHW", per_row=8),
            value(
                "masked_image",
                "masked",
                3,
                (RGB[:8, :6], np.eye(4, 3) > 0),
                layout="HWC",
                patch_size=[2, 2],
                predicted=None,
                caption="m",
            ),
            value("audio", "sound", 3, np.array([0.5, -1, 2]), sample_rate=8000, caption="s"),
            value("video", "film", 3, RGB[None].repeat(4, axis=0), layout="THWC", fps=4.0),
            value("histogram", "named", 3, np.arange(100.0), bins="sturges"),
            value("histogram", "edges", 3, (np.arange(5.0), np.arange(1001.0)), bins="edges"),
            value("histogram_counts", "raw", 3, (np.array([1.0, 2, 1.7e308]), np.ones(3)), max=9.0),
        )
        state = worker.commit()
        worker.close()
        assert state["skipped"] == 0, worker.logs
        assert [line for line in worker.logs if "W&B shows 108 of the 110 images" in line]
    (file,) = wandb_files(home / "logs")
    assert is_complete(file)
    (row,) = read_history(file)
    return row, file.parent / "files"


def picture(run: tuple[dict[str, Any], Path], name: str) -> np.ndarray:
    row, files = run
    with PillowImage.open(files / row[name]["path"]) as image:
        return np.asarray(image.convert("RGB"))


def test_an_image_with_boxes(run: tuple[dict[str, Any], Path]) -> None:
    row, files = run
    np.testing.assert_array_equal(picture(run, "boxed"), RGB)
    boxes = json.loads((files / row["boxed"]["boxes"]["boxes"]["path"]).read_text())
    assert boxes["class_labels"] == {"0": "cat", "1": "box"}
    first, second = boxes["box_data"]
    assert first["position"] == {"minX": 1, "minY": 2, "maxX": 5, "maxY": 6}
    assert (first["domain"], first["class_id"], first["box_caption"]) == ("pixel", 0, "cat")
    assert (second["class_id"], second["box_caption"]) == (1, "")


def test_images_are_a_list_with_captions(run: tuple[dict[str, Any], Path]) -> None:
    row, files = run
    shown = row["batch"]
    assert (shown["_type"], shown["count"]) == ("images/separated", 3)
    assert (shown["width"], shown["height"]) == (4, 5)
    assert shown["captions"] == ["a", None, "c"]
    (hostile,) = (key for key in row if "xxx" in key)
    for name in ("batch", hostile):
        for number, path in enumerate(row[name]["filenames"]):
            assert (files / path).resolve().is_relative_to(files.resolve())
            with PillowImage.open(files / path) as image:
                expected = (BATCH[number, 0] * np.float32(255)).astype(np.uint8)
                np.testing.assert_array_equal(np.asarray(image), expected)
    assert row["many"]["count"] == 108


def test_a_masked_image_is_one_picture(run: tuple[dict[str, Any], Path]) -> None:
    row, _ = run
    assert row["masked"]["caption"] == "m"
    assert picture(run, "masked").shape == (8, 3 * 6 + 2 * 2, 3)


def test_sound_and_film(run: tuple[dict[str, Any], Path]) -> None:
    row, files = run
    assert (row["sound"]["_type"], row["sound"]["caption"]) == ("audio-file", "s")
    with wave.open(str(files / row["sound"]["path"])) as wav:
        assert wav.getparams()[:4] == (1, 2, 8000, 3)
        assert np.frombuffer(wav.readframes(3), "<i2").tolist() == [16383, -32767, 32767]
    assert row["film"]["_type"] == "video-file"
    assert row["film"]["path"].endswith(".gif")
    np.testing.assert_array_equal(picture(run, "film"), RGB)


def test_histograms_of_every_kind(run: tuple[dict[str, Any], Path]) -> None:
    row, _ = run
    counts, edges = np.histogram(np.arange(100.0), "sturges")
    assert row["named"]["values"] == counts.tolist()
    assert row["named"]["bins"] == edges.tolist()
    assert sum(row["edges"]["values"]) == 5
    assert len(row["edges"]["values"]) <= 512
    assert row["raw"] == {"_type": "histogram", "values": [1, 1, 1], "bins": [1, 1, 2, 9]}


BAD = [
    Value(
        "images",
        "t",
        0,
        0,
        {"layout": "NHW", "captions": ["a"]},
        [Array("uint8", (2, 1, 1), b"ab")],
    ),
    Value("audio", "t", 0, 0, {"sample_rate": 8}, [Array("int32", (1,), bytes(4))]),
    Value("video", "t", 0, 0, {"layout": "TCHW", "fps": 0}, [Array("uint8", (1, 1, 1, 1), b"a")]),
    Value("histogram", "t", 0, 0, {"bins": "many"}, [Array("uint8", (1,), b"a")]),
    Value("histogram", "t", 0, 0, {"bins": "edges"}, [Array("uint8", (1,), b"a")]),
    Value(
        "histogram_counts",
        "t",
        0,
        0,
        {},
        [Array("uint8", (2,), b"ab"), Array("uint8", (1,), b"\0")],
    ),
    Value("masked_image", "t", 0, 0, {"layout": "HW"}, [Array("uint8", (1, 1), b"a")]),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: str(bad.kind))
def test_what_cannot_be_shown_is_a_value_error(bad: Value) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        object_of(bad)


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sound = Value("audio", "t", 0, 0, {"sample_rate": 8}, [Array("int16", (1,), b"\1\2")])
    shown = object_of(sound)
    assert isinstance(shown, wandb.Audio)
    (path,) = tmp_path.iterdir()
    with wave.open(str(path)) as wav:
        assert wav.getnframes() == 1
    assert shown._is_tmp, "it would be copied, and left"
