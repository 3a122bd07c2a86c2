"""launch_tensorboard.sh, the real script with the real TensorBoard."""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

SCRIPT = Path(__file__).resolve().parents[2] / "launch_tensorboard.sh"
# Not resolved: the python of a virtual environment is a link.
ENVIRONMENT_BIN = Path(sys.executable).parent
SYSTEM_TOOLS = ("bash", "dirname", "find", "head", "id", "readlink", "sed", "uname")

ANSWER_TIMEOUT_S = 60.0  # TensorBoard imports for seconds, on a busy machine for many
EXIT_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.1

pytestmark = pytest.mark.timeout(180)

Launch = Callable[..., "Launched"]


class Launched:
    """A started script: what it says, line by line, and its end."""

    def __init__(self, arguments: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # TensorBoard's own data server ends with it, in stop()
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def await_line(self, part: str) -> str:
        """The first line from here on that contains `part`."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                break
            self.said.append(line)
            if part in line:
                return line
        raise AssertionError(f"no line with {part!r} in:\n" + "\n".join(self.said))

    def await_ready(self, port: int) -> None:
        """Waits for TensorBoard's own line that says it serves: the port is bound by then."""
        self.await_line(f":{port}/ (Press CTRL+C to quit)")

    def stop(self) -> None:
        """Ends the script's process group, and reaps the script."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(EXIT_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join(EXIT_TIMEOUT_S)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment: its own TensorBoard first, no settings of the caller's."""
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("SIDESTEP_LOG_DIR", "SSH_CONNECTION", "CDPATH")
    }
    return env | {"PATH": f"{ENVIRONMENT_BIN}{os.pathsep}{env['PATH']}"} | changes


def run(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, script: Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    """Runs the script to its end; only for calls that end by themselves."""
    return subprocess.run(
        [str(script), *arguments],
        cwd=cwd,
        env=environment() if env is None else env,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=EXIT_TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts the script, and ends whatever it started when the test is over."""
    launched: list[Launched] = []

    def start(*arguments: str, cwd: Path = tmp_path, env: dict[str, str] | None = None) -> Launched:
        launched.append(
            Launched([str(SCRIPT), *arguments], cwd, environment() if env is None else env)
        )
        return launched[-1]

    yield start
    for each in launched:
        each.stop()


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH of the few tools the script needs: no tensorboard, no ss, no lsof, no ps."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in SYSTEM_TOOLS:
        found = shutil.which(tool)
        assert found is not None, f"{tool} is needed by the script"
        (folder / tool).symlink_to(found)
    return folder


@pytest.fixture
def stub_tensorboard(tmp_path: Path) -> Path:
    """A `tensorboard` that says what it was called with and ends at once."""
    stub = tmp_path / "stub" / "tensorboard"
    stub.parent.mkdir()
    stub.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    return stub


@contextmanager
def listening() -> Iterator[int]:
    """A port on the loopback that somebody, here this process, listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with listening() as port:
        return port


def get_json(port: int, path: str) -> object:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}/{path}", timeout=ANSWER_TIMEOUT_S
    ) as answer:
        assert answer.status == 200
        return json.load(answer)


