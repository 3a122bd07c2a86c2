"""A node of its own for a test: directories, daemons in them that can be harmed, and their end.

Every process that a sandbox starts, and all that those start, detached or not, have its runtime
directory in their environment. By that they are found and ended, one by one, whatever the test did.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from psutil import Process

from sidestep.proto.paths import RuntimePaths, outbox_dirs
from sidestep.sidecar.cli.control_client import Control, NoAnswerError, NoDaemonError

from .waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
READY_S = 30.0  # a daemon takes half a second; a machine that others use too, much longer
CLI_S = 60.0
_MINE = ("SIDESTEP_", "WANDB_", "RANK", "WORLD_SIZE", "TORCHELASTIC_", "XDG_")
_LOG_TAIL_BYTES = 6000


class Daemon:
    """A daemon in the foreground of a sandbox: ``sidestep serve``."""

    def __init__(self, sandbox: Sandbox, log: Path, arguments: tuple[str, ...], **env: str) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*SIDESTEP, "serve", *arguments],
                cwd=sandbox.work,
                env=sandbox.env(**env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid
        self._paused: list[Process] = []

    def await_ready(self) -> Daemon:
        """Wait for the line that it prints when it is ready."""
        wait_until(
            lambda: "sidestep is ready" in self.said() or self.process.poll() is not None,
            READY_S,
            self.said,
        )
        assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said()}"
        return self

    def said(self) -> str:
        """All that it and its workers have printed."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(READY_S)

    def pause(self) -> None:
        """SIGSTOP to it and to every process of its own."""
        own = Process(self.pid)
        self._paused = [own, *own.children(recursive=True)]
        for process in self._paused:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        wait_until(lambda: Process(self.pid).status() == psutil.STATUS_STOPPED, 5, "not stopped")

    def resume(self) -> None:
        """SIGCONT to the same, also to those that it left behind."""
        for process in reversed(self._paused):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def terminate(self, timeout_s: float = CLI_S) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)


SIDESTEP = (sys.executable, "-P", "-m", "sidestep.sidecar")


