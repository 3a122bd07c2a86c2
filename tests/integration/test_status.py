"""`status`, with and without `--json`: what is promised is there, and it is true."""

from __future__ import annotations

import json

import pytest

from tests.support.fixtures import Connect
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.timeout(60)

DAEMON = {"pid": int, "version": str, "state": str, "endpoint": str, "state_dir": str}
SINK = {"name": str, "state": str, "lag_records": int}


def test_no_daemon(sandbox: Sandbox) -> None:
    asked = sandbox.cli("status", "--json")
    assert asked.returncode == 1
    assert asked.stdout == '{"daemon": null}\n'
    assert asked.stderr == ""
    asked = sandbox.cli("status")
    assert asked.returncode == 1
    assert asked.stdout == ""
    assert "sidestep start" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_json_has_what_is_promised(sandbox: Sandbox, connect: Connect) -> None:
    daemon = sandbox.serve()
    made = connect("seen")
    for step in range(50):
        made.emit({"a": 1.0, "bad": "x"}, step=step)
    assert made.flush(30)
    sandbox.await_sink("seen", "ok")
    # What a client says of itself comes with its next sign of life.
    books = {"emitted": 50, "durable": 50, "held": 0, "dropped": 0, "rejected": 50}
    sandbox.await_run("seen", records={**books, "unaccounted": 0, "elsewhere": 0})
    asked = sandbox.cli("status", "--json")
    assert asked.returncode == 0
    (line,) = asked.stdout.splitlines()
    answer = json.loads(line)
    for key, kind in DAEMON.items():
        assert isinstance(answer["daemon"][key], kind), key
    assert answer["daemon"]["pid"] == daemon.pid
    assert answer["daemon"]["endpoint"] == sandbox.paths.data_endpoint
    assert answer["daemon"]["state_dir"] == str(sandbox.state)
    assert 0 < answer["daemon"]["uptime_s"] < 60
    (run,) = answer["runs"]
    assert (run["run"], run["state"], run["last_step"], run["clients"]) == (
        "seen",
        "running",
        49,
        1,
    )
    assert "alarm" in run
    assert {key: run["records"][key] for key in books} == books
    for sink in run["sinks"]:
        for key, kind in SINK.items():
            assert isinstance(sink[key], kind), key
        assert "error" in sink
    assert [sink["name"] for sink in run["sinks"]] == ["tensorboard", "archive"]
    assert isinstance(answer["gpus"], list)
    assert isinstance(answer["host"], dict)
    assert made.finish(30)
    sandbox.await_run("seen", state="finished", clients=0)


def test_for_people_says_what_is_wrong_last(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("people")
    made.emit({"a": 1.0}, step=12)
    assert made.flush(30)
    sandbox.await_sink("people", "ok")
    asked = sandbox.cli("status")
    assert asked.returncode == 0
    assert "people" in asked.stdout
    assert "running" in asked.stdout
    assert "Nothing is wrong." in asked.stdout
    made.emit({"a": "x"}, step=13)
    made.emit({"a": 2.0}, step=13)
    assert made.finish(30)
    assert "1 value rejected" in sandbox.cli("status").stdout


@pytest.mark.parametrize(
    "command", ["", "run", "serve", "start", "stop", "tail", "status", "drain"]
)
def test_help_everywhere(sandbox: Sandbox, command: str) -> None:
    asked = sandbox.cli(*command.split(), "--help")
    assert asked.returncode == 0
    assert "Usage" in asked.stdout
    assert asked.stderr == ""


@pytest.mark.parametrize("arguments", [["no-such-command"], ["status", "--no-such-option"]])
def test_wrong_usage_is_2(sandbox: Sandbox, arguments: list[str]) -> None:
    asked = sandbox.cli(*arguments)
    assert asked.returncode == 2
    assert "no-such" in asked.stderr
    assert "Traceback" not in asked.stderr
