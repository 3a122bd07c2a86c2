"""The messages that a client and a daemon send each other: what they say, not how.

`codec` turns them into frames; `session` says which may follow which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .limits import PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What the daemon must know to write a run's metrics.

    Attributes:
        name: the run's name, as the user gave it.
        log_dir: absolute path under which the sinks write.
        tensorboard: whether TensorBoard event files are wanted; or how: ``folder`` ("." for event
            files in `log_dir` itself) and ``suffix`` (what ends the files' names).
        wandb: None, or the settings of a W&B run (``project``, ``entity``, ``mode``, ...).
        config: the run's configuration (hyperparameters), MessagePack types only.
        tags: labels of the run.
    """

    name: str
    log_dir: str
    tensorboard: bool | Mapping[str, object] = True
    wandb: Mapping[str, object] | None = None
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Books:
    """What a client says it did with its records; the daemon knows the durable ones itself.

    Attributes:
        emitted: records that `emit` accepted.
        dropped: those that will never reach the daemon, all reasons together.
        rejected: values that `emit` refused; they never became records.
        emit_ns: what a call of `emit` takes of late, in nanoseconds; 0: none was timed.
        step: the step of its latest `emit`; None: it has emitted nothing.
        step_ns: from one step to the next of late, in nanoseconds; 0: not known.
    """

    emitted: int = 0
    dropped: int = 0
    rejected: int = 0
    emit_ns: int = 0
    step: int | None = None
    step_ns: int = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """A client introduces itself, on every connection anew.

    Attributes:
        uuid: 16 bytes; names the client (a forked child would be another).
        instance: random number of this process; two processes with one `uuid` differ in it.
        connection: counts the client's connections, so that a late HELLO is known as such.
        acked_seq: everything up to here was acknowledged to the client, by any daemon.
        acked_dropped: how many of those were dropped and not written.
        device_uuids: UUID of each of the client's GPUs, in torch's order.
        outbox: absolute path of the outbox file, or "" when it has none.
        via: the journals' identities of the daemons that passed it on, the first one first.
        node: no trainer, but what a daemon that passes on says of its own machine.
    """

    uuid: bytes
    instance: int
    connection: int
    run: RunSpec
    rank: int = 0
    world_size: int = 1
    attempt: int = 0
    pid: int = 0
    host: str = ""
    device_uuids: tuple[str, ...] = ()
    outbox: str = ""
    acked_seq: int = 0
    acked_dropped: int = 0
    min_version: int = PROTOCOL_VERSION
    max_version: int = PROTOCOL_VERSION
    via: tuple[int, ...] = ()
    node: bool = False


@dataclass(frozen=True, slots=True)
class Welcome:
    """The daemon knows the client and says what it already holds of it.

    Attributes:
        daemon_id: random number of the daemon's process.
        connection: the HELLO's connection number, echoed.
        durable_seq: all records up to here are journalled (or counted as dropped).
        dropped: how many of those were dropped.
        credit: bytes that may be under way, unacknowledged.
        max_record_bytes: the largest record that the daemon takes.
    """

    daemon_id: int
    connection: int
    durable_seq: int
    dropped: int
    credit: int
    max_record_bytes: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The daemon will not serve this client: `code` for programs, `reason` for people."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tags:
    """Definitions of tag sets: ids `first_id`, `first_id + 1`, ... in order (see `tag_sets`)."""

    first_id: int
    tag_sets: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Records `first_seq` to `last_seq`, as they lie in the outbox (see `records`)."""

    first_seq: int
    last_seq: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one record that is too large for a batch, from `offset` on."""

    seq: int
    offset: int
    total: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Gap:
    """Records `first_seq` to `last_seq` were dropped by the client; they will never come."""

    first_seq: int
    last_seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ack:
    """Everything up to `durable_seq` is journalled or counted; `credit` bytes may follow."""

    durable_seq: int
    dropped: int
    credit: int


@dataclass(frozen=True, slots=True)
class Nack:
    """The daemon did not take a message.

    Codes: ``unknown_session`` (say HELLO first), ``out_of_order`` (`first_seq` is the record
    that it waits for), ``refused`` (records `first_seq` to `last_seq` can never be taken),
    ``busy`` (the same message may be sent again later).
    """

    code: str
    reason: str
    first_seq: int = 0
    last_seq: int = 0


@dataclass(frozen=True, slots=True)
class Alarm:
    """The health of a run's representation changed its state."""

    tag: str
    state: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life, with the client's books."""

    books: Books = field(default_factory=Books)


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a PING.

    Attributes:
        pace_ms: the daemon has many clients, and each shall let so many milliseconds pass
            between two messages with records, unless somebody waits for them.
    """

    pace_ms: int = 0


@dataclass(frozen=True, slots=True)
class Bye:
    """The client has nothing more to say after `last_seq`.

    Attributes:
        lost: it is another daemon that says so: the client itself has vanished without a goodbye.
    """

    last_seq: int
    books: Books = field(default_factory=Books)
    lost: bool = False


@dataclass(frozen=True, slots=True)
class ByeAck:
    """Everything that the client ever emitted is durable: it may go."""

    last_seq: int


ClientMessage = Hello | Tags | Batch | Part | Gap | Ping | Bye
"""What a client may send."""

DaemonMessage = Welcome | Reject | Ack | Nack | Alarm | Pong | ByeAck
"""What a daemon may send."""

Message = ClientMessage | DaemonMessage
