"""Further peers, measured when they are installed and asked for: `--systems sidestep,mlflow,...`.

They are no dependency of the tests: `pip install mlflow-skinny trackio aim neptune-scale`. What
they write is not read back: each has a format of its own, and the ratio is of what the caller
waits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.bench.systems import SYSTEMS, Emit, System

_RUN: Final = "bench"


class Mlflow(System):
    """MLflow with its tracking store in a SQLite file."""

    name = "mlflow"
    note = "log_metrics a step, synchronous as by default; store in SQLite"
    module = "mlflow"

    def environment(self, directory: Path) -> Mapping[str, str]:
        return {"MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db"}

    def open(self, directory: Path) -> None:
        self.library.start_run(run_name=_RUN)

    def emitter(self) -> Emit:
        emit: Emit = self.library.log_metrics
        return emit

    def finish(self) -> None:
        self.library.end_run()


class Trackio(System):
    """Hugging Face's trackio, which keeps runs in SQLite."""

    name = "trackio"
    note = "trackio.log a step; its project in the trial's directory"
    module = "trackio"

    def environment(self, directory: Path) -> Mapping[str, str]:
        return {"TRACKIO_DIR": str(directory), "HF_HOME": str(directory), "HF_HUB_OFFLINE": "1"}

    def open(self, directory: Path) -> None:
        self.library.init(project=_RUN)

    def emitter(self) -> Emit:
        emit: Emit = self.library.log
        return emit

    def finish(self) -> None:
        self.library.finish()


class Aim(System):
    """Aim with its repository in the trial's directory."""

    name = "aim"
    note = "a track a number"
    module = "aim"
    _run: Any

    def open(self, directory: Path) -> None:
        self._run = self.library.Run(repo=str(directory), system_tracking_interval=None)

    def emitter(self) -> Emit:
        track = self._run.track

        def emit(values: dict[str, float], step: int) -> None:
            for tag, value in values.items():
                track(value, name=tag, step=step)

        return emit

    def finish(self) -> None:
        self._run.close()


class Neptune(System):
    """Neptune's client, offline."""

    name = "neptune-scale"
    note = "Run(mode='offline').log_metrics a step"
    module = "neptune_scale"
    _run: Any

    def open(self, directory: Path) -> None:
        self._run = self.library.Run(
            project="bench/bench", mode="offline", log_directory=str(directory)
        )

    def emitter(self) -> Emit:
        log = self._run.log_metrics

        def emit(values: dict[str, float], step: int) -> None:
            log(values, step=step)

        return emit

    def settle(self) -> None:
        time.sleep(1.0)

    def finish(self) -> None:
        self._run.close()


MORE_SYSTEMS: Final[Mapping[str, type[System]]] = {
    system.name: system for system in (Mlflow, Trackio, Aim, Neptune)
}
"""By name."""

ALL_SYSTEMS: Final[Mapping[str, type[System]]] = {**SYSTEMS, **MORE_SYSTEMS}
"""By name, in the order of the tables' columns."""
