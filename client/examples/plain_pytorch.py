"""The least that a trainer needs: connect, emit in the loop, finish.

A small network learns to tell two spirals apart, in two seconds on a CPU, and saves a checkpoint
that `evaluate_checkpoint.py` can go on from.

    sidestep run -- python client/examples/plain_pytorch.py
    sidestep export spirals --format csv
    ./launch_tensorboard.sh
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep import client


def spirals(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (B, 2) on two noisy spirals, and on which one each lies (B,)."""
    label = torch.randint(2, (count,), generator=generator)
    angle = 6 * torch.rand(count, generator=generator) + 0.5
    direction = torch.stack([(angle + torch.pi * label).cos(), (angle + torch.pi * label).sin()], 1)
    noise = 0.1 * torch.randn(count, 2, generator=generator)
    return angle[:, None] / 3 * direction + noise, label


def network() -> nn.Sequential:
    """What is trained, and what a checkpoint fits."""
    return nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def main() -> None:
    """Train, log, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", default="spirals")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--checkpoint", default="spirals.pt")
    args = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)

    client.connect(args.run, config=vars(args))
    for step in range(args.steps):
        points, labels = spirals(128, generator)
        loss = F.cross_entropy(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # No .item(): a loss on the GPU is fetched without waiting for it.
        client.emit({"train/loss": loss.detach(), "train/lr": args.lr}, step=step)
        if step % 100 == 0:
            client.emit({"weights": client.Weights(model, optimizer=optimizer)}, step=step)
    client.finish()

    torch.save({"run": args.run, "step": args.steps, "model": model.state_dict()}, args.checkpoint)
    print(f"loss {loss.item():.3f} after {args.steps} steps")


if __name__ == "__main__":
    main()
