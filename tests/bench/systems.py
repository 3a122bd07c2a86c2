"""What is measured side by side: sidestep and its peers, each opened as its users open it.

A trial's process makes one `System` and calls it in this order: `load`, `open`, `emitter` and the
calls of the workload, `settle` at will, `complete`, `finish`. The benchmark's own process calls
`environment` before and `written` and `clean` after it, when all processes of the trial are gone.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from sidestep.proto.paths import RuntimePaths, outbox_dirs
from tests.bench import readers

RUN: Final = "bench"
"""The run's name, for systems that have one."""

Emit = Callable[[dict[str, float], int], object]
"""Logs one step's numbers: `emit(values, step)`."""


class System:
    """A library that takes numbers; this one takes none: an empty call, the floor of all others.

    Attributes:
        name: how `--systems` and the tables call it.
        note: what a reader of the tables should know about how it is set up.
        module: what its users import.
        loaded_before: modules that the import needs and that a trainer has imported before.
        library: the module, once it is loaded.
    """

    name = "empty"
    note = "a function that does nothing, called and timed like the others"
    module = ""
    loaded_before: tuple[str, ...] = ()
    library: Any = None

    def environment(self, directory: Path) -> Mapping[str, str]:
        """Environment variables that keep the trial inside `directory`."""
        return {}

    def load(self) -> None:
        """Import the library."""
        if self.module:
            self.library = importlib.import_module(self.module)

    def open(self, directory: Path) -> None:
        """Open a run that writes below `directory`."""

    def emitter(self) -> Emit:
        """The call that is measured, without a wrapper where the library's own call fits."""
        return _nothing

    def emit_image(self, pixels: Any, step: int) -> object:
        """Log a picture: a tensor (3, H, W), uint8 or float32 in [0, 1]."""

    def emit_histogram(self, values: Any, step: int) -> object:
        """Log the distribution of a tensor."""

    def settle(self) -> None:
        """Wait, as well as the library can, until it has nothing left to do."""

    def complete(self) -> None:
        """Return as soon as all that was logged is in the file; nothing is logged after this."""
        self.settle()

    def finish(self) -> None:
        """Close the run as its users do at the end of a script."""

    def background(self) -> list[psutil.Process]:
        """The processes that work for this one."""
        return psutil.Process().children(recursive=True)

    def written(self, directory: Path, few: bool) -> Iterator[readers.Scalar] | None:
        """What the files of a finished trial hold; None: the system writes none.

        Args:
            directory: the trial's.
            few: so few that TensorBoard's slowest reader may be used.
        """
        return None

    def clean(self, directory: Path) -> None:
        """Remove what the trial may have left outside its directory."""


def _nothing(values: dict[str, float], step: int) -> None:
    pass


class Sidestep(System):
    """sidestep with TensorBoard, its daemon started by `connect`."""

    name = "sidestep"
    note = "connect() starts the daemon; TensorBoard on, W&B off; journal on disk"
    module = "sidestep.client"

    _directory: Path
    _markers = 0

    def environment(self, directory: Path) -> Mapping[str, str]:
        return {
            "SIDESTEP_RUNTIME_DIR": str(directory / "r"),
            "SIDESTEP_STATE_DIR": str(directory / "state"),
            "SIDESTEP_LOG_DIR": str(directory / "logs"),
        }

    def open(self, directory: Path) -> None:
        self._directory = directory
        self.library.connect(RUN, log_dir=str(directory / "logs"))

    def emitter(self) -> Emit:
        emit: Emit = self.library.emit
        return emit

    def emit_image(self, pixels: Any, step: int) -> object:
        return self.library.emit({"image": self.library.Image(pixels)}, step)

    def emit_histogram(self, values: Any, step: int) -> object:
        return self.library.emit({"histogram": self.library.Histogram(values)}, step)

    def settle(self, timeout_s: float = 60.0) -> None:
        """Log a marker, which is written after everything else, and wait for it in the file."""
        self._markers += 1
        tag = f"bench/marker_{self._markers}"
        self.library.emit({tag: 1.0}, 0)
        give_up = time.monotonic() + timeout_s
        logs = self._directory / "logs"
        while not any(readers.ends_with(path, tag.encode()) for path in readers.event_files(logs)):
            if time.monotonic() > give_up:
                raise TimeoutError(f"not in the event file after {timeout_s:g} s: {self._stats()}")
            time.sleep(0.005)

    def finish(self) -> None:
        if not self.library.finish():
            raise RuntimeError(f"finish() was not done in its time: {self._stats()}")

    def _stats(self) -> str:
        return str(self.library.stats())

    def background(self) -> list[psutil.Process]:
        found = {process.pid: process for process in super().background()}
        daemon = daemon_process(self._directory)
        if daemon is not None:
            found.update({p.pid: p for p in [daemon, *daemon.children(recursive=True)]})
        return list(found.values())

    def written(self, directory: Path, few: bool) -> Iterator[readers.Scalar] | None:
        return readers.event_scalars(readers.event_files(directory / "logs"), migrate=few)

    def clean(self, directory: Path) -> None:
        environ = self.environment(directory)
        paths = RuntimePaths(environ["SIDESTEP_RUNTIME_DIR"])
        for folder in outbox_dirs(paths, environ["SIDESTEP_STATE_DIR"], os.getuid()):
            shutil.rmtree(folder, ignore_errors=True)


