"""The usual complaints, each caused for real, and `doctor` says what it is and what mends it.

    (a) TensorBoard shows nothing   (b) curves are flat     (c) curves stop
    (d) GPU values missing          (e) memory grows        (f) W&B run missing

Several are caused under one daemon, and found by one call.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sidestep import client
from tests.support.clock_shift import ShiftedClock
from tests.support.diagnosis import Diagnosis, diagnose, obey
from tests.support.fake_nvml import FakeNvml
from tests.support.fixtures import Connect, Train
from tests.support.mounts import fill, small_tmpfs
from tests.support.oracle import read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until
from tests.support.wandb_server import API_KEY, Fault, WandbServer

pytestmark = pytest.mark.timeout(120)


def recognised(found: Diagnosis, complaint: str, check: str, run: str = "") -> str:
    """The finding is there and names the complaint; what it says."""
    finding = found.of(check, run)
    assert finding["complaint"] == complaint, finding
    says: str = finding["says"]
    return says


def level(found: Diagnosis, check: str, run: str = "") -> str:
    found_level: str = found.of(check, run)["level"]
    return found_level


def written(sandbox: Sandbox, run: str, records: int) -> None:
    """Wait until so many of a run's own numbers, or more, are in its event files."""

    def count() -> bool:
        return read_scalars(sandbox.event_files(run)).total() >= records

    wait_until(count, 30, f"{records} of {run} are not written")


