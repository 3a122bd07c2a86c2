"""Meshes, curves, embeddings, graphs: TensorBoard loads what torch would have written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from sidestep import client
from sidestep.client import Value
from sidestep.client.values.purge import Purge
from sidestep.client.values.series import Series
from sidestep.client.values.tensor import Tensor
from sidestep.proto import RunSpec, Value as ValueRecord
from sidestep.sidecar.rows.points import Points
from sidestep.sidecar.sinks.base import SinkContext, SinkState
from sidestep.sidecar.sinks.tensorboard import TensorBoardSink
from sidestep.sidecar.sinks.tensorboard_values.embeddings import folder_of
from tests.support.event_reader import block
from tests.support.travelled import travelled

TIME = 1_700_000_000
RNG = np.random.default_rng(3)


class Home:
    """Where a sink writes event files as a SummaryWriter does: into a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: SinkState | None = None
        self.said: list[str] = []

    def open(self, **tensorboard: str) -> TensorBoardSink:
        sink = TensorBoardSink(clock=lambda: TIME)
        run = RunSpec("run", str(self.folder), tensorboard={"folder": ".", **tensorboard})
        sink.open(SinkContext(run, "run", self.state, self.save, self.said.append))
        return sink

    def save(self, state: SinkState) -> None:
        self.state = dict(state)

    def write(self, points: Iterable[Points], **tensorboard: str) -> None:
        sink = self.open(**tensorboard)
        sink.write(points)
        self.state = sink.commit()
        sink.close(finished=True)


@pytest.fixture
def ours(tmp_path: Path) -> Home:
    return Home(tmp_path / "ours")


@pytest.fixture
def torchs(tmp_path: Path) -> Iterator[SummaryWriter]:
    with SummaryWriter(str(tmp_path / "torchs")) as writer:
        yield writer


