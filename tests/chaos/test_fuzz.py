"""Fuzzed input, to each reader of what others wrote: the invariants of `fuzz/targets` hold.

Here the kept inputs are played back, and a few new ones are made; `make fuzz` searches, guided by
coverage. The slow tests count: a million frames through codec and sessions, a hundred thousand to
a daemon.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace

import psutil
import pytest
import zmq
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep.proto import (
    Batch,
    ClientSession,
    Hello,
    Message,
    RemoteProtocolError,
    RunSpec,
    Scalars,
    Tags,
    Welcome,
    decode,
    encode,
)
from sidestep.proto.records import encode_scalars
from tests.support.fixtures import Train
from tests.support.oracle import assert_exactly, read_scalars
from tests.support.sandbox import Daemon, Sandbox
from tests.unit.proto.strategies import MESSAGES

from .fuzz import catalogue
from .fuzz.seeds import drawn
from .fuzz.targets import client as client_target, codec, server as server_target

pytestmark = pytest.mark.chaos

_MAX_CORPUS_BYTES = 1 << 20
_MAX_GROWTH_BYTES = 32 << 20
"""What a process may gain in a long run: allocators keep some of what they had."""

_MAX_DAEMON_BYTES = 150 << 20
"""What is promised of a daemon under load."""

_EXAMPLES = {"journal": 12, "rows": 12, "outbox": 20, "control": 12, "cursor": 20, "archive": 20}
"""New inputs of a target that works on files; the others do with more."""


@pytest.mark.parametrize("name", catalogue.TARGETS)
def test_kept_inputs(name: str) -> None:
    target = catalogue.target(name)
    kept = catalogue.corpus(name)
    assert kept, "make fuzz ARGS='--keep NAME' makes them"
    for path in kept:
        try:
            target.check(path.read_bytes())
        except BaseException as error:
            error.add_note(f"the input: {path}")
            raise


@pytest.mark.parametrize("name", catalogue.TARGETS)
def test_inputs_that_are_new(name: str) -> None:
    target = catalogue.target(name)
    kept = [path.read_bytes() for path in catalogue.corpus(name)]

    @settings(
        max_examples=_EXAMPLES.get(name, 60),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(kept), st.integers(0, 2**32), st.integers(1, 4))
    def holds(data: bytes, seed: int, times: int) -> None:
        rng = random.Random(seed)
        for _ in range(times):
            data = target.mutate(data, rng)
        target.check(data)

    holds()


def test_the_kept_inputs_are_few() -> None:
    sizes = [path.stat().st_size for name in catalogue.TARGETS for path in catalogue.corpus(name)]
    assert sum(sizes) < _MAX_CORPUS_BYTES


# --- counted -----------------------------------------------------------------------------------


class Frames:
    """Fuzzed frames without end: each of a few frames of every kind, changed once or more."""

    def __init__(self, seed: int) -> None:
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self._pool = [
            encode(message) for kind in MESSAGES.values() for message in drawn(kind, 6)
        ] + [encode(message) for message in server_target.conversation()]
        rows = [encode_scalars(Scalars(0, step, step, (0.5,))) for step in range(1, 9)]
        self._pool += [encode(Batch(step, step, row)) for step, row in enumerate(rows, 1)]
        self._pool += [encode(Batch(1, 8, b"".join(rows))), encode(Tags(0, (("loss",),)))] * 4
        self.seen: Counter[str] = Counter()

    def next(self) -> bytes:
        """Another frame."""
        frame = self.rng.choice(self._pool)
        for _ in range(self.rng.choice((0, 1, 1, 2, 3))):
            frame = codec.mutate(frame, self.rng)
        return frame

    def parsed(self, frame: bytes) -> Message | None:
        """The message in it; counts what there was."""
        try:
            message = decode(frame)
        except RemoteProtocolError as error:
            self.seen[error.code] += 1
            return None
        self.seen[type(message).__name__] += 1
        return message


def _seed() -> int:
    return int(os.environ.get("CHAOS_SEED", random.randrange(1 << 32)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_frames_through_codec_and_sessions() -> None:
    frames = Frames(_seed())
    process = psutil.Process()
    daemon, trainer = server_target.Daemon(), client_target.Trainer()
    before = 0
    for number in range(1_000_000):
        if number % 100 == 0:  # else all numbers are soon beyond what any message says
            daemon, trainer = server_target.Daemon(), client_target.Trainer()
            daemon.hear(0, server_target.conversation()[0])
            trainer.hear(0, Welcome(9, 1, 0, 0, 4096, 64 << 20))
        if number == 20_000:
            before = process.memory_info().rss
        message = frames.parsed(frames.next())
        daemon.hear(frames.rng.randrange(256), message)
        trainer.hear(frames.rng.randrange(256), message)
        assert isinstance(trainer.session, ClientSession)
    grown = process.memory_info().rss - before
    print(f"{dict(frames.seen)}; {before >> 20} MiB, grown by {grown / 2**20:.1f} MiB")
    assert grown < _MAX_GROWTH_BYTES
    kinds = {kind.__name__ for kind in MESSAGES}
    assert kinds <= set(frames.seen), "some of each kind were still messages"


class Hostile:
    """A peer that sends fuzzed frames to a daemon, and reads what it is answered."""

    def __init__(
        self, sandbox: Sandbox, context: zmq.Context[zmq.Socket[bytes]], name: int
    ) -> None:
        self._logs = str(sandbox.logs)
        spec = RunSpec(f"hostile-{name % 4}", self._logs)
        self._hello = Hello(b"fuzzing peer %03d" % (name % 8), 1, name, spec)
        self.answers: Counter[str] = Counter()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(sandbox.paths.data_endpoint)

    def send(self, frame: bytes) -> None:
        """Send it, so changed that no run of it lies outside the sandbox or is W&B's."""
        try:
            message = decode(frame)
            if isinstance(message, Hello):
                run = replace(message.run, log_dir=self._logs, wandb=None)
                frame = encode(replace(message, run=run))
        except RemoteProtocolError:
            pass
        self._socket.send(frame)
        while self._socket.poll(0):
            self.answers[type(decode(self._socket.recv())).__name__] += 1

    def greet(self, connection: int) -> None:
        """Say who one is, and wait for the answer: all that was sent before has been read."""
        self._socket.send(encode(replace(self._hello, connection=connection)))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._socket.poll(1000):
                answer = decode(self._socket.recv())
                self.answers[type(answer).__name__] += 1
                if isinstance(answer, Welcome) and answer.connection == connection:
                    return
        raise AssertionError(f"no answer: {dict(self.answers)}")

    def close(self) -> None:
        """Go."""
        self._socket.close(linger=0)


