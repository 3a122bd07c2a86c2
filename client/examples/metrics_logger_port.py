"""A trainer that logs through `MetricsLogger`, ported to sidestep by one line: its import.

    -from utils.logging import MetricsLogger
    +from sidestep.client.metrics_logger import MetricsLogger

It trains a small predictor of masked patches at two levels, for a few seconds on a CPU.

    python client/examples/metrics_logger_port.py
    ./launch_tensorboard.sh
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.client.metrics_logger import MetricsLogger

CONFIG: dict[str, Any] = {
    "model": {"dim": 32, "levels": 2},
    "training": {"epochs": 2, "steps_per_epoch": 30, "batch": 16, "lr": 3e-3},
    "logging": {
        "experiment_name": "metrics_logger_port",
        "log_dir": "results/logs",
        "log_frequency": 10,
        "wandb": {"enabled": False, "project": "h-jepa", "tags": ["example"]},
        "tensorboard": {"enabled": True},
    },
}
SIDE, PATCH = 16, 4
GRID = SIDE // PATCH


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, SIDE, SIDE) in [0, 1] of waves in one of four directions, and which."""
    labels = torch.randint(4, (count,), generator=generator)
    angle = labels * torch.pi / 4
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    shift = torch.rand(count, 3, 1, 1, generator=generator) * 6
    return 0.5 + 0.5 * torch.sin(along[:, None] + shift), labels


class Model(nn.Module):
    """Tells the features of all patches (B, N, dim), at each level, from those not masked."""

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, PATCH, PATCH)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.levels = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, batch_first=True)
            for _ in range(levels)
        )

    def forward(self, images: Tensor, masks: Tensor | None = None) -> list[Tensor]:
        x = self.patches(images).flatten(2).transpose(1, 2)
        if masks is not None:
            x = torch.where(masks[..., None], self.mask_token, x)
        features: list[Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


def train(config: dict[str, Any]) -> None:
    """Train, and log as the trainer always has."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model gains nothing by a second one
    generator = torch.Generator().manual_seed(0)
    plan = config["training"]
    model, target = Model(**config["model"]), Model(**config["model"])
    target.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), plan["lr"])

    with MetricsLogger.from_config(config) as logger:
        step = 0
        for _ in range(plan["epochs"]):
            for _ in range(plan["steps_per_epoch"]):
                images, labels = pictures(plan["batch"], generator)
                masks = torch.rand(len(images), GRID * GRID, generator=generator) < 0.4
                predictions = model(images, masks)
                with torch.no_grad():
                    targets = target(images)
                losses = {
                    f"loss_level_{k}": F.smooth_l1_loss(p[masks], t[masks])
                    for k, (p, t) in enumerate(zip(predictions, targets, strict=True))
                }
                loss = torch.stack(list(losses.values())).sum()
                optimizer.zero_grad()
                loss.backward()

                logger.accumulate_metrics({"loss": loss, **losses})
                if step % logger.log_frequency == 0:
                    logger.log_metrics({"loss": loss, "lr": plan["lr"]}, step, prefix="train/")
                    logger.log_hierarchical_losses(losses, step)
                    logger.log_representations(predictions[-1], targets[-1], step)
                    logger.log_model_gradients(model, step)

                optimizer.step()
                with torch.no_grad():
                    for mine, its in zip(model.parameters(), target.parameters(), strict=True):
                        its.lerp_(mine, 0.01)
                step += 1

            logger.log_accumulated_metrics(step, prefix="train_epoch/")
            logger.log_model_weights(model, step)
            logger.log_prediction_comparison(images, predictions, targets, masks, step)
            logger.log_embeddings(targets[-1].mean(dim=1), labels, step=step)
            logger.log_system_metrics(step)


def main() -> None:
    """Take the run's name and the directory from the command line, and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--name", default=CONFIG["logging"]["experiment_name"])
    parser.add_argument("--log-dir", default=CONFIG["logging"]["log_dir"])
    given = parser.parse_args()
    logging = {**CONFIG["logging"], "experiment_name": given.name, "log_dir": given.log_dir}
    train({**CONFIG, "logging": logging})


if __name__ == "__main__":
    main()