def loaded(folder: Path) -> dict[str, list[Any]]:
    """What TensorBoard loads, by folder: (step, tag, metadata, tensor), or other events."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        here = found.setdefault(str(path.parent.relative_to(folder)), [])
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                plugin = value.metadata.plugin_data
                if plugin.plugin_name == "hparams":  # of a map, whose order is anybody's
                    said = HParamsPluginData.FromString(plugin.content)
                    here.append((event.step, value.tag, said))
                else:
                    here.append((event.step, value.tag, value.metadata, value.tensor))
            kind = event.WhichOneof("what")
            if kind not in ("summary", "file_version"):
                here.append((event.step, kind, getattr(event, kind)))
    return found


def assert_same(ours: Home, writer: SummaryWriter) -> None:
    writer.close()
    theirs = loaded(Path(writer.log_dir))
    assert loaded(ours.folder) == theirs
    assert any(theirs.values())
    assert not ours.said


def sent(value: Value, tag: str = "tag", step: int = 7) -> ValueRecord:
    return travelled(value, tag, step, TIME * 10**9)


# --- meshes ------------------------------------------------------------------------------------

VERTICES = torch.as_tensor(RNG.normal(size=(2, 5, 3)))
COLORS = torch.as_tensor(RNG.integers(0, 256, (2, 5, 3)), dtype=torch.uint8)
FACES = torch.as_tensor(RNG.integers(0, 5, (2, 4, 3)), dtype=torch.int32)
CAMERA = {"material": {"size": 2}, "camera": {"cls": "PerspectiveCamera", "fov": 75}}


@pytest.mark.parametrize("colors", [None, COLORS, COLORS / 255])
@pytest.mark.parametrize("faces", [None, FACES])
@pytest.mark.parametrize("config", [None, CAMERA])
def test_a_mesh(
    ours: Home, torchs: SummaryWriter, colors: Any, faces: Any, config: dict[str, Any] | None
) -> None:
    torchs.add_mesh("a/mesh", VERTICES, colors, faces, config, 7, TIME)
    mesh = client.Mesh(VERTICES, colors=colors, faces=faces, config=config)
    ours.write([sent(mesh, "a/mesh")])
    assert_same(ours, torchs)


def test_one_mesh_needs_no_batch(ours: Home, torchs: SummaryWriter) -> None:
    torchs.add_mesh("mesh", VERTICES[:1], COLORS[:1], FACES[:1], global_step=7)
    ours.write([sent(client.Mesh(VERTICES[0], colors=COLORS[0], faces=FACES[0]), "mesh")])
    assert_same(ours, torchs)


# --- curves ------------------------------------------------------------------------------------

LABELS = RNG.integers(0, 2, 200)
SCORES = RNG.random(200)


@pytest.mark.parametrize("thresholds", [2, 11, 127, 500])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("weights", [None, 0.5, RNG.random(200)])
def test_a_curve(
    ours: Home, torchs: SummaryWriter, thresholds: int, dtype: str, weights: Any
) -> None:
    scores = SCORES.astype(dtype)
    torchs.add_pr_curve("pr", LABELS, scores, 7, thresholds, weights)
    torchs.add_pr_curve("pr", LABELS.astype(bool), scores.reshape(200), 8, thresholds, weights)
    curve = client.PRCurve(LABELS, scores, num_thresholds=thresholds, weights=weights)
    other = client.PRCurve(LABELS == 1, scores, num_thresholds=thresholds, weights=weights)
    ours.write([sent(curve, "pr"), sent(other, "pr", 8)])
    assert_same(ours, torchs)


def test_predictions_that_are_no_probabilities_are_left_out(
    ours: Home, torchs: SummaryWriter
) -> None:
    odd = np.array([0.0, 1.0, -0.001, -3, 1.01, 1e6, 0.5, 0.25])
    labels = np.array([0, 1, 1, 0, 1, 1, 0, 1])
    torchs.add_pr_curve("pr", labels, odd, 7)
    unknown = np.array([np.nan, np.inf, -np.inf])
    odd, labels = np.concatenate([odd, unknown]), np.concatenate([labels, [1, 0, 1]])
    ours.write([sent(client.PRCurve(labels, odd), "pr")])
    assert_same(ours, torchs)


@pytest.mark.parametrize("count", [1, 3, 127, 200])
def test_a_curve_of_counts(ours: Home, torchs: SummaryWriter, count: int) -> None:
    counts = [RNG.integers(0, 100, count) for _ in range(4)]
    shares = [RNG.random(count) for _ in range(2)]
    torchs.add_pr_curve_raw("pr", *(counts + shares), 7, count)
    ours.write([sent(client.PRCurve.from_counts(*counts, *shares), "pr")])
    assert_same(ours, torchs)


# --- embeddings --------------------------------------------------------------------------------

MATRIX = torch.as_tensor(RNG.normal(size=(7, 3)), dtype=torch.float32)
WORDS = ["null", "eins", "zwei", "trois", "四", "five 🙂", "6"]


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but event files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "tfevents" not in path.name
    }


EMBEDDINGS: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("default", 0, {"mat": MATRIX}, {"matrix": MATRIX}),
    (
        "a/b%c\\d",
        12,
        {"mat": MATRIX.double(), "metadata": WORDS},
        {"matrix": MATRIX.double(), "metadata": WORDS},
    ),
    (
        "columns",
        123456,
        {
            "mat": MATRIX.numpy().astype("int8"),
            "metadata": [[w, i] for i, w in enumerate(WORDS)],
            "metadata_header": ["word", "n"],
        },
        {
            "matrix": MATRIX.numpy().astype("int8"),
            "metadata": [(w, i) for i, w in enumerate(WORDS)],
            "metadata_header": ["word", "n"],
        },
    ),
    *(
        (
            f"pictures {pictures.shape}",
            1,
            {"mat": MATRIX.half(), "label_img": pictures},
            {"matrix": MATRIX.half(), "label_images": pictures},
        )
        for pictures in (
            torch.rand(7, 3, 4, 6) * 1.2 - 0.1,
            torch.rand(7, 1, 5, 5).double(),
        )
    ),
]


def test_embeddings_are_torchs_to_the_byte(ours: Home, torchs: SummaryWriter) -> None:
    for tag, step, theirs, our in EMBEDDINGS:
        torchs.add_embedding(**theirs, global_step=step, tag=tag)
        ours.write([sent(client.Embedding(**our), tag, step)])
    torchs.close()
    wanted = files_of(Path(torchs.log_dir))
    assert len(wanted) == len(EMBEDDINGS) + 2 + 2 + 1
    assert files_of(ours.folder) == wanted

    # Once more, as after a crash: nothing changes, least of all the projector's list.
    for tag, step, _, our in reversed(EMBEDDINGS):
        ours.write([sent(client.Embedding(**our), tag, step)])
    assert files_of(ours.folder) == wanted
    assert not ours.said


def test_pictures_of_bytes_and_odd_labels(ours: Home) -> None:
    from PIL import Image

    pictures = RNG.integers(0, 256, (5, 3, 8, 2), np.uint8)  # higher than wide
    labels = torch.tensor([1, 2, 3, 4, 5])
    ours.write([sent(client.Embedding(np.ones((5, 1)), label_images=pictures, metadata=labels))])
    sprite = np.asarray(Image.open(ours.folder / "00007/tag/sprite.png"))
    np.testing.assert_array_equal(sprite[8:16, 2:4], pictures[4].transpose(1, 2, 0))
    assert (ours.folder / "00007/tag/metadata.tsv").read_text() == "1\n2\n3\n4\n5\n"
    lines = client.Embedding(np.ones((2, 1)), metadata=["two\nlines", "one\rmore"])
    ours.write([sent(lines, "lines")])
    assert (ours.folder / "00007/lines/metadata.tsv").read_text() == "two lines\none more\n"


@pytest.mark.parametrize("tag", [".", "..", "a\0b", "x" * 1024, "損" * 300])
def test_every_tag_of_an_embedding_names_one_folder(ours: Home, tag: str) -> None:
    ours.write([sent(client.Embedding(np.ones((1, 1))), tag)])
    assert not ours.said
    assert (ours.folder / "00007" / folder_of(tag) / "tensors.tsv").read_bytes() == b"1.0\n"
    assert folder_of(tag) not in (".", "..")


def test_a_list_of_embeddings_that_is_none_is_left_alone(ours: Home) -> None:
    ours.write([])
    config = ours.folder / "projector_config.pbtxt"
    config.write_text("precious")
    ours.write([sent(client.Embedding(np.ones((1, 1)))), block(["a"], [1], [[1]])])
    assert config.read_text() == "precious"
    assert ours.state is not None
    assert ours.state["skipped"] == 1
    assert "projector_config.pbtxt is there and is none" in ours.said[0]


def test_no_link_is_followed_by_files(ours: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ours.write([])
    value = sent(client.Embedding(np.ones((1, 1)), metadata=["a"]))
    (ours.folder / "00007").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic link"):
        ours.write([value])
    assert not list(elsewhere.iterdir())
    (ours.folder / "00007").unlink()
    victim = elsewhere / "victim"
    victim.write_text("precious")
    (ours.folder / "00007" / "tag").mkdir(parents=True)
    for name in ("tensors.tsv", ".tensors.tsv.new", ".metadata.tsv.new"):
        (ours.folder / "00007" / "tag" / name).symlink_to(victim)
    ours.write([value])
    assert victim.read_text() == "precious"
    assert (ours.folder / "00007/tag/tensors.tsv").read_text() == "1.0\n"
    assert sorted(os.listdir(ours.folder / "00007/tag")) == ["metadata.tsv", "tensors.tsv"]


# --- graphs ------------------------------------------------------------------------------------


class Lists(nn.Module):
    """Gives back what only a trace that is not strict takes."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": x + 1}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_graph(ours: Home, torchs: SummaryWriter) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4))
    torchs.add_graph(model, torch.ones(2, 3))
    graph = client.Graph(model, torch.ones(2, 3))
    ours.write([sent(graph)])
    assert model.training
    assert_same(ours, torchs)
    assert EventAccumulator(str(ours.folder)).Reload().Graph().node


