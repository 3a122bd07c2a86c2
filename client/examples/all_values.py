"""Emits one of every kind of value that sidestep can show, in a few seconds, on the CPU.

Each line of `everything` is an example to copy. Look at the result in TensorBoard (every page has
something) or, with ``--wandb``, in W&B:

    sidestep run -- python client/examples/all_values.py
    ./launch_tensorboard.sh
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from sidestep import client

SIDE, PATCH = 32, 8
SAMPLE_RATE = 8000


def digit_like(count: int, generator: torch.Generator) -> Tensor:
    """Coloured discs on a dark ground, (count, 3, SIDE, SIDE) in [0, 1]."""
    at = torch.rand(count, 3, 2, 1, 1, generator=generator) * SIDE
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    distance = (grid - at).square().sum(dim=2).sqrt()
    return (1.2 - distance / 12).clamp(0, 1)


def octahedron() -> tuple[Tensor, Tensor, Tensor]:
    """Vertices (1, 6, 3), colours (1, 6, 3) uint8 and faces (1, 8, 3) of an octahedron."""
    axes = torch.eye(3)
    vertices = torch.stack([axes, -axes], dim=1).reshape(1, 6, 3)
    colors = ((vertices + 1) * 127).to(torch.uint8)
    faces = [[x, y, z] for x in (0, 1) for y in (2, 3) for z in (4, 5)]
    return vertices, colors, torch.tensor([faces])


def everything(step: int, generator: torch.Generator) -> Mapping[str, object]:
    """One of each value, by its tag."""
    images = digit_like(8, generator)
    hidden = torch.rand(SIDE // PATCH, SIDE // PATCH, generator=generator) < 0.5
    seconds = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    labels = torch.randint(0, 2, (500,), generator=generator)
    scores = (0.3 * labels + 0.7 * torch.rand(500, generator=generator)).clamp(0, 1)
    vertices, colors, faces = octahedron()
    film = torch.stack([images.roll(shift, dims=3) for shift in range(8)], dim=1)
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.plot([0, 1, 2], [1.0, 0.5, 0.3 + 0.01 * step])
    boxes = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    return {
        "images/one": client.Image(images[0], caption="a disc"),
        "images/boxes": client.Image(images[1], boxes=boxes, labels=["disc"]),
        "images/grid": client.Images(images, per_row=4),
        "images/masked": client.MaskedImage(images[2], hidden, patch_size=PATCH),
        "images/figure": client.Figure(figure),
        "images/video": client.Video(film[:1], fps=4),
        "sound/tone": client.Audio(torch.sin(2764.6 * seconds), sample_rate=SAMPLE_RATE),
        "notes": client.Text(f"**step {step}**: all is well"),
        "weights/layer": client.Histogram(torch.randn(2000, generator=generator) * (1 + step)),
        "weights/counted": client.Histogram(torch.randn(2000, generator=generator), bins=20),
        "quality": client.PRCurve(labels, scores),
        "solid": client.Mesh(vertices, colors=colors, faces=faces),
        "train/tokens": client.Representation(torch.randn(64, 16, generator=generator)),
    }


def main() -> None:
    """Emit everything at a few steps, and what is emitted once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", default="all-values")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--wandb", action="store_true", help="write a W&B run too")
    args = parser.parse_args()

    client.connect(args.run, config=vars(args), wandb=args.wandb or None)
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    points = torch.randn(60, 8, generator=generator)
    client.emit(
        {
            "model": client.Graph(model, torch.zeros(1, 4)),
            "layout": client.CustomScalars({"curves": {"both": ["Multiline", ["train/l.*"]]}}),
            "points": client.Embedding(
                points,
                metadata=[f"point {i}" for i in range(len(points))],
                label_images=digit_like(len(points), generator),
            ),
        },
        step=0,
    )
    for step in range(args.steps):
        numbers = {"train/loss": math.exp(-step / 3), "train/lr": 1e-3}
        client.emit({**numbers, **everything(step, generator)}, step=step)
    settings = {"lr": 1e-3, "optimizer": "adamw", "steps": args.steps}
    client.emit({"hparams": client.HParams(settings, {"accuracy": 0.9})}, step=args.steps)
    client.finish(timeout=30.0)
    counts = client.stats()
    print(f"{counts.emitted} records, {counts.rejected} rejected, {counts.dropped} dropped")


if __name__ == "__main__":
    main()
