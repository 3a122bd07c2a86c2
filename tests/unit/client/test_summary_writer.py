"""`SummaryWriter`: torch's signatures, places, steps and numbers; what it refuses is counted."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.tensorboard as torchs
from torch.utils.tensorboard import summary

from sidestep import client as sidestep
from sidestep.client import tensorboard as ours
from sidestep.client.tensorboard import file_writer
from sidestep.client.values import EmitContext, Prepared
from sidestep.proto.paths import RuntimePaths
from tests.unit.client.emitted import numbers, rows, values
from tests.unit.client.fake_device import FakeDevice, FakeTensor

MakeWriter = Callable[..., ours.SummaryWriter]


@pytest.fixture
def make(
    places: RuntimePaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[MakeWriter]:
    """Makes writers that no daemon answers, and that start none; they live in `tmp_path`."""
    monkeypatch.setenv("SIDESTEP_ENDPOINT", "tcp://127.0.0.1:9")
    monkeypatch.delenv("SIDESTEP_LOG_DIR")
    monkeypatch.setattr(file_writer, "_CLOSE_S", 0.0)
    monkeypatch.chdir(tmp_path)
    # Memory for as little as is logged here: to reserve 64 MiB takes longer than a test.
    small = functools.partial(sidestep.connect, outbox_bytes=1 << 20)
    monkeypatch.setattr(sidestep, "connect", small)
    made: list[ours.SummaryWriter] = []

    def writer(*arguments: Any, **named: Any) -> ours.SummaryWriter:
        made.append(ours.SummaryWriter(*arguments, **named))
        return made[-1]

    yield writer
    for one in made:
        one.close()


@pytest.fixture
def writer(make: MakeWriter) -> ours.SummaryWriter:
    return make("exp")


def client_of(writer: ours.SummaryWriter) -> sidestep.Client:
    return writer._get_file_writer().client


# --- signatures ---------------------------------------------------------------------------------


def public_methods() -> list[tuple[str, str]]:
    own = ("__init__", "__enter__", "__exit__", "_get_file_writer")
    return [
        (kind, name)
        for kind in ("SummaryWriter", "FileWriter")
        for name, member in inspect.getmembers(getattr(torchs, kind), inspect.isfunction)
        if not name.startswith("_") or (name in own and hasattr(member, "__code__"))
    ]


@pytest.mark.parametrize(("kind", "name"), public_methods(), ids="-".join)
def test_each_method_takes_what_torchs_takes(kind: str, name: str) -> None:
    def parameters(module: Any) -> list[tuple[str, Any, Any]]:
        method = getattr(getattr(module, kind), name)
        found = inspect.signature(method).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    assert parameters(ours) == parameters(torchs)


def test_all_of_torchs_methods_are_meant() -> None:
    names = {name for kind, name in public_methods() if kind == "SummaryWriter"}
    assert {"add_scalar", "add_onnx_graph", "get_logdir", "flush", "close", "__exit__"} <= names
    assert len(names) >= 29


def test_to_import_it_loads_neither_torch_nor_tensorboard() -> None:
    code = "import sys, sidestep.client.tensorboard; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert not {"torch", "numpy", "tensorboard", "PIL", "onnx"} & set(loaded.stdout.split())


# --- places -------------------------------------------------------------------------------------


def spec_of(writer: ours.SummaryWriter) -> Any:
    return client_of(writer)._settings.run


@pytest.mark.parametrize("log_dir", ["runs/a/exp", "runs/a/exp/", Path("runs/a/exp")])
def test_a_given_folder_is_the_log_dir(make: MakeWriter, tmp_path: Path, log_dir: Any) -> None:
    writer = make(log_dir, comment="unused", filename_suffix=".x")
    spec = spec_of(writer)
    assert (spec.name, spec.log_dir) == ("exp", str(tmp_path / "runs/a/exp"))
    assert spec.tensorboard == {"folder": ".", "suffix": ".x"}
    assert writer.get_logdir() == writer.log_dir == log_dir
    assert writer._get_file_writer().get_logdir() == str(log_dir)
    assert writer.all_writers == {str(log_dir): writer.file_writer}
    assert (tmp_path / "runs/a/exp").is_dir(), "scripts put files of their own there at once"


def test_a_given_folder_wins_over_the_environment(
    make: MakeWriter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIDESTEP_RUN", "other")
    monkeypatch.setenv("SIDESTEP_LOG_DIR", "elsewhere")
    spec = spec_of(make("exp"))
    assert (spec.name, spec.log_dir) == ("exp", str(tmp_path / "exp"))


@pytest.mark.parametrize("empty", [None, ""])
def test_without_a_folder_it_is_torchs(make: MakeWriter, tmp_path: Path, empty: Any) -> None:
    before = time.time() // 1
    writer = make(empty, "_lr 0.1")
    host = f"_{socket.gethostname()}_lr 0.1"
    assert str(writer.log_dir).startswith("runs/")
    assert str(writer.log_dir).endswith(host)
    stamp = str(writer.log_dir).removeprefix("runs/").removesuffix(host)
    year = time.localtime().tm_year
    made = time.mktime(time.strptime(f"{year} {stamp}", "%Y %b%d_%H-%M-%S"))
    assert before <= made <= time.time()
    assert spec_of(writer).log_dir == str(tmp_path / writer.log_dir)


def test_sidesteps_own_variables_make_it_a_run_like_every_other(
    make: MakeWriter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIDESTEP_RUN", "vit/b")
    monkeypatch.setenv("SIDESTEP_LOG_DIR", "logs")
    writer = make()
    spec = spec_of(writer)
    assert (spec.name, spec.log_dir, spec.tensorboard) == ("vit/b", str(tmp_path / "logs"), True)
    folder = str(writer.get_logdir())
    assert os.path.dirname(folder) == "logs/tensorboard"
    assert os.path.isdir(folder)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SIDESTEP_RUN", "vit", "results/logs/tensorboard/vit"),
        ("SIDESTEP_LOG_DIR", "logs", "logs/tensorboard/"),
        ("SIDESTEP_RUNTIME_DIR", None, "runs/"),  # all that `sidestep run` sets
    ],
)
def test_one_variable_is_enough(
    make: MakeWriter, monkeypatch: pytest.MonkeyPatch, variable: str, value: Any, expected: str
) -> None:
    if value:
        monkeypatch.setenv(variable, value)
    assert variable in os.environ
    assert str(make().get_logdir()).startswith(expected)


def test_so_does_the_file(
    make: MakeWriter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("logging: {experiment_name: vit, log_dir: logs}")
    monkeypatch.setenv("SIDESTEP_CONFIG", str(file))
    assert make().get_logdir() == "logs/tensorboard/vit"
    assert make("exp").get_logdir() == "exp"


def test_a_folder_that_cannot_be_made_does_not_matter(make: MakeWriter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    make("file/exp").add_scalar("a", 1)


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "hdfs://x/y"])
def test_a_store_is_no_folder(make: MakeWriter, address: str) -> None:
    with pytest.raises(sidestep.ConfigurationError, match="written to folders alone"):
        make(address)


@pytest.mark.parametrize("suffix", ["a/b", "x" * 500])
def test_a_suffix_must_fit_into_a_name(make: MakeWriter, suffix: str) -> None:
    with pytest.raises(sidestep.ConfigurationError, match="suffix"):
        make("exp", filename_suffix=suffix)


def test_whatever_its_rank_a_process_that_makes_one_is_heard(
    make: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    writer = make("exp")
    writer.add_scalar("a", 1.0)
    assert numbers(client_of(writer)) == [{"a": 1.0}]


def test_it_is_not_the_modules_client(writer: ours.SummaryWriter) -> None:
    before = sidestep.stats()  # of whatever client another test left there
    writer.add_scalar("a", 1.0)
    assert sidestep.stats() == before


# --- numbers ------------------------------------------------------------------------------------


def test_steps_and_times(writer: ours.SummaryWriter) -> None:
    steps = (None, 3, -1, np.int64(4), 5.9, "6", True, torch.tensor(7), torch.tensor([8]))
    for step in steps:
        writer.add_scalar("a", 0.5, step, 12.25)
    found = rows(client_of(writer))
    assert [row.step for row in found] == [0, 3, -1, 4, 5, 6, 1, 7, 8]
    assert {row.time_ns for row in found} == {12_250_000_000}


def test_without_a_time_it_is_now(writer: ours.SummaryWriter) -> None:
    before = time.time_ns()
    writer.add_scalar("a", 0.5, 1)
    (row,) = rows(client_of(writer))
    assert before <= row.time_ns <= time.time_ns()


def test_numbers_of_one_element_and_any_shape(writer: ours.SummaryWriter) -> None:
    shapes = [(), (1,), (1, 1, 1)]
    given = [kind.ones(shape) for kind in (np, torch) for shape in shapes]  # type: ignore[attr-defined]
    for number in (*given, "1", np.float32(1)):
        writer.add_scalar("a", number)
    assert numbers(client_of(writer)) == [{"a": 1.0}] * 8


def test_a_number_on_a_device_is_not_waited_for(writer: ours.SummaryWriter) -> None:
    class OneElement(FakeTensor):
        def reshape(self, shape: tuple[int, ...]) -> FakeTensor:
            return FakeTensor(self.data.reshape(shape))

    device = FakeDevice()
    client = client_of(writer)
    client._stages._make_device = lambda _: device
    writer.add_scalar("a", FakeTensor(0.5), 1)
    writer.add_scalar("b", OneElement([1.5]), 1)
    writer.add_scalars("c", {"x": OneElement([[2.5]]), "y": 3.0}, 1)
    assert client.stats().rejected == 0
    assert numbers(client) == [{"c/y": 3.0}]
    device.finish()
    writer.add_scalar("d", 0, 2)  # collects
    assert numbers(client)[1:] == [{"a": 0.5}, {"b": 1.5}, {"c/x": 2.5}, {"d": 0.0}]


def test_a_step_or_time_on_a_device_is_refused(writer: ours.SummaryWriter) -> None:
    writer.add_scalar("a", 1.0, FakeTensor(3))
    writer.add_scalar("a", 1.0, 3, FakeTensor(3.0))  # type: ignore[arg-type]
    assert client_of(writer).stats().rejected == 2


def far(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor whose content nothing can read: there is none."""
    return torch.ones(shape, dtype=dtype, device="meta")


