"""`sidestep stop`: ends the daemon, once what it has is written."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer

from .common import CommandError, environment_paths
from .control_client import Control, NoAnswerError, NoDaemonError
from .drain import drain_progress, pending_of

_POLL_S: Final = 0.05


def stop(
    now: Annotated[
        bool,
        typer.Option("--now", help="Do not wait for the sinks: the next daemon goes on."),
    ] = False,
) -> None:
    """Stop the daemon. What is journalled is written first, for at most `drain_timeout_s` (60 s).

    Training goes on without a daemon: its metrics wait in its outbox for the next one.
    """
    control = Control(environment_paths())
    who = control.daemon()
    if who is None:
        print("no daemon is running")
        return
    try:
        control.request("stop", 5.0, now=now)
        with drain_progress() as show:
            while control.daemon() is not None:
                try:
                    show(pending_of(control.request("status", 1.0)))
                except NoAnswerError:
                    pass  # it is closing its sinks
                time.sleep(_POLL_S)
    except NoDaemonError:
        pass  # it has gone in between, which was the wish
    except NoAnswerError as error:
        raise CommandError(f"{error}. `kill -9 {who.pid}` ends it; nothing is lost") from None
    print(f"the daemon (pid {who.pid}) has stopped")
