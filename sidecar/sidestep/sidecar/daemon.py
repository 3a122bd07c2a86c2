"""The daemon: wires ingest, sinks, deriver, feed and samplers, and knows when to leave."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import zmq

from sidestep.proto.paths import RuntimePaths, outbox_dirs

from . import listening
from .backlog_cap import BacklogCap
from .book_metrics import BookMetrics
from .config import SidecarSettings, wanted_by
from .control.drain import Drain
from .control.requests import Control
from .derive.deriving import Deriving, underived
from .exposing import Exposing
from .forwarding.books import BooksTelling
from .ingest.thread import Ingest
from .journal.check import count_put_aside
from .journal.reader import JournalReader
from .journal.writer import Journal
from .live.feed import Feed
from .peers import descriptors
from .peers.observers import control_door, feed_door
from .samplers.sampled import Sampled
from .samplers.sampling import Sampling
from .service.lock import DaemonLock, held, lock_places
from .service.progress import Progress
from .service.service_manager import ServiceManager
from .supervision.rewinding import rewind
from .supervision.supervisor import SinkHandle, Supervisor
from .trimming import Trimming

_TICK_MS: Final = 100
_READY_S: Final = 30.0
_CLOSE_S: Final = 3.0
"""What a sink's worker gets to close its files, also when nobody wants to wait."""
_REAP_S: Final = 0.1
_FIRST_CLIENT_S: Final = 20.0
"""How long a daemon that a client started waits for its first client."""


