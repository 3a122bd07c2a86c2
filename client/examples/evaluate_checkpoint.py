"""Evaluates a checkpoint, and writes what it finds into the run that made it.

A run is its name: whoever connects with it, then or later, adds to it. The training's curves stay
as they are, also when an old checkpoint is evaluated.

    python client/examples/plain_pytorch.py
    python client/examples/evaluate_checkpoint.py spirals.pt
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F

from plain_pytorch import network, spirals
from sidestep import client


def main() -> None:
    """Load, evaluate, log at the checkpoint's step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint")
    args = parser.parse_args()

    saved = torch.load(args.checkpoint, weights_only=True)
    model = network()
    model.load_state_dict(saved["model"])
    points, labels = spirals(2000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(points)
    right = (logits.argmax(1) == labels).float()

    # Nobody waits for an evaluation, so it may: with "block" nothing is ever dropped.
    with client.connect(saved["run"], tags=["evaluation"], on_full="block") as run:
        run.emit(
            {
                "test/loss": F.cross_entropy(logits, labels),
                "test/accuracy": right.mean(),
                "test/pr": client.PRCurve(labels, logits.softmax(1)[:, 1]),
            },
            step=saved["step"],
        )
    print(f"accuracy {right.mean():.3f} at step {saved['step']}")


if __name__ == "__main__":
    main()
