"""`doctor`: silent where all is well, hangs nowhere, changes nothing, and its commands mend."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sidestep.proto.paths import outbox_dirs
from tests.support.diagnosis import diagnose, obey
from tests.support.fixtures import Connect, Train
from tests.support.hung_mount import hung_mount
from tests.support.oracle import assert_exactly, read_scalars
from tests.support.sandbox import SIDESTEP, Sandbox
from tests.support.trainer import EMITTED
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(90)


def everything(sandbox: Sandbox) -> dict[str, tuple[int, int]]:
    """Every file of the sandbox with its size and its time."""
    return {
        str(path): (about.st_size, about.st_mtime_ns)
        for path in sandbox.root.rglob("*")
        if (about := path.lstat())
    }


def test_all_is_well(sandbox: Sandbox, connect: Connect) -> None:
    """Before anything, with a daemon and a run, and when both have gone: nothing is wrong."""
    before = everything(sandbox)
    found = diagnose(sandbox)
    assert found.code == 0
    assert found.told("warning", "wrong") == []
    assert found.answer["daemon"] is None
    assert "none is needed" in found.of("daemon.none")["says"]
    assert everything(sandbox) == before, "it started or made something"

    daemon = sandbox.serve()
    made = connect("well")
    for step in range(60):
        made.emit({"train/loss": 1 / (step + 1), "train/lr": 1e-3}, step=step)
    assert made.flush(30)
    wait_until(lambda: read_scalars(sandbox.event_files("well")).total() >= 120, 30, "no events")
    found = diagnose(sandbox)
    assert found.told("warning", "wrong") == []
    assert found.answer["daemon"]["pid"] == daemon.pid
    assert "2 curves move in their 120 points" in found.of("curves", "well")["says"]
    assert "ends in a whole record" in found.of("tensorboard.files", "well")["says"]
    assert {f["area"] for f in found.findings} == {
        *("Installation", "Daemon", "Settings", "Directories", "Trainers", "Sinks"),
        *("TensorBoard", "W&B", "GPUs", "Memory", "Clock"),
    }
    daemon.pause()
    found = diagnose(sandbox)
    stopped = found.of("daemon.stopped")
    assert (stopped["level"], stopped["complaint"]) == ("wrong", "stops")
    assert stopped["do"] == f"kill -CONT {daemon.pid}"
    daemon.resume()
    assert made.finish(30)
    assert daemon.terminate() == 0
    before = everything(sandbox)
    found = diagnose(sandbox)
    assert found.told("warning", "wrong") == []
    assert "1 run looked at" in found.of("trainers")["says"]
    assert everything(sandbox) == before, "it changed something"
    assert sandbox.processes() == []

    # For people: in 80 columns and in colour in a terminal; what is piped is in the next test.
    shown = in_a_terminal(sandbox, "doctor", "--run", "nobody")
    assert "\x1b[1;31m" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "there is no run 'nobody'" in " ".join(plain.split())
    lines = [line.rstrip("\r") for line in plain.split("\n") if "$ " not in line]
    assert max(len(line) for line in lines) <= 80


def in_a_terminal(sandbox: Sandbox, *arguments: str) -> str:
    """What a command shows in a terminal of 80 columns."""
    master, slave = pty.openpty()
    env = sandbox.env(COLUMNS="80", LINES="24", TERM="xterm-256color")
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [*SIDESTEP, *arguments], stdin=slave, stdout=slave, stderr=slave, env=env, cwd=sandbox.work
    )
    os.close(slave)
    shown = bytearray()
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # its end
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait(30) == 1
    return shown.decode()


def test_wrong_usage(sandbox: Sandbox) -> None:
    for arguments in (["RUN"], ["--run", " "], ["--logdir", ""]):
        asked = sandbox.cli("doctor", *arguments)
        assert asked.returncode == 2
        assert "Traceback" not in asked.stderr


@pytest.mark.slow
def test_whatever_lies_where_files_should_be(sandbox: Sandbox, connect: Connect) -> None:
    """A FIFO and rubbish: each is named, nothing waits for them, and no check fails."""
    daemon = sandbox.serve()
    made = connect("held")
    made.emit({"a": 1.0}, step=1)
    assert made.finish(30)
    sandbox.drain()
    assert daemon.terminate() == 0
    (folder,) = (sandbox.logs / "tensorboard").iterdir()
    os.mkfifo(folder / "events.out.tfevents.9999999999.x.1.0")
    (sandbox.runtime / "outboxes").mkdir(exist_ok=True)
    (sandbox.runtime / "outboxes" / "x.outbox").write_bytes(b"rubbish")
    (sandbox.state / "journal.sqlite-wal").unlink(missing_ok=True)
    (sandbox.state / "journal.sqlite").write_bytes(b"rubbish" * 1000)
    Path(sandbox.paths.lock).write_bytes(b"\xff\x00")
    asked = sandbox.cli("doctor", "--logdir", str(sandbox.logs))
    assert asked.returncode in (0, 1)
    assert asked.stderr == ""
    assert "puts it aside" in asked.stdout, "the journal is none"
    assert "could not be made" not in asked.stdout
    assert "hangs" not in asked.stdout
    assert "GPUs" in asked.stdout
    assert "Clock" in asked.stdout
    assert "\x1b" not in asked.stdout


def test_a_daemon_that_is_gone_and_what_it_left(
    sandbox: Sandbox, connect: Connect, train: Train
) -> None:
    """Without a daemon: an outbox that fills, one of a dead trainer, one of another directory."""
    daemon = sandbox.serve()
    made = connect("waits", outbox_bytes=1 << 20)
    dead = train(run="dead", emits=500, tags=4, end="wait", connect={"autostart": False})
    dead.await_state(EMITTED)
    made.emit({"a": 1.0}, step=0)
    assert made.flush(30)
    daemon.kill()
    wait_until(lambda: not sandbox.workers(), 10, "a worker lives on")
    step = 0
    while not made.stats().dropped:
        step += 1
        made.emit({f"v{i}": step + i / 7 for i in range(50)}, step=step)
    found = diagnose(sandbox)
    none = found.of("daemon.none")
    assert (none["level"], none["complaint"], none["do"]) == ("wrong", "stops", "sidestep start")
    assert "waits" in none["says"]
    full = found.of("trainers.outbox", "waits")
    assert (full["level"], full["complaint"]) == ("wrong", "stops")
    assert int(re.findall(r"([\d,]+) records? so far", full["says"])[0].replace(",", "")) > 0
    obey(sandbox, none)
    assert made.finish(30)
    sandbox.await_run("waits", state="finished")
    assert sandbox.cli("stop").returncode == 0

    # The trainer dies with things in its outbox, and no daemon is there to see it.
    dead.kill()
    found = diagnose(sandbox)
    assert found.of("daemon.left")["do"] == "sidestep drain"
    assert "dead" in found.of("daemon.left")["says"]
    obey(sandbox, found.of("daemon.left"))
    assert_exactly(read_scalars(sandbox.event_files("dead")), dead.emitted(500))


@pytest.mark.slow
def test_outboxes_of_another_directory(sandbox: Sandbox, train: Train) -> None:
    """What a trainer of a directory that nobody serves left is found, written, and freed."""
    elsewhere = sandbox.root / "e"
    env = {"SIDESTEP_RUNTIME_DIR": str(elsewhere)}
    lost = train(run="lost", emits=100, tags=2, end="wait", connect={"autostart": False}, env=env)
    lost.await_state(EMITTED)
    lost.process.send_signal(signal.SIGKILL)
    lost.process.wait(30)
    ours = Path(outbox_dirs(sandbox.paths, str(sandbox.state), os.getuid())[1])
    (outbox,) = [
        path
        for path in ours.parent.glob("*/*.outbox")
        if str(lost.process.pid).encode()
        and b"lost" in path.read_bytes()[:8192]
        and str(sandbox.logs).encode() in path.read_bytes()[:8192]
    ]
    try:
        os.utime(outbox, (time.time() - 60,) * 2)
        found = diagnose(sandbox)
        shm = found.of("memory.shm")
        assert (shm["level"], shm["complaint"]) == ("warning", "memory")
        assert "lost" in shm["says"] or "more" in shm["says"]
        # The machine's other tests may have left some, too: only ours is moved here.
        others = re.findall(r"\S+/\*\.outbox", shm["do"])
        command = shm["do"].replace(" ".join(others), f"{outbox.parent}/*.outbox")
        obey(sandbox, {"do": command})
        assert not outbox.exists()
        assert_exactly(read_scalars(sandbox.event_files("lost")), lost.emitted(100))
    finally:
        for left in outbox.parent.glob("*"):
            left.unlink()
        outbox.parent.rmdir()


@pytest.mark.slow
def test_file_systems_that_never_answer(sandbox: Sandbox, connect: Connect) -> None:
    """State, logs and a whole runtime directory on a server that is gone: given up, and named."""
    sandbox.serve()
    made = connect("here")
    made.emit({"a": 1.0}, step=0)
    assert made.flush(30)
    with hung_mount(sandbox.root / "gone") as gone:
        for env, area in (
            ({"SIDESTEP_LOG_DIR": f"{gone}/logs"}, None),
            ({"SIDESTEP_STATE_DIR": f"{gone}/state"}, None),
            ({"SIDESTEP_RUNTIME_DIR": f"{gone}/run"}, "Directories"),
            ({"SIDESTEP_CONFIG": f"{gone}/config.yaml"}, "Settings"),
        ):
            asked = sandbox.cli("doctor", "--json", timeout_s=40, **env)
            assert asked.stderr == ""
            answer = json.loads(asked.stdout)
            hanging = [f for f in answer["findings"] if "hangs" in f["says"]]
            assert [f["says"] for f in hanging if str(gone) not in f["says"]] == []
            assert answer["took_s"] < 15
            areas = {f["area"] for f in hanging}
            assert area is None or area in areas, answer
            assert {"Installation", "GPUs", "Sinks"} <= {f["area"] for f in answer["findings"]}
        asked = sandbox.cli("doctor", "--logdir", str(gone), timeout_s=40)
        assert asked.returncode == 1
        assert f"hangs: no sign of life for 1.6 s (at: looking at {gone}" in asked.stdout