FAR: dict[str, Callable[[Any], object]] = {
    "add_scalar": lambda w: w.add_scalar("a", far(1, 1)),
    "add_scalars": lambda w: w.add_scalars("a", {"b": far(1)}),
    "add_tensor": lambda w: w.add_tensor("a", far(3, dtype=torch.bfloat16)),
    "add_histogram": lambda w: w.add_histogram("a", far(9), bins=[0, 1, 2], max_bins=3),
    "add_histogram_raw": lambda w: w.add_histogram_raw("a", 0, 1, 2, 3, 4, far(3), far(3)),
    "add_image": lambda w: w.add_image("a", far(5, 4, 3, dtype=torch.int32), dataformats="HWC"),
    "add_images": lambda w: w.add_images("a", far(5, 4, 4, 3), dataformats="NHWC"),
    "add_image_with_boxes": lambda w: w.add_image_with_boxes(
        "a", far(3, 8, 8), far(2, 4), labels=["b", "c"], rescale=2
    ),
    "add_video": lambda w: w.add_video("a", far(2, 3, 1, 8, 8, dtype=torch.bool)),
    "add_audio": lambda w: w.add_audio("a", far(1, 100)),
    "add_pr_curve": lambda w: w.add_pr_curve("a", far(9), far(9), weights=far(9)),
    "add_pr_curve_raw": lambda w: w.add_pr_curve_raw("a", *[far(9)] * 6),
    "add_mesh": lambda w: w.add_mesh("a", far(1, 9, 3), far(1, 9, 3), far(1, 4, 3).int()),
    "add_embedding": lambda w: w.add_embedding(far(4, 3), list("abcd"), far(4, 3, 8, 8)),
    "add_hparams": lambda w: w.add_hparams({"a": 1}, {"b": far(1)}, run_name="x"),
}