def await_runs(port: int, expected: list[str]) -> None:
    """Asks for the runs until they are as expected: TensorBoard does not say when it reloads."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    pause = threading.Event()
    while (runs := get_json(port, "data/runs")) != expected:
        assert time.monotonic() < deadline, f"runs are {runs}, not {expected}"
        pause.wait(POLL_INTERVAL_S)


def log_a_scalar(folder: Path) -> None:
    writer = EventFileWriter(str(folder))
    summary = Summary(value=[Summary.Value(tag="train/loss", simple_value=0.5)])
    writer.add_event(Event(step=1, wall_time=1.0, summary=summary))
    writer.close()


def test_serves_the_default_directory_of_the_caller(tmp_path: Path, launch: Launch) -> None:
    cwd = tmp_path / "a trainer's place"
    log_a_scalar(cwd / "results/logs/tensorboard/vit-b")
    port = free_port()

    script = launch(
        "", str(port), "--window_title", "passed through", "--reload_interval", "1", cwd=cwd
    )

    assert f"http://localhost:{port}/" in script.await_line(
        "TensorBoard over results/logs/tensorboard"
    )
    script.await_ready(port)
    assert not any("Nothing was logged" in line for line in script.said)
    await_runs(port, ["vit-b"])
    assert get_json(port, "data/environment")["window_title"] == "passed through"  # type: ignore[index]


def test_nothing_logged_yet_is_said_and_watched(tmp_path: Path, launch: Launch) -> None:
    port = free_port()

    script = launch("logs/later", str(port), "--reload_interval", "1")

    assert str(tmp_path) in script.await_line(
        "Nothing was logged yet: there is no directory logs/later"
    )
    script.await_line("To log something:")
    script.await_ready(port)
    assert get_json(port, "data/runs") == []
    log_a_scalar(tmp_path / "logs/later/first-run")
    await_runs(port, ["first-run"])


def test_directory_without_event_files_is_said(tmp_path: Path, stub_tensorboard: Path) -> None:
    (tmp_path / "empty").mkdir()
    port = str(free_port())

    done = run(
        "empty",
        port,
        cwd=tmp_path,
        env=environment(PATH=f"{stub_tensorboard.parent}:{os.environ['PATH']}"),
    )

    assert done.returncode == 0
    assert "empty holds no event files" in done.stderr
    assert done.stdout.splitlines() == ["--logdir", "empty", "--port", port]


def test_port_taken_says_by_whom_and_the_command_it_suggests_works(
    tmp_path: Path, launch: Launch
) -> None:
    log_a_scalar(tmp_path / "my logs/run-1")
    with listening() as port:
        done = run("my logs", str(port), "--window_title", "two words", cwd=tmp_path)

        assert done.returncode == 1
        assert f"Port {port} is taken" in done.stderr
        if shutil.which("ss") or shutil.which("lsof"):
            assert f"by process {os.getpid()}." in done.stderr
        command = shlex.split(done.stderr.splitlines()[-1])
        assert command[:2] == [str(SCRIPT), "my logs"]
        assert command[3:] == ["--window_title", "two words"]
        other_port = int(command[2])
        assert other_port != port

        script = launch(*command[1:])
        script.await_ready(other_port)
        await_runs(other_port, ["run-1"])


def test_port_taken_is_seen_without_ss_and_lsof(
    tmp_path: Path, bare_path: Path, stub_tensorboard: Path
) -> None:
    with listening() as port:
        done = run(
            "logs",
            str(port),
            cwd=tmp_path,
            env=environment(PATH=f"{stub_tensorboard.parent}:{bare_path}"),
        )

    assert done.returncode == 1
    assert done.stderr.startswith(f"Port {port} is taken.\n")
    assert f"{SCRIPT} logs " in done.stderr
    assert done.stdout == ""


def test_missing_tensorboard_says_how_to_install_it(tmp_path: Path, bare_path: Path) -> None:
    script = Path(shutil.copy(SCRIPT, tmp_path))

    done = run(cwd=tmp_path, env=environment(PATH=str(bare_path)), script=script)

    assert done.returncode == 1
    assert "pip install tensorboard" in done.stderr
    assert f"{tmp_path}/.venv/bin/tensorboard" in done.stderr


def test_takes_the_tensorboard_of_the_environment_beside_it(
    tmp_path: Path, bare_path: Path, stub_tensorboard: Path
) -> None:
    house = tmp_path / "house"
    (house / ".venv/bin").mkdir(parents=True)
    shutil.copy(SCRIPT, house)
    shutil.copy(stub_tensorboard, house / ".venv/bin")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tb").symlink_to(house / SCRIPT.name)
    port = str(free_port())

    done = run(
        "logs", port, cwd=elsewhere, env=environment(PATH=str(bare_path)), script=elsewhere / "tb"
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["--logdir", "logs", "--port", port]


def test_log_dir_of_the_environment_is_the_default(tmp_path: Path, stub_tensorboard: Path) -> None:
    env = environment(
        PATH=f"{stub_tensorboard.parent}:{os.environ['PATH']}", SIDESTEP_LOG_DIR="/somewhere/else"
    )
    port = str(free_port())

    done = run("", port, "--bind_all", cwd=tmp_path, env=env)

    assert done.stdout.splitlines() == [
        "--logdir",
        "/somewhere/else/tensorboard",
        "--port",
        port,
        "--bind_all",
    ]


@pytest.mark.parametrize("port", ["0", "65536", "1x", "http", "6006.0", "99999999999999999999"])
def test_bad_port_is_wrong_usage(tmp_path: Path, port: str) -> None:
    done = run("logs", port, cwd=tmp_path)

    assert done.returncode == 2
    assert f"the port is a number from 1 to 65535, not '{port}'" in done.stderr
    assert "--help" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["6007"], "results/logs/tensorboard 6007"),
        (["logs", "6007", "--port=6008"], "the port is the second argument"),
        (["--logdir", "logs"], "the log directory is the first argument"),
        (["a-file"], "'a-file' is a file"),
    ],
)
def test_wrong_usage_says_what_to_do(tmp_path: Path, arguments: list[str], told: str) -> None:
    (tmp_path / "a-file").touch()

    done = run(*arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert told in done.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(tmp_path: Path, option: str) -> None:
    done = run(option, cwd=tmp_path)

    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")
    assert "results/logs/tensorboard" in done.stdout
    assert "6006" in done.stdout


def test_passes_shellcheck() -> None:
    done = subprocess.run(
        [ENVIRONMENT_BIN / "shellcheck", SCRIPT],
        text=True,
        capture_output=True,
        timeout=EXIT_TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout
