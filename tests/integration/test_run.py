"""`sidestep run -- CMD`: CMD's exit code, its environment, and everything written at the end."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

TRAIN = """
from sidestep import client
client.connect("trained")
for step in range(3000):
    client.emit({"a": step / 7, "b": -1.0 * step}, step=step)
"""
EXPECTED = [("a", k, k / 7) for k in range(3000)] + [("b", k, -float(k)) for k in range(3000)]


def test_everything_is_written_when_it_returns(sandbox: Sandbox) -> None:
    script = sandbox.work / "train.py"
    script.write_text(TRAIN)
    done = sandbox.cli("run", "--", sys.executable, str(script))
    assert done.returncode == 0, done.stderr
    assert_exactly(read_scalars(sandbox.event_files("trained")), points(EXPECTED))
    sandbox.await_no_daemon()
    wait_until(lambda: not sandbox.processes(), 10, sandbox.processes)


def test_failing_trainer_is_drained_too(sandbox: Sandbox) -> None:
    script = sandbox.work / "train.py"
    script.write_text(TRAIN + "raise RuntimeError('as the test wants it')\n")
    done = sandbox.cli("run", "--", sys.executable, str(script))
    assert done.returncode == 1
    assert "as the test wants it" in done.stderr
    assert_exactly(read_scalars(sandbox.event_files("trained")), points(EXPECTED))


def test_killed_trainer_is_drained_too(sandbox: Sandbox) -> None:
    script = sandbox.work / "train.py"
    script.write_text(TRAIN + "import os\nos.kill(os.getpid(), 9)\n")
    done = sandbox.cli("run", "--", sys.executable, str(script))
    assert done.returncode == 128 + 9
    assert_exactly(read_scalars(sandbox.event_files("trained")), points(EXPECTED))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
    ids=["0", "7", "255", "SIGTERM", "SIGKILL", "not found", "not executable"],
)
def test_exit_code_is_the_commands(sandbox: Sandbox, command: list[str], code: int) -> None:
    sandbox.serve()
    done = sandbox.cli("run", "--", *command)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code in (126, 127):
        assert command[0] in done.stderr


def test_without_a_command_is_wrong_usage(sandbox: Sandbox) -> None:
    done = sandbox.cli("run")
    assert done.returncode == 2
    assert "CMD" in done.stderr
    assert not sandbox.runtime.exists()


def test_environment_leads_to_the_same_daemon(sandbox: Sandbox) -> None:
    pid = sandbox.serve().pid
    config = sandbox.work / "config.yaml"
    config.write_text("logging: {experiment_name: from-the-file}\n")
    code = (
        "import os; from sidestep import client; c = client.connect(); c.emit({'a': 1.0}, step=0);"
        "assert c.finish(30); print(os.environ['SIDESTEP_CONFIG'])"
    )
    # Relative, and the command runs elsewhere.
    done = sandbox.cli("run", "--config", "config.yaml", "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(config)
    assert sandbox.event_files("from-the-file")
    assert sandbox.daemon_pid() == pid, "it joins the daemon that is there, which stays"


def test_arguments_after_the_dashes_are_the_commands(sandbox: Sandbox) -> None:
    sandbox.serve()
    code = "import sys; print(sys.argv[1:])"
    done = sandbox.cli("run", "--", sys.executable, "-c", code, "--help", "--", "-x", "a b")
    assert done.stdout.strip() == "['--help', '--', '-x', 'a b']"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_go_to_the_command(sandbox: Sandbox, number: signal.Signals) -> None:
    sandbox.serve()
    mark = sandbox.work / "mark"
    code = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(5))\n"
        f"pathlib.Path({str(mark)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    with sandbox.popen("run", "--", sys.executable, "-c", code) as running:
        wait_until(mark.exists, 30, "the command did not start")
        running.send_signal(number)
        assert running.wait(30) == 5


def test_interrupt_of_the_terminal_reaches_the_command_once(sandbox: Sandbox) -> None:
    """Ctrl-C goes to the whole group: the command ends by it; `run` brings home what it logged."""
    sandbox.serve()
    mark = sandbox.work / "mark"
    code = TRAIN + f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(60)\n"
    with sandbox.popen("run", "--", sys.executable, "-c", code) as running:
        wait_until(mark.exists, 30, "the command did not start")
        for process in [*psutil.Process(running.pid).children(), psutil.Process(running.pid)]:
            process.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 128 + signal.SIGINT
    assert said.count("KeyboardInterrupt") == 1
    assert_exactly(read_scalars(sandbox.event_files("trained")), points(EXPECTED))


def test_broken_sink_does_not_hold_it_for_ever(sandbox: Sandbox) -> None:
    Path(sandbox.logs).write_text("a file where the directory should be")
    script = sandbox.work / "train.py"
    script.write_text(TRAIN)
    done = sandbox.cli("run", "--drain-timeout", "2", "--", sys.executable, str(script))
    assert done.returncode == 0
    assert "not everything was written within 2 s" in done.stderr
