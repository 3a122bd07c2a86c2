"""Runs a function in a process that dies, or whose disk fails, at a chosen effect on its files.

    with Layer(tmp_path / "layer", "tests.support.journal_script") as layer:
        outcome = layer.run("play", {"folder": ..., "script": ...}, prefix=folder)
        for fault in kills(outcome.effects):
            layer.run("play", {...}, prefix=folder, fault=fault)

The file layer is `crash_at_write.c`, compiled by the test and loaded before libc. The function's
module is imported once, in a process that forks for each run (after `warm_up` of the module, if
it has one): a run costs milliseconds. The function is called as `play(say, **arguments)`; what it
says arrives, in order, also when it is killed right afterwards.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import pytest

SOURCE: Final = Path(__file__).with_suffix(".c")
ROOT: Final = Path(__file__).resolve().parents[2]
_MAX_SAID_BYTES: Final = 1 << 20

Say = Callable[[Any], None]


@dataclass(frozen=True)
class Effect:
    """One effect on a file: a write of `size` bytes (kind ``w``), or another, which has no size."""

    kind: str
    size: int


@dataclass(frozen=True)
class Fault:
    """What happens at effect number `effect`, counted from 0.

    Attributes:
        keep: bytes of a write that are written before it; anything else happens if this is not 0.
        error: the errno with which it fails; 0 for SIGKILL.
        times: how many effects fail in a row.
    """

    effect: int
    keep: int = 0
    error: int = 0
    times: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        killed: whether it was.
        said: what the function said until then.
        effects: all effects that there were; empty when it was killed.
        error: the traceback of what it raised, or "".
    """

    killed: bool
    said: list[Any] = field(default_factory=list[Any])
    effects: list[Effect] = field(default_factory=list[Effect])
    error: str = ""


def kills(effects: Sequence[Effect], *, every_part: bool) -> Iterator[Fault]:
    """A kill at each effect; of each write, with `every_part`, before, in and at the end of it."""
    for number, effect in enumerate(effects):
        if effect.kind != "w" or effect.size < 2:
            yield Fault(number)
        elif every_part:
            for keep in sorted({0, 1, effect.size // 2, effect.size - 1}):
                yield Fault(number, keep)
        else:
            # Half of them before the write, half of them in the middle of it.
            yield Fault(number, effect.size // 2 if number % 2 else 0)


def compiled(folder: Path) -> Path:
    """The layer as a library in `folder`; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the file layer with")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "crash_at_write.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(library), str(SOURCE), "-ldl"], check=True, timeout=60)
    return library


class Layer:
    """The process that has the layer loaded, and forks for each run.

    Args:
        folder: where the library is built.
        module: the functions' module; it is imported once.
    """

    def __init__(self, folder: Path, module: str) -> None:
        self._library = compiled(folder)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crash_at_write", str(self._library), module],
            cwd=ROOT,
            env={
                **os.environ,
                "LD_PRELOAD": str(self._library),
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        function: str,
        arguments: dict[str, Any],
        *,
        prefix: Path,
        fault: Fault | None = None,
    ) -> Outcome:
        """Run a function of the module, with `fault` on its files below `prefix`."""
        order = {
            "function": function,
            "arguments": arguments,
            "prefix": os.path.realpath(prefix),
            "fault": asdict(fault or Fault(-1)),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        found = cast("dict[str, Any]", json.loads(self._process.stdout.readline()))
        effects = [Effect(kind, size) for kind, size in found["effects"]]
        return Outcome(found["killed"], found["said"], effects, found["error"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


# --- in the process with the layer --------------------------------------------------------------


def main(library: str, module: str) -> None:
    """Do what comes on stdin, one line each, each in a process of its own."""
    layer = ctypes.CDLL(library)
    layer.effects_arm.argtypes = [
        ctypes.c_char_p,
        ctypes.c_long,
        ctypes.c_long,
        ctypes.c_int,
        ctypes.c_long,
    ]
    layer.effects_count.restype = layer.effects_size.restype = ctypes.c_long
    layer.effects_size.argtypes = layer.effects_kind.argtypes = [ctypes.c_long]
    functions = importlib.import_module(module)
    getattr(functions, "warm_up", lambda: None)()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(_fork(layer, getattr(functions, order["function"]), order)), flush=True)


def _fork(layer: ctypes.CDLL, function: Callable[..., None], order: dict[str, Any]) -> Any:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _child(layer, function, order, write)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        lines = [json.loads(line) for line in pipe.read(_MAX_SAID_BYTES).splitlines()]
    _, status = os.waitpid(pid, 0)
    ended = lines[-1] if lines and isinstance(lines[-1], dict) and "effects" in lines[-1] else None
    return {
        "killed": ended is None and os.WIFSIGNALED(status),
        "said": lines[: -1 if ended else None],
        "effects": ended["effects"] if ended else [],
        "error": ended["error"] if ended else "" if os.WIFSIGNALED(status) else f"exit {status}",
    }


def _child(
    layer: ctypes.CDLL, function: Callable[..., None], order: dict[str, Any], pipe: int
) -> None:
    def say(what: Any) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")

    # What the product prints must not be mistaken for an answer.
    os.dup2(2, 1)
    fault = Fault(**order["fault"])
    layer.effects_arm(order["prefix"].encode(), fault.effect, fault.keep, fault.error, fault.times)
    error = ""
    try:
        function(say, **order["arguments"])
    except BaseException:
        error = traceback.format_exc()
    layer.effects_disarm()
    count = layer.effects_count()
    effects = [(chr(layer.effects_kind(i)), layer.effects_size(i)) for i in range(count)]
    say({"effects": effects, "error": error})


if __name__ == "__main__":
    main(*sys.argv[1:])