def daemon_process(directory: Path) -> psutil.Process | None:
    """The daemon of the trial in `directory`, as its lock file names it."""
    try:
        text = Path(RuntimePaths(str(directory / "r")).lock).read_text()
        return psutil.Process(int(json.loads(text)["pid"]))
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


class SummaryWriter(System):
    """PyTorch's TensorBoard writer."""

    name = "SummaryWriter"
    note = "torch.utils.tensorboard, an add_scalar a number; flushes every 120 s by default"
    loaded_before = ("torch",)
    module = "torch.utils.tensorboard"
    _writer: Any

    def open(self, directory: Path) -> None:
        self._writer = self.library.SummaryWriter(str(directory / "logs"))

    def emitter(self) -> Emit:
        add_scalar = self._writer.add_scalar

        def emit(values: dict[str, float], step: int) -> None:
            for tag, value in values.items():
                add_scalar(tag, value, step)

        return emit

    def emit_image(self, pixels: Any, step: int) -> object:
        return self._writer.add_image("image", pixels, step)

    def emit_histogram(self, values: Any, step: int) -> object:
        return self._writer.add_histogram("histogram", values, step)

    def settle(self) -> None:
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()

    def written(self, directory: Path, few: bool) -> Iterator[readers.Scalar] | None:
        return readers.event_scalars(readers.event_files(directory / "logs"), migrate=few)


class TensorboardX(SummaryWriter):
    """tensorboardX, which has the same calls."""

    name = "tensorboardX"
    note = "an add_scalar a number; flushes every 120 s by default"
    module = "tensorboardX"


class Wandb(System):
    """W&B without a network."""

    name = "wandb"
    note = "WANDB_MODE=offline, a run.log a step; its file is the .wandb file"

    module = "wandb"

    _run: Any

    def environment(self, directory: Path) -> Mapping[str, str]:
        return {
            "TMPDIR": str(directory),  # it leaves folders there
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "WANDB_DIR": str(directory),
            "WANDB_CACHE_DIR": str(directory / "cache"),
            "WANDB_CONFIG_DIR": str(directory / "config"),
            "WANDB_DATA_DIR": str(directory / "data"),
        }

    def open(self, directory: Path) -> None:
        self._run = self.library.init(project=RUN)

    def emitter(self) -> Emit:
        emit: Emit = self._run.log
        return emit

    def emit_image(self, pixels: Any, step: int) -> object:
        return self._run.log({"image": self.library.Image(pixels)})

    def emit_histogram(self, values: Any, step: int) -> object:
        return self._run.log({"histogram": self.library.Histogram(values)})

    def settle(self) -> None:
        time.sleep(1.0)  # it has no call that waits, short of finish()

    def complete(self) -> None:
        self._run.finish()

    def finish(self) -> None:
        self._run.finish()

    def written(self, directory: Path, few: bool) -> Iterator[readers.Scalar] | None:
        return readers.wandb_scalars(directory.rglob("run-*.wandb"))


SYSTEMS: Final[Mapping[str, type[System]]] = {
    system.name: system for system in (Sidestep, SummaryWriter, TensorboardX, Wandb, System)
}
"""By name, in the order of the tables' columns."""
