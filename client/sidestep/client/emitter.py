"""The `Client`: takes what the trainer emits, sorts it, and puts it into the outbox.

The common case, a dict of plain numbers under tags that were seen before, takes the short way:
one look-up of the tuple of tags, one check of the types, one pack into shared memory. Everything
else (tensors, values, new tags, what is wrong) takes the long way through `_emit_each`.
"""

from __future__ import annotations

import logging
import operator
import os
import secrets
import socket
import struct
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, cast

from sidestep.proto import Alarm, Books, ClientSession, Hello, SidestepError
from sidestep.proto import Value as ValueRecord
from sidestep.proto.limits import (
    MAX_SEQ,
    MAX_TAG_BYTES,
    MAX_TAG_SET_BYTES,
    MAX_TAG_SETS,
    MAX_TAGS_PER_RECORD,
)
from sidestep.proto.paths import outbox_dirs
from sidestep.proto.records import encode_value
from sidestep.proto.session import ClientState

from . import outbox_file
from .launch import Launcher
from .outbox import Outbox, TagSet, Totals
from .sender import Sender
from .settings import Settings
from .staging import CudaDevice, Staging
from .values import EmitContext, InvalidValueError, Value, is_tensor, on_device, to_host

logger = logging.getLogger("sidestep")

_NUMBERS: Final = frozenset({float, int, bool})
_BLOCK_S: Final = 60.0
_SILENT_S: Final = 1.0
_MAX_LOGGED: Final = 100
"""Different rejections that are logged; the rest is only counted."""

Reduce = Literal["mean", "sum", "min", "max", "spread"]


@dataclass(frozen=True, slots=True)
class Stats(Totals):
    """A client's books: counts of records, and of their bytes.

    Attributes:
        emitted: records that `emit` accepted. ``emitted = acked + held + dropped``, always.
        acked: records that are durable in the daemon.
        held: records that wait in the outbox or on a device.
        dropped: records that will not arrive: the outbox was full, a device's slots were busy.
        rejected: values that `emit` refused, or that were emitted where nobody listens (in a
            forked process, after `finish`).
        emitted_bytes: bytes of the emitted records; likewise the others.
    """

    rejected: int = 0


