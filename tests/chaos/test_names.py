"""Names of runs and tags from people who mean no good, and links that they have planted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from sidestep import client
from sidestep.proto import Ack, Batch, Nack, RunSpec, Tags, encode
from sidestep.proto.records import Array, Scalars, Value, encode_scalars, encode_value
from tests.support.fixtures import Connect
from tests.support.hostile import Peer, batch
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

RUNS = (
    "../../outside/run",
    "/etc/passwd",
    "..",
    "a/b\0c\nd",
    "🙂" * 40,
    "x" * 4096,
    "CON",
)
TAGS = (
    "../../../outside/tag",
    "/etc/shadow",
    "..",
    "a\0b\nc\r\n",
    "🙂/\u202e/ü",
    "t" * 1024,
    "NUL",
)


def tree(folder: Path) -> dict[str, bytes | str]:
    """All that is in a folder: files with what they hold, links with where they lead."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "a folder"
    return found


@pytest.fixture
def outside(sandbox: Sandbox) -> Iterator[Path]:
    """A folder beside the log directory that nothing may touch."""
    folder = sandbox.root / "outside"
    (folder / "inner").mkdir(parents=True)
    (folder / "precious").write_text("mine")
    before = tree(folder)
    yield folder
    assert tree(folder) == before


def embedding(tag: str) -> bytes:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = Array("float32", (2, 3), matrix.tobytes())
    value = Value(
        "embedding", tag, 1, 1, {"header": None, "sprite": False, "metadata": False}, [array]
    )
    return b"".join(encode_value(value)[1])  # fmt: skip


def test_runs_and_tags_of_every_name(sandbox: Sandbox, outside: Path) -> None:
    """One folder for each run, whatever it is called, and every tag as it was emitted."""
    sandbox.serve()
    everything = tree(sandbox.root)
    with zmq.Context() as context:
        peers = [
            Peer(
                context,
                sandbox.paths.data_endpoint,
                RunSpec(name, str(sandbox.logs)),
                bytes([i]) * 16,
            )
            for i, name in enumerate(RUNS)
        ]
        for peer in peers:
            peer.greet(*TAGS)
            numbers = encode_scalars(Scalars(0, 1, 1, tuple(map(float, range(len(TAGS))))))
            data = numbers + b"".join(map(embedding, TAGS))
            answer = peer.ask(Batch(1, 1 + len(TAGS), data))
            assert isinstance(answer, Ack), answer
        sandbox.drain(120)
        statuses = {run["run"]: run for run in sandbox.status()["runs"]}
        for peer in peers:
            peer.close()
    assert set(statuses) == set(RUNS)
    for status in statuses.values():
        assert {sink["state"] for sink in status["sinks"]} <= {"ok", "closed", "idle"}, status
        assert [sink["skipped"] for sink in status["sinks"]] == [0, 0]
    expected = points((tag, 1, float(i)) for i, tag in enumerate(TAGS))
    for kind in ("tensorboard", "scalars"):
        folders = sorted((sandbox.logs / kind).iterdir())
        assert len(folders) == len(RUNS)
        assert all(folder.is_dir() and not folder.is_symlink() for folder in folders)
        if kind == "tensorboard":
            for folder in folders:
                assert_exactly(read_scalars(folder.glob("events.*")), expected)
                matrices = list(folder.glob("00001/*/tensors.tsv"))
                assert len(matrices) == len(TAGS)  # beside each other, and not below
    # Nothing else has come anywhere, but for what is the daemon's own.
    own = tuple(str(path.relative_to(sandbox.root)) for path in (sandbox.runtime, sandbox.state))
    new = {
        name for name in tree(sandbox.root).keys() - everything.keys() if not name.startswith(own)
    }
    assert {name.split("/")[0] for name in new} == {sandbox.logs.name}, new
    assert not Path("/etc/passwd-run").exists()


def test_names_that_cannot_be(sandbox: Sandbox) -> None:
    """A name of 10 kB is refused with a sentence; a client of ours says so where it is called."""
    sandbox.serve()
    with zmq.Context() as context:
        peer = Peer(context, sandbox.paths.data_endpoint, RunSpec("good", str(sandbox.logs)))
        frame = encode(peer.hello)
        name = b"\xda" + (10_000).to_bytes(2, "big") + b"n" * 10_000
        peer.socket.send(frame.replace(b"\xa4good", name))
        answer = peer.next()
        assert isinstance(answer, Nack)
        assert "expected text of at most 4096 bytes" in answer.reason
        peer.greet("x")
        for tag in ("", "t" * 1025):
            peer.socket.send(encode(Tags(1, (("y",),))).replace(b"\xa1y", _text(tag)))
            assert isinstance(peer.next(), Nack)
        assert isinstance(peer.ask(batch(1, 1)), Ack)
        peer.close()


