"""The commands `tail`, `status` and `drain` as processes, against a daemon that only speaks."""

from __future__ import annotations

import json
import math
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidestep.proto.paths import RuntimePaths
from sidestep.sidecar.cli.control_client import Control, NoAnswerError, NoDaemonError, RefusedError
from sidestep.sidecar.cli.drain import Pending, await_drained
from tests.unit.sidecar.fake_daemon import FakeDaemon, run_status

SIDESTEP = (sys.executable, "-m", "sidestep.sidecar")
PATIENCE_S = 20.0


@pytest.fixture
def paths() -> Iterator[RuntimePaths]:
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:  # tmp_path can be too long
        yield RuntimePaths(directory)


@pytest.fixture
def daemon(paths: RuntimePaths) -> Iterator[FakeDaemon]:
    with FakeDaemon(paths) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and so would be all that we start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def environment(paths: RuntimePaths) -> dict[str, str]:
    return {**os.environ, "SIDESTEP_RUNTIME_DIR": paths.directory, "PYTHONIOENCODING": "utf-8"}


def sidestep(paths: RuntimePaths, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SIDESTEP, *args],
        env=environment(paths),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class Tailing:
    """A `sidestep tail` in a pipe."""

    def __init__(self, paths: RuntimePaths, *args: str) -> None:
        self.process = subprocess.Popen(
            [*SIDESTEP, "tail", *args],
            env=environment(paths),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.notes: queue.Queue[str] = queue.Queue()
        self.lines: queue.Queue[str] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.notes)),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, pipe: Any, into: queue.Queue[str]) -> None:
        for line in pipe:
            into.put(line.rstrip("\n"))

    def line(self) -> str:
        return self.lines.get(timeout=PATIENCE_S)

    def point(self) -> dict[str, Any]:
        point: dict[str, Any] = json.loads(self.line())
        return point

    def steps(self, many: int) -> list[int]:
        return [self.point()["step"] for _ in range(many)]

    def wait_for_note(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.notes.get(timeout=max(0.0, deadline - time.monotonic())):
            pass

    def leave(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@pytest.fixture
def tail(paths: RuntimePaths) -> Iterator[Callable[..., Tailing]]:
    started: list[Tailing] = []

    def start(*args: str) -> Tailing:
        started.append(Tailing(paths, *args))
        return started[-1]

    yield start
    for one in started:
        one.leave(signal.SIGKILL)


# --- the command itself ------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("tail",), ("status",), ("drain",), ("export",)])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_there(paths: RuntimePaths, command: tuple[str, ...], flag: str) -> None:
    done = sidestep(paths, *command, flag)
    assert done.returncode == 0
    assert "Usage: sidestep" in done.stdout
    assert not done.stderr


def test_help_names_every_command_and_loads_none(paths: RuntimePaths) -> None:
    code = (
        "import sys; sys.argv = ['sidestep', '--help']\n"
        "from sidestep.sidecar.__main__ import main\n"
        "try: main()\n"
        "finally: print('LOADED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    text, _, loaded = done.stdout.partition("LOADED")
    for command in ("run", "tail", "status", "drain", "export", "start", "stop", "serve"):
        assert f" {command} " in text
        assert f"sidestep.sidecar.cli.{command}" not in loaded.split()
    assert not {"zmq", "numpy", "torch", "tensorboard"} & set(loaded.split())


def test_version() -> None:
    done = subprocess.run(
        [*SIDESTEP, "--version"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.startswith("sidestep")


@pytest.mark.parametrize(
    "args",
    [("tial",), ("tail", "--nope"), ("tail", "--history", "-1"), ("drain", "--timeout", "x"), ()]
    + [("export",), ("export", "run"), ("export", "run", "--format", "xml")],
)
def test_wrong_usage_is_exit_code_2(paths: RuntimePaths, args: tuple[str, ...]) -> None:
    assert sidestep(paths, *args).returncode == 2


def test_a_runtime_directory_that_is_too_long_is_a_sentence(paths: RuntimePaths) -> None:
    done = sidestep(RuntimePaths("/tmp/" + "x" * 120), "status")
    assert done.returncode == 1
    assert "SIDESTEP_RUNTIME_DIR" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("typer", "pip install 'sidestep[sidecar]'"),
        ("rich", "pip install 'sidestep[sidecar]'"),
        ("zmq", "pip install --force-reinstall sidestep"),
    ],
)
def test_a_missing_module_is_named_with_the_line_that_brings_it(
    daemon: FakeDaemon, module: str, remedy: str
) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['sidestep', 'status']\n"
        "from sidestep.sidecar.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(daemon.paths),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


# --- who is there ------------------------------------------------------------------------------


def test_the_lock_says_who_is_there_and_nothing_else_does(paths: RuntimePaths) -> None:
    control = Control(paths)
    assert control.daemon() is None
    with FakeDaemon(paths) as daemon:
        who = control.daemon()
        assert who is not None
        assert (who.pid, who.version, who.state_dir) == (os.getpid(), "1.2.3", "/state")
        assert who.daemon_id == daemon.daemon_id
    assert os.path.exists(paths.lock)  # left behind, and it means nothing
    assert control.daemon() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_daemon_that_is_only_just_starting_is_there(daemon: FakeDaemon, text: str) -> None:
    Path(daemon.paths.lock).write_text(text)
    who = Control(daemon.paths).daemon()
    assert who is not None
    assert who.pid == 0


def test_a_request_to_nobody_fails_at_once(paths: RuntimePaths) -> None:
    with pytest.raises(NoDaemonError, match="sidestep start"):
        Control(paths).request("status", 60)


def test_a_request_is_given_up_in_time(daemon: FakeDaemon) -> None:
    daemon.mute = True
    started = time.monotonic()
    with pytest.raises(NoAnswerError, match=str(os.getpid())):
        Control(daemon.paths).request("status", 0.3)
    assert time.monotonic() - started < 2


def test_a_request_notices_that_the_daemon_died(daemon: FakeDaemon) -> None:
    daemon.unanswered.add("status")
    death = threading.Thread(
        target=lambda: (daemon.wait_for(lambda: bool(daemon.asked("status"))), daemon.die())
    )
    death.start()
    with pytest.raises(NoDaemonError):
        Control(daemon.paths).request("status", 60)
    death.join()


def test_what_the_daemon_cannot_do_is_its_own_sentence(daemon: FakeDaemon) -> None:
    with pytest.raises(RefusedError, match="no such operation: 'dance'"):
        Control(daemon.paths).request("dance")


# --- status --------------------------------------------------------------------------------------


def test_status_without_a_daemon(paths: RuntimePaths) -> None:
    done = sidestep(paths, "status", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, {"daemon": None})
    done = sidestep(paths, "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "sidestep start" in done.stderr


def test_status_json_is_the_daemons_answer(daemon: FakeDaemon) -> None:
    daemon.runs = [run_status("a", alarm="collapsed", best=math.nan)]
    done = sidestep(daemon.paths, "status", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["daemon"] == daemon.status()["daemon"]
    assert answer["runs"][0]["alarm"] == "collapsed"


def test_status_of_a_stopped_daemon_ends_and_says_so(daemon: FakeDaemon) -> None:
    daemon.mute = True
    done = sidestep(daemon.paths, "status")
    assert done.returncode == 1
    assert f"kill -CONT {os.getpid()}" in done.stderr
    done = sidestep(daemon.paths, "status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["daemon"]["state"] == "unresponsive"


def test_status_for_people_says_what_is_wrong_and_what_to_do(daemon: FakeDaemon) -> None:
    daemon.runs = [
        run_status(
            "vit-b",
            last_step=12345,
            attempts=3,
            alarm={"state": "COLLAPSED", "tag": "train/context", "step": 900, "reason": "rank 1.2"},
            records={"emitted": 5009, "durable": 5000, "held": 2, "dropped": 7, "rejected": 1},
            sinks=[
                {"name": "tensorboard", "state": "ok", "lag_records": 0, "error": None},
                {"name": "wandb", "state": "degraded", "lag_records": 340, "error": "401"},
            ],
        ),
        run_status("bad\x1b[2J", state="lost"),
    ]
    daemon.gpus = [{"index": 0, "name": "H100", "values": {"utilization": 97.0}}]
    daemon.host = {"system/cpu_percent": 12.0, "system/memory_used_gb": 3.2}
    done = sidestep(daemon.paths, "status")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for said in (
        f"sidestep 1.2.3, pid {os.getpid()}: serving, up 1 h 2 min",
        "vit-b running step 12,345 clients 1 attempt 3 ALARM COLLAPSED",
        "records emitted 5,009 = durable 5,000 + held 2 + dropped 7; rejected 1",
        "sinks tensorboard ok wandb degraded, 340 behind",
        "alarm COLLAPSED train/context since step 900: rank 1.2",
        "7 records dropped",
        "1 value rejected",
        "wandb degraded, 340 behind: 401",
        "its trainer vanished",
        "GPU 0 H100 97 %",
        "cpu 12 % memory 3.2 GB",
    ):
        assert said in text
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("books", "said"),
    [
        (
            {"emitted": 1300, "durable": 1250, "dropped": 0, "unaccounted": 50, "elsewhere": 0},
            "50 of 1,300 records are neither durable, held nor dropped",
        ),
        (
            {"emitted": 10, "durable": 12, "dropped": 0, "unaccounted": -2, "elsewhere": 0},
            "2 records more are durable or dropped than were emitted",
        ),
        (
            {"emitted": 9, "durable": 9, "dropped": 0, "unaccounted": 0, "elsewhere": 4},
            "4 of its durable records were acknowledged by another journal",
        ),
    ],
    ids=["missing", "too many", "elsewhere"],
)
def test_status_says_when_the_books_do_not_balance(
    daemon: FakeDaemon, books: dict[str, int], said: str
) -> None:
    daemon.runs = [run_status("vit-b", state="lost", records={"held": 0, "rejected": 0, **books})]
    text = " ".join(sidestep(daemon.paths, "status").stdout.split())
    assert said in text
    assert ("books do not balance" in text) == bool(books["unaccounted"])
    many = books["unaccounted"]
    assert (f"dropped 0 + unaccounted {many}; rejected" in text) == bool(many)


def test_status_without_runs(daemon: FakeDaemon) -> None:
    done = sidestep(daemon.paths, "status")
    assert done.returncode == 0
    assert "No run yet" in done.stdout
    assert "Nothing is wrong." in done.stdout


def test_status_on_a_terminal_without_unicode(daemon: FakeDaemon) -> None:
    daemon.runs = [run_status("損失")]
    done = subprocess.run(
        [*SIDESTEP, "status"],
        env={**environment(daemon.paths), "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        encoding="latin-1",
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "??  running" in done.stdout


# --- tail ----------------------------------------------------------------------------------------


def test_tail_json_shows_what_was_emitted_exactly(
    daemon: FakeDaemon, tail: Callable[..., Tailing]
) -> None:
    following = tail("a", "--json")
    daemon.wait_for_followers()
    values = {"x": 0.1 + 0.2, "nan": math.nan, "inf": -math.inf, "tiny": 5e-324, "ü": 1.0}
    daemon.emit("a", values, 7, wall_time=1.7e9 + 0.123456)
    lines = [following.line() for _ in values]
    assert lines[0] == (
        '{"run": "a", "tag": "x", "step": 7, "wall_time": 1700000000.123456, '
        '"value": 0.30000000000000004}'
    )
    shown = [json.loads(line) for line in lines]
    assert {point["tag"]: repr(point["value"]) for point in shown} == {
        tag: repr(value) for tag, value in values.items()
    }
    assert following.leave() == 0
    assert following.lines.empty()


def test_tail_filters_by_tag_and_run(daemon: FakeDaemon, tail: Callable[..., Tailing]) -> None:
    following = tail("a", "--json", "--tags", "train/*", "--tags", "lr")
    daemon.wait_for_followers()
    daemon.emit("ab", {"train/loss": 1.0}, 1)
    daemon.emit("a", {"val/loss": 2.0}, 2)
    daemon.emit("a", {"train/loss": 3.0, "val/loss": 4.0, "lr": 5.0}, 3)
    assert [following.point()["value"] for _ in range(2)] == [3.0, 5.0]


def test_tail_begins_with_history(daemon: FakeDaemon, tail: Callable[..., Tailing]) -> None:
    for step in range(5):
        daemon.emit("a", {"x": 0.0, "y": 0.0}, step)
    following = tail("a", "--json", "--history", "2")
    points = [following.point() for _ in range(4)]
    assert [(point["tag"], point["step"]) for point in points] == [
        ("x", 3),
        ("y", 3),
        ("x", 4),
        ("y", 4),
    ]
    daemon.wait_for_followers()
    daemon.emit("a", {"x": 0.0}, 5)
    assert following.steps(1) == [5]


def test_tail_without_history_begins_with_now(
    daemon: FakeDaemon, tail: Callable[..., Tailing]
) -> None:
    daemon.emit("a", {"x": 0.0}, 1)
    following = tail("a", "--json")
    daemon.wait_for_followers()
    daemon.emit("a", {"x": 0.0}, 2)
    assert following.steps(1) == [2]


def test_tail_plain_lines_in_a_pipe(daemon: FakeDaemon, tail: Callable[..., Tailing]) -> None:
    following = tail("a")
    daemon.wait_for_followers()
    daemon.emit("a", {"x": 0.25, "y": math.nan}, 3)
    assert [following.line(), following.line()] == ["3 x 0.25", "3 y nan"]


def test_tail_waits_for_the_run(daemon: FakeDaemon, tail: Callable[..., Tailing]) -> None:
    following = tail("later", "--json")
    daemon.wait_for_followers()
    for step in range(3):
        daemon.emit("later", {"x": 0.0}, step)
    assert following.steps(3) == [0, 1, 2]


def test_tail_waits_for_the_daemon_and_misses_nothing_of_it(
    paths: RuntimePaths, tail: Callable[..., Tailing]
) -> None:
    following = tail("a", "--json")
    following.wait_for_note("no daemon")
    with FakeDaemon(paths) as daemon:
        for step in range(50):  # before the tail can have noticed
            daemon.emit("a", {"x": 0.0}, step)
        assert following.steps(50) == list(range(50))


def test_tail_follows_the_newest_run_and_then_the_next(
    daemon: FakeDaemon, tail: Callable[..., Tailing]
) -> None:
    daemon.runs = [run_status("first")]
    following = tail("--json")
    daemon.wait_for_followers()
    daemon.emit("first", {"x": 0.0}, 1)
    assert following.point()["run"] == "first"
    daemon.runs = [run_status("first"), run_status("second")]
    daemon.emit("second", {"x": 0.0}, 2)
    daemon.emit("first", {"x": 0.0}, 3)
    assert following.point()["step"] == 3  # it stays while its run runs
    daemon.runs = [run_status("first", "finished"), run_status("second")]
    daemon.emit("second", {"x": 0.0}, 4)
    assert following.steps(2) == [2, 4]
    daemon.emit("second", {"x": 0.0}, 5)
    assert following.steps(1) == [5]


def test_tail_survives_restarts_without_missing_or_doubling(
    paths: RuntimePaths, tail: Callable[..., Tailing]
) -> None:
    journal: list[Any] = []
    following: Tailing | None = None
    step = 0
    for life in range(4):
        with FakeDaemon(paths, journal) as daemon:
            for _ in range(20):
                daemon.emit("a", {"x": 0.0}, step)
                step += 1
            following = following or tail("a", "--json", "--history", "1000")
            if life < 3:
                daemon.wait_for(lambda daemon=daemon: bool(daemon.asked("history")))
            else:
                daemon.wait_for_followers()
                daemon.publishing = False
                daemon.emit("a", {"x": 0.0}, step)  # the feed loses this one …
        step += 1
    with FakeDaemon(paths, journal):  # … and the journal has it
        assert following is not None
        assert following.steps(81) == [*range(20), *range(21, 41), *range(42, 62), *range(63, 84)]
    assert following.leave() == 0


def test_tail_goes_on_after_the_daemon_was_stopped_for_a_while(
    daemon: FakeDaemon, tail: Callable[..., Tailing]
) -> None:
    following = tail("a", "--json")
    daemon.wait_for_followers()
    daemon.mute = True
    following.wait_for_note("says nothing")
    daemon.emit("a", {"x": 0.0}, 1)
    daemon.mute = False
    following.wait_for_note("is there")
    daemon.emit("a", {"x": 0.0}, 2)
    assert following.steps(2) == [1, 2]


def test_tail_ends_quietly_when_its_reader_has_gone(
    daemon: FakeDaemon, tail: Callable[..., Tailing]
) -> None:
    command = shlex.join([*SIDESTEP, "tail", "a", "--json", "--history", "9"])
    for step in range(9):
        daemon.emit("a", {"x": 0.0}, step)
    # No more points come: it has to notice by itself.
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 2; echo ${{PIPESTATUS[0]}}"],
        env=environment(daemon.paths),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()[:2]] == [0, 1]
    assert done.stdout.splitlines()[2] == "0"
    assert not done.stderr


def test_tail_ends_quietly_when_its_reader_goes_in_the_middle(daemon: FakeDaemon) -> None:
    for step in range(5000):  # more than a pipe holds, in one write
        daemon.journal.append(("a", ["x"], step, 0.0, [0.0]))
    process = subprocess.Popen(
        [*SIDESTEP, "tail", "a", "--json", "--history", "5000"],
        env=environment(daemon.paths),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["step"] == 0
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as notes:
        assert not notes.read()
    assert process.wait(PATIENCE_S) == 0


def test_tail_ends_quietly_when_it_writes_to_nobody(daemon: FakeDaemon) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [*SIDESTEP, "tail", "a", "--json"],
        env=environment(daemon.paths),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    _, notes = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "Traceback" not in notes


@pytest.mark.parametrize("reply", [{}, {"row": "x", "points": []}, {"row": 1, "points": [7]}])
def test_tail_of_a_foreign_daemon_is_a_sentence(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, reply: dict[str, Any]
) -> None:
    monkeypatch.setattr(daemon, "_history", lambda _request: reply)
    done = sidestep(daemon.paths, "tail", "a", "--json")
    assert done.returncode == 1
    assert "sidestep status" in done.stderr
    assert "Traceback" not in done.stderr


def test_tail_is_quick(daemon: FakeDaemon, tail: Callable[..., Tailing]) -> None:
    following = tail("a", "--json")
    daemon.wait_for_followers()
    delays: list[float] = []
    for step in range(200):
        emitted = time.monotonic()
        daemon.emit("a", {"x": 0.0}, step)
        following.line()
        delays.append(time.monotonic() - emitted)
    delays.sort()
    print(f"emit to line: median {delays[100] * 1e3:.2f} ms, p99 {delays[198] * 1e3:.2f} ms")
    assert delays[198] < 0.2


# --- drain ---------------------------------------------------------------------------------------


def left(lag: int, token: int = 5) -> dict[str, Any]:
    pending = [{"run": "a", "sink": "tensorboard", "lag_records": lag}]
    return {"done": False, "token": token, "pending": pending}


DONE = {"done": True, "token": 5, "pending": []}


def test_drain_returns_0_once_all_is_written(daemon: FakeDaemon) -> None:
    daemon.drain_replies = [left(9), left(3), DONE]
    done = sidestep(daemon.paths, "drain")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [request.get("token") for request in daemon.asked("drain")] == [None, 5, 5]


def test_drain_returns_1_at_the_timeout_and_says_what_is_left(daemon: FakeDaemon) -> None:
    daemon.drain_replies = [left(1234)] * 1000
    done = sidestep(daemon.paths, "drain", "--timeout", "0.3")
    assert done.returncode == 1
    assert "a → tensorboard (1,234 records)" in done.stderr


def test_drain_with_no_time_asks_once(daemon: FakeDaemon) -> None:
    daemon.drain_replies = [DONE]
    assert sidestep(daemon.paths, "drain", "--timeout", "0").returncode == 0
    daemon.drain_replies = [left(1)] * 3
    assert sidestep(daemon.paths, "drain", "--timeout", "0").returncode == 1


def test_drain_of_a_stopped_daemon_ends_at_the_timeout(daemon: FakeDaemon) -> None:
    daemon.mute = True
    done = sidestep(daemon.paths, "drain", "--timeout", "0.3")
    assert done.returncode == 1
    assert "not everything was written" in done.stderr


def test_await_drained_tells_what_is_left(daemon: FakeDaemon) -> None:
    daemon.drain_replies = [left(9), left(3), DONE]
    told: list[Any] = []
    assert await_drained(Control(daemon.paths), 5, None, told.append)
    assert told == [[Pending("a", "tensorboard", 9)], [Pending("a", "tensorboard", 3)]]


def test_await_drained_outlives_a_token_that_its_daemon_does_not_know(daemon: FakeDaemon) -> None:
    daemon.drain_replies = [{"error": "unknown token"}, left(1, token=6), DONE]
    assert await_drained(Control(daemon.paths), 5, 60)
    assert [request.get("token") for request in daemon.asked("drain")] == [5, None, 6]


def test_await_drained_does_not_take_a_vanished_daemon_for_a_finished_one(
    daemon: FakeDaemon,
) -> None:
    daemon.drain_replies = [left(1)] * 1000
    with pytest.raises(NoDaemonError):
        await_drained(Control(daemon.paths), None, 60, lambda _pending: daemon.die())
