"""The same calls to torch's SummaryWriter and to ours: TensorBoard loads the same from both."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.utils.tensorboard as torchs
from google.protobuf import text_format
from tensorboard.compat.proto.config_pb2 import RunMetadata
from tensorboard.compat.proto.step_stats_pb2 import DeviceStepStats, StepStats
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import summary

from sidestep.client import tensorboard as ours
from tests.support import summary_calls
from tests.support.sandbox import Sandbox
from tests.support.tensorboard_view import View, film, picture, sound, view

pytestmark = pytest.mark.timeout(120)

NOW = time.time()
NEAR_S = 600.0
"""Times that were not given are this near to each other."""

METADATA = RunMetadata(step_stats=StepStats(dev_stats=[DeviceStepStats(device="/device:CPU:0")]))


@dataclass
class Both:
    """What torch's writer and ours have made, in folders of the same names.

    Attributes:
        torchs: of torch's.
        ours: of ours.
        frames: of the films that torch's wanted to encode, with frames a second.
    """

    torchs: View
    ours: View
    frames: list[tuple[Any, float]]

    def assert_same(self, prefix: str, run: str = "exp") -> None:
        """Runs, tags, steps, times, pages and values agree under `prefix`, in `run` and below."""
        theirs, mine = self.torchs.under(prefix, run), self.ours.under(prefix, run)
        assert theirs, f"torch's writer made nothing under {prefix}"
        assert set(mine) == set(theirs)
        for where, wanted in theirs.items():
            found = mine[where]
            assert found.steps == wanted.steps, where
            assert (found.plugin, found.content) == (wanted.plugin, wanted.content), where
            for at, given in zip(found.times, wanted.times, strict=True):
                assert at == given or (given > NOW and abs(at - given) < NEAR_S), where
        for below in {run for run, _ in theirs}:
            for their, own in self.raw(prefix, below):
                assert_same_value(their, own)

    def raw(self, prefix: str, run: str = "exp") -> Iterator[tuple[Any, Any]]:
        """Yield each value of torch's and ours as it lies in the files of `run`, tag by tag."""
        # Among tags the order is not torch's: a figure that is drawn in a thread comes later.
        theirs, mine = (
            sorted(made.raw(prefix, run), key=lambda pair: str(pair[1].tag))
            for made in (self.torchs, self.ours)
        )
        assert theirs
        assert [(step, v.tag) for step, v in mine] == [(step, v.tag) for step, v in theirs]
        for (_, their), (_, own) in zip(theirs, mine, strict=True):
            yield their, own


def assert_same_value(wanted: Any, found: Any) -> None:
    """Two values of event files show the same."""
    where, kind = wanted.tag, wanted.WhichOneof("value")
    assert found.WhichOneof("value") == kind, where
    assert found.metadata == wanted.metadata, where
    if kind == "histo":
        assert_same_histogram(wanted.histo, found.histo)
    elif kind == "image":
        sizes = [(v.image.height, v.image.width, v.image.colorspace) for v in (wanted, found)]
        assert sizes[1] == sizes[0], where
        pixels = [picture(v.image.encoded_image_string) for v in (wanted, found)]
        assert pixels[1].shape == pixels[0].shape, where
        np.testing.assert_array_equal(pixels[1], pixels[0], where)
    elif kind == "audio":
        assert sound(found.audio.encoded_audio_string) == sound(wanted.audio.encoded_audio_string)
        assert found == wanted, where  # to the byte, even
    else:  # numbers and tensors, to the bit; NaN equals itself in bytes alone
        assert found.SerializeToString() == wanted.SerializeToString(), where


def assert_same_histogram(wanted: Any, found: Any) -> None:
    assert (found.min, found.max, found.num) == (wanted.min, wanted.max, wanted.num)
    assert list(found.bucket) == list(wanted.bucket)
    assert list(found.bucket_limit) == list(wanted.bucket_limit)
    # The order in which numbers are added up is nobody's promise.
    scale = max(abs(wanted.min), abs(wanted.max), 1e-300) * wanted.num
    assert found.sum == pytest.approx(wanted.sum, rel=1e-9, abs=1e-12 * scale)
    assert found.sum_squares == pytest.approx(wanted.sum_squares, rel=1e-9)


@pytest.fixture(scope="module")
def node() -> Iterator[Sandbox]:
    """One daemon for all tests here, and this process connected to it."""
    with Sandbox() as made, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SIDESTEP_")]:
            patch.delenv(name)
        for name, value in made.variables().items():
            patch.setenv(name, value)
        patch.delenv("SIDESTEP_LOG_DIR")
        patch.setenv("SIDESTEP_STRICT", "1")
        made.serve()
        yield made