@pytest.mark.parametrize("name", FAR)
def test_no_method_reads_what_is_on_a_device(
    writer: ours.SummaryWriter, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All that it may do is to look at shapes and dtypes, and to make the device compute."""
    found: dict[Any, Any] = {}
    monkeypatch.setattr(file_writer.FileWriter, "emit", lambda _, v, *__: found.update(v))
    FAR[name](writer)
    value = found["a/b" if name == "add_scalars" else next(iter(found))]
    if isinstance(value, sidestep.Value):
        prepared = value.prepare(EmitContext(0, {}))
        assert isinstance(prepared, Prepared)
        arrays = [array for array in prepared.arrays if isinstance(array, torch.Tensor)]
        assert arrays
        assert {array.device.type for array in arrays} == {"meta"}
    else:
        assert (value.shape, value.device.type) == ((), "meta")


# --- series -------------------------------------------------------------------------------------


def directives(writer: ours.SummaryWriter) -> list[tuple[str, Any, Any, bool, bool]]:
    """What TensorBoard was told of tags."""
    return [
        (v.tag, *(v.info[key] for key in ("folder", "name", "new_style", "double")))
        for v in values(client_of(writer))
        if v.kind == "series"
    ]


def test_add_scalars_is_one_record_and_says_once_where_it_belongs(
    writer: ours.SummaryWriter,
) -> None:
    for step in range(3):
        writer.add_scalars("a/loss", {"train": step, "val": 2.0}, step)
    assert numbers(client_of(writer)) == [
        {"a/loss/train": float(step), "a/loss/val": 2.0} for step in range(3)
    ]
    assert directives(writer) == [
        ("a/loss/train", "a_loss_train", "a/loss", False, False),
        ("a/loss/val", "a_loss_val", "a/loss", False, False),
    ]


def test_a_number_of_the_same_name_has_a_tag_of_its_own(writer: ours.SummaryWriter) -> None:
    writer.add_scalars("loss", {"train": 1.0})
    writer.add_scalar("loss/train", 2.0)
    writer.add_scalar("lr/a", 3.0)
    writer.add_scalars("lr", {"a": 4.0})
    writer.add_scalars("lr", {"a": 5.0})
    found = numbers(client_of(writer))
    tags = ["loss/train", "loss/train~2", "lr/a", "lr/a~2", "lr/a~2"]
    assert found == [{tag: float(n)} for n, tag in enumerate(tags, 1)]
    assert directives(writer) == [
        ("loss/train", "loss_train", "loss", False, False),
        ("loss/train~2", None, "loss/train", False, False),
        ("lr/a", None, None, False, False),
        ("lr/a~2", "lr_a", "lr", False, False),
    ]


def test_how_a_number_is_stored_is_said_when_it_changes(writer: ours.SummaryWriter) -> None:
    for new_style, double in ((False, False), (True, False), (True, False), (True, True)):
        writer.add_scalar("a", 1.0, 0, None, new_style, double)
    writer.add_scalar("a", 1.0)
    writer.add_scalar("b", 1.0, double_precision=True)  # of an old-style number it says nothing
    assert directives(writer) == [
        ("a", None, None, True, False),
        ("a", None, None, True, True),
        ("a", None, None, False, False),
    ]
    assert numbers(client_of(writer)) == [{"a": 1.0}] * 5 + [{"b": 1.0}]


def test_what_an_earlier_process_said_of_a_tag_is_undone(make: MakeWriter) -> None:
    """It may have had `add_scalars("loss", {"train": ...})`, on the same folder."""
    writer = make("exp")
    writer.add_scalar("loss/train", 1.0)
    writer.add_scalar("lr", 1.0)
    assert directives(writer) == [("loss/train", None, None, False, False)]


# --- what is refused ----------------------------------------------------------------------------

ONE = np.ones((3, 4, 5), np.float32)
Call = Callable[[Any], object]

WRONG: dict[str, Call] = {
    "two numbers": lambda w: w.add_scalar("a", torch.zeros(2)),
    "no number": lambda w: w.add_scalar("a", np.zeros(0)),
    "a list": lambda w: w.add_scalar("a", [1.0]),
    "a word": lambda w: w.add_scalar("a", "word"),
    "None": lambda w: w.add_scalar("a", None),
    "a tag that is no str": lambda w: w.add_scalar(5, 1.0),
    "a tag that cannot be hashed": lambda w: w.add_scalar([], 1.0),
    "a step that is no number": lambda w: w.add_scalar("a", 1.0, "word"),
    "a step that is NaN": lambda w: w.add_scalar("a", 1.0, math.nan),
    "a step over 64 bits": lambda w: w.add_scalar("a", 1.0, 1 << 70),
    "a time that is no number": lambda w: w.add_scalar("a", 1.0, 1, "word"),
    "scalars in a list": lambda w: w.add_scalars("a", [1.0]),
    "scalars of no tag": lambda w: w.add_scalars(None, {"a": 1.0}),
    "scalars of a name that is no str": lambda w: w.add_scalars("a", {5: 1.0}),
    "tensor": lambda w: w.add_tensor("a", "word"),
    "empty histogram": lambda w: w.add_histogram("a", np.zeros(0)),
    "histogram of words": lambda w: w.add_histogram("a", np.array(["word"])),
    "histogram of unknown bins": lambda w: w.add_histogram("a", ONE, bins="word"),
    "raw histogram": lambda w: w.add_histogram_raw("a", 0, 1, 2, 3, 4, [1.0], [1, 2]),
    "image of an axis twice": lambda w: w.add_image("a", ONE, dataformats="CCW"),
    "image of too few axes": lambda w: w.add_image("a", ONE[0]),
    "image of five channels": lambda w: w.add_image("a", np.ones((5, 4, 3))),
    "image of words": lambda w: w.add_image("a", "word"),
    "images": lambda w: w.add_images("a", ONE),
    "boxes": lambda w: w.add_image_with_boxes("a", ONE, np.ones((2, 3))),
    "figure": lambda w: w.add_figure("a", "word"),
    "video": lambda w: w.add_video("a", np.ones((2, 3, 4, 4))),
    "audio": lambda w: w.add_audio("a", np.ones((2, 3, 9))),
    "text": lambda w: w.add_text("a", 5),
    "curve": lambda w: w.add_pr_curve("a", np.ones(3), np.ones(4)),
    "raw curve": lambda w: w.add_pr_curve_raw("a", *[np.ones(n) for n in range(2, 8)]),
    "mesh": lambda w: w.add_mesh("a", torch.ones(8)),
    "embedding": lambda w: w.add_embedding(np.ones(3)),
    "labels of another length": lambda w: w.add_embedding(np.ones((3, 2)), ["one"]),
    "pictures of another length": lambda w: w.add_embedding(np.ones((3, 2)), None, ONE[None]),
    "hparams in a list": lambda w: w.add_hparams([1], {}, run_name="x"),
    "hparams of a list": lambda w: w.add_hparams({"a": [1]}, {}, run_name="x"),
    "domain of another type": lambda w: w.add_hparams({"a": "b"}, {}, {"a": [1]}, "x"),
    "margin": lambda w: w.add_custom_scalars_marginchart(["a", "b"]),
    "layout": lambda w: w.add_custom_scalars([1]),
    "graph": lambda w: w.add_graph(None, torch.ones(1)),
    "onnx": lambda w: w.add_onnx_graph("/no/such/file.onnx"),
}


@pytest.fixture(scope="module")
def torchs_writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with torchs.SummaryWriter(tmp_path_factory.mktemp("torch")) as made:
        yield made


@pytest.mark.parametrize("name", WRONG)
def test_what_torch_raises_for_is_counted_and_said_once(
    make: MakeWriter, torchs_writer: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - of whatever kind
        WRONG[name](torchs_writer)
    writer = make("exp")
    with caplog.at_level(logging.WARNING, "sidestep"):
        WRONG[name](writer)
        WRONG[name](writer)
    client = client_of(writer)
    assert client.stats().rejected == 2
    assert len([r for r in caplog.records if "rejected" in r.message]) == 1
    writer.add_scalar("b", 1.0)
    assert numbers(client) == [{"b": 1.0}]


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.add_image("a", ONE, dataformats="CHX"),
        lambda w: w.add_image("a", ONE[:2]),  # grey with opacity, to Pillow
        lambda w: w.add_scalar("", 1.0),
        lambda w: w.add_scalar("x" * 1025, 1.0),
        lambda w: w.add_scalar("a", 1.0, 1, -1.0),
        lambda w: w.add_hparams({"a": math.nan}, {}),
        lambda w: w.add_scalar("a", torch.ones(1, device="meta")),  # torch writes a random number
    ],
)
def test_what_torch_takes_and_we_refuse(make: MakeWriter, torchs_writer: Any, call: Call) -> None:
    call(torchs_writer)
    writer = make("exp")
    call(writer)
    assert client_of(writer).stats().rejected == 1


def test_verbose_prints_the_trace(make: MakeWriter, capsys: pytest.CaptureFixture[str]) -> None:
    writer = make("exp")
    model, data = torch.nn.Linear(2, 1), torch.ones(1, 2)
    writer.add_graph(model, data)
    assert capsys.readouterr().out == ""
    writer.add_graph(model, data, verbose=True)
    assert "aten::linear" in capsys.readouterr().out
    assert [v.kind for v in values(client_of(writer))] == ["graph", "graph"]


@pytest.mark.parametrize("name", ["two numbers", "image of an axis twice", "raw histogram"])
def test_strict_raises(make: MakeWriter, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    with pytest.raises(sidestep.InvalidValueError):
        WRONG[name](make("exp"))


def test_of_scalars_the_good_ones_go_through(writer: ours.SummaryWriter) -> None:
    writer.add_scalars("a", {"good": 1.0, "bad": "word", 5: 1.0, "too": 2.0})  # type: ignore[dict-item]
    assert numbers(client_of(writer)) == [{"a/good": 1.0, "a/too": 2.0}]
    assert client_of(writer).stats().rejected == 2


# --- its life -----------------------------------------------------------------------------------


def test_after_close_it_begins_again(make: MakeWriter) -> None:
    writer = make("exp", purge_step=4)
    first = client_of(writer)
    writer.add_scalars("a", {"b": 1.0})
    assert [v.kind for v in values(first)] == ["purge", "series"]
    for _ in range(2):
        writer.close()
        writer.flush()
    assert writer.file_writer is None
    assert writer.all_writers is None
    writer.add_scalars("a", {"b": 2.0})
    second = client_of(writer)
    assert second is not first
    assert numbers(second) == [{"a/b": 2.0}]
    assert [v.kind for v in values(second)] == ["series"], "said again, but purged only once"


def test_purge_is_at_its_step(make: MakeWriter) -> None:
    (purge,) = values(client_of(make("exp", "", 7)))
    assert (purge.kind, purge.step) == ("purge", 7)


def test_as_a_context_manager_it_closes(make: MakeWriter) -> None:
    with pytest.raises(KeyError), make("exp") as writer:
        raise KeyError
    assert writer.file_writer is None


def test_several_live_at_once_on_one_folder_too(make: MakeWriter) -> None:
    writers = [make("exp"), make("exp"), make("other")]
    for number, writer in enumerate(writers):
        writer.add_scalar("a", number)
    assert [numbers(client_of(w)) for w in writers] == [[{"a": float(n)}] for n in range(3)]


def test_a_flush_in_vain_is_not_paid_for_again(
    make: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_writer, "_FLUSH_S", 0.5)
    asked: list[float] = []
    writer = make("exp")
    writer.add_scalar("a", 1.0)
    client = client_of(writer)
    flush = client.flush
    monkeypatch.setattr(client, "flush", lambda timeout: asked.append(timeout) or flush(timeout))
    for _ in range(3):
        writer.flush()
    assert asked == [0.5, 0.02, 0.02]
    monkeypatch.setattr(client, "flush", lambda timeout: asked.append(timeout) or True)
    writer.flush()
    writer.flush()
    assert asked[3:] == [0.02, 0.5]


def test_disabled_it_makes_the_folder_and_nothing_else(
    make: MakeWriter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIDESTEP_DISABLED", "1")
    with make("exp") as writer:
        writer.add_scalar("a", 1.0)
        writer.add_scalar("a", "word")
        writer.flush()
        assert client_of(writer).stats().rejected == 0
    assert list((tmp_path / "exp").iterdir()) == []


# --- FileWriter ---------------------------------------------------------------------------------


def test_a_file_writer_of_its_own(make: MakeWriter, tmp_path: Path) -> None:
    del make  # for the environment
    writer = ours.FileWriter(tmp_path / "exp", 10, 120, ".x")
    writer.add_summary(summary.scalar("a", 1.0), 3, 12.0)
    writer.add_event("no message")
    (value,) = values(writer.client)
    assert (value.kind, value.step, value.time_ns) == ("event", 3, 12_000_000_000)
    assert writer.client.stats().rejected == 1
    writer.close()
    writer.close()
    writer.reopen()
    assert writer.client.stats().emitted == 0
    writer.close()
