"""Asks the daemon over its control socket, and knows without asking whether there is one.

A daemon is there as long as it holds the lock on `paths.lock`, however it dies; the text of the
lock says who it is. A request is one frame of JSON, as is its reply, and every request has a time
after which it is given up: a stopped or overloaded daemon hangs nobody.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import zmq

from sidestep.proto.paths import RuntimePaths

from .common import CommandError

_PROBE_EVERY_S: Final = 0.1
"""While a request waits, how often to look whether the daemon is still there."""


class NoDaemonError(CommandError):
    """There is no daemon, or it left before it answered."""


class NoAnswerError(CommandError):
    """There is a daemon, and it did not answer in time."""


class RefusedError(CommandError):
    """The daemon answered that it cannot do this; the message is its sentence."""


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """What the daemon's lock says of it; 0 and "" while it is only just starting."""

    pid: int = 0
    version: str = ""
    endpoint: str = ""
    state_dir: str = ""
    daemon_id: int = 0


class Request:
    """One question on its way: a socket of its own, so that no late reply is taken for another's.

    The socket can be polled together with others; `close` abandons the question.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, fields: Mapping[str, object]
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        # A daemon that is only just starting binds its socket a moment after it takes the lock.
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.connect(endpoint)
        self.socket.send(json.dumps(dict(fields)).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the question."""
        self.socket.close(linger=0)

    def reply(self) -> dict[str, Any]:
        """The answer, which the socket's readiness announced.

        Raises:
            RefusedError: the daemon says why it cannot.
        """
        answer: object = json.loads(self.socket.recv_multipart()[-1])
        if not isinstance(answer, dict):
            raise RefusedError("the daemon's answer is no JSON object: is it of another version?")
        if answer.get("error"):
            raise RefusedError(f"the daemon says: {answer['error']}")
        return answer


class Control:
    """The daemon of one runtime directory, as seen from outside. Holds nothing open.

    Args:
        paths: where the daemon's lock and sockets are.
    """

    def __init__(self, paths: RuntimePaths) -> None:
        self.paths = paths

    def daemon(self) -> DaemonInfo | None:
        """Who the daemon is, or None. Takes microseconds and asks nobody."""
        try:
            lock = os.open(self.paths.lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CommandError(
                f"cannot look into the runtime directory {self.paths.directory!r}: "
                f"{error.strerror}. Set SIDESTEP_RUNTIME_DIR to the one that your daemon uses"
            ) from error
        try:
            # A shared lock is had by all who ask at once, and refused while a daemon lives.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            who = parse_info(os.pread(lock, 1 << 16, 0))
            # Until the new holder has written its name, a dead one's stands there.
            return who if _is_alive(who.pid) else DaemonInfo()
        else:
            return None
        finally:
            os.close(lock)

    def request(self, op: str, timeout_s: float = 2.0, **fields: object) -> dict[str, Any]:
        """Ask, and wait at most `timeout_s` for the answer.

        Raises:
            NoDaemonError: nobody is there to answer, or not any more.
            NoAnswerError: the daemon is there and silent.
            RefusedError: the daemon says that it cannot.
        """
        deadline = time.monotonic() + timeout_s
        who = self._present()
        with zmq.Context() as context, self.open(context, op, **fields) as request:
            while (left := deadline - time.monotonic()) > 0:
                if request.socket.poll(int(min(left, _PROBE_EVERY_S) * 1000) + 1):
                    return request.reply()
                who = self._present()
        raise NoAnswerError(
            f"the daemon (pid {who.pid}) did not answer within {timeout_s:g} s. It is stopped or "
            f"overloaded: `ps -o stat,time,cmd -p {who.pid}` shows it (T: stopped; `kill -CONT "
            f"{who.pid}` wakes it), and {self.paths.log} may say why"
        )

    def open(self, context: zmq.Context[zmq.Socket[bytes]], op: str, **fields: object) -> Request:
        """Ask without waiting; the caller polls `Request.socket` and closes it."""
        return Request(context, self.paths.control_endpoint, {"op": op, **fields})

    def _present(self) -> DaemonInfo:
        who = self.daemon()
        if who is None:
            raise NoDaemonError(
                f"no daemon is running in {self.paths.directory}. `sidestep start` starts one; so "
                "does training that calls `client.connect`"
            )
        return who


def parse_info(text: bytes) -> DaemonInfo:
    """What a daemon says of itself, in its lock or in answer to ``hello``."""
    try:
        said: object = json.loads(text)
    except ValueError:
        said = None  # it has the lock and has not yet written its name
    if not isinstance(said, dict):
        return DaemonInfo()
    numbers = {key: said[key] for key in ("pid", "daemon_id") if isinstance(said.get(key), int)}
    names = {
        key: said[key]
        for key in ("version", "endpoint", "state_dir")
        if isinstance(said.get(key), str)
    }
    return DaemonInfo(**numbers, **names)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid > 0
