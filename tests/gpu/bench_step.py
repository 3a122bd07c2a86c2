"""Step time of a ViT-B/16 with everything that sidestep looks at, against none of it.

    make bench-gpu
    make bench-gpu ARGS='--steps 200 --batch 128'

Configurations take their turn in blocks, in one process, beginning with another one each round,
so that clocks and neighbours hit all alike. What is shown is the median of a block's steps, by
CUDA events around each step, and its ratio to "off" of the same round. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import datetime as dt
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

Values = Callable[["Step"], dict[str, Any]]


class VisionTransformer(nn.Module):
    """ViT-B/16 at 224 pixels: 196 tokens of 768, 12 blocks, 86 M parameters."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 196, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.norm(self.blocks(tokens))


class Step:
    """One training step: a ViT whose tokens predict a frozen projection of themselves."""

    def __init__(self, batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = VisionTransformer().to(device)
        self.target = nn.Linear(768, 768).to(device).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.images = torch.randn(batch, 3, 224, 224, device=device)
        self.context = self.goal = self.loss = torch.zeros(())

    def forward_and_backward(self) -> None:
        with torch.autocast(self.images.device.type, dtype=torch.bfloat16):
            self.context = self.model(self.images)
            with torch.no_grad():
                self.goal = self.target(self.context.detach())
            self.loss = (self.context.float() - self.goal.float()).square().mean()
        self.optimizer.zero_grad(set_to_none=False)
        self.loss.backward()

    def numbers(self) -> dict[str, Any]:
        return {"train/loss": self.loss, "train/lr": 1e-4}

    def representations(self, spectrum_every: int = 200) -> dict[str, Any]:
        target = sidestep.Representation(self.goal, spectrum_every=spectrum_every)
        context = sidestep.Representation(
            self.context, paired=self.goal, loss=self.loss, spectrum_every=spectrum_every
        )
        return {**self.numbers(), "train/context": context, "train/target": target}

    def everything(self) -> dict[str, Any]:
        found = self.representations()
        for name, tag in (("Gradients", "gradients"), ("Weights", "weights")):
            value = getattr(sidestep, name, None)
            if value is not None:
                found[tag] = value(self.model)
        return found


CONFIGURATIONS: dict[str, Values | None] = {
    "off": None,
    "numbers": Step.numbers,
    "representations": Step.representations,
    "representations, spectrum each step": lambda step: step.representations(1),
    "everything": Step.everything,
}


def block(
    step: Step, client: sidestep.Client, values: Values | None, steps: int, first: int
) -> tuple[float, float]:
    """Median milliseconds of the device for a step, and of the caller for an emit."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    emits: list[float] = []
    marks[0].record()
    for number in range(steps):
        step.forward_and_backward()
        if values is not None:
            began = time.perf_counter()
            client.emit(values(step), step=first + number)
            emits.append(time.perf_counter() - began)
        step.optimizer.step()
        marks[number + 1].record()
    torch.cuda.synchronize()
    times = [marks[i].elapsed_time(marks[i + 1]) for i in range(steps)]
    return statistics.median(times), 1e3 * statistics.median(emits or [0.0])


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="in a block")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_step: no CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda", 0)
    step = Step(given.batch, device)
    with tempfile.TemporaryDirectory(prefix="sb") as directory:
        os.environ |= {
            "SIDESTEP_RUNTIME_DIR": os.path.join(directory, "rt"),
            "SIDESTEP_STATE_DIR": os.path.join(directory, "st"),
        }
        client = sidestep.connect("bench", log_dir=os.path.join(directory, "logs"))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONFIGURATIONS}
        names = list(CONFIGURATIONS)
        first = 0
        for name in names:  # warm up, and make all memory
            block(step, client, CONFIGURATIONS[name], 5, first)
            first += 5
        for turn in range(given.rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                found[name].append(block(step, client, CONFIGURATIONS[name], given.steps, first))
                first += given.steps
        client.finish(60)
        stats = client.stats()
    properties = torch.cuda.get_device_properties(device)
    print(f"ViT-B/16, batch {given.batch}, bfloat16; {properties.name}; torch {torch.__version__};")
    print(f"{given.rounds} rounds of {given.steps} steps; {dt.date.today()}")  # noqa: DTZ011
    print(f"| {'logged':36} | step, ms | against off: median (lowest to highest) | emit, ms |")
    print(f"|{'-' * 38}|---------:|------------------------------------------:|---------:|")
    off = [time_ms for time_ms, _ in found["off"]]
    for name, rows in found.items():
        changes = sorted(100 * (row[0] / base - 1) for row, base in zip(rows, off, strict=True))
        middle = f"{statistics.median(changes):+.2f} %"
        spread = f"{middle} ({changes[0]:+.2f} to {changes[-1]:+.2f})"
        time_ms = statistics.median(row[0] for row in rows)
        emit_ms = statistics.median(row[1] for row in rows)
        print(f"| {name:36} | {time_ms:8.2f} | {spread:>41} | {emit_ms:8.3f} |")
    print(f"emitted {stats.emitted}, dropped {stats.dropped}, rejected {stats.rejected}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
