"""`sidestep tail`: listens to the daemon's feed, asks for what it missed, and shows both."""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import Annotated, Any, Final, NoReturn

import msgpack
import typer
import zmq

from .common import CommandError, environment_paths
from .completion import complete_run
from .control_client import Control, Request
from .follow import STATUS_TOPIC, Block, Follower
from .options import TagsOption
from .tail_model import Presence
from .tail_output import LineOutput, Output, json_lines, note, plain_lines

_TABLE_HISTORY: Final = 100
"""Points of each tag that the table begins with, so that its trends are trends at once."""

_QUIET_S: Final = 1.3
"""A status comes every second: after this time the lock is asked whether the daemon is there."""
_SILENT_S: Final = 3.0
_PROBE_EVERY_S: Final = 0.25
_HISTORY_TIMEOUT_S: Final = 10.0

_FEED_HWM: Final = 200
"""Messages of the feed kept while we are busy: a burst of seconds, at most 200 MB."""
_BURST: Final = 64
"""Messages taken between two looks at everything else."""


class Tail:
    """The loop between the daemon's sockets and an output. One thread, two sockets.

    Args:
        control: the daemon.
        follower: decides what is new.
        output: shows it.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        control: Control,
        follower: Follower,
        output: Output,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._follower = follower
        self._output = output
        self._clock = clock
        self._presence: Presence = "there"
        self._heard_at = clock()
        self._probed_at = -_PROBE_EVERY_S
        self._request: Request | None = None
        self._request_deadline = 0.0
        self._poller = zmq.Poller()

    def loop(self, reader: int | None = None) -> None:
        """Follow until whoever reads the file descriptor `reader` has gone.

        Raises:
            CommandError: the daemon speaks another language.
        """
        if reader is not None:
            self._poller.register(reader, zmq.POLLERR)
        if self._output.keys is not None:
            self._poller.register(self._output.keys, zmq.POLLIN)
        with zmq.Context() as context:
            while True:
                with self._subscribed(context) as feed:
                    try:
                        self._look_for_daemon()
                        chosen = self._until_chosen(context, feed, reader)
                    finally:
                        self._drop_request()
                if chosen is None:
                    return
                self._follower.follow(chosen)
                self._output.run(chosen)

    def _until_chosen(
        self, context: zmq.Context[zmq.Socket[bytes]], feed: zmq.Socket[bytes], reader: int | None
    ) -> str | None:
        """Follow until the user wants to see another run, which is returned; None: nobody reads."""
        while True:
            self._ask(context)
            wait_s = min(self._output.tick(), _PROBE_EVERY_S)
            ready = dict(self._poller.poll(max(1, math.ceil(wait_s * 1000))))
            if reader is not None and ready.get(reader):
                return None
            if (keys := self._output.keys) is not None and keys in ready:
                self._output.read_keys()
                if self._output.keys != keys:
                    self._poller.unregister(keys)
                if (chosen := self._output.chosen()) is not None:
                    return chosen
            if feed in ready:
                self._read_feed(feed)
            if self._request is not None and self._request.socket in ready:
                self._read_history(self._request)
            self._output.missed(self._follower.missed)
            self._look_for_daemon()

    @contextmanager
    def _subscribed(self, context: zmq.Context[zmq.Socket[bytes]]) -> Generator[zmq.Socket[bytes]]:
        feed = context.socket(zmq.SUB)
        try:
            feed.setsockopt(zmq.LINGER, 0)
            feed.setsockopt(zmq.RCVHWM, _FEED_HWM)
            for topic in self._follower.topics:
                feed.setsockopt(zmq.SUBSCRIBE, topic)
            feed.connect(self._control.paths.feed_endpoint)
            self._poller.register(feed, zmq.POLLIN)
            yield feed
        finally:
            if feed in self._poller:
                self._poller.unregister(feed)
            feed.close(linger=0)

    # --- what comes in -----------------------------------------------------------------------

    def _read_feed(self, feed: zmq.Socket[bytes]) -> None:
        self._heard_at = self._clock()
        self._set_presence("there")
        for _ in range(_BURST):
            try:
                topic, payload = feed.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message: dict[str, Any] = msgpack.unpackb(payload, unicode_errors="replace")
                if topic == STATUS_TOPIC:
                    self._follower.on_status(message["status"], message.get("totals") or ())
                    self._output.status(message["status"])
                else:
                    self._show(self._follower.on_feed(message))
            except (KeyError, TypeError, ValueError) as error:
                raise CommandError(_FOREIGN.format("feed", error)) from error
            self._output.run(self._follower.run)

    def _read_history(self, request: Request) -> None:
        reply = request.reply()
        self._drop_request()
        try:
            blocks = self._follower.on_history(reply)
        except (KeyError, TypeError, ValueError) as error:
            raise CommandError(_FOREIGN.format("history", error)) from error
        self._show(blocks)

    def _show(self, blocks: list[Block]) -> None:
        self._output.run(self._follower.run)
        began = self._clock()
        self._output.add(blocks)
        # Whoever reads us may have made us wait: that was not the daemon's silence.
        self._heard_at += self._clock() - began

    # --- what is asked -----------------------------------------------------------------------

    def _ask(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        if self._request is not None:
            if self._clock() < self._request_deadline:
                return
            self._drop_request()
        if self._presence == "there" and (fields := self._follower.request()) is not None:
            self._request = self._control.open(context, "history", **fields)
            self._request_deadline = self._clock() + _HISTORY_TIMEOUT_S
            self._poller.register(self._request.socket, zmq.POLLIN)

    def _drop_request(self) -> None:
        if self._request is not None:
            self._poller.unregister(self._request.socket)
            self._request.close()
            self._request = None

    # --- whether there is a daemon -----------------------------------------------------------

    def _look_for_daemon(self) -> None:
        now = self._clock()
        first = self._probed_at < 0
        if not first and (
            now - self._heard_at < _QUIET_S or now - self._probed_at < _PROBE_EVERY_S
        ):
            return
        self._probed_at = now
        if self._control.daemon() is None:
            self._set_presence("absent")
        elif self._presence == "absent":
            self._heard_at = now  # it has only just started: give it time to say something
            self._set_presence("there")
        elif now - self._heard_at >= _SILENT_S:
            self._set_presence("silent")

    def _set_presence(self, presence: Presence) -> None:
        if presence == self._presence:
            return
        self._presence = presence
        if presence == "absent":
            self._drop_request()
            self._follower.on_absence()
        elif presence == "silent":
            self._follower.on_silence()
        self._output.presence(presence)


_FOREIGN: Final = (
    "the daemon's {} is not what this version understands ({!r}). `sidestep status` shows the "
    "daemon's version; restart it with `sidestep stop` and `sidestep start`"
)


def tail(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            show_default=False,
            autocompletion=complete_run,
            help="The run to watch; it need not exist yet. Without a name: the most recently "
            "active one, and when that is over, the next one that logs something.",
        ),
    ] = None,
    tags: TagsOption = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line, for pipes: all points, not a table."),
    ] = False,
    history: Annotated[
        int | None,
        typer.Option(
            "--history",
            "-n",
            metavar="N",
            min=0,
            show_default=False,
            help="Begin with the newest N points of each tag that the daemon still holds. "
            f"Default: {_TABLE_HISTORY} in the table, 0 in lines.",
        ),
    ] = None,
) -> None:
    """Watch a run's metrics as they come.

    In a terminal: a live table with each tag's last value, its trend since the beginning, step,
    points a second, and age; above it the run's state and how long it has left, alarms, drops, how
    far behind each sink is, and the GPUs. The key ? shows what the others do: / filters, the space
    bar pauses, n and p go to other runs, q leaves.

    In a pipe: lines of step, tag and value. With --json each line is an object with the keys run,
    tag, step, wall_time (seconds) and value (the exact float64; NaN, Infinity and -Infinity as
    Python's json writes and reads them). Every point comes once, across a restart of the daemon,
    too; a reader that is too slow misses points, and delays nobody: stderr says how many records,
    and `sidestep export` has them.

    Waits for a daemon or a run that is not there yet. Exit code 0 when you leave.
    """
    control = Control(environment_paths())
    table = not json and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    follower = Follower(
        run or None,
        tags or (),
        history if history is not None else (_TABLE_HISTORY if table else 0),
    )
    try:
        if table:
            from .tail_table import TableOutput

            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, _leave)
            with closing(TableOutput()) as output:
                Tail(control, follower, output).loop(sys.stdout.fileno())
        else:
            line = json_lines if json else plain_lines
            with closing(LineOutput(sys.stdout.buffer, line, note, run)) as output:
                Tail(control, follower, output).loop(sys.stdout.fileno())
    except KeyboardInterrupt:
        pass  # the ordinary end of watching
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # the reader, or the terminal, has gone
            raise
        _forget_stdout()


def _leave(number: int, _frame: object) -> NoReturn:
    """Let the terminal be given back first."""
    raise SystemExit(128 + number)


def _forget_stdout() -> None:
    """Nobody reads any more: what is still buffered goes nowhere, without a complaint at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