class Client:
    """A connection of this process to the node's daemon. Made by `connect`; thread-safe.

    A process forked from one that has a client inherits an object that counts and does nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._live = not settings.disabled
        self._closed = settings.disabled
        self._rejected = 0
        self._last_step = -1
        self._emitted_at = 0.0
        self._plans: dict[tuple[str, ...], TagSet] = {}
        self._tag_sets: list[tuple[str, ...]] = []
        self._tags_lock = threading.Lock()
        self._memory: dict[str, dict[str, Any]] = {}
        self._staging: dict[int, Staging] = {}
        self._staging_lock = threading.RLock()
        self._logged: set[tuple[str, str]] = set()
        self._alarm_callbacks: list[Callable[[Alarm], object]] = []
        self._final: Stats | None = None if self._live else Stats()
        self._silent = settings.rank != 0 and settings.ranks == "zero"
        self._prefix = f"rank_{settings.rank}/" if settings.ranks == "all" else ""
        if self._live:
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
            device_uuids=_device_uuids(),
        )
        places = outbox_dirs(settings.paths, settings.state_dir, os.getuid())
        self._memory_file = outbox_file.create(places, settings.outbox_bytes, hello)
        self._outbox = Outbox(self._memory_file.layout)
        environ = {**os.environ, "SIDESTEP_RUNTIME_DIR": settings.paths.directory}
        local = settings.endpoint.startswith("ipc://")
        if local and settings.endpoint != settings.paths.data_endpoint:
            environ["SIDESTEP_ENDPOINT"] = settings.endpoint
        self._sender = Sender(
            ClientSession(self._memory_file.layout.hello(), _jitter),
            self._outbox,
            settings.endpoint,
            self._tag_sets,
            self._books,
            Launcher(settings.paths, environ) if settings.autostart and local else None,
            self._alarm,
            self._collect_when_silent,
        )
        _living.add(self)
        self._sender.start()

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
            reduce: how values of the ranks of one job are combined; with one rank, as they are.

        Raises:
            InvalidValueError: only when strict, after everything else was handed over.
        """
        if not self._live:
            self._rejected += 1
            return
        try:
            if self._staging:
                self._collect()
            if type(step) is not int or wall_time is not None or reduce is not None:
                self._emit_checked(values, step, wall_time, reduce)
                return
            self._last_step = step
            if self._silent:
                return
            plan = self._plans.get(tuple(values))
            row = values.values()
            if plan is not None and _NUMBERS.issuperset(map(type, row)):
                if self._settings.on_full == "block":
                    self._await_room(plan.size)
                self._outbox.put_scalars(plan, step, time.time_ns(), row)
            else:
                self._emit_each(values, step, time.time_ns())
        except (struct.error, OverflowError):
            # An integer beyond float64 or a step beyond int64: the long way says which.
            self._guard(lambda: self._emit_checked(values, step, wall_time, reduce))
        except Exception as error:
            self._failed(error)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was emitted is durable in the daemon, at most `timeout` seconds.

        Returns:
            True when it is; False at the timeout, and where nothing can be sent (in a forked
            process). True when disabled.
        """
        if not self._live:
            return self._closed and self._final is not None and self._final.held == 0
        self._collect(wait=True)
        target = self._outbox.last_seq
        deadline = time.monotonic() + timeout
        with self._sender.acked:
            while self._outbox.acked_seq < target:
                left = deadline - time.monotonic()
                if left <= 0 or self._sender.state is ClientState.REJECTED:
                    return False
                self._sender.wake()
                self._sender.acked.wait(min(left, 0.1))
        return True

    def finish(self, timeout: float = 5.0) -> bool:
        """Flush, say goodbye, free everything. Safe to call twice; called at exit by itself.

        What could not be delivered in time stays in the outbox, and the next daemon delivers it.

        Returns:
            Whether everything that was emitted is durable in the daemon.
        """
        if not self._live:
            return self.flush(0)
        deadline = time.monotonic() + timeout
        self._guard(lambda: self._collect(wait=True))
        self._live = False
        _living.discard(self)
        left = max(0.0, deadline - time.monotonic())
        done = self._sender.stop(left, self._outbox.last_seq)
        self._final = self._count()
        self._closed = True
        self._memory_file.close(delete=done)
        return done

    def stats(self) -> Stats:
        """The books of this client; `emitted = acked + held + dropped`."""
        return self._final if self._final is not None else self._count()

    def on_alarm(self, callback: Callable[[Alarm], object]) -> None:
        """Have `callback` called with each alarm of the run, in the client's own thread.

        It must be short; an exception in it is logged.
        """
        self._alarm_callbacks.append(callback)

    def __enter__(self) -> Client:
        """The client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish."""
        self.finish()

    # --- the long way --------------------------------------------------------------------------

    def _emit_checked(
        self, values: Any, step: Any, wall_time: float | None, reduce: str | None
    ) -> None:
        """An emit whose arguments are not the plain ones."""
        if not isinstance(values, Mapping):
            self._reject("emit", f"takes a mapping of tag to value, not {type(values).__name__}")
            return
        given = cast("Mapping[Any, Any]", values)
        try:
            number = self._last_step + 1 if step is None else _step(step)
            time_ns = time.time_ns() if wall_time is None else _nanoseconds(wall_time)
            _check_reduce(reduce, self._settings.world_size)
        except InvalidValueError as error:
            self._reject("emit", str(error), max(1, len(given)))
            return
        self._last_step = number
        if not self._silent:
            self._emit_each(given, number, time_ns)

    def _emit_each(self, values: Mapping[Any, Any], step: int, time_ns: int) -> None:
        """Sort the values: numbers, numbers on devices, and the rest. One bad one harms itself."""
        numbers: dict[str, float] = {}
        staged: dict[int, list[tuple[str, Any]]] = {}
        errors: list[InvalidValueError] = []
        for tag, value in values.items():
            try:
                _check_tag(tag)
                if isinstance(value, Value):
                    self._emit_value(tag, value, step, time_ns)
                elif on_device(value):
                    _check_number_tensor(value)
                    if value.device.type == "cuda":
                        staged.setdefault(int(value.device.index or 0), []).append((tag, value))
                    else:
                        numbers[tag] = float(value.detach().cpu())
                else:
                    numbers[tag] = _number(value)
            except InvalidValueError as error:
                errors.append(self._note(str(tag), str(error)))
            except Exception as error:
                errors.append(self._note(str(tag), f"{type(error).__name__}: {error}"))
        if numbers:
            self._put_numbers(numbers, step, time_ns)
        for index, pairs in staged.items():
            self._stage_numbers(index, pairs, step, time_ns)
        if errors and self._settings.strict:
            raise errors[0]

    def _put_numbers(self, numbers: Mapping[str, float], step: int, time_ns: int) -> None:
        tags = tuple(numbers)
        most = min(MAX_TAGS_PER_RECORD, self._outbox.max_tags, MAX_TAG_SET_BYTES // MAX_TAG_BYTES)
        if len(tags) <= most:
            groups = [tags]
        else:
            groups = [tags[i : i + most] for i in range(0, len(tags), most)]
        for group in groups:
            plan = self._plans.get(group) or self._define(group)
            if plan is None:
                reason = f"no room for another set of tags; {len(self._tag_sets)} are defined"
                self._reject(group[0], reason, len(group))
                continue
            self._await_room(plan.size)
            self._outbox.put_scalars(plan, step, time_ns, [numbers[tag] for tag in group])

    def _define(self, tags: tuple[str, ...]) -> TagSet | None:
        """Give a new tuple of tags an id; None when there are too many."""
        with self._tags_lock:
            plan = self._plans.get(tags)
            if plan is None and len(self._tag_sets) < MAX_TAG_SETS:
                named = tuple(self._prefix + tag for tag in tags)
                plan = self._outbox.define_tags(len(self._tag_sets), named)
                if plan is not None:
                    self._tag_sets.append(named)
                    self._plans[tags] = plan
            return plan

    def _emit_value(self, tag: str, value: Value, step: int, time_ns: int) -> None:
        context = EmitContext(step, self._memory.setdefault(tag, {}))
        prepared = value.prepare(context)

        def put(arrays: Sequence[Any]) -> None:
            record = ValueRecord(
                prepared.kind,
                self._prefix + tag,
                step,
                time_ns,
                prepared.info,
                [to_host(array) for array in arrays],
            )
            total, pieces = encode_value(record)
            if total > self._outbox.max_record_bytes:
                raise InvalidValueError(
                    f"{prepared.kind} of {total} bytes: this outbox takes records of up to "
                    f"{self._outbox.max_record_bytes}; make outbox_bytes larger"
                )
            self._await_room(total)
            self._outbox.put_record(total, pieces)

        index = next((a.device.index or 0 for a in prepared.arrays if _on_cuda(a)), None)
        if index is None:
            put([a.cpu() if on_device(a) else a for a in prepared.arrays])
            return
        with self._staging_lock:
            if not self._stage(int(index)).stage_arrays(prepared.arrays, self._landing(tag, put)):
                self._outbox.count_lost(1)

    # --- staging -------------------------------------------------------------------------------

    def _stage(self, index: int) -> Staging:
        staging = self._staging.get(index)
        if staging is None:
            staging = self._staging[index] = Staging(CudaDevice(index))
        return staging

    def _stage_numbers(
        self, index: int, pairs: Sequence[tuple[str, Any]], step: int, time_ns: int
    ) -> None:
        tags = [tag for tag, _ in pairs]

        def put(arrived: Any) -> None:
            self._put_numbers(dict(zip(tags, arrived.tolist(), strict=True)), step, time_ns)

        with self._staging_lock:
            tensors = [tensor.detach() for _, tensor in pairs]
            if not self._stage(index).stage_numbers(tensors, self._landing(tags[0], put)):
                self._outbox.count_lost(1)

    def _landing(self, tag: str, put: Callable[[Any], None]) -> Callable[[Any], None]:
        """`put`, with its failures counted: it runs in some later call."""

        def land(arrived: Any) -> None:
            try:
                put(arrived)
            except Exception as error:
                self._note(tag, str(error))

        return land

    def _collect(self, wait: bool = False) -> None:
        self._emitted_at = time.monotonic()
        with self._staging_lock:
            for staging in self._staging.values():
                staging.collect(wait)

    def _collect_when_silent(self) -> None:
        """From the sender's thread: only when the trainer has stopped coming by."""
        if self._staging and time.monotonic() - self._emitted_at > _SILENT_S:
            if self._staging_lock.acquire(blocking=False):
                try:
                    self._collect()
                finally:
                    self._staging_lock.release()

    # --- books, errors ---------------------------------------------------------------------------

    def _books(self) -> Books:
        totals = self._outbox.totals()
        return Books(totals.emitted, totals.dropped, self._rejected)

    def _count(self) -> Stats:
        totals = self._outbox.totals()
        counts = {field.name: getattr(totals, field.name) for field in fields(Totals)}
        staged = sum(staging.pending for staging in self._staging.values())
        counts["emitted"] += staged
        counts["held"] += staged
        return Stats(**counts, rejected=self._rejected)

    def _await_room(self, nbytes: int) -> None:
        """With `on_full="block"`: wait until there is room, at most a minute."""
        if self._settings.on_full != "block" or self._outbox.has_room(nbytes):
            return
        deadline = time.monotonic() + _BLOCK_S
        while not self._outbox.has_room(nbytes) and time.monotonic() < deadline:
            self._sender.wake()
            with self._outbox.room:
                self._outbox.room.wait(0.05)

    def _reject(self, tag: str, reason: str, count: int = 1) -> None:
        error = self._note(tag, reason, count)
        if self._settings.strict:
            raise error

    def _note(self, tag: str, reason: str, count: int = 1) -> InvalidValueError:
        """Count a rejection, log it once."""
        self._rejected += count
        if self._live:
            self._outbox.count_rejected(self._rejected)
        key = (tag, reason[:40])
        if key not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(key)
            logger.warning("sidestep: rejected %.200r: %s", tag, reason)
        return InvalidValueError(f"{tag[:200]!r}: {reason}")

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Nothing that goes wrong in here may reach the trainer, unless it asked for it."""
        if isinstance(error, InvalidValueError):
            raise error  # counted already; raised only when strict
        note = self._note("emit", f"{type(error).__name__}: {error}")
        if self._settings.strict:
            raise note from error

    def _alarm(self, alarm: Alarm) -> None:
        for callback in self._alarm_callbacks:
            try:
                callback(alarm)
            except Exception:
                logger.exception("sidestep: an on_alarm callback failed")

    def _forked(self) -> None:
        """In a child process: count, and touch nothing that belongs to the parent."""
        self._live = False
        self._closed = False
        self._staging = {}
        self._rejected = 0
        self._final = Stats()
        self._tags_lock = threading.Lock()


# --- one value each ------------------------------------------------------------------------------


def _check_tag(tag: Any) -> None:
    if not isinstance(tag, str) or not tag:
        raise InvalidValueError(f"a tag must be a non-empty str, not {tag!r:.100}")
    try:
        size = len(tag.encode())
    except UnicodeEncodeError:
        raise InvalidValueError("a tag must be valid Unicode text") from None
    if size > MAX_TAG_BYTES:
        raise InvalidValueError(f"a tag of {size} bytes: at most {MAX_TAG_BYTES}")


def _number(value: Any) -> float:
    """A number that the CPU can read, as float64."""
    if is_tensor(value):
        _check_number_tensor(value)
        value = value.item()
    elif hasattr(value, "dtype") and hasattr(value, "item"):  # numpy
        if getattr(value, "ndim", 0) != 0:
            raise InvalidValueError(f"array of shape {value.shape}: emit a scalar or a Histogram")
        value = value.item()
    if not isinstance(value, (int, float)):
        raise InvalidValueError(
            f"{type(value).__name__} is no value: expected int, float, bool, a numpy scalar, a "
            "0-d tensor, or a sidestep value such as Histogram, Image, Text"
        )
    try:
        return float(value)
    except OverflowError:
        raise InvalidValueError("an integer beyond the range of float64") from None


def _check_number_tensor(tensor: Any) -> None:
    if tensor.ndim != 0:
        shape = tuple(tensor.shape)
        raise InvalidValueError(f"tensor of shape {shape}: emit a 0-d tensor or a Histogram")
    if tensor.is_complex():
        raise InvalidValueError("complex tensor: emit its .abs(), .real or .imag")


def _step(step: Any) -> int:
    if on_device(step):
        raise InvalidValueError("step is a tensor on a device: reading it would synchronize")
    try:
        number = operator.index(step)
    except TypeError:
        raise InvalidValueError(f"step must be an int, not {type(step).__name__}") from None
    if not -MAX_SEQ - 1 <= number <= MAX_SEQ:
        raise InvalidValueError(f"step {number} does not fit into 64 bits")
    return number


def _nanoseconds(wall_time: Any) -> int:
    if not isinstance(wall_time, (int, float)) or not 0 <= wall_time < MAX_SEQ / 1e9:
        raise InvalidValueError(f"wall_time must be seconds since the epoch, not {wall_time!r}")
    return int(wall_time * 1_000_000_000)


def _check_reduce(reduce: Any, world_size: int) -> None:
    if reduce is None:
        return
    if reduce not in ("mean", "sum", "min", "max", "spread"):
        raise InvalidValueError(f"reduce must be mean, sum, min, max or spread, not {reduce!r}")
    if world_size > 1:
        raise InvalidValueError("reduce across ranks is not supported by this version")


def _on_cuda(array: Any) -> bool:
    return is_tensor(array) and array.device.type == "cuda"


def _device_uuids() -> tuple[str, ...]:
    """UUIDs of the GPUs in torch's order, if torch is there and has already been told of them."""
    import sys

    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
            return ()
        count = torch.cuda.device_count()
        return tuple(str(torch.cuda.get_device_properties(i).uuid) for i in range(count))
    except Exception:
        return ()


def _jitter() -> float:
    return secrets.randbelow(1 << 20) / (1 << 20)


# --- fork --------------------------------------------------------------------------------------

_living: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_living):
        client._forked()  # pyright: ignore[reportPrivateUsage]
    _living.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["Client", "Reduce", "SidestepError", "Stats"]
