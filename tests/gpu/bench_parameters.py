"""What it takes to look at the gradients of all parameters, against reading their memory once.

    .venv/bin/python -m tests.gpu.bench_parameters
    .venv/bin/python -m tests.gpu.bench_parameters --width 64 --depth 2 --device cpu

Each way of logging takes its turn in rounds, in one process. What is shown is the median wall time
of a training step on a small batch, with the device idle before and after, less that of the same
step without logging. Nothing is asserted. Without a GPU the script says so and ends, unless it is
told to run on the CPU, where its figures say nothing of a GPU's.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sidestep import client as sidestep
from sidestep.client.parameter_counts import TRITON_VARIABLE

Log = Callable[[int], object]


class Network(nn.Module):
    """12 · depth matrices of width²: as many parameters as a transformer of that size."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(12 * depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_ms(net: nn.Module, x: torch.Tensor, number: int, log: Log | None) -> tuple[float, float]:
    """Milliseconds of a step, and of the call that logs."""
    synchronize(x.device)
    began = time.perf_counter()
    net.zero_grad()
    net(x).square().mean().backward()
    called = time.perf_counter()
    if log is not None:
        log(number)
    returned = time.perf_counter()
    synchronize(x.device)
    return 1e3 * (time.perf_counter() - began), 1e3 * (returned - called)


def read_ms(nbytes: int, device: torch.device) -> float:
    """Milliseconds to read so many bytes once: the fastest sum of one array."""
    memory = torch.ones(nbytes // 4, device=device)
    found: list[float] = []
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        memory.sum()
        synchronize(device)
        found.append(1e3 * (time.perf_counter() - began))
    return min(found)


class Ways:
    """The ways of logging, each with what it needs.

    Args:
        net: whose gradients are logged.
        directory: for everybody's files.
    """

    def __init__(self, net: nn.Module, directory: str) -> None:
        self._net = net
        self._directory = directory
        self._client = sidestep.connect("bench", log_dir=os.path.join(directory, "logs"))

    def all(self) -> dict[str, Log | None]:
        """Name and call of each way; None logs nothing."""
        ways: dict[str, Log | None] = {"off": None, "Gradients": self._gradients("0")}
        if importlib.util.find_spec("triton") and torch.cuda.is_available():
            ways["Gradients, Triton kernel"] = self._gradients("1")
        if importlib.util.find_spec("tensorboard"):
            ways["SummaryWriter.add_histogram in a loop"] = self._summary_writer()
        return ways

    def wandb(self) -> Log | None:
        """Hooks into the network itself, for which reason it comes last."""
        if not importlib.util.find_spec("wandb"):
            return None
        import wandb

        os.environ["WANDB_SILENT"] = "true"
        run = wandb.init(mode="offline", dir=self._directory)
        run.watch(self._net, log="gradients", log_freq=1)
        return lambda step: run.log({}, step=step)

    def close(self) -> str:
        """End, and say what came of it."""
        self._client.finish(60)
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()
        stats = self._client.stats()
        return f"emitted {stats.emitted}, dropped {stats.dropped}, rejected {stats.rejected}"

    def _gradients(self, triton: str) -> Log:
        def log(step: int) -> None:
            os.environ[TRITON_VARIABLE] = triton
            self._client.emit({"gradients": sidestep.Gradients(self._net)}, step=step)

        return log

    def _summary_writer(self) -> Log:
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter(os.path.join(self._directory, "tb"))

        def log(step: int) -> None:
            for name, parameter in self._net.named_parameters():
                writer.add_histogram(f"gradients/{name}", parameter.grad, step)

        return log


def measure(net: nn.Module, x: torch.Tensor, steps: int, rounds: int) -> int:
    """Measure and print a table."""
    count = sum(parameter.numel() for parameter in net.parameters())
    once = read_ms(4 * count, x.device)
    with tempfile.TemporaryDirectory(prefix="sb") as directory:
        os.environ |= {
            "SIDESTEP_RUNTIME_DIR": os.path.join(directory, "rt"),
            "SIDESTEP_STATE_DIR": os.path.join(directory, "st"),
        }
        ways = Ways(net, directory)
        found: dict[str, list[tuple[float, float]]] = {}
        number = 0

        def block(name: str, log: Log | None, times: int, keep: bool) -> None:
            nonlocal number
            for _ in range(times):
                took = step_ms(net, x, number, log)
                number += 1
                if keep:
                    found.setdefault(name, []).append(took)

        calls = ways.all()
        for turn in range(rounds + 1):  # the first one warms up
            for name, log in calls.items():
                block(name, log, steps if turn else 2, keep=turn > 0)
        if (watch := ways.wandb()) is not None:
            block("wandb.watch", watch, 1, keep=False)
            block("wandb.watch", watch, steps, keep=True)
        said = ways.close()
    device = torch.cuda.get_device_name(x.device) if x.is_cuda else "CPU"
    print(f"{count / 1e6:.1f} M parameters, float32; {device}; torch {torch.__version__};")
    print(f"{rounds} rounds of {steps} steps; {dt.date.today()}")  # noqa: DTZ011
    print(f"reading {4 * count / 1e6:.0f} MB once: {once:.3f} ms")
    print(f"| {'logged':38} | step, ms | beyond off, ms | times a reading | call, ms |")
    print(f"|{'-' * 40}|---------:|---------------:|----------------:|---------:|")
    off = statistics.median(row[0] for row in found["off"])
    for name, rows in found.items():
        whole, call = (statistics.median(column) for column in zip(*rows, strict=True))
        more = whole - off
        print(f"| {name:38} | {whole:8.2f} | {more:14.2f} | {more / once:15.1f} | {call:8.2f} |")
    print(said)
    return 0


def main() -> int:
    """Take the sizes from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24, help="12 matrices each: 302 M parameters")
    parser.add_argument("--steps", type=int, default=5, help="in a block")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("bench_parameters: no CUDA device", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    device = torch.device(given.device)
    net = Network(given.width, given.depth).to(device)
    return measure(net, torch.randn(16, given.width, device=device), given.steps, given.rounds)


if __name__ == "__main__":
    sys.exit(main())
