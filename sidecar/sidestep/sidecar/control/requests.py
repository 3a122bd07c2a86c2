"""Answers the command line's questions: one JSON object for each, over the control socket."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final, cast

from sidestep.proto.limits import MAX_NAME_BYTES

from ..ingest.thread import Ingest
from ..journal.reader import JournalReader
from ..live import history
from ..peers.door import Door
from ..supervision.supervisor import SinkHandle, Supervisor
from . import status
from .drain import Drain

_MAX_REQUEST_BYTES: Final = 1 << 20
_QUESTIONS: Final = 16
_HISTORY_POINTS: Final = 10_000
_MAX_DRAINS: Final = 1000
_MAX_GLOBS: Final = 1000
"""Patterns of one question; Python keeps each of them, compiled."""


class Control:
    """The control socket; lives in the daemon's main thread.

    Args:
        door: where those come in who ask.
        reader: what `history` is read from.
        ingest: knows the runs and the clients.
        supervisor: knows the sinks.
        about: who the daemon is.
        machine: GPUs and host, as the samplers see them.
        stop: ends the daemon; its argument says whether at once.
    """

    def __init__(
        self,
        door: Door,
        reader: JournalReader,
        ingest: Ingest,
        supervisor: Supervisor,
        about: Callable[[], dict[str, Any]],
        machine: Callable[[], tuple[list[dict[str, Any]], dict[str, Any]]],
        stop: Callable[[bool], None],
    ) -> None:
        self._ingest = ingest
        self._supervisor = supervisor
        self._about = about
        self._machine = machine
        self._stop = stop
        self._reader = reader
        self._drains: dict[int, Drain] = {}
        self._door = door

    def fileno(self) -> int:
        """For a poller: readable when somebody asks."""
        return self._door.fileno()

    def answer(self) -> None:
        """Answer the questions that have come."""
        for identity, frames in self._door.receive(_QUESTIONS, _MAX_REQUEST_BYTES):
            try:
                reply = self._reply(cast("dict[str, Any]", json.loads(frames[-1])))
            except Exception as error:  # noqa: BLE001 - a bad request must not end the daemon
                reply = {"error": f"{type(error).__name__}: {error}"}
            # A REQ socket's empty frame comes before the question and goes before the answer.
            self._door.send(identity, [*frames[:-1], json.dumps(reply).encode()])

    def advance(self) -> None:
        """Look again at every drain that is under way."""
        for drain in self._drains.values():
            if not drain.done:
                self._advance(drain)

    def new_drain(self, wanted: Callable[[SinkHandle], bool] | None = None) -> tuple[int, Drain]:
        """A question for everything that is journalled by now, and its token.

        Args:
            wanted: the sinks that must have written it; None for all.
        """
        if len(self._drains) >= _MAX_DRAINS:
            self._drains.pop(next(iter(self._drains)))
        token = time.monotonic_ns()
        drain = self._drains[token] = Drain(self._ingest.scan(), wanted)
        return token, drain

    def status(self) -> dict[str, Any]:
        """What `sidestep status --json` prints."""
        snapshot = self._ingest.snapshot
        gpus, host = self._machine()
        return {
            "daemon": {
                **self._about(),
                "journal_rows": snapshot.last_row,
                "storage_error": snapshot.storage_error,
                "refused_frames": snapshot.refused_frames,
                "refused": snapshot.refused,
            },
            "runs": status.runs(snapshot, self._supervisor),
            "gpus": gpus,
            "host": host,
        }

    def run_names(self) -> dict[int, str]:
        """Names of the runs by their ids."""
        return {run_id: run.spec.name for run_id, run in self._ingest.snapshot.runs.items()}

    def close(self) -> None:
        """Stop listening."""
        self._door.close()

    # --- one question each ---------------------------------------------------------------------

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("op"):
            case "hello":
                return self._about()
            case "status":
                return self.status()
            case "drain":
                return self._reply_drain(request)
            case "history":
                return self._reply_history(request)
            case "stop":
                self._stop(bool(request.get("now")))
                return {"ok": True}
            case op:
                return {"error": f"unknown request {op!r}"}

    def _reply_drain(self, request: dict[str, Any]) -> dict[str, Any]:
        token = request.get("token")
        if token is None:
            token, drain = self.new_drain(_sinks_of(request))
        elif token in self._drains:
            drain = self._drains[token]
        else:
            return {"error": "this drain was asked of another daemon"}
        self._advance(drain)
        return drain.reply(token)

    def _advance(self, drain: Drain) -> None:
        snapshot = self._ingest.snapshot
        live = {run.id for run, _ in snapshot.live_runs()}
        # A run that has only just come must have its sinks before they are asked.
        self._supervisor.tick(snapshot, live)
        drain.advance(snapshot, self._supervisor, live)

    def _reply_history(self, request: dict[str, Any]) -> dict[str, Any]:
        snapshot = self._ingest.snapshot
        after = request.get("after")
        row, points, spans = history.history(
            self._reader,
            self.run_names(),
            run=request.get("run"),
            globs=[_name(glob) for glob in (request.get("tags") or [])[:_MAX_GLOBS]],
            points=min(_HISTORY_POINTS, int(request.get("points") or 0)),
            after=None if after is None else int(after),
            until=snapshot.last_row,
        )
        if row >= snapshot.last_row:
            # Of these runs all that there was has left the journal already, or nothing was asked.
            spans = {**{one: (many, many) for one, many in snapshot.totals.items()}, **spans}
        clients = status.by_run(snapshot)
        runs = [
            {
                "run": run.spec.name,
                "state": status.run_state(clients.get(run_id, [])),
                "last_step": run.last_step,
            }
            for run_id, run in snapshot.runs.items()
        ]
        return {
            "daemon_id": self._ingest.daemon_id,
            "row": row,
            "more": row < snapshot.last_row,
            "run": request.get("run"),
            "points": points,
            "spans": [
                (snapshot.runs[one].spec.name, one, *span)
                for one, span in spans.items()
                if one in snapshot.runs
            ],
            "runs": runs,
        }


def _name(value: object) -> str:
    """A name in a question: it may be kept for long, so it must be no longer than names are."""
    if not isinstance(value, str) or len(value) > MAX_NAME_BYTES:
        raise ValueError(f"not a name of at most {MAX_NAME_BYTES} characters: {value!r:.80}")
    return value


def _sinks_of(request: dict[str, Any]) -> Callable[[SinkHandle], bool] | None:
    """The sinks that a request names by `sink`, `run` and `log_dir`; None for all."""
    wanted = {key: _name(request[key]) for key in ("sink", "run", "log_dir") if key in request}
    if not wanted:
        return None

    def is_wanted(sink: SinkHandle) -> bool:
        its = {"sink": sink.name, "run": sink.spec.name, "log_dir": sink.spec.log_dir}
        return all(its[key] == value for key, value in wanted.items())

    return is_wanted