def test_a_graph_of_a_model_that_gives_back_a_dict(ours: Home) -> None:
    ours.write([sent(client.Graph(Lists(), torch.ones(2), use_strict_trace=False))])
    assert not ours.said
    with pytest.raises(client.InvalidValueError, match="Graph of Lists cannot be traced"):
        sent(client.Graph(Lists(), torch.ones(2)))


# --- hyperparameters ---------------------------------------------------------------------------


def test_hyperparameters(ours: Home, torchs: SummaryWriter) -> None:
    hparams = {"lr": 0.1, "n": 3, "on": True, "off": False, "opt": "adam", "none": None}
    metrics = {"acc": 0.5, "loss/val": 3}
    domains = {"lr": [0.1, 0.2], "opt": ["adam", "sgd"], "on": [True, False]}
    torchs.add_hparams(hparams, metrics, domains, "a run", 7)
    torchs.add_hparams(hparams, {}, None, "deep/er", 8)
    ours.write(
        [
            sent(client.HParams(hparams, metrics, domains, folder="a run")),
            sent(client.HParams(hparams, folder="deep/er"), step=8),
        ]
    )
    torchs.close()
    theirs = loaded(Path(torchs.log_dir))
    assert sorted(theirs) == [".", "a run", "deep/er"]
    assert loaded(ours.folder) == theirs


def test_hyperparameters_of_the_run_itself(ours: Home, torchs: SummaryWriter) -> None:
    ours.write([sent(client.HParams({"lr": np.float32(0.5), "n": torch.tensor([3])}, {"a": 1}))])
    torchs.add_hparams({"lr": 0.5, "n": 3}, {"a": 1}, run_name="x", global_step=7)
    torchs.close()
    assert loaded(ours.folder)["."] == loaded(Path(torchs.log_dir))["x"]


def test_the_bytes_of_hyperparameters_are_the_same_each_time(tmp_path: Path) -> None:
    value = sent(client.HParams({f"p{i}": i for i in range(50)}, folder="x"))
    found = set()
    for number in range(3):
        home = Home(tmp_path / str(number))
        home.write([value])
        (path,) = (home.folder / "x").iterdir()
        found.add(path.read_bytes())
    assert len(found) == 1


