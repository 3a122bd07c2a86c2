"""A whole job with secrets in it: on no disk, in no message, log, title or traceback is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import zmq
from zmq.utils import z85

from sidestep.proto import Hello, decode
from tests.chaos.test_tcp_keys import free_endpoint
from tests.support.fixtures import Connect
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until
from tests.support.wandb_server import WandbServer

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

API_KEY = "5ec4e7" + os.urandom(17).hex()
"""As long as one of W&B's, and found nowhere by chance."""

CONFIG = {
    "lr": 0.1,
    "wandb_api_key": API_KEY,
    "argv": ["train.py", f"--key={API_KEY}"],
    "nested": {"url": f"https://me:{API_KEY}@host/"},
}


JOB = """
import os, sys, time
from sidestep import client
key = os.environ["WANDB_API_KEY"]
config = {"wandb_api_key": key, "note": f"--key={key}", "url": f"https://me:{key}@host/"}
client.connect(sys.argv[1], config=config, tags=[key],
               wandb={"project": "p"} if sys.argv[1] == "job" else None)
client.emit({"hparams": client.HParams({"api_key": key, "lr": 0.1})})
for step in range(500):
    client.emit({"loss": 1 / (step + 1)}, step=step)
if sys.argv[1] == "raising":
    raise RuntimeError("training went wrong, as the test wants it")
time.sleep(600)
"""


def spellings(keys: Path) -> dict[str, bytes]:
    """Each secret in each way that it might be written down."""
    found = {"W&B's key": API_KEY.encode()}
    for file in keys.rglob("*.secret"):
        key = bytes.fromhex(file.read_text().split()[-1])
        found[f"{file.name}, in hexadecimal"] = key.hex().encode()
        found[f"{file.name}, in Z85"] = z85.encode(key)
        found[f"{file.name}, raw"] = key
    assert len(found) == 7
    return found


def leaks(where: str, data: bytes, secrets: Mapping[str, bytes]) -> list[str]:
    return [f"{name} in {where}" for name, secret in secrets.items() if secret in data]


def files(folders: Iterable[Path], but: Path) -> Iterator[tuple[str, bytes]]:
    """All files below these folders, but one folder's."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and but not in path.parents:
                with suppress(FileNotFoundError):
                    yield str(path), path.read_bytes()


def titles(sandbox: Sandbox) -> Iterator[tuple[str, bytes]]:
    """What every user of the machine can see of the processes in the sandbox."""
    for process in sandbox.processes():
        for name in ("cmdline", "comm"):
            with suppress(FileNotFoundError, ProcessLookupError, psutil.Error):
                yield (
                    f"{name} of {process.name()}",
                    Path(f"/proc/{process.pid}/{name}").read_bytes(),
                )


def start(sandbox: Sandbox, name: str, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A trainer whose secrets are in its environment alone."""
    script = sandbox.work / "job.py"
    script.write_text(JOB)
    with (sandbox.root / f"{name}.log").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, str(script), name],
            cwd=sandbox.work,
            env=sandbox.env(**env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def test_no_secret_is_anywhere(sandbox: Sandbox) -> None:
    pytest.importorskip("wandb")
    keys = sandbox.root / "k"
    assert sandbox.cli("keygen", str(keys)).returncode == 0
    secrets = spellings(keys)
    endpoint = free_endpoint()
    with WandbServer() as server:
        env = {
            "WANDB_API_KEY": API_KEY,
            "WANDB_BASE_URL": server.url,
            "SIDESTEP_KEYS": str(keys),
            "SIDESTEP_ENDPOINT": endpoint,
        }
        daemon = sandbox.serve(**env)
        job = start(sandbox, "job", env)
        sandbox.await_run("job", last_step=499)
        wait_until(lambda: server.history, 60, "W&B was not reached")

        found: list[str] = []
        places = [sandbox.root, *{Path(path).parent for path in sandbox.outboxes()}]
        assert sandbox.outboxes()
        for where, data in [*files(places, keys), *titles(sandbox)]:
            found += leaks(where, data, secrets)
        for command in (["status"], ["status", "--json"]):
            done = sandbox.cli(*command, **env)
            found += leaks(str(command), (done.stdout + done.stderr).encode(), secrets)

        # Everybody dies in the middle, with whatever they print then; the next daemon adopts.
        for worker in sandbox.workers():
            worker.send_signal(signal.SIGABRT)
        assert start(sandbox, "raising", env).wait(60) == 1
        assert "Traceback" in (sandbox.root / "raising.log").read_text()
        job.kill()
        job.wait(10)
        daemon.kill()
        broken = sandbox.cli("serve", **{**env, "SIDESTEP_KEYS": str(keys / "daemon.public")})
        assert broken.returncode == 1
        found += leaks("a start that failed", broken.stderr.encode(), secrets)
        sandbox.serve(**env)
        sandbox.await_run("job", state="lost", timeout_s=60)
        for where, data in files([*places, *(sandbox.state, sandbox.logs)], keys):
            found += leaks(where, data, secrets)
        assert list(sandbox.logs.rglob("events.out.tfevents.*"))
        assert (sandbox.state / "journal.sqlite").exists()
        assert found == []


def test_no_secret_is_in_a_message(
    sandbox: Sandbox, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        router = context.socket(zmq.ROUTER)
        router.bind(f"ipc://{sandbox.root}/x.sock")
        connect("run", endpoint=f"ipc://{sandbox.root}/x.sock", config=CONFIG, tags=[API_KEY])
        assert router.poll(10_000)
        frame = router.recv_multipart()[1]
    finally:
        context.destroy(linger=0)
    hello = decode(frame)
    assert isinstance(hello, Hello)
    assert hello.run.config == {
        "lr": 0.1,
        "wandb_api_key": "***",
        "argv": ["train.py", "--key=***"],
        "nested": {"url": "https://***@host/"},
    }
    assert API_KEY.encode() not in frame
