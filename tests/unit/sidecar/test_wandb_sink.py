"""The W&B sink with the real wandb: what it is given can be read from the file, whatever dies."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("wandb")

from sidestep.proto import RunSpec
from sidestep.sidecar.sinks.wandb_run import stable_id
from tests.support.wandb_file import is_complete, read_history, read_run, records, wandb_files
from tests.support.wandb_server import API_KEY, WandbServer
from tests.support.wandb_worker import SinkError, WandbWorker, rows, value

Start = Callable[..., WandbWorker]

KEY = API_KEY.encode()

ODD_FLOATS = [math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, -0.0, 0.1 + 0.2]


KEYS = {"global_step", "_timestamp", "_runtime", "_step"}
"""What every row has."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers, and sees to it that none is left."""
    workers: list[WandbWorker] = []

    def start_one(**env: str) -> WandbWorker:
        workers.append(WandbWorker(tmp_path, **env))
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.__exit__()


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def steps_in(path: Path) -> list[int]:
    return [row["global_step"] for row in read_history(path)]


def online(server: WandbServer, **more: str) -> dict[str, str]:
    return {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": server.url, **more}


# --- what is in the file -----------------------------------------------------------------------


def test_an_offline_run_has_everything(start: Start, log_dir: Path) -> None:
    worker = start()
    worker.open(
        log_dir,
        "vit b/1",
        wandb={"project": "h-jepa", "entity": "team", "tags": ["base"], "notes": "a note"},
        config={"lr": 1e-3, "model": {"depth": 12}},
        tags=("x",),
    )
    tags = [f"odd/{i}" for i in range(len(ODD_FLOATS))]
    worker.write(
        rows(tags, [2**62], [ODD_FLOATS]),
        rows(["train/loss", "layer.0.weight"], [5, 5, 4, -1]),
        rows(["val/acc"], [-1, *range(7, 1000)]),
    )
    worker.commit()
    worker.close()

    (path,) = wandb_files(log_dir)
    assert path.parent.name.startswith("offline-run-")
    assert is_complete(path)
    run = read_run(path)
    assert (run.run_id, run.display_name) == (stable_id(spec(log_dir, "vit b/1")), "vit b/1")
    assert (run.project, run.entity, run.notes) == ("h-jepa", "team", "a note")
    assert list(run.tags) == ["x", "base"]
    config = {update.key: update.value_json for update in run.config.update}
    assert (config["lr"], config["model"]) == ("0.001", '{"depth":12}')

    odd, *others = read_history(path)
    assert math.isnan(odd[tags[0]])
    assert [float(odd[tag]) for tag in tags[1:]] == ODD_FLOATS[1:]  # to the last bit
    assert odd["global_step"] == 2**62
    assert [
        (row["global_step"], row.get("train/loss"), row.get("val/acc")) for row in others[:5]
    ] == [
        (5, 5, None),
        (5, 5, None),
        (4, 4, None),
        (-1, -1, -1),  # values of one step share a row
        (7, None, 7),
    ]
    assert others[0].keys() == KEYS | {"train/loss", "layer.0.weight"}
    assert [row["val/acc"] for row in others[4:]] == list(range(7, 1000))
    assert [row["_step"] for row in others] == list(range(1, len(others) + 1))
    assert [row["_timestamp"] for row in others[:2]] == [1_700_000_005, 1_700_000_005]
    metrics = [record.metric for record in records(path) if record.HasField("metric")]
    assert any(m.glob_name == "*" and m.step_metric == "global_step" for m in metrics)


def spec(log_dir: Path, name: str) -> RunSpec:
    return RunSpec(name, str(log_dir))


def test_images_histograms_and_texts(start: Start, log_dir: Path) -> None:
    from PIL import Image

    shades = np.linspace(-0.5, 1.5, 3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    shades[0, 0, 0] = np.nan
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    data = np.array([0.0, 1.0, 1.0, 2.0, np.nan, np.inf], np.float64)
    worker = start()
    worker.open(log_dir)
    worker.write(
        rows(["train/loss"], [3]),
        value("image", "input", 3, shades, layout="CHW", caption="<b>"),
        value("image", "../../grey\0\n" + "x" * 900, 3, grey, layout="HW"),
        value("histogram", "gradients/w", 3, data, bins=2),
        value("text", "note", 3, text="<script>é</script>"),
        value("moments", "context", 3),
        value("hologram", "input", 3),
        value("image", "flat", 3, grey, layout="CHW"),
    )
    state = worker.commit()
    worker.close()

    assert state["skipped"] == 2  # the hologram and the flat image; moments are for others
    assert sum("skipped" in line for line in worker.logs) == 2
    (path,) = wandb_files(log_dir)
    (row,) = read_history(path)
    assert (row["global_step"], row["train/loss"]) == (3, 3)
    assert row["gradients/w"] == {"_type": "histogram", "bins": [0, 1, 2], "values": [1, 3]}
    assert row["input"]["caption"] == "<b>"
    files = path.parent / "files"
    with Image.open(files / row["input"]["path"]) as image:
        expected = (np.nan_to_num(shades).clip(0, 1) * np.float32(255)).astype(np.uint8)
        assert np.array_equal(np.asarray(image), expected.transpose(1, 2, 0))
    (hostile,) = (key for key in row if "grey" in key)
    with Image.open(files / row[hostile]["path"]) as image:
        assert np.array_equal(np.asarray(image), grey)
    shown = (files / row["note"]["path"]).read_text()
    assert "&lt;script&gt;é&lt;/script&gt;" in shown
    inside = {path.parent.resolve() for path in files.rglob("*.png")}
    assert all(folder.is_relative_to(files.resolve()) for folder in inside)


def test_rows_that_go_through_the_public_way_look_the_same(start: Start, log_dir: Path) -> None:
    worker = start(TEST_PUBLIC_LOG="1")
    worker.open(log_dir)
    names = ["_step", "global_step", "loss"]  # two of them are W&B's own
    worker.write(rows(["a", "b"], range(600)), rows(names, [600], [[1, 2, 3]]))
    worker.commit()
    history = read_history(wandb_files(log_dir)[0])
    assert [row["global_step"] for row in history] == list(range(601))
    assert [row["_step"] for row in history] == list(range(601))
    assert history[599]["a"] == history[599]["b"] == 599
    assert history[5].keys() == KEYS | {"a", "b"}
    assert history[5]["_timestamp"] == 1_700_000_005
    last = {key: history[600][key] for key in history[600].keys() - KEYS}
    assert last == {"emitted/_step": 1, "emitted/global_step": 2, "loss": 3}
    assert sum("keeps the name" in line for line in worker.logs) == 2


# --- what dies ---------------------------------------------------------------------------------


def test_what_was_committed_survives_the_worker(start: Start, log_dir: Path) -> None:
    worker = start()
    worker.open(log_dir)
    core = worker.core
    assert core is not None
    worker.write(rows(["loss"], range(10)))
    state = worker.commit()
    worker.write(rows(["loss"], range(10, 700)))
    worker.kill()
    assert steps_in(wandb_files(log_dir)[0])[:10] == list(range(10))
    assert gone_within(core, 5), "wandb-core has outlived its worker"

    again = start()
    again.open(log_dir, state=state)
    again.write(rows(["loss"], range(10, 20)))
    again.commit()
    again.close()
    third = start()  # the run goes on after a daemon that was stopped
    third.open(log_dir, state=again.saved[-1])
    third.write(rows(["loss"], [20]))
    third.commit()
    third.close()
    files = wandb_files(log_dir)
    assert [steps_in(path) for path in files] == [list(range(10)), list(range(10, 20)), [20]]
    assert len({read_run(path).run_id for path in files}) == 1
    assert [is_complete(path) for path in files] == [False, True, True]


def test_what_was_committed_survives_wandb_core(start: Start, log_dir: Path) -> None:
    worker = start()
    worker.open(log_dir)
    worker.write(rows(["loss"], range(10)))
    worker.commit()
    assert worker.core is not None
    os.kill(worker.core.pid, signal.SIGKILL)
    assert steps_in(wandb_files(log_dir)[0]) == list(range(10))
    with pytest.raises(SinkError, match=r"wandb-core (takes no more|has died with 1) rows"):
        write_and_commit(worker)


def write_and_commit(worker: WandbWorker) -> None:
    worker.write(rows(["loss"], [10]))
    worker.commit()


def test_nothing_is_left_of_a_worker_that_committed_nothing(start: Start, log_dir: Path) -> None:
    worker = start()
    worker.open(log_dir)
    worker.write(rows(["loss"], range(300)))
    (state,) = worker.saved
    worker.kill()
    again = start()
    again.open(log_dir, state=state)
    again.write(rows(["loss"], range(300)))
    again.commit()
    (path,) = wandb_files(log_dir)
    assert steps_in(path) == list(range(300))


def gone_within(process: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:  # nobody's child is reaped by init
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


# --- settings ----------------------------------------------------------------------------------


def test_without_a_key_the_run_is_offline_and_says_so_once(start: Start, log_dir: Path) -> None:
    # A daemon that a trainer started inherits what that trainer's own wandb has left there.
    worker = start(WANDB_SERVICE="3-1-unix-/nowhere", WANDB_RUN_ID="other", WANDB_SWEEP_ID="s")
    worker.open(log_dir, wandb={"id": "mine"})
    worker.write(rows(["loss"], [1]))
    worker.commit()
    assert read_run(wandb_files(log_dir)[0]).run_id == "mine"
    (line,) = worker.logs
    assert "no API key" in line
    assert f"wandb sync {wandb_files(log_dir)[0].parent}" in line


def test_online_without_a_key_is_an_error(start: Start, log_dir: Path) -> None:
    with pytest.raises(SinkError, match="W&B has no API key: set WANDB_API_KEY"):
        start(WANDB_MODE="online").open(log_dir)


def test_disabled_means_nothing_is_written(start: Start, log_dir: Path) -> None:
    worker = start(WANDB_MODE="disabled")
    worker.open(log_dir)
    worker.write(rows(["loss"], range(10)), value("text", "t", 1, text="x"))
    worker.commit()
    worker.close()
    assert wandb_files(log_dir) == []
    assert worker.core is None


@pytest.mark.parametrize("name", ["run", "a b/c:d#é", "x" * 500, "..", "-"])
def test_ids_are_stable_short_and_safe(name: str) -> None:
    made = stable_id(RunSpec(name, "/logs"))
    assert made == stable_id(RunSpec(name, "/logs", config={"other": 1}))
    assert made != stable_id(RunSpec(name, "/other"))
    assert 0 < len(made) <= 64
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in made)


# --- the server --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 503])
def test_a_server_that_refuses(
    start: Start, log_dir: Path, server: WandbServer, status: int
) -> None:
    server.status = status
    worker = start(**online(server, WANDB_INIT_TIMEOUT="1"))
    with pytest.raises(SinkError, match=f"W&B cannot start the run: .*{status}") as caught:
        worker.open(log_dir)
    assert API_KEY not in str(caught.value) + "".join(worker.logs)
    assert wandb_files(log_dir) == []


def test_a_server_that_hangs_in_init(start: Start, log_dir: Path, server: WandbServer) -> None:
    server.hang = True
    before = time.monotonic()
    with pytest.raises(SinkError, match="W&B cannot start the run"):
        start(**online(server, WANDB_INIT_TIMEOUT="1")).open(log_dir)
    assert time.monotonic() - before < 15


def test_online_what_a_dead_worker_had_not_uploaded_is_uploaded(
    start: Start, log_dir: Path, server: WandbServer
) -> None:
    worker = start(**online(server))
    worker.open(log_dir, "r", wandb={"id": "r"})
    worker.write(rows(["loss"], range(10)), value("text", "note", 9, text="hello"))
    state = worker.commit()
    worker.kill()
    assert len(server.history["r"]) < 10  # wandb-core uploads every 15 s

    again = start(**online(server))
    again.open(log_dir, "r", state=state, wandb={"id": "r"})
    again.write(rows(["loss"], range(10, 20)))
    again.commit()
    again.close()
    uploaded = server.rows("r")
    assert [row["global_step"] for row in uploaded] == list(range(20))
    assert [row["_step"] for row in uploaded] == list(range(20))
    assert [row["loss"] for row in uploaded] == list(range(20))
    assert uploaded[9]["note"]["_type"] == "html-file"
    assert again.saved[-1]["closed"]
    assert not [path for path in log_dir.rglob("*") if path.is_file() and KEY in path.read_bytes()]


def test_online_an_end_that_hangs_is_made_good_later(
    start: Start, log_dir: Path, server: WandbServer
) -> None:
    worker = start(**online(server), TEST_FINISH_TIMEOUT_S="1")
    worker.open(log_dir, "r", wandb={"id": "r"})
    worker.write(rows(["loss"], range(10)))
    state = worker.commit()
    server.hang = True
    with pytest.raises(SinkError, match=r"W&B did not take everything .*; it is kept in"):
        worker.close()
    worker.kill()
    server.answer_again()

    again = start(**online(server))
    again.open(log_dir, "r", state=state, wandb={"id": "r"})
    again.commit()
    again.close()
    assert [row["global_step"] for row in server.rows("r")] == list(range(10))
    assert "r" in server.complete
