"""`proto/vectors/conversation.json`, spoken byte for byte to a real daemon, is understood."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
import zmq

from tests.support.oracle import points, read_scalars
from tests.support.sandbox import ROOT, Sandbox

TALK = json.loads((ROOT / "proto/vectors/conversation.json").read_text())
REPEATED = ("ack", "pong")  # how often these come is the daemon's affair


def unpacked(frame: bytes) -> tuple[str, dict[str, Any]]:
    """Kind and fields, read without any of our code."""
    assert frame[:4] == b"SDS\x01"
    kind, fields = msgpack.unpackb(frame[4:])
    return kind, fields


def introduced(turn: dict[str, Any], log_dir: str) -> bytes:
    """The frame; a HELLO's with a directory where this test may write."""
    frame = bytes.fromhex(turn["hex"])
    if turn["kind"] != "hello":
        return frame
    kind, fields = unpacked(frame)
    fields["run"]["log_dir"] = log_dir
    return frame[:4] + bytes(msgpack.packb([kind, fields]))


@pytest.mark.timeout(60)
def test_a_daemon_answers_as_the_vectors_say(sandbox: Sandbox) -> None:
    sandbox.serve()
    answers: list[tuple[str, dict[str, Any]]] = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.RCVTIMEO, 20_000)
        peer.connect(sandbox.paths.data_endpoint)

        def listen(kind: str, **fields: Any) -> None:
            """Wait for a message with these fields, which may have come already."""
            while not any(said == kind and fields.items() <= has.items() for said, has in answers):
                answers.append(unpacked(peer.recv()))

        for turn in TALK:
            if turn["from"] == "client":
                peer.send(introduced(turn, str(sandbox.logs)))
            else:
                known = {"ack": ("durable_seq", "dropped"), "nack": ("code", "first_seq")}
                wanted = known.get(turn["kind"], ())
                listen(turn["kind"], **{name: turn["fields"][name] for name in wanted})

    assert [kind for kind, _ in answers if kind not in (*REPEATED, "alarm")] == [
        *("welcome", "nack", "bye_ack")
    ]
    durable = [fields["durable_seq"] for kind, fields in answers if kind == "ack"]
    assert durable == sorted(durable)
    sandbox.drain()
    emitted = points([("train/loss", 1, 0.25), ("train/lr", 1, 0.001)] * 3)
    assert +read_scalars(sandbox.event_files("vit-b")) == emitted
    run = sandbox.run_status("vit-b")
    assert run is not None
    assert (run["records"]["durable"], run["records"]["dropped"]) == (5, 1)
