"""A trainer that logs through `SummaryWriter`, ported to sidestep by one line: its import.

    -from torch.utils.tensorboard import SummaryWriter
    +from sidestep.client.tensorboard import SummaryWriter

It learns to tell waves of four directions apart, for a few seconds on a CPU.

    python client/examples/summary_writer_port.py
    tensorboard --logdir runs
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.client.tensorboard import SummaryWriter

SIDE, KINDS = 16, 4


def waves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, 1, SIDE, SIDE) in [0, 1] of noisy waves, and in which direction each runs."""
    labels = torch.randint(KINDS, (count,), generator=generator)
    angle = labels * torch.pi / KINDS
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    shift = torch.rand(count, 1, 1, generator=generator) * 6
    pictures = 0.5 + 0.5 * torch.sin(along + shift)
    noise = torch.rand(count, SIDE, SIDE, generator=generator)
    return (0.4 * pictures + 0.6 * noise)[:, None], labels


class Model(nn.Module):
    """Two convolutions, a mean over the picture, a decision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 5), nn.ReLU(), nn.Conv2d(width, width, 5), nn.ReLU()
        )
        self.head = nn.Linear(width, KINDS)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean(dim=(2, 3)))
        return logits


def train(args: argparse.Namespace) -> float:
    """Train and log; the accuracy in the end."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Model(args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    held_out, truth = waves(128, generator)

    writer = SummaryWriter(args.log_dir)
    writer.add_graph(model, held_out[:1])
    writer.add_images("held_out", held_out[:16], 0)
    writer.add_text("about", "Waves of **four directions**, in noise.")
    writer.add_custom_scalars_multilinechart(["loss/train", "loss/val"], title="losses")

    accuracy = 0.0
    for step in range(args.steps):
        pictures, labels = waves(32, generator)
        loss = F.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        writer.add_scalar("loss/train", loss, step)
        if step % 10 == 9:
            with torch.no_grad():
                logits = model(held_out)
            right = (logits.argmax(1) == truth).float()
            accuracy = float(right.mean())
            by_kind = {f"kind_{kind}": right[truth == kind].mean() for kind in range(KINDS)}
            writer.add_scalar("loss/val", F.cross_entropy(logits, truth), step)
            writer.add_scalar("accuracy", accuracy, step)
            writer.add_scalars("accuracy_of", by_kind, step)
            writer.add_pr_curve("first_kind", truth == 0, logits.softmax(1)[:, 0], step)
            for name, parameter in model.named_parameters():
                writer.add_histogram(f"weights/{name}", parameter, step)
                writer.add_histogram(f"gradients/{name}", parameter.grad, step)

    with torch.no_grad():
        means = model.features(held_out).mean(dim=(2, 3))
    names = [f"direction {int(kind)}" for kind in truth]
    writer.add_embedding(means, metadata=names, label_img=held_out, global_step=args.steps)
    settings = {"lr": args.lr, "width": args.width}
    writer.add_hparams(settings, {"hparam/accuracy": accuracy}, run_name="hparams")
    writer.close()
    return accuracy


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, train, say how well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--log-dir", help="default: runs/<date>_<host>")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-2)
    print(f"accuracy {train(parser.parse_args(arguments)):.2f}")


if __name__ == "__main__":
    main()