class Sandbox:
    """Directories of one test, with short names since a socket's path has 107 bytes.

    Attributes:
        root: everything is below it.
        runtime: SIDESTEP_RUNTIME_DIR.
        state: SIDESTEP_STATE_DIR.
        logs: SIDESTEP_LOG_DIR.
        work: where commands run.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="sst", dir="/tmp"))
        self.runtime = self.root / "r"
        self.state = self.root / "s"
        self.logs = self.root / "l"
        self.work = self.root / "w"
        self.home = self.root / "h"
        self.paths = RuntimePaths(str(self.runtime))
        self.control = Control(self.paths)
        self._daemons: list[Daemon] = []
        for folder in (self.work, self.home):
            folder.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what runs in it ---------------------------------------------------------------------

    def env(self, **changes: str) -> dict[str, str]:
        """This process's environment with the sandbox in the place of all that is the user's."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(_MINE)}
        return {
            **env,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}",
            **self.variables(),
            **changes,
        }

    def variables(self) -> dict[str, str]:
        """The variables that make a client or a daemon live here."""
        return {
            "SIDESTEP_RUNTIME_DIR": str(self.runtime),
            "SIDESTEP_STATE_DIR": str(self.state),
            "SIDESTEP_LOG_DIR": str(self.logs),
        }

    def serve(self, *arguments: str, **env: str) -> Daemon:
        """Start a daemon in the foreground, and wait until it is ready."""
        return self.serve_unready(*arguments, **env).await_ready()

    def serve_unready(self, *arguments: str, **env: str) -> Daemon:
        """Start a daemon in the foreground, and do not wait."""
        log = self.root / f"serve-{len(self._daemons)}.log"
        self._daemons.append(Daemon(self, log, arguments, **env))
        return self._daemons[-1]

    def cli(
        self, *arguments: str, timeout_s: float = CLI_S, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of sidestep's to its end."""
        return subprocess.run(
            [*SIDESTEP, *arguments],
            cwd=self.work,
            env=self.env(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def popen(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start a command of sidestep's; its output goes into pipes."""
        return subprocess.Popen(
            [*SIDESTEP, *arguments],
            cwd=self.work,
            env=self.env(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        """All that the newest daemon in the foreground has printed."""
        return self._daemons[-1].said()

    # --- what the daemon says ------------------------------------------------------------------

    def daemon_pid(self) -> int | None:
        """The daemon's process id, as soon as it answers: its lock may still name a dead one."""
        with suppress(NoDaemonError, NoAnswerError):
            return int(self.control.request("hello", 1.0)["pid"])
        return None

    def await_daemon(self, other_than: int | None = None, timeout_s: float = READY_S) -> int:
        """Wait for a daemon that has announced itself; its process id."""

        def found() -> int | None:
            pid = self.daemon_pid()
            return pid if pid != other_than else None

        pid = wait_until(found, timeout_s, "no daemon came")
        assert pid is not None
        return pid

    def await_no_daemon(self, timeout_s: float = CLI_S) -> None:
        """Wait until the lock is free."""
        wait_until(lambda: self.control.daemon() is None, timeout_s, "the daemon did not leave")

    def status(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """What the daemon says of itself, without the command."""
        return self.control.request("status", timeout_s)

    def run_status(self, run: str) -> dict[str, Any] | None:
        """What the daemon says of a run; None when there is no daemon or no such run."""
        try:
            runs = self.status()["runs"]
        except (NoDaemonError, NoAnswerError):
            return None
        return next((one for one in runs if one["run"] == run), None)

    def await_run(self, run: str, timeout_s: float = 30.0, **wanted: Any) -> dict[str, Any]:
        """Wait until the run's status has these values; returns it."""
        last: list[Any] = [None]

        def right() -> dict[str, Any] | None:
            last[0] = now = self.run_status(run)
            return now if now and all(now[key] == wanted[key] for key in wanted) else None

        found = wait_until(
            right, timeout_s, lambda: f"{wanted} of run {run}; last: {last[0]}", 0.05
        )
        assert found is not None
        return found

    def await_sink(self, run: str, state: str, name: str = "tensorboard") -> dict[str, Any]:
        """Wait until a sink of the run is in `state`; what status says of it.

        Args:
            run: the run.
            state: or several, with a bar between them.
            name: which sink.
        """
        last: list[Any] = [None]

        def right() -> dict[str, Any] | None:
            last[0] = now = self.run_status(run)
            sinks = now["sinks"] if now else ()
            wanted = state.split("|")
            return next((s for s in sinks if s["name"] == name and s["state"] in wanted), None)

        found = wait_until(right, 30, lambda: f"{name} of {run} {state}; last: {last[0]}", 0.05)
        assert found is not None
        return found

    def drain(self, timeout_s: float = 60.0) -> None:
        """Everything that was emitted is written when this returns: the command's own promise."""
        done = self.cli("drain", "--timeout", str(timeout_s), timeout_s=timeout_s + 30)
        assert done.returncode == 0, f"drain: {done.returncode}\n{done.stdout}{done.stderr}"

    def event_files(self, run: str) -> list[Path]:
        """The run's event files in the order in which TensorBoard reads them."""
        return sorted((self.logs / "tensorboard" / run).glob("events.out.tfevents.*"))

    def outboxes(self) -> list[Path]:
        """Outboxes of clients, living and dead."""
        places = outbox_dirs(self.paths, str(self.state), os.getuid())
        return [file for place in places for file in Path(place).glob("*.outbox")]

    # --- processes and the end -----------------------------------------------------------------

    def processes(self) -> list[Process]:
        """Every process that lives here, however detached; zombies are none."""
        found: list[Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get("SIDESTEP_RUNTIME_DIR") == str(self.runtime):
                    found.append(process)
        return found

    def daemons(self) -> list[Process]:
        """Processes that are a daemon, ready or not."""
        return [p for p in self.processes() if _is_command(p, "sidestep.sidecar", "serve")]

    def workers(self, *sink: str) -> list[Process]:
        """The sinks' workers; with a name, those of the sinks called so."""
        return [p for p in self.processes() if _is_command(p, "sidestep.sidecar.worker", *sink)]

    def close(self) -> None:
        """End every process, show the logs (pytest shows them when a test failed), remove all."""
        self._end_processes()
        for daemon in self._daemons:
            daemon.process.wait(READY_S)
        for log in sorted([*self.root.glob("*.log"), Path(self.paths.log)]):
            if log.exists():
                data = log.read_bytes()[-_LOG_TAIL_BYTES:]
                print(f"--- {log.name}\n{data.decode(errors='replace')}")
        shutil.rmtree(self.root, ignore_errors=True)
        for place in outbox_dirs(self.paths, str(self.state), os.getuid()):
            for folder in glob.glob(f"{glob.escape(place)}*"):  # also those for other machines
                shutil.rmtree(folder, ignore_errors=True)

    def _end_processes(self) -> None:
        deadline = time.monotonic() + READY_S
        while living := self.processes():
            assert time.monotonic() < deadline, f"these do not end: {living}"
            for process in living:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(living, timeout=1.0)


def _is_command(process: Process, module: str, *words: str) -> bool:
    with suppress(psutil.Error):
        line = process.cmdline()
        return module in line and line[line.index(module) + 1 :][: len(words)] == list(words)
    return False


def parse_lines(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]