def _text(text: str) -> bytes:
    return b"\xda" + len(text).to_bytes(2, "big") + text.encode()


def test_our_client_with_such_names(sandbox: Sandbox, connect: Connect, outside: Path) -> None:
    """Run names of up to 1 kB and any tag travel; what does not is counted, and the rest goes."""
    sandbox.serve()
    with pytest.raises(client.ConfigurationError, match="1 to 1024 bytes"):
        connect("x" * 10_000)
    made = connect("../../outside/ünï🙂\n")
    tags = ["../../outside/a", "/abs", "nul\0\n", "🙂", "x" * 1024]
    made.emit({tag: i / 7 for i, tag in enumerate(tags)} | {"y" * 10_000: 1.0, "": 2.0}, step=3)
    assert made.finish(60)
    assert made.stats().rejected == 2
    sandbox.drain()
    (folder,) = (sandbox.logs / "tensorboard").iterdir()
    assert_exactly(
        read_scalars(folder.glob("events.*")), points((t, 3, i / 7) for i, t in enumerate(tags))
    )


@pytest.mark.parametrize("planted", ["tensorboard", "tensorboard/run", "scalars/run"])
def test_a_link_in_a_runs_place(
    sandbox: Sandbox, connect: Connect, outside: Path, planted: str
) -> None:
    """It is not followed: that sink says so and waits, the other one works, nothing is lost."""
    sandbox.serve()
    link = sandbox.logs / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(outside, target_is_directory=True)
    made = connect("run")
    for step in range(100):
        made.emit({"a": step / 7}, step=step)
    assert made.finish(60)
    sink, other = (
        ("tensorboard", "archive") if "tensorboard" in planted else ("archive", "tensorboard")
    )
    status = sandbox.await_sink("run", "degraded", sink)
    assert "symbolic link" in status["error"]
    wait_until(lambda: _lag(sandbox, other) == 0, 30, lambda: sandbox.run_status("run"))
    assert _lag(sandbox, sink) > 0
    link.unlink()  # and it recovers
    sandbox.drain(60)
    assert_exactly(
        read_scalars(sandbox.event_files("run")), points(("a", s, s / 7) for s in range(100))
    )


def _lag(sandbox: Sandbox, sink: str) -> int:
    status = sandbox.run_status("run")
    assert status
    return next(int(one["lag_records"]) for one in status["sinks"] if one["name"] == sink)


def test_links_in_the_places_of_side_files(
    sandbox: Sandbox, connect: Connect, outside: Path
) -> None:
    """The projector's files: a link is replaced, or its folder not entered; never followed."""
    sandbox.serve()
    run = sandbox.logs / "tensorboard" / "run"
    (run / "00001").mkdir(parents=True)
    (run / "projector_config.pbtxt").symlink_to(outside / "precious")
    (run / "00001" / "one").symlink_to(outside / "inner", target_is_directory=True)
    (run / "00001" / "two").mkdir()
    (run / "00001" / "two" / "tensors.tsv").symlink_to(outside / "precious")
    (run / "00001" / "two" / ".tensors.tsv.new").symlink_to(outside / "precious")
    made = connect("run")
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    for tag in ("two", "one"):
        made.emit({tag: client.Embedding(matrix)}, step=1)
    assert made.finish(60)
    status = sandbox.await_sink("run", "degraded")
    assert "symbolic link" in status["error"]
    (run / "00001" / "one").unlink()
    sandbox.drain(60)
    assert (run / "00001" / "two" / "tensors.tsv").read_text() == "0.0\t1.0\t2.0\n3.0\t4.0\t5.0\n"
    for path in (run / "00001" / "two" / "tensors.tsv", run / "00001" / "one" / "tensors.tsv"):
        assert not path.is_symlink()


def test_wandb_follows_no_link_and_keeps_to_its_folder(
    sandbox: Sandbox, connect: Connect, outside: Path
) -> None:
    pytest.importorskip("wandb")
    sandbox.serve()
    sandbox.logs.mkdir(parents=True, exist_ok=True)
    (sandbox.logs / "wandb").symlink_to(outside, target_is_directory=True)
    made = connect("../../outside/run\n", wandb={"mode": "offline"})
    values: dict[str, object] = {"../../../outside/a": 0.5, "/abs": 1.5}
    values["../../../outside/b"] = client.Image(np.zeros((4, 4, 3), np.uint8))
    values["../../../outside/c"] = client.Embedding(np.zeros((2, 2), np.float32))
    made.emit(values, step=1)
    assert made.finish(60)
    name = "../../outside/run\n"
    status = sandbox.await_sink(name, "degraded", "wandb")
    assert "symbolic link" in status["error"]
    (sandbox.logs / "wandb").unlink()
    sandbox.drain(120)
    (run,) = sandbox.logs.glob("wandb/offline-run-*")
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".png" for path in files)
    assert any(path.suffix == ".wandb" for path in files)
