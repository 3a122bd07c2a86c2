"""TCP: who has the right keys is served, all others are refused; a far trainer loses nothing."""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from sidestep import client
from sidestep.proto import ClientSession, Hello, RunSpec, encode
from tests.support.far_node import FarNode, NoFarNodeError
from tests.support.fixtures import Connect
from tests.support.oracle import assert_balanced, assert_booked, assert_exactly, read_scalars
from tests.support.sandbox import SIDESTEP, Sandbox
from tests.support.trainer import EMITTED
from tests.support.training import Training
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

AGAIN_S = 15.0
"""A client that was refused throws its connection away after 5 s, and comes back."""


@pytest.fixture(scope="module")
def far() -> Iterator[FarNode]:
    """A namespace with a cable to this one."""
    try:
        with FarNode() as made:
            yield made
    except NoFarNodeError as error:
        pytest.skip(f"no network namespace: {error}")


@pytest.fixture
def keys(sandbox: Sandbox) -> Path:
    """A daemon's folder of keys."""
    folder = sandbox.root / "k"
    done = sandbox.cli("keygen", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def free_endpoint(address: str = "127.0.0.1") -> str:
    """A TCP address where nobody listens."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return f"tcp://{address}:{probe.getsockname()[1]}"


def serve(sandbox: Sandbox, endpoint: str, keys: Path | None) -> None:
    """A daemon at a TCP address."""
    env = {"SIDESTEP_ENDPOINT": endpoint}
    sandbox.serve(**env, **({"SIDESTEP_KEYS": str(keys)} if keys else {}))


def new_client(sandbox: Sandbox, keys: Path, name: str) -> Path:
    """The folder that a further client needs, moved away as its user would."""
    done = sandbox.cli("keygen", str(keys), "--client", name)
    assert done.returncode == 0, done.stderr
    return Path(shutil.move(keys / "trainers" / name, sandbox.root / f"k-{name}"))


Reach = Callable[[str, Path | None, str], client.Client]


@pytest.fixture
def reach(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Reach:
    """Connects this process: endpoint, folder of keys, run."""

    def reached(endpoint: str, folder: Path | None, run: str) -> client.Client:
        if folder is None:
            monkeypatch.delenv("SIDESTEP_KEYS", raising=False)
        else:
            monkeypatch.setenv("SIDESTEP_KEYS", str(folder))
        return connect(run, endpoint=endpoint)

    return reached


# --- who is served, and who is not ---------------------------------------------------------------


def test_listed_key_is_served_all_others_are_refused(
    sandbox: Sandbox, far: FarNode, keys: Path, reach: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = free_endpoint(far.near)
    other = sandbox.root / "other"
    assert sandbox.cli("keygen", str(other)).returncode == 0
    unlisted = new_client(sandbox, keys, "unlisted")
    (keys / "clients/unlisted.public").rename(sandbox.root / "unlisted.public")
    serve(sandbox, endpoint, keys)

    listed = reach(endpoint, keys, "listed")
    listed.emit({"loss": 1.0}, step=0)
    assert listed.flush(10)

    # Its own key is listed, but it takes somebody else for the daemon: it says nothing to it.
    mixed = sandbox.root / "mixed"
    shutil.copytree(keys, mixed)
    shutil.copy(other / "daemon.public", mixed)
    refused = {
        "wrong": reach(endpoint, mixed, "wrong"),
        "unlisted": reach(endpoint, unlisted, "unlisted"),
        "stranger": reach(endpoint, other, "stranger"),
    }
    for one in refused.values():
        one.emit({"loss": 2.0}, step=0)
    with caplog.at_level(logging.WARNING, "sidestep"):
        assert not any(one.flush(0.3) for one in refused.values())
        assert listed.flush(10)
        wait_until(
            lambda: "does not list the key in" in caplog.text, AGAIN_S, "the trainer is not told"
        )
    assert send_plainly(endpoint) == []
    status = sandbox.status()
    assert [run["run"] for run in status["runs"]] == ["listed"]
    assert status["daemon"]["refused_frames"] >= 3, status["daemon"]

    # Listed while the daemon runs: it gets in, and what it held is there.
    (sandbox.root / "unlisted.public").rename(keys / "clients/unlisted.public")
    assert refused["unlisted"].flush(AGAIN_S)

    # Struck off while it is connected: shut out. All others come back, and lose nothing.
    (keys / "clients/unlisted.public").unlink()
    wait_until(lambda: "not listed any more: unlisted" in sandbox.said(), AGAIN_S, sandbox.said)
    refused["unlisted"].emit({"loss": 3.0}, step=1)
    listed.emit({"loss": 4.0}, step=1)
    assert listed.flush(AGAIN_S)
    assert not refused["unlisted"].flush(1.0)
    assert refused["unlisted"].stats().held == 1
    assert sandbox.await_run("unlisted")["records"]["durable"] == 1


def send_plainly(endpoint: str) -> list[bytes]:
    """Speak the protocol, but without keys; what comes back."""
    session = ClientSession(Hello(os.urandom(16), 1, 0, RunSpec("plain", "/")), random.random)
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(endpoint)
        for action in session.connected(0.0):
            dealer.send(encode(action.message))  # type: ignore[union-attr]
        return dealer.recv_multipart() if dealer.poll(1000) else []
    finally:
        context.destroy(linger=0)


def test_client_with_keys_says_nothing_to_a_daemon_without(
    sandbox: Sandbox, keys: Path, reach: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = free_endpoint()
    serve(sandbox, endpoint, None)
    with_keys, without = reach(endpoint, keys, "with"), reach(endpoint, None, "without")
    with_keys.emit({"loss": 1.0}, step=0)
    without.emit({"loss": 1.0}, step=0)
    assert without.flush(10)  # plain TCP on the loopback, asked for
    assert not with_keys.flush(1.0)
    with caplog.at_level(logging.WARNING, "sidestep"):
        wait_until(
            lambda: "has no keys, or is no daemon" in caplog.text, AGAIN_S, "nobody is told why"
        )
    assert [run["run"] for run in sandbox.status()["runs"]] == ["without"]


def test_tcp_without_keys_is_refused_at_the_start(
    sandbox: Sandbox, keys: Path, far: FarNode, reach: Reach
) -> None:
    for endpoint in ("tcp://0.0.0.0:5790", "tcp://*:5790", f"tcp://{far.near}:5790"):
        done = sandbox.cli("serve", SIDESTEP_ENDPOINT=endpoint)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert "TCP without keys is for loopback only" in done.stderr
        assert "sidestep keygen" in done.stderr
    with pytest.raises(client.ConfigurationError, match="sidestep keygen"):
        reach(f"tcp://{far.near}:5790", None, "run")
    (keys / "daemon.secret").chmod(0o640)
    done = sandbox.cli("serve", SIDESTEP_ENDPOINT=f"tcp://{far.near}:5790", SIDESTEP_KEYS=str(keys))
    assert done.returncode == 1
    assert f"chmod 600 {keys}/daemon.secret" in done.stderr


def test_commands_and_live_metrics_are_never_on_tcp(
    sandbox: Sandbox, far: FarNode, keys: Path
) -> None:
    endpoint = free_endpoint(far.near)
    serve(sandbox, endpoint, keys)
    pids = {process.pid for process in sandbox.processes()}
    listening = listeners(pids)
    assert listening == [tuple(endpoint.removeprefix("tcp://").rsplit(":", 1))]


def listeners(pids: set[int]) -> list[tuple[str, str]]:
    """Where these processes listen on TCP."""
    import psutil

    return [
        (c.laddr.ip, str(c.laddr.port))
        for c in psutil.net_connections("tcp")
        if c.pid in pids and c.status == psutil.CONN_LISTEN
    ]


# --- a trainer on another machine ----------------------------------------------------------------


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_daemon_killed_while_a_far_trainer_emits(
    sandbox: Sandbox, far: FarNode, keys: Path, kills: int
) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "1"))
    choose = random.Random(seed)
    emits = 1200 * kills
    moments = [k * 1200 + choose.randrange(100, 900) for k in range(kills)]
    print(f"seed {seed}: killed at emits {moments}")
    endpoint = free_endpoint(far.near)
    env = {"SIDESTEP_ENDPOINT": endpoint, "SIDESTEP_KEYS": str(keys)}
    daemon = sandbox.serve(**env)
    with Sandbox() as node:
        training = far_training(sandbox, node, far, env, emits=emits, interval_s=0.0005)
        training.await_connected()
        for moment in moments:
            training.record["limit"] = moment + 200
            training.await_begun(moment)
            daemon.kill()
            daemon = sandbox.serve(**env)
            wait_until(
                lambda: (sandbox.run_status("far") or {"state": ""})["state"] == "running",
                AGAIN_S,
                "the trainer did not come back",
            )
        training.record["limit"] = 0
        stats = training.finished(60)
        assert stats["finish"]
        assert_balanced(stats)
        assert (stats["emitted"], stats["dropped"]) == (emits, 0)
        assert node.outboxes() == []
        assert_booked(sandbox.await_run("far", state="finished"), emits)
        sandbox.drain()
        assert_exactly(read_scalars(sandbox.event_files("far")), training.emitted(emits))


def test_what_a_far_trainer_leaves_is_delivered_by_drain(
    sandbox: Sandbox, far: FarNode, keys: Path
) -> None:
    endpoint = free_endpoint(far.near)
    env = {"SIDESTEP_ENDPOINT": endpoint, "SIDESTEP_KEYS": str(keys)}
    daemon = sandbox.serve(**env)
    with Sandbox() as node:
        training = far_training(
            sandbox, node, far, env, emits=1500, limit=300, text_every=100, end="wait"
        )
        training.await_begun(300)
        wait_until(
            lambda: (sandbox.run_status("far") or {"last_step": 0})["last_step"] == 299,
            AGAIN_S,
            "the first records did not arrive",
        )
        daemon.kill()
        training.record["limit"] = 0
        training.await_state(EMITTED)
        training.kill()
        emitted = training.emitted()

        # The node's own daemon, if there is one, leaves alone what is not for it.
        node.serve()
        assert node.status()["runs"] == []
        late = command(node, far, env, "drain", "--timeout", "0.5")
        assert late.returncode == 1
        assert "not delivered" in late.stderr
        assert node.cli("stop").returncode == 0

        sandbox.serve(**env)
        done = command(node, far, env, "drain", "--timeout", "60")
        assert done.returncode == 0, done.stderr
        assert "delivered what a dead trainer of run 'far' left" in done.stderr
        assert node.control.daemon() is None
        assert list(node.root.rglob("*.outbox")) == []
        run = sandbox.await_run("far", last_step=1499)
        assert_booked(run, training.returned + training.plan.texts(training.returned))
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("far")), emitted)


@pytest.mark.slow
def test_far_trainer_that_dies_is_lost_and_its_run_ends(
    sandbox: Sandbox, far: FarNode, keys: Path
) -> None:
    endpoint = free_endpoint(far.near)
    env = {"SIDESTEP_ENDPOINT": endpoint, "SIDESTEP_KEYS": str(keys)}
    sandbox.serve(**env)
    with Sandbox() as node:
        # `run` on that node starts no daemon of its own: the job's is elsewhere.
        done = command(node, far, env, "run", "--", "true")
        assert done.returncode == 0, done.stderr
        assert node.control.daemon() is None
        training = far_training(sandbox, node, far, env, emits=100, end="wait")
        training.await_begun(100)
        sandbox.await_run("far", last_step=99)
        training.kill()
        run = sandbox.await_run("far", state="lost", timeout_s=30)
        assert run["records"]["durable"] + run["records"]["held"] >= 100


def command(
    node: Sandbox, far: FarNode, env: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run one of sidestep's commands in the namespace."""
    return subprocess.run(
        [*far.prefix, *SIDESTEP, *arguments],
        cwd=node.work,
        env=node.env(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def far_training(
    sandbox: Sandbox, node: Sandbox, far: FarNode, env: dict[str, str], **plan: object
) -> Training:
    """A trainer in the namespace, with directories of its own; the daemon's log directory."""
    return Training(
        node,
        prefix=far.prefix,
        env={**env, "SIDESTEP_LOG_DIR": str(sandbox.logs)},
        run="far",
        tags=5,
        **plan,  # type: ignore[arg-type]
    )
