"""`sidestep drain`: waits until everything that was logged is written, and shows how far it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from . import wording
from .common import CommandError, console, environment_paths
from .control_client import Control, NoAnswerError, NoDaemonError, RefusedError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from sidestep.proto.paths import RuntimePaths

_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.25
_LINE_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pending:
    """A sink that has not yet written everything; `lag_records` is what it still has to do."""

    run: str
    sink: str
    lag_records: int


Progress = Callable[[Sequence[Pending]], None]
"""Is told, several times a second, what is still to be written."""


def await_drained(
    control: Control,
    token: int | None,
    timeout_s: float | None,
    progress: Progress | None = None,
    wait: Callable[[float], None] = time.sleep,
    only: Mapping[str, object] | None = None,
) -> bool:
    """Wait until all that was journalled when `token` was made is written by every sink.

    Args:
        control: the daemon.
        token: what an earlier request for a drain returned; None means now.
        timeout_s: how long to wait; None means for ever.
        progress: is told what is left.
        wait: sleeps.
        only: wait for the sinks alone that have these properties: `sink`, `run`, `log_dir`.

    Returns:
        True once it is written, False at the timeout.

    Raises:
        NoDaemonError: the daemon left in between; whether it was done, only its journal knows.
        RefusedError: the daemon says that it cannot.
        CommandError: a sink will not work until a person has mended something.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0 and pause_s > _FIRST_PAUSE_S:
            return False
        fields = dict(only or {}) if token is None else {"token": token}
        try:
            reply = control.request("drain", _patience(left), **fields)
        except NoAnswerError:
            reply = {}  # stopped or overloaded: it may come back
        except RefusedError:
            if token is None:
                raise
            token, reply = None, {}  # another daemon made it: what this one has now is no less
        token = reply.get("token", token)
        if reply.get("done"):
            return True
        if reply.get("failed"):
            raise CommandError(str(reply["failed"]))
        if progress is not None and "pending" in reply:
            progress(
                [Pending(one["run"], one["sink"], one["lag_records"]) for one in reply["pending"]]
            )
        left = None if deadline is None else deadline - time.monotonic()
        wait(pause_s if left is None else max(0.0, min(pause_s, left)))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _patience(left_s: float | None) -> float:
    """How long one request may take: never much longer than what is left in all."""
    return 2.0 if left_s is None else min(2.0, max(0.2, left_s))


@contextmanager
def drain_progress(terminal: Console | None = None) -> Generator[Progress]:
    """Show on stderr what is left: bars on a terminal, else a line every few seconds."""
    terminal = terminal or console(stderr=True)
    if not terminal.is_terminal:
        yield _Lines(terminal.print)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, console=terminal, transient=True) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}
        totals: dict[tuple[str, str], int] = {}

        def show(pending: Sequence[Pending]) -> None:
            lags = {(one.run, one.sink): one.lag_records for one in pending}
            for key in [*tasks, *(key for key in lags if key not in tasks)]:
                lag = lags.get(key, 0)
                totals[key] = max(totals.get(key, 0), lag)
                if key not in tasks:
                    name = wording.elide_middle(wording.printable(f"{key[0]} → {key[1]}"), 40)
                    tasks[key] = bars.add_task(name, total=totals[key])
                bars.update(tasks[key], total=totals[key], completed=totals[key] - lag)

        yield show


class _Lines:
    """Progress for a log file."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._next = clock() + _LINE_EVERY_S  # what takes a moment needs no words

    def __call__(self, pending: Sequence[Pending]) -> None:
        if self._clock() < self._next:
            return
        self._next = self._clock() + _LINE_EVERY_S
        self._say(f"still to be written: {describe(pending)}")


def describe(pending: Sequence[Pending]) -> str:
    """What is left, in one line."""
    if not pending:
        return "no sink is behind, but not all has reached them yet"
    shown = [
        wording.printable(f"{one.run} → {one.sink} ({wording.counted(one.lag_records, 'record')})")
        for one in pending[:5]
    ]
    more = f" and {len(pending) - 5} more" if len(pending) > 5 else ""
    return ", ".join(shown) + more


def drain(
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="S",
            min=0,
            show_default=False,
            help="Give up after S seconds, with exit code 1. Default: wait as long as it takes.",
        ),
    ] = None,
) -> None:
    """Wait until everything that was logged so far is written.

    Returns 0 once TensorBoard, Weights & Biases and all the other sinks have written what the
    daemon had when this was called, and 1 at the timeout. The daemon goes on meanwhile. What
    trainers that died here left for a daemon on another machine is brought to it first.
    """
    control = Control(environment_paths())
    if not deliver_elsewhere(control.paths, timeout, console(stderr=True).print):
        return
    last: list[str] = ["the daemon did not say what is left"]
    try:
        with drain_progress() as show:

            def progress(pending: Sequence[Pending]) -> None:
                last[0] = describe(pending)
                show(pending)

            try:
                drained = await_drained(control, None, timeout, progress)
            except NoDaemonError:
                drained = _without_daemon(control, timeout, progress)
    except NoDaemonError as error:
        raise CommandError(f"the daemon left before everything was written: {error}") from None
    if not drained:
        raise CommandError(
            f"not everything was written within {timeout:g} s: {last[0]}. "
            "`sidestep status` shows what each sink is doing"
        )


def deliver_elsewhere(
    paths: RuntimePaths, timeout_s: float | None, say: Callable[[str], None]
) -> bool:
    """Bring what dead trainers left for a daemon on another machine to it.

    Returns:
        Whether a daemon on this machine has, or may have, something to write as well.

    Raises:
        CommandError: not everything could be delivered; it is still there.
    """
    from ..outboxes.remote import deliver, is_elsewhere

    failures = deliver(paths, os.environ, timeout_s, say)
    if failures:
        raise CommandError("not delivered: " + "; ".join(failures))
    return Control(paths).daemon() is not None or not is_elsewhere(
        os.environ.get("SIDESTEP_ENDPOINT")
    )


def _without_daemon(control: Control, timeout_s: float | None, show: Progress) -> bool:
    """Write what an earlier daemon and its clients left behind, if anything."""
    from .launch import ensure_daemon, hold

    with hold(control.paths):
        ensure_daemon(control.paths, None, leave_when_idle=True)
        return await_drained(control, None, timeout_s, show)


def pending_of(status: dict[str, Any]) -> list[Pending]:
    """What the sinks have still to do, out of the daemon's status."""
    return [
        Pending(run["run"], sink["name"], sink["lag_records"])
        for run in status.get("runs", [])
        for sink in run["sinks"]
        if sink["lag_records"]
    ]
