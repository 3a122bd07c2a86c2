"""Meshes, curves, embeddings and hyperparameters in a real offline run of W&B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("wandb")

from sidestep import client
from sidestep.client.values.purge import Purge
from sidestep.client.values.series import Series
from sidestep.client.values.tensor import Tensor
from sidestep.proto import Value as ValueRecord
from sidestep.sidecar.sinks.wandb_values import object_of
from tests.support.travelled import travelled
from tests.support.wandb_file import read_history, records, wandb_files
from tests.support.wandb_worker import WandbWorker, rows

POINTS = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
COLORS = np.array([[[0, 128, 255]] * 4], np.uint8)


def told(value: client.Value, tag: str, step: int) -> dict[str, Any]:
    """A value for the worker's process."""
    sent = travelled(value, tag, step)
    arrays = [[a.dtype, list(a.shape), bytes(a.data).hex()] for a in sent.arrays]
    return {"kind": sent.kind, "tag": tag, "step": step, "info": dict(sent.info), "arrays": arrays}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], WandbWorker]:
    """Everything in one run: starting wandb takes its time."""
    home = tmp_path_factory.mktemp("wandb")
    odd = np.where(POINTS == 5, np.nan, POINTS)
    with WandbWorker(home) as worker:
        worker.open(home / "logs", config={"lr": 1.0, "kept": 1})
        worker.write(
            rows(["loss"], [1]),
            told(client.HParams({"lr": 0.5, "opt": "adam", "on": True, "no": None}), "hp", 1),
            told(client.HParams({"lr": 0.25}, {"acc": 0.75, "nan": float("nan")}), "hp", 2),
            told(client.PRCurve([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.6], num_thresholds=3), "../pr", 2),
            told(client.PRCurve.from_counts(*[[1.0, 2.0]] * 6), "raw", 2),
            told(client.Embedding(POINTS[0], metadata=["a", "b", "c", "é"]), "plain", 2),
            told(
                client.Embedding(
                    POINTS[0],
                    metadata=[["a", 1], ["b", 2], ["c", 3], ["d", 4]],
                    metadata_header=["word", "d0"],
                ),
                "columns",
                2,
            ),
            told(client.Mesh(odd, colors=COLORS), "cloud", 2),
            told(client.Mesh(POINTS, colors=COLORS / 255, faces=[[[0, 1, 3]]]), "solid", 2),
            told(client.Mesh(POINTS, faces=[[[0, 1, 4]]]), "no vertex", 2),
            told(Tensor(np.array([3 + 4j, 0])), "tensor", 2),
            told(Tensor(np.array([True, False])), "bools", 2),
            told(client.CustomScalars({"a": {"b": ["Multiline", ["c"]]}}), "layout", 2),
            told(client.Graph.from_protos(_Message(), _Message()), "graph", 2),
            told(Series("x"), "loss", 2),
            told(Purge(), "purge", 2),
        )
        state = worker.commit()
        path = wandb_files(home / "logs")[0]
        committed = (
            read_history(path),
            {
                update.key: json.loads(update.value_json)
                for record in records(path)
                if record.HasField("config")
                for update in record.config.update
            },
        )
        worker.close()
    assert state["skipped"] == 1
    (skipped,) = [line for line in worker.logs if "skipped" in line]
    assert "'mesh' is skipped: the faces of a mesh" in skipped
    history, config = committed
    (first, second) = history
    assert (first["global_step"], second["global_step"]) == (1, 2)
    return path, {"first": first, "second": second, "config": config}, worker


class _Message:
    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return b"graph"


def table(run: tuple[Path, dict[str, Any], Any], key: str) -> Any:
    path, found, _ = run
    shown = found["second"][key]
    assert shown["_type"] == "table-file"
    assert shown["artifact_path"].startswith("wandb-client-artifact://")  # what W&B's pages read
    return json.loads((path.parent / "files" / shown["path"]).read_text())


def test_hyperparameters_are_the_runs_configuration(run: Any) -> None:
    _, found, _ = run
    assert found["config"] == {"lr": 0.25, "opt": "adam", "on": True}
    assert found["first"]["loss"] == 1
    assert found["second"]["acc"] == 0.75
    assert np.isnan(found["second"]["nan"])


def test_curves_are_tables(run: Any) -> None:
    shown = table(run, "../pr")
    assert shown["columns"] == ["threshold", "precision", "recall", "tp", "fp", "tn", "fn"]
    assert shown["data"] == [
        [0.0, 0.5, 1.0, 2.0, 2.0, 0.0, 0.0],
        [0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0],
        [1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0],
    ]
    assert len(table(run, "raw")["data"]) == 2
    path, _, _ = run
    assert all("media" in str(file) for file in (path.parent / "files").rglob("*.table.json"))


def test_embeddings_are_tables(run: Any) -> None:
    shown = table(run, "plain")
    assert shown["columns"] == ["label", "d0", "d1", "d2"]
    assert shown["data"][3] == ["é", 9.0, 10.0, 11.0]
    shown = table(run, "columns")
    assert shown["columns"] == ["word (0)", "d0 (1)", "d0 (2)", "d1 (3)", "d2 (4)"]
    assert shown["data"][1] == ["b", "2", 3.0, 4.0, 5.0]


def test_meshes_are_objects(run: Any) -> None:
    path, found, _ = run
    (cloud,) = found["second"]["cloud"]["objects"]
    points = json.loads((path.parent / "files" / cloud["path"]).read_text())
    assert points == [[*row, 0, 128, 255] for row in POINTS[0].tolist() if 5 not in row]
    (solid,) = found["second"]["solid"]["objects"]
    lines = (path.parent / "files" / solid["path"]).read_text().splitlines()
    assert lines[1].split()[:4] == ["v", "3.0", "4.0", "5.0"]
    assert [round(float(share) * 255) for share in lines[1].split()[4:]] == [0, 128, 255]
    assert lines[4:] == ["f 1 2 4"]


def test_tensors_are_histograms_and_the_rest_is_ignored(run: Any) -> None:
    _, found, _ = run
    tensor = found["second"]["tensor"]
    assert (tensor["bins"][0], tensor["bins"][-1], sum(tensor["values"])) == (0, 5, 2)
    assert sum(found["second"]["bools"]["values"]) == 2
    assert not {"layout", "graph", "purge", "hp"} & {*found["first"], *found["second"]}


def test_a_large_embedding_is_shown_in_part() -> None:
    many = np.arange(25_000, dtype=np.int32).reshape(-1, 1)
    shown: Any = object_of(
        travelled(client.Embedding(many, metadata=map(str, range(25_000))), "t", 1)
    )
    assert len(shown.data) == 10_000
    assert (shown.data[0], shown.data[-1]) == (["0", 0.0], ["24999", 24999.0])
    wide: Any = object_of(travelled(client.Embedding(np.zeros((2000, 1000), "int8")), "t", 1))
    assert len(wide.data) == 300


@pytest.mark.parametrize(
    "value",
    [
        ValueRecord("mesh", "t", 0, 0),
        ValueRecord("pr_curve", "t", 0, 0, {"num_thresholds": 3}),
        ValueRecord("embedding", "t", 0, 0),
        ValueRecord("tensor", "t", 0, 0),
    ],
    ids=lambda value: value.kind,
)
def test_what_is_not_as_its_kind_says_is_a_value_error(value: ValueRecord) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        object_of(value)