def torch_writes(folder: Path) -> list[Any]:
    """All calls to torch's writer; the frames that it wanted to encode: moviepy is not here."""
    frames: list[Any] = []

    def make_video(tensor: Any, fps: float) -> Any:
        frames.append((tensor, fps))
        return summary.Summary.Image(height=tensor.shape[1], width=tensor.shape[2], colorspace=3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "make_video", make_video)
        with torchs.SummaryWriter(folder / "exp") as writer:
            summary_calls.everything(writer)
        with torchs.SummaryWriter(str(folder / "again"), filename_suffix=".end") as writer:
            again(writer, folder)
        with torchs.SummaryWriter(str(folder / "purged"), purge_step=0) as writer:
            before(writer)
        with torchs.SummaryWriter(str(folder / "purged"), purge_step=3) as writer:
            after(writer)
    return frames


def we_write(folder: Path) -> None:
    """The same to ours; an `emit` that refuses anything raises, since it is strict."""
    with ours.SummaryWriter(folder / "exp") as writer:
        summary_calls.everything(writer)
    with ours.SummaryWriter(str(folder / "again"), filename_suffix=".end") as writer:
        again(writer, folder)
    with ours.SummaryWriter(str(folder / "purged"), "", 0) as writer:
        before(writer)
    with ours.SummaryWriter(str(folder / "purged"), purge_step=3) as writer:
        after(writer)


def again(writer: Any, folder: Path) -> None:
    """A graph of ONNX, messages of somebody else's, a writer that is closed and goes on."""
    writer.add_onnx_graph(summary_calls.onnx_file(folder))
    writer.add_scalar("again/a", 1.0, 1, summary_calls.T0)
    writer.add_scalars("again", {"a": 1.0}, 1, summary_calls.T0)
    writer.flush()
    writer.close()
    writer.close()
    writer.flush()
    writer.add_scalar("again/a", 2.0, 2, summary_calls.T0)
    writer.add_scalars("again", {"a": 2.0}, 2, summary_calls.T0)
    made = summary.text("again", "of somebody else's")
    writer.file_writer.add_summary(made, 3, summary_calls.T0)
    exp, ssi, sei = summary.hparams({"lr": 0.5}, {"again/a": 1.0})
    for one in (exp, ssi, sei):
        writer._get_file_writer().add_summary(one)
    for one in writer.all_writers.values():
        one.flush()


def before(writer: Any) -> None:
    """The first of two processes, which died at step 5."""
    for step in range(6):
        writer.add_scalar("purged/a", step, step, summary_calls.T0 + step)


def after(writer: Any) -> None:
    """The second, which went on from step 3."""
    for step in range(3, 8):
        writer.add_scalar("purged/a", 10 * step, step, summary_calls.T0 + 10 + step)


@pytest.fixture(scope="module")
def both(node: Sandbox) -> Both:
    """Everything written by both, and loaded."""
    theirs, mine = node.root / "torch", node.root / "ours"
    for folder in (theirs, mine):
        folder.mkdir()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # torch's own
        frames = torch_writes(theirs)
        we_write(mine)
    node.drain()
    return Both(view(theirs), view(mine), frames)


# --- the directory ------------------------------------------------------------------------------


def test_the_same_runs(both: Both) -> None:
    def named(found: View) -> list[str]:
        """One run is called after the time when it was made."""
        return sorted("exp/<time>" if run.startswith("exp/1") else run for run in found.runs)

    assert named(both.ours) == named(both.torchs)


def test_the_same_tags_in_each_run(both: Both) -> None:
    for run, curves in both.torchs.runs.items():
        if not run.startswith("exp/1"):
            assert set(both.ours.runs[run]) == set(curves), run


@pytest.mark.parametrize("run", ["again", "again/again_a"])
def test_filename_suffix(both: Both, run: str) -> None:
    files = [path.name for path in (both.ours.root / run).iterdir() if path.is_file()]
    assert files
    assert all(name.endswith(".end") for name in files)


# --- each method --------------------------------------------------------------------------------


PREFIXES = {
    "add_scalar": "scalar/",
    "add_scalars": "scalars",
    "add_tensor": "tensor/",
    "add_histogram": "histogram/",
    "add_histogram_raw": "raw/",
    "add_image": "image/",
    "add_images": "images/",
    "add_image_with_boxes": "boxes/",
    "add_figure": "figure/",
    "add_audio": "audio/",
    "add_text": "text/",
    "add_pr_curve": "pr/",
    "add_pr_curve_raw": "pr_raw/",
    "add_mesh": "mesh/",
    "add_custom_scalars": "custom_scalars__config__",
}


@pytest.mark.parametrize("method", PREFIXES)
def test_the_same_is_loaded(both: Both, method: str) -> None:
    both.assert_same(PREFIXES[method])


@pytest.mark.parametrize("dtype", summary_calls.MISREAD)
def test_add_tensor_where_torchs_cannot_be_read(both: Both, dtype: str) -> None:
    tag = f"misread/{dtype}"
    with pytest.raises((OverflowError, ValueError)):
        _ = both.torchs.runs["exp"][tag].values
    (found,) = both.ours.runs["exp"][tag].values
    np.testing.assert_array_equal(found, np.arange(6).reshape(2, 3))