def _rss(daemon: Daemon) -> int:
    return psutil.Process(daemon.pid).memory_info().rss


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_frames_beside_a_client_that_is_served(
    sandbox: Sandbox, train: Train
) -> None:
    daemon = sandbox.serve()
    training = train(run="good", emits=10_000, limit=200)
    training.await_begun(200)
    frames = Frames(_seed())
    answers: Counter[str] = Counter()
    rss: list[int] = []
    with zmq.Context() as context:
        for name in range(200):
            with closing(Hostile(sandbox, context, name)) as peer:
                peer.greet(2 * name + 1)
                for _ in range(500):
                    peer.send(frames.next())
                peer.greet(2 * name + 2)
                answers += peer.answers
            training.record["limit"] = 200 + 45 * (name + 1)
            rss.append(_rss(daemon))
            assert daemon.process.poll() is None, daemon.said()
    status = sandbox.status()
    print(f"answers {dict(answers)}; refused {status['daemon']['refused_frames']}")
    print(
        f"daemon {rss[10] >> 20} MiB after 5,000 frames, {rss[-1] >> 20} MiB, most {max(rss) >> 20}"
    )
    training.record["limit"] = 0
    assert training.finished(300)["finish"]
    assert sandbox.daemon_pid() == daemon.pid
    sandbox.drain(120)
    assert_exactly(read_scalars(sandbox.event_files("good")), training.emitted())
    hostile = read_scalars(sandbox.event_files("hostile-1"))
    print(f"{hostile.total()} numbers of theirs were taken")
    assert hostile
    assert max(rss) < _MAX_DAEMON_BYTES