def test_tensorboard_shows_nothing(sandbox: Sandbox, connect: Connect) -> None:
    from sidestep.client.values.purge import Purge

    sandbox.serve(SIDESTEP_SAMPLE_INTERVAL_S="1000")
    blocked = sandbox.root / "file"
    blocked.write_text("no directory")
    made: dict[str, client.Client] = {}
    for run, arguments in {
        "off": {"tensorboard": False},
        "blocked": {"log_dir": blocked / "logs"},
        "hidden": {},
        "deleted": {},
        "well": {},
    }.items():
        made[run] = connect(run, **arguments)
        for step in range(30):
            made[run].emit({"train/loss": 1 / (step + 1)}, step=step)
        if run == "hidden":
            made[run].emit({"purge": Purge()}, step=0)
        made["off"].emit({"train/loss": "0.5"}, step=30)
        assert made[run].flush(30)
    for run in ("hidden", "deleted", "well"):
        written(sandbox, run, 30)
    sandbox.await_sink("blocked", "degraded")
    assert made["deleted"].finish(30)
    sandbox.await_sink("deleted", "closed")  # nothing more is written, to a new file
    for file in sandbox.event_files("deleted"):
        file.unlink()
    sandbox.await_run("off", clients=1)
    wait_until(lambda: sandbox.run_status("off")["records"]["rejected"], 10, "not told")

    found = diagnose(sandbox)
    assert "tensorboard=False" in recognised(found, "nothing", "tensorboard.off", "off")
    assert "5 values rejected" in recognised(found, "nothing", "trainers.rejected", "off")
    says = recognised(found, "nothing", "sinks.tensorboard", "blocked")
    assert re.search(r"\d\d records wait for it", says)
    assert "TensorBoard is degraded" in says
    says = recognised(found, "nothing", "curves.hidden", "hidden")
    assert "hides all its 30 points" in says
    assert "began again at step 0" in says
    assert "was deleted" in recognised(found, "nothing", "tensorboard.files", "deleted")
    assert level(found, "curves", "well") == "ok"
    assert found.code == 1
    # What is hidden is where it says that it is.
    obey(sandbox, found.of("curves.hidden", "hidden"))

    # Somebody looks into another directory, by --logdir or with a TensorBoard of his own.
    elsewhere = sandbox.root / "elsewhere"
    elsewhere.mkdir()
    found = diagnose(sandbox, "--logdir", str(elsewhere))
    assert str(sandbox.logs) in recognised(found, "nothing", "tensorboard.logdir")
    assert level(found, "tensorboard.logdir") == "wrong"
    board = subprocess.Popen(
        [Path(sys.executable).with_name("tensorboard"), "--logdir", elsewhere, "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: "--logdir" in psutil.Process(board.pid).cmdline(), 10, "no TensorBoard")
        found = diagnose(sandbox, "--run", "well")
    finally:
        board.kill()
        board.wait()
    boards = [f for f in found.findings if f["check"] == "tensorboard.process"]
    (unread,) = [f for f in boards if f["run"] == "well"]
    assert f"{elsewhere} (pid {board.pid})" in unread["says"]
    assert (unread["level"], unread["complaint"]) == ("warning", "nothing")
    assert unread["do"].startswith(f"tensorboard --logdir {sandbox.logs}/tensorboard")

    # The environment: switched off, misspelt, pointing to where nobody listens, a wrong file.
    config = sandbox.root / "wrong.yaml"
    config.write_text("sidecar: {histroy_mb: 3}\n")
    found = diagnose(
        sandbox,
        SIDESTEP_DISABLED="1",
        SIDESTEP_LOGDIR="x",
        SIDESTEP_ENDPOINT=f"ipc://{sandbox.root}/none.sock",
        SIDESTEP_CONFIG=str(config),
        SIDESTEP_HISTORY_MB="7",
        SIDESTEP_WEBHOOK_URL="https://hooks.example/a-secret",
    )
    assert "SIDESTEP_HISTORY_MB is '7' here" in found.of("settings.differ")["says"]
    assert "a-secret" not in str(found.answer)
    recognised(found, "nothing", "settings.disabled")
    assert found.of("settings.disabled")["do"] == "unset SIDESTEP_DISABLED"
    assert "SIDESTEP_LOG_DIR" in found.of("settings.unknown")["do"]
    assert "nobody listens" in recognised(found, "nothing", "settings.endpoint")
    assert "history_mb" in recognised(found, "nothing", "settings.file")
    found = diagnose(sandbox, SIDESTEP_RUNTIME_DIR=str(sandbox.root / "r2"))
    says = recognised(found, "nothing", "daemon.elsewhere")
    assert str(sandbox.runtime) in says
    assert found.of("daemon.elsewhere")["do"].endswith(str(sandbox.runtime))
    found = diagnose(sandbox, SIDESTEP_RUNTIME_DIR=str(sandbox.root / ("long" * 30)))
    assert "too long" in recognised(found, "nothing", "daemon.paths")


def test_curves_are_flat_or_broken(sandbox: Sandbox, connect: Connect) -> None:
    """One daemon, one call: a step that stands, values that stand, NaN, steps and a clock back."""
    sandbox.serve(SIDESTEP_ARCHIVE="false")  # half the workers
    real = time.time_ns
    runs = {
        "one_step": lambda i: ({"train/loss": 1 / (i + 1)}, 7),
        "constant": lambda i: ({"train/loss": 0.25, "train/lr": 1e-3}, i),
        "since": lambda i: ({"train/loss": max(0.5, 1 - i / 40), "val/acc": i / 9}, i),
        "nan": lambda i: ({"train/loss": 1 / (i + 1) if i < 50 else math.nan}, i),
        "back": lambda i: ({"train/loss": 1 / (i + 1)}, i % 30),
        "clock": lambda i: ({"train/loss": 1 / (i + 1)}, i),
        "moves": lambda i: ({"train/loss": 1 / (i + 1), "train/lr": 1e-3, "epoch": i // 90}, i),
    }
    for run, at in runs.items():
        made = connect(run)
        for i in range(60):
            values, step = at(i)
            wall_time = real() / 1e9 - (3600 if run == "clock" and i > 40 else 0)
            made.emit(values, step=step, wall_time=wall_time)
        assert made.flush(30)
    for run in runs:
        written(sandbox, run, 60)
    found = diagnose(sandbox)
    assert "all at step 7" in recognised(found, "flat", "curves.step", "one_step")
    says = recognised(found, "flat", "curves.constant", "constant")
    assert "every value of train/loss is 0.25" in says
    assert "train/lr" not in says
    says = recognised(found, "flat", "curves.constant", "since")
    assert "train/loss has not changed since step 20" in says
    assert level(found, "curves.constant", "since") == "warning"
    assert "no number since step 50" in recognised(found, "stops", "curves.nan", "nan")
    assert "29 was followed by 0" in recognised(found, "stops", "curves.back", "back")
    assert "went back by 1 h" in recognised(found, "stops", "clock.back", "clock")
    assert level(found, "curves", "moves") == "ok"
    assert not [text for text in found.told("warning", "wrong") if " moves:" in text]
    assert found.code == 0, "a curve is never an error"


def test_curves_stop(sandbox: Sandbox, train: Train, tmp_path: Path) -> None:
    """A trainer that is stopped, one that died, a disk that is full, a torn and a damaged file."""
    with small_tmpfs(sandbox.root / "full", "8m") as full:
        sandbox.serve()
        stopped = train(run="stopped", emits=10_000, tags=2, interval_s=0.01)
        dead = train(run="dead", emits=200, tags=2, end="wait")
        full_env = {"SIDESTEP_LOG_DIR": str(full)}
        stuck = train(run="stuck", emits=2000, tags=2, interval_s=0.01, env=full_env)
        for one in (stopped, dead, stuck):
            one.await_begun(100)
        sandbox.await_sink("stuck", "ok")
        fill(full)
        stopped.process.send_signal(signal.SIGSTOP)
        dead.await_begun(200)
        written(sandbox, "dead", 400)
        dead.kill()
        sandbox.await_run("dead", state="lost")
        sandbox.await_sink("dead", "closed|idle")
        sandbox.await_sink("stuck", "degraded")
        file = sandbox.event_files("dead")[-1]
        whole = file.read_bytes()

        file.write_bytes(whole[:-5])
        found = diagnose(sandbox)
        says = recognised(found, "stops", "trainers.stopped", "stopped")
        assert f"pid {stopped.process.pid}" in says
        assert found.of("trainers.stopped")["do"] == f"kill -CONT {stopped.process.pid}"
        says = recognised(found, "stops", "trainers.lost", "dead")
        assert "without a goodbye" in says
        stuck_sinks = [f for f in found.findings if f["check"].startswith("sinks.")]
        assert {f["run"] for f in stuck_sinks if f["level"] == "wrong"} == {"stuck"}
        (says,) = {f["do"] for f in stuck_sinks if "No space left" in f["says"]}
        assert says.startswith(f"du -xh -d 1 {full}")
        full_disk = [f for f in found.findings if f["check"] == "places.logs"]
        assert any(f["level"] == "wrong" and "is full" in f["says"] for f in full_disk)
        assert "ends inside a record" in recognised(found, "stops", "tensorboard.files", "dead")
        obey(sandbox, found.of("trainers.stopped"))
        assert psutil.Process(stopped.process.pid).status() != psutil.STATUS_STOPPED

        middle = bytearray(whole)
        middle[len(whole) // 2] ^= 0x55
        file.write_bytes(bytes(middle))
        found = diagnose(sandbox, "--run", "dead")
        assert "is damaged at byte" in recognised(found, "stops", "tensorboard.files", "dead")
        assert not found.has("trainers.stopped")
        for one in (stopped, stuck):
            one.kill()
        for worker in sandbox.processes():
            worker.kill()  # before the file system goes that they write to
        wait_until(lambda: not sandbox.processes(), 10, "they live on")


def test_gpu_values_and_the_wandb_run_are_missing(
    sandbox: Sandbox, connect: Connect, train: Train, tmp_path: Path, monkeypatch: Any
) -> None:
    """A device that NVML does not know, none visible, a driver that hangs, no driver; no wandb."""
    driver = FakeNvml.build(sandbox.root / "nvml")
    driver.set("gpus 2")
    env = {k: v for k, v in driver.env().items() if k in ("LD_LIBRARY_PATH", "FAKE_NVML_CONTROL")}
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env["SIDESTEP_ARCHIVE"] = "false"
    sandbox.serve(**env)
    monkeypatch.setattr(
        "sidestep.client.emitter.device_uuids",
        lambda: ("GPU-00000000-dead-beef-0000-000000000000",),
    )
    elsewhere = connect("elsewhere", wandb=True)
    elsewhere.emit({"a": 1.0}, step=0)
    hidden = train(run="hidden", emits=5, end="wait", env={"CUDA_VISIBLE_DEVICES": ""})
    hidden.await_begun(5)
    sandbox.await_sink("elsewhere", "failed", "wandb")
    sandbox.await_run("hidden", clients=1)
    found = diagnose(sandbox, **env, WANDB_API_KEY=API_KEY)
    assert "2 GPUs" in found.of("gpus.nvml")["says"]
    says = recognised(found, "gpu", "gpus.mapping", "elsewhere")
    assert "which NVML does not know here" in says
    assert level(found, "gpus.mapping") == "wrong"
    says = recognised(found, "gpu", "gpus.visible", "hidden")
    assert f"pid {hidden.process.pid}" in says
    assert found.of("gpus.visible")["do"] == "unset CUDA_VISIBLE_DEVICES"

    assert "not installed" in recognised(found, "wandb", "wandb.installed")
    says = recognised(found, "wandb", "sinks.wandb", "elsewhere")
    assert "cannot be imported" in says
    assert found.of("sinks.wandb")["do"] == "pip install 'sidestep[wandb]'"
    assert "nobody is logged in" in recognised(found, "wandb", "wandb.login", "elsewhere")
    assert "was not when the daemon" in recognised(found, "wandb", "wandb.environment")
    assert API_KEY not in str(found.answer)

    # Logged in meanwhile, by ~/.netrc; another run that did not ask for W&B; a driver that hangs.
    (sandbox.home / ".netrc").write_text(f"machine api.wandb.ai login user password {API_KEY}\n")
    driver.set("gpus 2", "hang nvmlDeviceGetUtilizationRates")
    found = diagnose(sandbox, "--run", "hidden", **env)
    says = recognised(found, "gpu", "gpus.nvml")
    assert "hangs" in says
    assert "asking NVML for the values" in says
    assert not found.has("wandb.login")
    assert "no W&B was asked for" in recognised(found, "wandb", "wandb.off")
    driver.vanish()
    found = diagnose(sandbox, **env)
    assert "libnvidia-ml.so.1" in recognised(found, "gpu", "gpus.nvml")
    assert level(found, "gpus.nvml") == "wrong", "a trainer has a GPU"


@pytest.mark.slow
def test_nvml_in_other_troubles(sandbox: Sandbox) -> None:
    driver = FakeNvml.build(sandbox.root / "nvml")
    env = {k: v for k, v in driver.env().items() if k in ("LD_LIBRARY_PATH", "FAKE_NVML_CONTROL")}
    driver.set("gpus 2", "crash nvmlDeviceGetCount_v2")
    assert "SIGSEGV" in recognised(diagnose(sandbox, **env), "gpu", "gpus.nvml")
    driver.set("gpus 2", "gpu1.lost 1")
    assert "GPU is lost" in recognised(diagnose(sandbox, **env), "gpu", "gpus.nvml")
    driver.vanish()
    found = diagnose(sandbox, **env)
    assert "libnvidia-ml.so.1" in recognised(found, "gpu", "gpus.nvml")
    assert level(found, "gpus.nvml") == "note", "nobody has one: well, on a machine without"


@pytest.mark.slow
def test_memory_grows_and_the_wandb_run_is_missing(
    sandbox: Sandbox, connect: Connect, tmp_path: Path
) -> None:
    """W&B refuses the key, a worker is stopped, a run is offline, one did not ask: one daemon."""
    pytest.importorskip("wandb")
    with WandbServer() as server:
        server.faults["refused"] = Fault(401)
        env = {
            "WANDB_API_KEY": API_KEY,
            "WANDB_BASE_URL": server.url,
            "WANDB_INIT_TIMEOUT": "3",
        }
        daemon = sandbox.serve(**env)
        refused = connect("refused", wandb={"id": "refused", "project": "p"})
        offline = connect("offline", wandb={"project": "p", "mode": "offline"})
        plain = connect("plain")
        for step in range(100):
            for made in (refused, offline, plain):
                made.emit({"train/loss": 1 / (step + 1)}, step=step)
        for made in (offline, plain):
            assert made.finish(30)
        sandbox.await_sink("refused", "failed", "wandb")
        sandbox.await_sink("offline", "closed", "wandb")
        (worker,) = [w for w in sandbox.workers("tensorboard") if w.ppid() == daemon.pid]
        worker.suspend()

        found = diagnose(sandbox, **env)
        says = recognised(found, "wandb", "sinks.wandb", "refused")
        assert "does not accept the API key" in says
        assert "wandb login" in found.of("sinks.wandb", "refused")["do"]
        assert API_KEY not in str(found.answer)
        says = recognised(found, "memory", "memory.journal", "refused")
        assert "wandb of refused is 10" in says
        says = recognised(found, "memory", "sinks.stopped")
        assert f"tensorboard (pid {worker.pid})" in says
        obey(sandbox, found.of("sinks.stopped"))
        says = recognised(found, "wandb", "wandb.mode", "offline")
        assert "offline" in says
        says = recognised(found, "wandb", "wandb.offline")
        assert "1 offline W&B run" in says
        assert found.of("wandb.offline")["do"].startswith(f"wandb sync {sandbox.logs}/wandb/offl")
        refused.finish(30)


@pytest.mark.slow
def test_a_state_directory_that_is_full(sandbox: Sandbox, connect: Connect) -> None:
    with small_tmpfs(sandbox.state, "12m"):
        daemon = sandbox.serve()
        made = connect("held", outbox_bytes=1 << 20)
        made.emit({"a": 1.0}, step=0)
        assert made.flush(30)
        fill(sandbox.state)
        step = 0
        while made.stats().dropped == 0:
            step += 1
            made.emit({f"v{i}": step / (i + 1) for i in range(50)}, step=step)
        wait_until(lambda: sandbox.status()["daemon"]["storage_error"], 20, "no error")
        found = diagnose(sandbox)
        assert "takes nothing" in recognised(found, "stops", "daemon.journal")
        assert "is full" in recognised(found, "stops", "places.state")
        recognised(found, "stops", "trainers.outbox", "held")
        (sandbox.state / "filler").unlink()
        assert made.finish(30)
        daemon.terminate()


@pytest.mark.slow
def test_a_clock_that_is_behind_what_was_written(
    sandbox: Sandbox, connect: Connect, tmp_path: Path
) -> None:
    """The doctor's own clock an hour behind: what was written is in its future."""
    clock = ShiftedClock.build(tmp_path)
    sandbox.serve()
    made = connect("future")
    for step in range(30):
        made.emit({"a": 1 / (step + 1)}, step=step)
    assert made.finish(30)
    sandbox.drain()
    assert not diagnose(sandbox, **clock.env()).has("clock.files")
    clock.shift(-3600)
    found = diagnose(sandbox, **clock.env())
    assert "in the future" in found.of("clock.files", "future")["says"]
