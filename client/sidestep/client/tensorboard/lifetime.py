"""The life of a writer: where it writes, its first and its next client, its end."""

from __future__ import annotations

import os
from typing import Any, Self

from ..refused import Refused
from ..values import InvalidValueError, Value
from ..values.purge import Purge
from .file_writer import FileWriter
from .place import default_place, given_place
from .series import SeriesTags


class Writer:
    """A folder of event files, and the client behind it; what is added to it, a subclass says."""

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: float = 120,
        filename_suffix: str = "",
    ) -> None:
        if log_dir:
            self._place, self.log_dir = given_place(str(log_dir)), log_dir
        else:
            self._place = default_place(os.environ, comment)
            self.log_dir = self._place.path
        self.purge_step = purge_step
        self.max_queue = max_queue
        self.flush_secs = flush_secs
        self.filename_suffix = filename_suffix
        self.file_writer: FileWriter | None = None
        self.all_writers: dict[str, FileWriter] | None = None
        self._series = SeriesTags(self._emit)
        self._get_file_writer()

    def _get_file_writer(self) -> FileWriter:
        """The writer; after `close`, a new one."""
        writer = self.file_writer
        if writer is None or self.all_writers is None:
            writer = FileWriter.at(self._place, self.filename_suffix)
            self.file_writer = writer
            self.all_writers = {writer.get_logdir(): writer}
            self._series.forget()
            if self.purge_step is not None:
                writer.emit({"purge": Purge()}, self.purge_step)
                self.purge_step = None
        return writer

    def get_logdir(self) -> str | os.PathLike[str]:
        """The folder in which the event files are."""
        return self.log_dir

    def flush(self) -> None:
        """Wait until all is safe in the daemon, which writes it; at most 5 s."""
        for writer in (self.all_writers or {}).values():
            writer.flush()

    def close(self) -> None:
        """Flush and free everything; adding something afterwards begins again, as with torch."""
        for writer in (self.all_writers or {}).values():
            writer.close()
        self.file_writer = self.all_writers = None

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        """Close it."""
        self.close()

    # --- inside ----------------------------------------------------------------------------------

    def _emit(self, tag: Any, value: Value, step: Any = None, walltime: Any = None) -> None:
        if isinstance(tag, str):
            (self.file_writer or self._get_file_writer()).emit({tag: value}, step, walltime)
        else:
            self._refuse_tag(tag)

    def _refuse_tag(self, tag: Any) -> None:
        self._refuse(type(self).__name__, f"a tag must be a str, not a {type(tag).__name__}")

    def _refuse(self, tag: str, reason: str) -> None:
        self._emit(tag, Refused(InvalidValueError(reason)))
