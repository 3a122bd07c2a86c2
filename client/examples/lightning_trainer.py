"""A Lightning `Trainer` that logs through sidestep: one argument, `logger=SidestepLogger(...)`.

pip install 'sidestep[lightning]'
sidestep run -- python client/examples/lightning_trainer.py
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from sidestep import client
from sidestep.client.lightning import SidestepLogger


class Autoencoder(LightningModule):
    """Learns to pass 16 numbers through 4."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder, self.decoder = nn.Linear(16, 4), nn.Linear(4, 16)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        (x,) = batch
        code = self.encoder(x)
        loss: Tensor = (self.decoder(code) - x).square().mean()
        self.log("train/loss", loss)
        if index == 0 and isinstance(self.logger, SidestepLogger):
            # What is no number goes to the client itself.
            values = {"train/code": client.Representation(code)}
            self.logger.experiment.emit(values, self.global_step)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        (x,) = batch
        self.log("val/loss", (self.decoder(self.encoder(x)) - x).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.hparams["lr"])


def main() -> None:
    """Fit, with validation after each epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", default="lightning")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(0)
    data = torch.randn(640, 4) @ torch.randn(4, 16)
    train, held_out = random_split(TensorDataset(data), [512, 128])
    trainer = Trainer(
        max_epochs=args.epochs,
        logger=SidestepLogger(args.run),
        log_every_n_steps=4,
        accelerator="auto",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Autoencoder(), DataLoader(train, 32), DataLoader(held_out, 32))


if __name__ == "__main__":
    main()
