"""A daemon that only speaks: the control socket, feed and lock, over a journal in a list."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Self

import msgpack
import zmq

from sidestep.proto.paths import RuntimePaths

Row = tuple[str, list[str], int, float, list[float]]  # run, tags, step, wall time, values


class FakeDaemon:
    """Serves what is in `journal`, which outlives it as the real one's does."""

    def __init__(
        self, paths: RuntimePaths, journal: list[Row] | None = None, status_every_s: float = 0.1
    ) -> None:
        self.paths = paths
        self.journal: list[Row] = [] if journal is None else journal
        self.daemon_id = int.from_bytes(os.urandom(4), "big") + 1
        self.status_every_s = status_every_s
        self.runs: list[dict[str, Any]] = []
        self.gpus: list[dict[str, Any]] = []
        self.host: dict[str, Any] = {}
        self.mute = False  # as a stopped process: it holds its lock and says nothing
        self.publishing = True  # False: rows are journalled, and the feed loses them
        self.unanswered: set[str] = set()
        self.drain_replies: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._todo: queue.SimpleQueue[Callable[[zmq.Socket[bytes]], None] | None]
        self._todo = queue.SimpleQueue()
        self._wake = os.eventfd(0)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fake daemon")
        self._lock = -1

    # --- life --------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        os.makedirs(self.paths.directory, mode=0o700, exist_ok=True)
        self._lock = os.open(self.paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        deadline = time.monotonic() + 5
        while True:  # whoever asks whether we are there holds it for a moment
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
        said = {
            "pid": os.getpid(),
            "version": "1.2.3",
            "endpoint": self.paths.data_endpoint,
            "control": self.paths.control_endpoint,
            "feed": self.paths.feed_endpoint,
            "state_dir": "/state",
            "daemon_id": self.daemon_id,
        }
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps(said).encode(), 0)
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Vanish at once, as from SIGKILL."""
        if self._lock < 0:
            return
        self._do(None)
        self._thread.join(5)
        assert not self._thread.is_alive()
        os.close(self._wake)
        os.close(self._lock)
        self._lock = -1

    # --- what a test does ----------------------------------------------------------------------

    def emit(self, run: str, values: Mapping[str, float], step: int, wall_time: float = 0.0) -> int:
        """Journal and publish; returns the row."""
        row: Row = (run, list(values), step, wall_time or time.time(), list(values.values()))
        self.journal.append(row)
        number = len(self.journal)
        if self.publishing:
            self._do(lambda feed: self._publish(feed, number, row))
        return number

    def wait_for(self, what: Callable[[], bool], timeout_s: float = 15.0) -> None:
        """Wait until `what` holds, looking after each request."""
        with self._changed:
            assert self._changed.wait_for(what, timeout_s), f"never came; asked: {self.requests}"

    def asked(self, op: str) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["op"] == op]

    def wait_for_followers(self, many: int = 1) -> None:
        """Wait until so many tails of this daemon have been proven to get its feed."""
        self.wait_for(
            lambda: sum(one["after"] is not None for one in self.asked("history")) >= many
        )

    def status(self) -> dict[str, Any]:
        return {
            "daemon": {
                "pid": os.getpid(),
                "version": "1.2.3",
                "state": "serving",
                "endpoint": self.paths.data_endpoint,
                "uptime_s": 3725.0,
                "state_dir": "/state",
                "daemon_id": self.daemon_id,
            },
            "runs": self.runs,
            "gpus": self.gpus,
            "host": self.host,
        }

    def break_feed(self) -> None:
        """Publish what no follower understands."""
        self._do(lambda feed: feed.send_multipart([b"\0status", b"\xc1"]))

    # --- the thread ----------------------------------------------------------------------------

    def _do(self, what: Callable[[zmq.Socket[bytes]], None] | None) -> None:
        self._todo.put(what)
        os.eventfd_write(self._wake, 1)

    def _serve(self) -> None:
        with zmq.Context() as context:
            control, feed = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
            for socket in (control, feed):
                socket.setsockopt(zmq.LINGER, 0)
            control.bind(self.paths.control_endpoint)
            feed.bind(self.paths.feed_endpoint)
            poller = zmq.Poller()
            poller.register(control, zmq.POLLIN)
            poller.register(self._wake, zmq.POLLIN)
            self._ready.set()
            try:
                self._loop(poller, control, feed)
            finally:
                control.close(0)
                feed.close(0)

    def _loop(
        self, poller: zmq.Poller, control: zmq.Socket[bytes], feed: zmq.Socket[bytes]
    ) -> None:
        next_status = 0.0
        while True:
            left = max(0.0, next_status - time.monotonic())
            ready = dict(poller.poll(int(left * 1000) + 1))
            if self._wake in ready:
                os.eventfd_read(self._wake)
                while not self._todo.empty():
                    what = self._todo.get()
                    if what is None:
                        return
                    what(feed)
            if control in ready and not self.mute:
                *envelope, question = control.recv_multipart()
                self._answer(control, envelope, json.loads(question))
            if time.monotonic() >= next_status:
                next_status = time.monotonic() + self.status_every_s
                if not self.mute:
                    feed.send_multipart([b"\0status", msgpack.packb({"status": self.status()})])

    def _answer(
        self, control: zmq.Socket[bytes], envelope: list[bytes], request: dict[str, Any]
    ) -> None:
        with self._changed:
            self.requests.append(request)
            if request["op"] not in self.unanswered:
                reply = json.dumps(self._reply(request)).encode()
                control.send_multipart([*envelope, reply])
            self._changed.notify_all()

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["op"]:
            case "status":
                return self.status()
            case "history":
                return self._history(request)
            case "drain":
                return self.drain_replies.pop(0)
            case op:
                return {"error": f"no such operation: {op!r}"}

    def _history(self, request: dict[str, Any]) -> dict[str, Any]:
        rows = list(enumerate(self.journal, 1))
        run = request["run"]
        after = request["after"]
        points = [
            point
            for number, row in rows
            if after is None or number > after
            for point in _points(row, request["tags"])
            if run in (None, row[0])
        ]
        if after is None:
            points = _newest(points, request["points"])
        states = [{"run": one["run"], "state": one["state"]} for one in self.runs]
        return {
            "daemon_id": self.daemon_id,
            "row": len(rows),
            "run": run,
            "points": points,
            "runs": states,
        }

    def _publish(self, feed: zmq.Socket[bytes], number: int, row: Row) -> None:
        run, tags, step, wall_time, values = row
        message = {
            "run": run,
            "row": number,
            "daemon_id": self.daemon_id,
            "scalars": [[tags, [step], [wall_time], [values]]],
        }
        if not self.mute:
            feed.send_multipart([run.encode() + b"\0", msgpack.packb(message)])


def _points(row: Row, globs: Iterable[str]) -> list[dict[str, Any]]:
    run, tags, step, wall_time, values = row
    globs = list(globs)
    return [
        {"run": run, "tag": tag, "step": step, "wall_time": wall_time, "value": value}
        for tag, value in zip(tags, values, strict=True)
        if not globs or any(fnmatchcase(tag, glob) for glob in globs)
    ]


def _newest(points: list[dict[str, Any]], many: int) -> list[dict[str, Any]]:
    """The newest `many` of each tag, oldest first."""
    seen: dict[str, int] = {}
    kept: list[dict[str, Any]] = []
    for point in reversed(points):
        seen[point["tag"]] = seen.get(point["tag"], 0) + 1
        if seen[point["tag"]] <= many:
            kept.append(point)
    return kept[::-1]


def run_status(run: str, state: str = "running", **more: Any) -> dict[str, Any]:
    """A run as `status` describes it."""
    return {
        "run": run,
        "state": state,
        "last_step": 0,
        "alarm": None,
        "clients": 1,
        "records": {"durable": 0, "held": 0, "dropped": 0, "rejected": 0},
        "sinks": [],
        **more,
    }