def test_add_audio_of_halves(both: Both) -> None:
    """torch multiplies in halves, where 1.0 becomes -32,768; ours does it in float32."""
    ((_, found),) = both.raw("half/audio")
    wave = summary_calls.WAVE.astype(np.float16).astype(np.float32)
    wanted = (wave * 32767).astype("<i2")
    assert sound(found.audio.encoded_audio_string)[1] == wanted.tobytes()


def test_add_video(both: Both) -> None:
    """The frames that torch would have had encoded are in our GIF; how is left to the encoder."""
    theirs, mine = both.torchs.raw("video/", "exp"), both.ours.raw("video/", "exp")
    assert [(step, v.tag) for step, v in mine] == [(step, v.tag) for step, v in theirs]
    for (_, wanted), (_, found), (frames, fps) in zip(theirs, mine, both.frames, strict=True):
        size = (wanted.image.height, wanted.image.width, wanted.image.colorspace)
        assert (found.image.height, found.image.width, found.image.colorspace) == size
        shown, durations = film(found.image.encoded_image_string)
        assert len(shown) == len(frames)
        for pixels, frame in zip(shown, frames, strict=True):
            np.testing.assert_array_equal(pixels, frame)
        assert set(durations) == {round(100 / fps) * 10}


def test_add_graph(both: Both) -> None:
    assert both.ours.graphs["exp"] == both.torchs.graphs["exp"]
    for found in (both.ours, both.torchs):
        (tagged,) = [
            e.tagged_run_metadata for e in found.events("exp") if e.HasField("tagged_run_metadata")
        ]
        assert (tagged.tag, tagged.run_metadata) == ("step1", METADATA.SerializeToString())


def test_add_onnx_graph(both: Both) -> None:
    graph = both.ours.graphs["again"]
    assert graph == both.torchs.graphs["again"]
    assert {node.op for node in graph.node} == {"Variable", "Relu", "LeakyRelu"}


def test_add_embedding(both: Both) -> None:
    theirs, mine = projector(both.torchs.root / "exp"), projector(both.ours.root / "exp")
    assert set(mine) == set(theirs)
    assert len(theirs) == 6 + 3 + 2 + 1, "tensors, metadata, sprites, the configuration"
    for path, wanted in theirs.items():
        found = mine[path]
        if path.endswith(".png"):
            np.testing.assert_array_equal(picture(found), picture(wanted), path)
        elif path.endswith(".pbtxt"):
            configs = [text_format.Parse(text, ProjectorConfig()) for text in (wanted, found)]
            assert configs[1] == configs[0]
        else:
            assert found == wanted, path


def projector(run: Path) -> dict[str, bytes]:
    """The projector's files of a run, by their path in it."""
    kinds = ("tsv", "png", "pbtxt")
    files = [file for kind in kinds for file in run.rglob(f"*.{kind}")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


HPARAMS_RUNS = ("exp/hparams_all", "exp/hparams_few", "exp/hparams/nested", "exp/.hparams")


@pytest.mark.parametrize("run", HPARAMS_RUNS)
def test_add_hparams(both: Both, run: str) -> None:
    theirs, mine = both.torchs.runs[run], both.ours.runs[run]
    assert set(mine) == set(theirs)
    both.assert_same("_hparams_/session_end_info", run)
    for tag in ("_hparams_/experiment", "_hparams_/session_start_info"):
        contents = [curves[tag].content for curves in (theirs, mine)]
        wanted, found = (HParamsPluginData.FromString(content) for content in contents)
        assert found == wanted, tag
    for tag in set(theirs) & {"hparam/accuracy", "hparam/loss", "plain"}:
        both.assert_same(tag, run)


def test_add_hparams_without_a_name(both: Both) -> None:
    for found in (both.torchs, both.ours):
        (run,) = (run for run in found.runs if run.startswith("exp/1"))
        assert abs(float(run.removeprefix("exp/")) - NOW) < NEAR_S
        assert found.runs[run]["hparam/accuracy"].values == [0.75]


# --- the life of a writer -----------------------------------------------------------------------


def test_after_close_it_goes_on(both: Both) -> None:
    both.assert_same("again", "again")
    assert both.ours.runs["again"]["again/a"].steps == [1, 2]


def test_messages_of_somebody_elses(both: Both) -> None:
    both.assert_same("_hparams_", "again")
    both.assert_same("again/text_summary", "again")


def test_purge_step(both: Both) -> None:
    both.assert_same("purged/", "purged")
    curve = both.ours.runs["purged"]["purged/a"]
    assert curve.steps == list(range(8))
    assert curve.values == [0, 1, 2, 30, 40, 50, 60, 70]


def test_everything_has_its_script() -> None:
    """No method of torch's is without a comparison here."""
    methods = {name for name in vars(torchs.SummaryWriter) if name.startswith("add_")}
    compared = {script.__name__ for script in summary_calls.SCRIPTS}
    charts = {"add_custom_scalars_multilinechart", "add_custom_scalars_marginchart"}
    assert methods == compared | charts | {"add_onnx_graph"}