# --- layouts, tensors, restarts ----------------------------------------------------------------


def test_a_layout(ours: Home, torchs: SummaryWriter) -> None:
    layout = {
        "Taiwan": {"twse": ["Multiline", ["twse/0050", "twse/2330"]]},
        "USA": {"dow": ["Margin", ["dow/a", "dow/b", "dow/c"]], "x": ["Multiline", [".*"]]},
    }
    torchs.add_custom_scalars(layout)
    ours.write([sent(client.CustomScalars(layout), "anything", 0)])
    assert_same(ours, torchs)


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "int8", "int16", "int32", "int64", "bool", "complex64"]
)
def test_a_tensor(ours: Home, torchs: SummaryWriter, dtype: str) -> None:
    for shape in [(2, 3), (), (0, 2)]:
        tensor = torch.as_tensor(RNG.integers(0, 2, shape)).to(getattr(torch, dtype))
        if tensor.is_complex():
            tensor = tensor * (1 + 2j)
        torchs.add_tensor("t", tensor, 7)
        ours.write([sent(Tensor(tensor), "t")])
    assert_same(ours, torchs)


@pytest.mark.parametrize("dtype", ["float16", "uint8", "complex128"])
def test_a_tensor_that_torch_writes_so_that_nobody_can_read_it(ours: Home, dtype: str) -> None:
    array = RNG.integers(0, 200, (2, 3)).astype(dtype) / np.array(2).astype(dtype)
    ours.write([sent(Tensor(array.astype(dtype)), "t")])
    ((_, _, _, tensor),) = loaded(ours.folder)["."]
    np.testing.assert_array_equal(make_ndarray(tensor), array.astype(dtype))
    assert make_ndarray(tensor).dtype == dtype


def test_a_restart_hides_what_came_after_it(ours: Home) -> None:
    ours.write([block(["a"], [1, 2, 3, 4], [[1], [2], [3], [4]])])
    ours.write([sent(Purge(), "x", 3), block(["a"], [3], [[30]])])
    found = EventAccumulator(str(ours.folder)).Reload().Scalars("a")
    assert [(scalar.step, scalar.value) for scalar in found] == [(1, 1), (2, 2), (3, 30)]


def test_a_restart_is_torchs(ours: Home, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "purged"), purge_step=3) as writer:
        pass
    ours.write([sent(Purge(), "x", 3)])
    assert_same(ours, writer)


# --- series ------------------------------------------------------------------------------------


def test_scalars_in_folders_are_torchs(ours: Home, torchs: SummaryWriter) -> None:
    ours.write(
        [
            sent(Series("main_a", "main/x"), "1"),
            sent(Series("main_b/c", "main/x"), "2"),
            sent(Series(new_style=True), "new"),
            sent(Series(new_style=True, double=True), "double"),
        ]
    )
    values = [1.5, float("nan"), 1e300, -0.1]
    for step, value in enumerate(values):
        torchs.add_scalars("main/x", {"a": value}, step)
        torchs.add_scalar("plain", value, step)
        if step != 2:  # torch's float64 over float32's range is an error there
            torchs.add_scalar("new", value, step, new_style=True)
        torchs.add_scalar("double", value, step, new_style=True, double_precision=True)
    tags = ["1", "2", "plain", "new", "double"]
    rows = [block(tags, [step], [[value] * 5]) for step, value in enumerate(values)]
    ours.write(rows)
    torchs.close()
    theirs, found = loaded(Path(torchs.log_dir)), loaded(ours.folder)
    assert sorted(found) == [".", "main_a", "main_b/c"]
    assert texts(found["main_a"]) == texts(theirs["main_x_a"]) == texts(found["main_b/c"])
    own = [value for value in found["."] if value[:2] != (2, "new")]
    assert sorted(texts(own)) == sorted(texts(theirs["."]))

    ours.write([sent(Series(), "1"), block(["1"], [9], [[9]])])  # and back again
    assert (loaded(ours.folder)["."][-1][:2]) == (9, "1")


def texts(events: Iterable[Any]) -> list[str]:
    """As texts: NaN is not itself."""
    return [str(event) for event in events]


def test_a_suffix_ends_the_files_names(ours: Home) -> None:
    suffix = ".eval/../é" + "x" * 200
    ours.write([sent(Series("a"), "1"), block(["1"], [1], [[1]])], suffix=suffix)
    names = [path.name for path in ours.folder.rglob("events.*")]
    assert len(names) == 2
    assert all(".eval_.._éxx" in name and len(name.encode()) < 255 for name in names)
    assert loaded(ours.folder)["a"][0][:2] == (1, "1")
