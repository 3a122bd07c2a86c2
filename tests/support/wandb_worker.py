"""A process with a W&B sink in it that does what it is told: wandb's global state is worth one.

In the test: ``with WandbWorker(tmp_path) as worker: worker.open(spec); worker.write(...)``.
Each call waits for the answer and raises `SinkError` with what the sink said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parents[2]


class SinkError(Exception):
    """The sink raised: the name of its exception, and what it says."""


class WandbWorker:
    """The test's end of the process."""

    def __init__(self, home: Path, **env: str) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
        clean |= {"HOME": str(home), "TMPDIR": str(home), "NETRC": str(home / "netrc"), **env}
        self.logs: list[str] = []
        self.saved: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.wandb_worker"],
            cwd=ROOT,
            env=clean,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.core: psutil.Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def open(
        self,
        log_dir: Path,
        name: str = "run",
        state: Mapping[str, Any] | None = None,
        wandb: Mapping[str, Any] | None = None,
        **run: Any,
    ) -> None:
        """Open the sink; `run` has further fields of the RunSpec."""
        spec = {"name": name, "log_dir": str(log_dir), "wandb": dict(wandb or {}), **run}
        self._call(op="open", run=spec, state=state)
        children = psutil.Process(self.process.pid).children()
        self.core = next((p for p in children if p.name() == "wandb-core"), None)

    def write(self, *points: Mapping[str, Any]) -> None:
        """Write blocks (see `rows`) and values (see `value`)."""
        self._call(op="write", points=points)

    def commit(self) -> dict[str, Any]:
        """Commit; the state."""
        return dict(self._call(op="commit")["state"])

    def close(self) -> None:
        """Close the sink."""
        self._call(op="close")

    def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer sends it."""
        self.process.kill()
        self.process.wait()

    def _call(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.logs += answer["logs"]
        self.saved += answer["saved"]
        if "error" in answer:
            raise SinkError(answer["error"])
        return dict(answer)


def rows(tags: list[str], steps: Any, values: list[list[float]] | None = None) -> dict[str, Any]:
    """A block whose rows are of the second of their step, with the step for their values too."""
    steps = [int(step) for step in steps]
    return {
        "tags": tags,
        "steps": steps,
        "times_ns": [(1_700_000_000 + step % 10**6) * 10**9 for step in steps],
        "values": values or [[float(step)] * len(tags) for step in steps],
    }


def value(kind: str, tag: str, step: int, array: Any = None, **info: Any) -> dict[str, Any]:
    """A value with no array, one, or a tuple of them."""
    several = array if isinstance(array, tuple) else () if array is None else (array,)
    arrays = [[str(one.dtype), list(one.shape), one.tobytes().hex()] for one in several]
    return {"kind": kind, "tag": tag, "step": step, "info": info, "arrays": arrays}


def main() -> None:
    """What runs in the process."""
    import numpy as np

    from sidestep.proto import Array, RunSpec, Value
    from sidestep.sidecar.rows.points import ScalarBlock
    from sidestep.sidecar.sinks import wandb_run
    from sidestep.sidecar.sinks.base import SinkContext
    from sidestep.sidecar.sinks.wandb import WandbSink

    if timeout := os.environ.get("TEST_FINISH_TIMEOUT_S"):
        wandb_run._FINISH_TIMEOUT_S = float(timeout)

    def point_of(point: Mapping[str, Any]) -> ScalarBlock | Value:
        if "kind" in point:
            arrays = [Array(d, tuple(s), bytes.fromhex(h)) for d, s, h in point["arrays"]]
            return Value(point["kind"], point["tag"], point["step"], 10**18, point["info"], arrays)
        return ScalarBlock(
            tuple(point["tags"]),
            np.array(point["steps"], np.int64),
            np.array(point["times_ns"], np.int64),
            np.array(point["values"], np.float64),
        )

    logs: list[str] = []
    saved: list[Any] = []
    sink = WandbSink()
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            match command["op"]:
                case "open":
                    run = RunSpec(**command["run"])
                    context = SinkContext(run, "run", command["state"], saved.append, logs.append)
                    sink.open(context)
                    if sink._log is not None:
                        assert sink._log._send is not None, "this wandb takes no batches"
                        if "TEST_PUBLIC_LOG" in os.environ:
                            sink._log._send = None
                case "write":
                    sink.write([point_of(point) for point in command["points"]])
                case "commit":
                    answer["state"] = dict(sink.commit())
                case _:
                    sink.close(finished=True)
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps({**answer, "logs": logs, "saved": saved}), flush=True)
        logs.clear()
        saved.clear()


if __name__ == "__main__":
    main()
