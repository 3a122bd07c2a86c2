"""Meshes, curves, embeddings, graphs, hyperparameters, layouts: what travels, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidestep import client as sidestep
from sidestep.client import (
    CustomScalars,
    Embedding,
    Graph,
    HParams,
    InvalidValueError,
    Mesh,
    PRCurve,
    Value,
)
from sidestep.client.values import EmitContext, Prepared
from sidestep.client.values.series import Series
from sidestep.client.values.tensor import Tensor
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import numbers, values
from tests.unit.client.fake_device import FakeTensor


def prepare(value: Value) -> Prepared:
    prepared = value.prepare(EmitContext(0, {}))
    assert isinstance(prepared, Prepared)
    return prepared


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


Refusals = list[tuple[Callable[[], Value], str]]

MESHES: Refusals = [
    (lambda: Mesh(zeros(3)), r"vertices of shape \(3,\): expected a non-empty \(B, N, 3\)"),
    (lambda: Mesh(zeros(2, 4, 2)), r"vertices of shape \(2, 4, 2\)"),
    (lambda: Mesh(zeros(1, 0, 3)), r"vertices of shape \(1, 0, 3\)"),
    (lambda: Mesh(zeros(2, 3).astype(complex)), "Mesh vertices of dtype complex128"),
    (lambda: Mesh("points"), "Mesh vertices of dtype <U6"),
    (lambda: Mesh(zeros(1, 4, 3), colors=zeros(1, 5, 3)), "one colour for each vertex"),
    (lambda: Mesh(zeros(1, 4, 3), faces=zeros(1, 2, 3)), "faces of float32: expected integers"),
    (lambda: Mesh(zeros(1, 4, 3), faces=zeros(2, 2, 3, dtype="int8")), "faces for 2 meshes"),
    (lambda: Mesh(zeros(4, 3), config=5), "config must be a mapping, not int"),  # type: ignore[arg-type]
    (lambda: Mesh(zeros(4, 3), config={"a": object()}), "cannot be said in JSON"),
    (lambda: Mesh(zeros(4, 3), config={"a": float("nan")}), "cannot be said in JSON"),
    (lambda: Mesh(zeros(4, 3), config={"a": "x" * 70_000}), "at most 65536"),
]
CURVES: Refusals = [
    (lambda: PRCurve([0, 1], [0.5]), r"labels of shape \(2,\) and predictions of shape \(1,\)"),
    (lambda: PRCurve([], []), "at least one element"),
    (lambda: PRCurve([0], [0.5], weights=[1, 2]), r"weights of shape \(2,\): expected \(1,\)"),
    (lambda: PRCurve([0], ["a"]), "PRCurve predictions of dtype"),
    (lambda: PRCurve([0], [0.5], num_thresholds=1), "an int of 2 or more, not 1"),
    (lambda: PRCurve([0], [0.5], num_thresholds=2.5), "not 2.5"),  # type: ignore[arg-type]
    (lambda: PRCurve([0], [0.5], num_thresholds=True), "not True"),
    (lambda: PRCurve.from_counts([1], [1], [1], [1], [1], [1, 2]), r"expected \(n,\) for all"),
    (lambda: PRCurve.from_counts(*[[]] * 6), "n from 1 to 8192"),
    (lambda: PRCurve.from_counts(*[zeros(9000)] * 6), "n from 1 to 8192"),
    (lambda: PRCurve.from_counts(*[zeros(1, 3)] * 6), r"expected \(n,\)"),
]
EMBEDDINGS: Refusals = [
    (lambda: Embedding(zeros(3)), r"Embedding of shape \(3,\): expected a non-empty \(n, d\)"),
    (lambda: Embedding(zeros(0, 3)), r"shape \(0, 3\)"),
    (lambda: Embedding(np.empty((1_000_001, 1), "int8")), "at most 1,000,000 points"),
    (lambda: Embedding(np.empty((10_001, 1000), "int8")), "10,000,000 numbers; emit some"),
    (lambda: Embedding(zeros(2, 2), metadata=["a"]), "2 points with 1 rows of metadata"),
    (lambda: Embedding(zeros(2, 2), metadata="ab"), "must be a list of labels, not str"),
    (lambda: Embedding(zeros(2, 2), metadata=5), "must be a list of labels, not int"),  # type: ignore[arg-type]
    (
        lambda: Embedding(zeros(2, 2), metadata=[["a"], ["b", 1]], metadata_header=["x", "y"]),
        "1 cells in a row, 2 in the header",
    ),
    (lambda: Embedding(zeros(1, 2), metadata=FakeTensor([1])), "on a device: call .tolist"),
    (lambda: Embedding(zeros(2, 2), label_images=zeros(2, 4, 4)), r"expected \(2, C, H, W\)"),
    (lambda: Embedding(zeros(2, 2), label_images=zeros(3, 1, 4, 4)), "for 2 points"),
    (lambda: Embedding(zeros(2, 2), label_images=zeros(2, 2, 4, 4)), "1 or 3 channels"),
    (lambda: Embedding(zeros(2, 2), label_images=zeros(2, 1, 0, 4)), "1 or 3 channels"),
    (
        lambda: Embedding(zeros(2, 2), label_images=zeros(2, 1, 4, 4, dtype="int32")),
        "label_images of int32",
    ),
    (
        lambda: Embedding(zeros(5, 2), label_images=zeros(5, 1, 8, 2731, dtype="uint8")),
        "a square of 8,193 pixels a side: at most 8,192",
    ),
]
HPARAMS: Refusals = [
    (lambda: HParams([1]), "hparams must be a mapping, not list"),  # type: ignore[arg-type]
    (lambda: HParams({5: 1}), "a name is a str"),  # type: ignore[dict-item]
    (lambda: HParams({"": 1}), "a name is a str of 1 to 1024 bytes"),
    (lambda: HParams({"a": [1, 2]}), "'a' is a list: expected bool, int, float or str"),
    (lambda: HParams({"a": float("inf")}), "'a' is inf, which no page"),
    (lambda: HParams({"a": 1 << 63}), "does not fit into 64 bits"),
    (lambda: HParams({"a": zeros(2)}), r"a of shape \(2,\): expected one number"),
    (lambda: HParams({"a": FakeTensor(1.0)}), "on a device: pass .item"),
    (lambda: HParams({"a": "x" * 20_000}), "a text of over 16384 bytes"),
    (lambda: HParams({f"p{i}": "x" * 9000 for i in range(99)}), "524288 characters in all"),
    (lambda: HParams({f"p{i}": i for i in range(5000)}), "5000 hparams: at most 4096"),
    (lambda: HParams({}, {"a": "good"}), "metric 'a'.* is a str"),
    (lambda: HParams({}, {"a": FakeTensor([1.0, 2.0])}), "expected one number"),
    (lambda: HParams({}, {f"m{i}": FakeTensor(1.0) for i in range(65)}), "at most 64"),
    (lambda: HParams({"a": 1}, domains={"b": [1]}), r"domains\['b'\] must be a list"),
    (lambda: HParams({"a": 1}, domains={"a": 1}), r"domains\['a'\] must be a list"),
    (lambda: HParams({"a": "x"}, domains={"a": ["x", 1]}), r"of the type of hparams\['a'\], str"),
    (lambda: HParams({}, folder=5), "folder must be a str, not int"),  # type: ignore[arg-type]
]
LAYOUTS: Refusals = [
    (lambda: CustomScalars([]), "found list in the place of a mapping"),  # type: ignore[arg-type]
    (lambda: CustomScalars({}), "of 0 charts: expected 1 to 1000"),
    (lambda: CustomScalars({"a": {"b": "Multiline"}}), r"expected \[kind, tags\]"),
    (lambda: CustomScalars({"a": {"b": ["Pie", ["x"]]}}), "expected Multiline or Margin"),
    (lambda: CustomScalars({"a": {"b": ["Multiline", "x"]}}), "expected a list of tags"),
    (lambda: CustomScalars({"a": {"b": ["Multiline", []]}}), "has 0 tags, not 1 to 1000"),
    (lambda: CustomScalars({"a": {"b": ["Margin", ["x"]]}}), r"has 1 tags, not 3 \(value"),
    (lambda: CustomScalars({"a": {5: ["Margin", ["x"]]}}), "are str of at most"),  # type: ignore[dict-item]
    (lambda: CustomScalars({"a": {"b": ["Multiline", [5]]}}), "not 5"),
]
OTHERS: Refusals = [
    (lambda: Tensor(torch.zeros(2).to_sparse()), "sparse"),
    (lambda: Tensor(["a"]), "expected real numbers"),
    (lambda: Series(5), "names, which are str, not int"),  # type: ignore[arg-type]
    (lambda: Graph(None, None), "Graph of NoneType cannot be traced"),
    (lambda: Graph(nn.Linear(2, 2), torch.ones(3)), "Graph of Linear cannot be traced"),
    (lambda: Graph.from_protos(5), "Graph takes protocol buffers"),
    (
        lambda: Graph.from_onnx("no/such/file.onnx"),
        "needs torch, tensorboard and onnx|cannot be read",
    ),
]


@pytest.mark.parametrize(
    ("make", "message"), MESHES + CURVES + EMBEDDINGS + HPARAMS + LAYOUTS + OTHERS
)
def test_what_cannot_be_shown_is_refused_with_a_reason(
    make: Callable[[], Value], message: str
) -> None:
    value = make()  # never raises: what is wrong is said, and counted, when it is emitted
    with pytest.raises(InvalidValueError, match=message):
        prepare(value)


def test_nothing_of_a_device_is_read() -> None:
    """A FakeTensor raises as soon as anybody does."""
    points = FakeTensor(torch.full((1, 4, 3), float("nan")))
    for value in (
        Mesh(points, colors=points, faces=FakeTensor(torch.zeros(1, 2, 3, dtype=torch.int32))),
        PRCurve(points, points, weights=points),
        PRCurve.from_counts(*[FakeTensor([1.0, 2.0])] * 6),
        Embedding(FakeTensor([[1.0]]), label_images=FakeTensor(torch.zeros(1, 3, 2, 2))),
        Tensor(points),
        HParams({}, {"a": FakeTensor(1.0)}),
    ):
        assert prepare(value).arrays


def test_a_bad_one_harms_only_itself(connect: MakeClient) -> None:
    client = connect(outbox_bytes=1 << 20)
    client.emit(
        {
            "loss": 1.0,
            "mesh": Mesh(zeros(3)),
            "curve": PRCurve([1], [0.5]),
            "hp": HParams({"a": object()}),
            "embedding": Embedding(zeros(3, 2), metadata=["a\tb", "c", "d"]),
            "large": Embedding(zeros(1000, 1000)),
        },
        step=3,
    )
    assert numbers(client) == [{"loss": 1.0}]
    assert [value.kind for value in values(client)] == ["pr_curve", "embedding"]
    assert client.stats().rejected == 3


def test_many_thresholds_are_tensorboards_most() -> None:
    assert prepare(PRCurve([1], [0.5], num_thresholds=1000)).info["num_thresholds"] == 127
    assert prepare(PRCurve.from_counts(*[zeros(200)] * 6)).info["num_thresholds"] == 127
    assert prepare(PRCurve.from_counts(*[zeros(1)] * 6)).info["num_thresholds"] == 1


def test_what_hyperparameters_are() -> None:
    info = prepare(
        HParams(
            {"a": np.float32(0.5), "b": torch.tensor([3]), "c": None, "d": True, "e": "\ud800"},
            {"acc": np.int64(3), "nan": float("nan")},
            {"b": [1, 2.5]},
        )
    ).info
    assert info["hparams"] == {"a": 0.5, "b": 3, "c": None, "d": True, "e": "?"}
    assert info["domains"] == {"b": [1, 2.5]}
    assert info["metrics"]["acc"] == 3  # type: ignore[index]


def test_complex_tensors_travel_in_parts() -> None:
    for tensor in (torch.tensor([1 + 2j]).conj(), np.array([1 - 2j])):
        prepared = prepare(Tensor(tensor))
        assert prepared.info == {"complex": True}
        assert prepared.arrays[0].tolist() == [[1, -2]]


# --- graphs ------------------------------------------------------------------------------------


def test_a_model_is_as_it_was_after_its_graph(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    before = torch.get_rng_state()
    prepared = prepare(Graph(model, torch.ones(1, 2)))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert [array.dtype.name for array in prepared.arrays] == ["uint8", "uint8"]
    with pytest.raises(InvalidValueError):
        prepare(Graph(model, torch.ones(1, 3)))
    assert model.training
    assert capsys.readouterr() == ("", "")


def test_without_tensorboard_a_graph_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for make in (lambda: Graph(nn.ReLU(), torch.ones(1)), lambda: Graph.from_onnx("x")):
        with pytest.raises(InvalidValueError, match="pip install tensorboard"):
            prepare(make())


def test_an_onnx_graph(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    def dims(*sizes: int) -> Any:
        return SimpleNamespace(dim=[SimpleNamespace(dim_value=size) for size in sizes])

    def port(name: str, *sizes: int) -> Any:
        tensor = SimpleNamespace(shape=dims(*sizes), elem_type=1)
        return SimpleNamespace(name=name, type=SimpleNamespace(tensor_type=tensor))

    node = SimpleNamespace(output=["y"], op_type="Relu", input=["x"], attribute=[])
    graph = SimpleNamespace(input=[port("x", 1, 2)], output=[port("y", 1, 2)], node=[node])
    onnx = ModuleType("onnx")
    onnx.load = lambda path: {"model.onnx": SimpleNamespace(graph=graph)}[path]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnx", onnx)
    (data,) = prepare(Graph.from_onnx("model.onnx")).arrays
    assert [(n.name, n.op) for n in GraphDef.FromString(data.tobytes()).node] == [
        ("x", "Variable"),
        ("y", "Variable"),
        ("y", "Relu"),
    ]
    assert capsys.readouterr().out == ""
    with pytest.raises(InvalidValueError, match=r"'other\.onnx' cannot be read as ONNX"):
        prepare(Graph.from_onnx("other.onnx"))


def test_all_of_them_are_offered() -> None:
    names = {"CustomScalars", "Embedding", "Graph", "HParams", "Mesh", "PRCurve"}
    assert names <= set(sidestep.__all__)
