"""The `FileWriter` behind a `SummaryWriter`: a client of its own for one folder of event files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Self

from ..connect_arguments import settled
from ..emitter import Client
from ..settings import Settings
from ..values.event import Event
from ..values.graph import Graph
from .arguments import step_of, wall_time_of
from .place import Place, given_place

_FLUSH_S: Final = 5.0
_FLUSH_AGAIN_S: Final = 0.02
"""After one that was in vain: a loop that flushes at each step is not slowed by a dead daemon."""

_CLOSE_S: Final = 5.0


class FileWriter:
    """Writes to the event files of one folder, through the daemon; never waits for a disk.

    Args:
        log_dir: the folder. It is made at once, since scripts put files of their own into it.
        max_queue: accepted, without effect: nothing waits for a queue to fill.
        flush_secs: accepted, without effect: all is on its way at once.
        filename_suffix: the end of the event files' names.

    Raises:
        ConfigurationError: a variable of the environment is wrong, or `log_dir` is no folder.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        max_queue: int = 10,
        flush_secs: float = 120,
        filename_suffix: str = "",
    ) -> None:
        self._begin(given_place(str(log_dir)), filename_suffix)

    @classmethod
    def at(cls, place: Place, filename_suffix: str = "") -> Self:
        """A writer at a place that was found already."""
        made = cls.__new__(cls)
        made._begin(place, filename_suffix)
        return made

    def _begin(self, place: Place, filename_suffix: str) -> None:
        self._place = place
        self._settings = _settings(place, filename_suffix)
        self._flush_s = _FLUSH_S
        with suppress(OSError):  # a folder that cannot be written is the daemon's trouble
            os.makedirs(place.path, exist_ok=True)
        self._client: Client | None = Client(self._settings)

    def get_logdir(self) -> str:
        """The folder in which the event files are."""
        return self._place.path

    @property
    def client(self) -> Client:
        """The client behind it, for all that torch's writer has no method for."""
        if self._client is None:
            self._client = Client(self._settings)
        return self._client

    def emit(
        self, values: Mapping[Any, Any], global_step: Any = None, walltime: Any = None
    ) -> None:
        """Hand over values, with a step and a time as torch takes them; after `close`, begin again.

        Args:
            values: tag to number or `Value`, on any device.
            global_step: anything that `int` takes; None is 0.
            walltime: seconds since the epoch; None is now.

        Raises:
            InvalidValueError: only when strict.
        """
        client = self._client or self.client
        client.emit(values, step_of(global_step), wall_time=wall_time_of(walltime))

    def add_event(self, event: Any, step: Any = None, walltime: Any = None) -> None:
        """Write an ``Event`` protocol buffer; only TensorBoard shows what it says."""
        global_step = getattr(event, "step", 0) if step is None else step
        self.emit({"event": Event(event)}, global_step, walltime)

    def add_summary(self, summary: Any, global_step: Any = None, walltime: Any = None) -> None:
        """Write a ``Summary`` protocol buffer; only TensorBoard shows what it says."""
        self.emit({"event": Event(summary, "summary")}, global_step, walltime)

    def add_graph(self, graph_profile: Any, walltime: Any = None) -> None:
        """Write a pair of ``GraphDef`` and ``RunMetadata`` protocol buffers."""
        self.emit({"graph": Graph.from_protos(*graph_profile)}, None, walltime)

    def add_onnx_graph(self, graph: Any, walltime: Any = None) -> None:
        """Write a ``GraphDef`` protocol buffer."""
        self.emit({"graph": Graph.from_protos(graph)}, None, walltime)

    def flush(self) -> None:
        """Wait until all is safe in the daemon, which writes it; at most 5 s.

        After a time when that was in vain the next ones hardly wait.
        """
        if self._client is not None:
            safe = self._client.flush(self._flush_s)
            self._flush_s = _FLUSH_S if safe else _FLUSH_AGAIN_S

    def close(self) -> None:
        """Flush, at most 5 s, and free everything; what is left, the next daemon writes."""
        client, self._client = self._client, None
        if client is not None:
            client.finish(_CLOSE_S)

    def reopen(self) -> None:
        """Begin again after `close`; else nothing."""
        _ = self.client


def _settings(place: Place, filename_suffix: str) -> Settings:
    """The place's run, which is written whatever this process's rank, as torch's writer does."""
    layout = {"folder": "." if place.direct else None, "suffix": str(filename_suffix)}
    return settled(
        place.run,
        {"log_dir": place.log_dir, "tensorboard": layout, "rank": 0, "world_size": 1},
    )