class Daemon:
    """One per node and user. Construct, `start`, `serve`.

    Args:
        paths: the runtime directory.
        settings: the configuration.
        leave_when_idle: end after the last client has gone and everything is written.
        version: this program's version.
        log: says something to the log.
        manager: hears when this daemon is ready, alive and stopping.
    """

    def __init__(
        self,
        paths: RuntimePaths,
        settings: SidecarSettings,
        *,
        leave_when_idle: bool,
        version: str,
        log: Callable[[str], None],
        manager: ServiceManager | None = None,
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._leave_when_idle = leave_when_idle
        self._version = version
        self._log = log
        self._started = time.monotonic()
        self._manager = manager or ServiceManager({}, log)
        self._progress = Progress(self._manager)
        self._state = "starting"
        self._lock = DaemonLock(paths)
        self._state_dir = str(settings.state_dir)
        self._journal_path = os.path.join(self._state_dir, "journal.sqlite")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._idle_since: float | None = None
        self._stop_by: float | None = None
        self._stop_drain: Drain | None = None
        self._had_client = False
        self._damaged_journals = 0
        self._signals: deque[int] = deque()

    # --- beginning -------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the journal, listen, and say so in the lock.

        Raises:
            SidestepError, OSError, sqlite3.Error, zmq.ZMQError: it cannot work like this.
        """
        files = descriptors.raise_limit()
        observers = descriptors.observers(files)
        umask = os.umask(0o077)
        cursors = os.path.join(self._state_dir, "cursors")
        os.makedirs(cursors, mode=0o700, exist_ok=True)
        self._places = lock_places(self._state_dir, self._settings.endpoint, self._paths)
        outboxes = outbox_dirs(self._paths, self._state_dir, os.getuid())
        self._ingest = Ingest(
            listening.endpoints(self._settings, self._paths),
            self._open_journal,
            outboxes,
            listening.limits(self._settings, files, self._log),
            os.path.join(self._state_dir, "quarantine"),
            self._committed,
            self._log,
            listening.tcp_door(self._settings, self._context, self._log),
        )
        self._feed: Feed | None = None
        self._ingest.start()
        if not self._ingest.ready.wait(_READY_S):
            raise TimeoutError(f"the journal {self._journal_path} did not open in {_READY_S} s")
        if self._ingest.failed is not None:
            raise self._ingest.failed
        self._reader = JournalReader(self._journal_path)
        self._supervisor = Supervisor(
            self._journal_path,
            self._reader.identity(),
            cursors,
            umask,
            self._log,
            self._reader.beginning,
            wanted=wanted_by(self._settings),
            deadline_s=self._settings.worker_deadline_s,
            on_alarm=self._ingest.submit,
        )
        self._books_telling = BooksTelling(self._supervisor)
        cap = BacklogCap(self._reader, self._settings.wandb_backlog_mb << 20, self._log)
        self._trimming = Trimming(self._supervisor, cap, self._ingest.trim, self._log)
        self._deriving = Deriving(
            self._journal_path,
            self._settings.alarms,
            self._ingest.submit,
            self._log,
            self._settings.reduce_timeout_s,
        )
        self._sampling = Sampling(
            self._settings.sample_interval_s, self._ingest.submit, socket.gethostname(), outboxes
        )
        self._sampled = Sampled(passes_on=self._settings.forward_to is not None)
        self._books = BookMetrics(self._settings.sample_interval_s, self._ingest.submit)
        self._control = Control(
            control_door(self._paths.control_endpoint, observers, self._log),
            self._reader,
            self._ingest,
            self._supervisor,
            self.about,
            self._sampling.status,
            lambda now: self._begin_stop(now=now, by_user=True),
        )
        self._exposing = Exposing(
            self._journal_path, self._supervisor, self.about, self._sampling.status, self._log
        )
        self._exposing.start(self._settings)
        self._feed = Feed(
            partial(feed_door, self._paths.feed_endpoint, observers, self._log),
            self._journal_path,
            self._ingest.daemon_id,
            self._control.status,
            self._control.run_names,
            self._log,
        )
        self._feed.rows(self._ingest.snapshot.last_row)
        self._feed.start()
        self._state = "running"
        _remove(self._paths.stopped)
        self._lock.announce(
            {
                **self.about(),
                "control": self._paths.control_endpoint,
                "feed": self._paths.feed_endpoint,
            }
        )

    def _open_journal(self) -> Journal:
        journal = Journal(
            self._journal_path,
            full_sync=self._settings.journal_sync == "full",
            history_bytes=self._settings.history_mb << 20,
            log=self._log,
        )
        rewind(os.path.join(self._state_dir, "cursors"), journal, self._log)
        self._damaged_journals = count_put_aside(self._journal_path)
        return journal

    # --- the loop --------------------------------------------------------------------------------

    def serve(self) -> None:
        """Work until stopped, by a signal, by a request, or because nobody is left."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)
        self._manager.ready(f"serving at {self._paths.data_endpoint}")
        try:
            while not self._over():
                self._once()
        finally:
            self._close()

    def _once(self) -> None:
        poller = zmq.Poller()
        heard: dict[int, Callable[[], None]] = {
            self._wake_read: self._drain_wake,
            self._control.fileno(): self._control.answer,
        }
        for sink in self._supervisor.children():
            heard[sink.child.fileno()] = partial(self._hear_sink, sink)
        if self._deriving.fileno() >= 0:
            heard[self._deriving.fileno()] = self._deriving.hear
        if self._sampling.fileno() >= 0:
            heard[self._sampling.fileno()] = self._sampling.hear
        if self._exposing.fileno() >= 0:
            heard[self._exposing.fileno()] = lambda: self._exposing.hear(self._ingest.snapshot)
        for fd in heard:
            poller.register(fd, zmq.POLLIN)
        for ready, _ in poller.poll(_TICK_MS):
            heard[cast("int", ready)]()
        self._tick()

    def _hear_sink(self, sink: SinkHandle) -> None:
        self._supervisor.hear(sink, self._ingest.snapshot)

    def _tick(self) -> None:
        self._obey()
        self._progress.see(self._ingest.rounds)
        self._control.answer()  # nobody may ask, but some may have left
        snapshot = self._ingest.snapshot
        live = self._ingest.snapshot.live_runs()
        if live:
            self._had_client = True
            self._sampling.start()
        self._supervisor.tick(snapshot, {run.id for run, _ in live})
        self._deriving.tick(snapshot)
        self._sampling.tick(self._sampled.of(snapshot))
        if self._settings.forward_to:
            self._books_telling.tick(snapshot)
        else:
            self._books.tick(live, snapshot, self._supervisor)
        self._trimming.tick(snapshot)
        self._exposing.tick()
        self._control.advance()
        if self._supervisor.journal_damage:
            self._ingest.condemn(self._supervisor.journal_damage)
        if not self._ingest.is_alive() and self._stop_by is None:
            self._log("ingest has ended unexpectedly; the daemon leaves")
            self._stop_by = 0.0

    def about(self) -> dict[str, Any]:
        """Who this daemon is."""
        return {
            "pid": os.getpid(),
            "version": self._version,
            "endpoint": self._settings.endpoint or self._paths.data_endpoint,
            "state_dir": self._state_dir,
            "state": self._state,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "stalled_s": self._progress.stalled_s(),
            "daemon_id": self._ingest.daemon_id,
            "underivable": self._deriving.refused,
            "damaged_journals": self._damaged_journals,
            "prometheus": self._exposing.about(),
        }

    # --- leaving ---------------------------------------------------------------------------------

    def _signalled(self, number: int, _frame: object) -> None:
        # Noted, and no more: whatever the loop is in the middle of must not change under it.
        self._signals.append(number)
        self._wake()

    def _obey(self) -> None:
        while self._signals:
            # The second signal is from somebody who does not want to wait.
            number = self._signals.popleft()
            self._begin_stop(now=self._stop_by is not None, by_user=number == signal.SIGTERM)

    def _begin_stop(self, *, now: bool, by_user: bool) -> None:
        if self._state == "running":
            self._log("stopping" if now else "stopping: what is journalled is written first")
        self._state = "stopping"
        timeout = 0.0 if now else self._settings.drain_timeout_s
        self._stop_by = time.monotonic() + timeout
        self._manager.stopping(timeout)
        if by_user and self._ingest.snapshot.live_runs():
            # Clients that run on would start another daemon at once.
            try:
                os.close(os.open(self._paths.stopped, os.O_WRONLY | os.O_CREAT, 0o600))
            except OSError as error:
                self._log(f"clients may start another daemon: {error}")
        if self._stop_drain is None and not now:
            self._stop_drain = self._control.new_drain()[1]

    def _over(self) -> bool:
        if self._stop_by is not None:
            drain = self._stop_drain
            over = drain is not None and (drain.done or drain.failed is not None)
            return over or time.monotonic() >= self._stop_by
        return self._leave_when_idle and self._idle()

    def _idle(self) -> bool:
        """Whether nobody needs this daemon any more, for a while already."""
        now = time.monotonic()
        snapshot = self._ingest.snapshot
        patience = self._settings.idle_s if self._had_client else _FIRST_CLIENT_S
        behind = any(self._supervisor.is_busy(sink, snapshot) for sink in self._supervisor.sinks())
        deriving = any(underived(run) for run in snapshot.runs.values())
        busy = snapshot.live_runs() or behind or deriving or snapshot.adopting
        wanted = busy or held(self._paths.holders)
        self._had_client = self._had_client or bool(wanted)
        if wanted:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        return self._idle_since is not None and now - self._idle_since > patience

    def _close(self) -> None:
        self._state = "stopping"
        self._manager.stopping(0.0)
        self._ingest.stop()
        if self._feed is not None:
            self._feed.stop()
            self._feed.join(2.0)
        self._ingest.join(10.0)
        live = {run.id for run, _ in self._ingest.snapshot.live_runs()}
        for sink in self._supervisor.children():
            sink.closing = True
            sink.child.tell({"op": "close", "finished": sink.run_id not in live})
        self._await_closed(max(_CLOSE_S, (self._stop_by or 0.0) - time.monotonic()))
        self._deriving.kill()
        self._exposing.kill()
        self._sampling.stop()
        self._control.close()
        self._reader.close()
        self._context.destroy(linger=0)
        for lock in (*self._places, self._lock):
            lock.release()
        self._manager.close()
        self._log("stopped")

    def _await_closed(self, timeout_s: float) -> None:
        """Wait for the workers, which were told to close; another signal ends the waiting."""
        deadline = time.monotonic() + timeout_s
        for sink in list(self._supervisor.children()):
            while not sink.child.reap(_REAP_S):
                if self._signals:
                    deadline = min(deadline, time.monotonic() + _CLOSE_S)
                    self._signals.clear()
                if time.monotonic() >= deadline:
                    self._log(f"{sink.name} of run {sink.spec.name!r} did not close: killed")
                    sink.child.kill()
                    break

    # --- other threads call these ----------------------------------------------------------------

    def _committed(self, newest: int) -> None:
        if self._feed is not None:
            self._feed.rows(newest)
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # it is awake

    def _drain_wake(self) -> None:
        os.read(self._wake_read, 65536)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
