"""The `Client`: takes what the trainer emits, and looks after everything behind it.

The common case, a dict of plain numbers under tags that were seen before, takes the short way:
one look-up of the tuple of tags, one check of the types, one pack into shared memory. Everything
else (tensors, values, new tags, what is wrong) takes the long way through `sorting`.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from struct import error as struct_error
from typing import Any, Final, Literal, Self

from sidestep.proto import Alarm, Books, ClientSession, Hello
from sidestep.proto.session import ClientState

from . import outboxes
from .alarms import Alarms
from .books import Stats, Totals
from .checks import check_reduce, nanoseconds, step_number
from .cost import EmitCost
from .cuda import device_uuids
from .launch import Launcher
from .outbox import Outbox, OutboxClosedError
from .ranks import Ranks
from .rejections import Rejections
from .renders import Renders
from .sender import Sender
from .settings import Settings
from .sorting import Sorter
from .stages import Stages
from .step_time import StepTime
from .values import InvalidValueError

logger = logging.getLogger("sidestep")

_BLOCK_S: Final = 60.0
_POLL_S: Final = 0.002
_AT_EXIT_S: Final = 5.0
_NO_STEP: Final = -1  # the next one is 0

Reduce = Literal["mean", "sum", "min", "max", "spread"]


class Client:
    """A connection of this process to the node's daemon. Made by `connect`; thread-safe.

    A process forked from one that has a client inherits an object that counts and does nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._live = False
        self._done = settings.disabled
        self._unheard = 0
        self._last_step = _NO_STEP
        self._alarms = Alarms()
        self._final: Stats | None = Stats() if settings.disabled else None
        self._block = settings.on_full == "block"
        self._ranks = Ranks(settings.rank, settings.world_size > 1, settings.ranks == "all")
        if not settings.disabled:
            self._start()

    def _start(self) -> None:
        settings = self._settings
        hello = Hello(
            uuid=uuid.uuid4().bytes,
            instance=secrets.randbits(62),
            connection=0,
            run=settings.run,
            rank=settings.rank,
            world_size=settings.world_size,
            attempt=settings.attempt,
            pid=os.getpid(),
            host=socket.gethostname(),
            device_uuids=device_uuids(),
        )
        nbytes = self._ranks.outbox_bytes(settings.outbox_bytes)
        self._memory = outboxes.create(settings, nbytes, hello)
        self._outbox = Outbox(self._memory.layout, self._ranks.prefix)
        self._rejections = Rejections(self._outbox.count_rejected)
        self._stages = Stages(self._outbox.count_lost)
        self._renders = Renders(self._outbox)
        self._sorter = Sorter(
            self._outbox,
            self._stages,
            self._renders,
            self._rejections,
            self._ranks,
            self._await_room,
        )
        # What the short way looks at, within reach.
        self._plans = self._outbox.tag_sets.plans
        self._packable = self._sorter.packable
        self._put_scalars = self._outbox.put_scalars
        self._devices = self._stages.devices
        self._cost = EmitCost()
        self._steps = StepTime()
        self._sender = Sender(
            ClientSession(self._memory.layout.hello(), _jitter),
            self._outbox,
            settings.endpoint,
            self._books,
            self._launcher(),
            self._alarms.hear,
            self._housekeeping,
            settings.keys,
        )
        self._live = True
        _living.add(self)
        self._sender.start()

    def _launcher(self) -> Launcher | None:
        settings = self._settings
        if not settings.autostart or not settings.endpoint.startswith("ipc://"):
            return None
        environ = {**os.environ, "SIDESTEP_RUNTIME_DIR": settings.paths.directory}
        if settings.endpoint != settings.paths.data_endpoint:
            environ["SIDESTEP_ENDPOINT"] = settings.endpoint
        return Launcher(settings.paths, environ)

    @property
    def run(self) -> str:
        """The run's name, also where nobody gave one."""
        return self._settings.run.name

    @property
    def log_dir(self) -> str:
        """The absolute path of the directory where the run's files go."""
        return self._settings.run.log_dir

    # --- the trainer's calls -----------------------------------------------------------------

    def emit(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        wall_time: float | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        """Hand over values; returns at once, whatever the daemon, the disk or the network do.

        Args:
            values: tag to int, float, bool, numpy scalar, 0-d tensor on any device, or `Value`.
                Tags have 1 to 1,024 bytes. Numbers travel as float64.
            step: training step, a signed 64-bit integer; None takes the last one plus 1.
            wall_time: seconds since the epoch; None takes now.
            reduce: how the ranks of a job are put together, by the daemon: ``"mean"``, ``"sum"``,
                ``"min"``, ``"max"``, or ``"spread"``: the mean, and `_std _min _max` beside it.
                With one rank values are as they are. All ranks emit the same tags and steps.

        Raises:
            InvalidValueError: only when strict, after everything else was handed over.
        """
        if not self._live:
            self._count_unheard(values)
            return
        if self._cost.wanted:
            with self._cost:
                self.emit(values, step, wall_time=wall_time, reduce=reduce)
            return
        try:
            if self._devices:
                self._stages.collect()
            if type(step) is int and type(values) is dict and wall_time is None and reduce is None:
                numbers = values.values()
                # With no call between these two, or another thread could change the dict there.
                tags = (*values,)
                row = (*numbers,)
                tag_set = self._plans.get(tags)
                if tag_set is not None and self._packable.issuperset(map(type, row)):
                    if self._block:
                        self._await_room(tag_set.size)
                    try:
                        self._put_scalars(tag_set, step, time.time_ns(), row)
                    except (struct_error, OverflowError):
                        pass  # beyond float64, or beyond 64 bits: the long way says what
                    else:
                        self._last_step = step
                        return
            error = self._emit_checked(values, step, wall_time, reduce)
        except OutboxClosedError:
            self._count_unheard(values)
            return
        except Exception as failure:  # noqa: BLE001 - nothing in here may reach the trainer
            error = self._rejections.note_error("emit", failure)
        if error is not None and self._settings.strict:
            raise error

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was emitted is durable in the daemon, at most `timeout` seconds.

        What was dropped is counted in `stats`, and not waited for.

        Returns:
            True when it is; False at the timeout, and where nothing can be sent (in a forked
            process, in a signal handler that interrupted an `emit`). True when disabled.
        """
        if not self._live:
            return self._done
        deadline = time.monotonic() + timeout
        drained = self._drain(deadline)
        target = self._outbox.last_seq
        self._sender.wake()
        while self._outbox.acked_seq < target:
            left = deadline - time.monotonic()
            if left <= 0 or self._nobody_will_come():
                return False
            # No condition is awaited: its lock would deadlock with a signal handler's flush.
            time.sleep(min(left, _POLL_S))
        return drained

    def finish(self, timeout: float = 5.0) -> bool:
        """Flush, say goodbye, free everything. Safe to call twice; called at exit by itself.

        What could not be delivered in time stays in the outbox, and the next daemon delivers it.

        Returns:
            Whether everything that was emitted is durable in the daemon. False, and nothing done
            until the exit, in a signal handler that interrupted an `emit`.
        """
        if not self._live:
            return self._done
        if self._outbox.interrupted():
            return False
        deadline = time.monotonic() + timeout
        drained = self._drain(deadline)
        self._live = False
        self._renders.give_up()
        last_seq = self._outbox.seal()
        self._stages.give_up()
        delivered = self._sender.stop(max(0.0, deadline - time.monotonic()), last_seq)
        self._final = self._count()
        # Without a goodbye too, if nothing is left to deliver.
        self._done = drained and (delivered or self._final.held == 0)
        _living.discard(self)
        if not self._sender.is_alive():  # else the memory is still looked at: the exit frees it
            self._outbox.close()
            self._memory.close(delete=delivered)
        return self._done

    def stats(self) -> Stats:
        """The books of this client; `emitted = acked + held + dropped`."""
        stats = self._final if self._final is not None else self._count()
        return replace(stats, rejected=stats.rejected + self._unheard)

    def on_alarm(self, callback: Callable[[Alarm], object]) -> None:
        """Have `callback` called with each alarm of the run, in the client's own thread.

        An alarm is a representation's change from one state to another: `tag`, `state` ("OK",
        "WATCH", "WARN", "COLLAPSED" or "NONFINITE"), `step` and `reason`. What is not well when
        the callback or the client comes is told it once. The callback must be short; an exception
        in it is logged.
        """
        self._alarms.add(callback)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish."""
        self.finish()

    # --- inside --------------------------------------------------------------------------------

    def _emit_checked(
        self, values: Any, step: Any, wall_time: Any, reduce: Any
    ) -> InvalidValueError | None:
        """The long way; returns the first error, all of them counted."""
        if reduce and wall_time is None and self._sorter.emit_known(values, step, reduce):
            self._last_step = step
            return None
        if not isinstance(values, Mapping):
            reason = f"emit takes a mapping of tag to value, not {type(values).__name__}"
            return self._rejections.note("emit", reason)
        try:
            number = step_number(self._last_step + 1 if step is None else step)
            time_ns = time.time_ns() if wall_time is None else nanoseconds(wall_time)
            check_reduce(reduce)
        except InvalidValueError as error:
            return self._rejections.note("emit", str(error), max(1, len(values)))
        self._last_step = number
        if not reduce and self._sorter.leaves_out(values):
            return None
        return self._sorter.emit(values, number, time_ns, reduce or "")

    def _drain(self, deadline: float) -> bool:
        """Wait for what is not in the outbox yet; whether nothing is left."""
        staged = self._stages.drain(deadline - time.monotonic())
        return self._renders.drain(deadline - time.monotonic()) and staged

    def _await_room(self, nbytes: int) -> None:
        """With `on_full="block"`: wait until there is room, at most a minute."""
        if not self._block or self._outbox.has_room(nbytes):
            return
        deadline = time.monotonic() + _BLOCK_S
        self._sender.wake()
        # After `finish` there is nothing to wait for: the thread that draws may be in here then.
        while self._live and not self._outbox.has_room(nbytes) and time.monotonic() < deadline:
            # In the sender's own thread (a finalizer) it is us who would have to make room.
            if self._nobody_will_come() or threading.current_thread() is self._sender:
                return
            time.sleep(_POLL_S)

    def _nobody_will_come(self) -> bool:
        """Whether waiting for an acknowledgement is in vain."""
        return self._sender.state is ClientState.REJECTED or self._outbox.interrupted()

    def _books(self) -> Books:
        totals = self._outbox.totals()
        rejected = self._rejections.count
        emit_ns, step_ns = self._cost.mean_ns, self._steps.mean_ns
        step = None if self._last_step == _NO_STEP else self._last_step
        return Books(totals.emitted, totals.dropped, rejected, emit_ns, step, step_ns)

    def _count(self) -> Stats:
        totals, pending = self._outbox.together(
            lambda: (self._outbox.totals(), self._renders.pending)
        )
        counts = {field.name: getattr(totals, field.name) for field in fields(Totals)}
        pending += self._stages.pending
        counts["emitted"] += pending
        counts["held"] += pending
        return Stats(**counts, rejected=self._rejections.count)

    def _count_unheard(self, values: object) -> None:
        """Values that were emitted where nobody listens."""
        if not self._settings.disabled:
            self._unheard += len(values) if type(values) is dict else 1

    def _housekeeping(self) -> None:
        """In the sender's thread, at each of its wake-ups."""
        self._stages.collect_when_silent()
        self._alarms.take_up()
        self._cost.look()
        if self._last_step != _NO_STEP:
            self._steps.look(self._last_step)

    def _forked(self) -> None:
        """In a child process: count, and touch nothing that belongs to the parent."""
        self._live = False
        self._final = Stats()
        self._outbox.abandon()
        self._stages.abandon()
        self._renders.abandon()


def _jitter() -> float:
    return secrets.randbelow(1 << 20) / (1 << 20)


# --- the end of the process, and its children ----------------------------------------------------

_living: set[Client] = set()


def _finish_all() -> None:
    """At exit, before the interpreter takes the senders' threads away."""
    deadline = time.monotonic() + _AT_EXIT_S
    for client in list(_living):
        client.finish(max(0.0, deadline - time.monotonic()))


def _after_fork_in_child() -> None:
    for client in _living:
        client._forked()  # pyright: ignore[reportPrivateUsage]
    _living.clear()


atexit.register(_finish_all)
os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["Client", "Reduce", "Stats"]
