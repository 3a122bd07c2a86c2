"""Hands rows of a run's history to wandb-core, a whole batch at a time.

`run.log` spends most of its time on waking up the thread that owns the socket. A batch goes the
same way but wakes it once, at half the processor time for a row and twice the rows a second. That
way is not public: where it is not as it is known here, and for rows with more than numbers in
them, `run.log` is used. That what was handed over is really there is never taken for granted: the
sink reads it back from the file (see `wandb_file`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, cast

STEP_METRIC: Final = "global_step"
"""The metric that all others are drawn over. W&B's own step refuses to go backwards."""

_TIMESTAMP: Final = "_timestamp"
_RESERVED: Final = frozenset({STEP_METRIC, _TIMESTAMP, "_step", "_runtime", "_wandb"})


@dataclass(slots=True)
class Row:
    """One row of history.

    Attributes:
        step: training step.
        time_s: wall time in seconds since the epoch.
        numbers: float64s by their keys (see `key_of`).
        objects: what is no number, as W&B's data types, by the same keys.
    """

    step: int
    time_s: float
    numbers: dict[str, float] = field(default_factory=dict[str, float])
    objects: dict[str, object] = field(default_factory=dict[str, object])

    @classmethod
    def logged(cls, values: Mapping[str, Any]) -> Self:
        """The row that was logged as `values`, ready to be logged again."""
        row = cls(values[STEP_METRIC], values[_TIMESTAMP])
        for key in values.keys() - _RESERVED:
            number = isinstance(values[key], int | float)
            (row.numbers if number else row.objects)[key] = values[key]
        return row

    def takes(self, step: int, keys: Iterable[str]) -> bool:
        """Whether values of `step` under `keys` can be in this row too."""
        return (
            step == self.step
            and self.numbers.keys().isdisjoint(keys)
            and self.objects.keys().isdisjoint(keys)
        )


def key_of(tag: str) -> str:
    """The name under which a tag's values are logged: the tag, unless that is W&B's own."""
    return f"emitted/{tag}" if tag in _RESERVED else tag


class RowLog:
    """Logs rows to a `wandb.Run`."""

    def __init__(self, run: Any) -> None:
        """Take a run that is active."""
        self._run = run
        self._send = _batch_sender(run)

    def write(self, rows: Sequence[Row]) -> None:
        """Log `rows` in their order. They are then on their way to wandb-core.

        Raises:
            Exception: whatever wandb raises when wandb-core is gone.
        """
        batch: list[Row] = []
        for row in rows:
            if self._send is not None and row.numbers and not row.objects:
                batch.append(row)
                continue
            self._write_batch(batch)
            batch = []
            own = {STEP_METRIC: row.step, _TIMESTAMP: row.time_s}
            self._run.log({**row.numbers, **row.objects, **own})
        self._write_batch(batch)

    def _write_batch(self, batch: list[Row]) -> None:
        if batch and self._send is not None:
            self._send(batch)


def log_table(run: Any, shown: object, name: str) -> None:
    """Log `shown`, if it is a table, as the artifact that W&B's pages read it from.

    `run.log` does so, but under a name of its own. That way is not public either; where it is not
    as it is known here, or there is no room for it, W&B has the table as a file alone.
    """
    if type(shown).__name__ != "Table":
        return
    with contextlib.suppress(Exception):
        from wandb.sdk.data_types import utils

        cast("Any", utils)._log_table_artifact(shown, name, run)


def _batch_sender(run: Any) -> Callable[[Sequence[Row]], None] | None:
    """What sends rows of numbers to wandb-core at once; None if this wandb is of another build."""
    try:
        from wandb.proto import wandb_server_pb2

        server_request = cast("Any", wandb_server_pb2).ServerRequest
        interface = run._interface
        run_in_loop, publish = interface._asyncer.run, interface._client.publish
        _request_of(Row(0, 0.0, {"tag": 0.0}), interface, server_request)
    except Exception:  # noqa: BLE001  # whatever it is, there is the public way
        return None

    def send(rows: Sequence[Row]) -> None:
        requests = [_request_of(row, interface, server_request) for row in rows]

        async def publish_all() -> None:
            for request in requests:
                await publish(request)

        run_in_loop(publish_all)

    return send


def _request_of(row: Row, interface: Any, server_request: Any) -> Any:
    """What `run.log` would send to wandb-core for `row`, not yet sent."""
    request = server_request()
    history = request.record_publish.request.partial_history
    # The C encoder writes a list of floats faster than it is called for each of them.
    texts = json.dumps(list(row.numbers.values()))[1:-1].split(", ")
    for key, text in zip(row.numbers, texts, strict=True):
        history.item.add(key=key, value_json=text)
    history.item.add(key=STEP_METRIC, value_json=str(row.step))
    history.item.add(key=_TIMESTAMP, value_json=repr(row.time_s))
    request.record_publish.control.local = True
    interface._assign(request.record_publish)
    return request
