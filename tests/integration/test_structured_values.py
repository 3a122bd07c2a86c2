"""Structured values through a real daemon whose TensorBoard worker is killed between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from sidestep import client
from sidestep.client.values.series import Series
from tests.support.fixtures import Connect
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.timeout(120)


def loaded(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """(step, tag) of all that TensorBoard loads, by the folder below."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in folder.rglob("*tfevents*"):
        assert path.name.endswith(".eval")
        here = found.setdefault(str(path.parent.relative_to(folder)), [])
        for event in EventFileLoader(str(path)).Load():
            here += [(event.step, value.tag) for value in event.summary.value]
    return found


def values(step: int) -> dict[str, Any]:
    return {
        "loss": 1 / (step + 1),
        "both/a": float(step),
        "curve": client.PRCurve([0, 1, 1], [0.5, 0.25, 1.0]),
        "mesh": client.Mesh(np.ones((4, 3))),
        "points": client.Embedding(np.eye(3) * step, metadata=["a", "b", "c"]),
        "hp": client.HParams({"lr": 0.1}, {"acc": 0.5}, folder=f"set {step}"),
    }


@pytest.mark.chaos
def test_each_is_written_once_where_it_belongs(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("structured", tensorboard={"folder": ".", "suffix": ".eval"})
    made.emit({"both/a": Series("both_a", "both")}, step=0)
    for step in range(6):
        made.emit(values(step), step=step)
        assert made.flush(30)
        if step in (2, 4):
            for worker in sandbox.workers("tensorboard"):
                worker.kill()
    assert made.finish(30)
    sandbox.drain(60)

    found = loaded(sandbox.logs)
    assert found["both_a"] == [(step, "both") for step in range(6)]
    assert len([tag for _, tag in found["set 3"] if tag == "acc"]) == 1
    assert sorted(found) == [".", "both_a", *(f"set {step}" for step in range(6))]
    for tag in ("loss", "curve", "mesh_VERTEX"):
        assert [step for step, shown in found["."] if shown == tag] == list(range(6))
    config = ProjectorConfig()
    text_format.Parse((sandbox.logs / "projector_config.pbtxt").read_text(), config)
    assert [info.tensor_name for info in config.embeddings] == [f"points:{n:05}" for n in range(6)]
    assert (sandbox.logs / "00005/points/tensors.tsv").read_text().startswith("5.0\t0.0\t0.0\n")
