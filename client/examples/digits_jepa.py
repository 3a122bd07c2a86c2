"""I-JEPA on handwritten digits: a whole self-supervised training run in about a minute, on a CPU.

The model is in `jepa`: an encoder learns by predicting what a slow copy of it makes of the blocks
that were hidden from it. No label is used but by the linear probe that judges the target encoder
after each epoch. All that sidestep is told stands in the class `Logging`.

    python client/examples/digits_jepa.py
    ./launch_tensorboard.sh

With `--collapse complete` (or `dimensional`, or `token`) the same model is trained without what
prevents its collapse: see `collapse`. The alarm is printed when it rises, the loss looks well. The
healthy run raises none.

    python client/examples/digits_jepa.py --collapse complete --steps 400
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from collapse import HOW, CollapsingJepa
from jepa import GRID, PATCH, TOKENS, Encoder, Jepa, Masks, Outcome, pick, sample_masks

PEAK_LR = 2e-3
WARMUP_STEPS = 132
PREDICTOR_LR_FACTOR = 2.0  # a predictor that lags lets the target shrink to what it can predict
WEIGHT_DECAY = 0.05
EMA_MOMENTUM = (0.98, 0.996)  # at the first step, at the last

RIDGE = 1e-2
REPRESENTATION_EVERY = 10
PICTURED_DIGITS, PICTURE_SCALE = 8, 8


# --- the data, and what is measured on it ------------------------------------------------------


class Digits(NamedTuple):
    """Images (B, 1, 8, 8), standardized, and their classes (B,), for training and for the test."""

    train: Tensor
    train_classes: Tensor
    test: Tensor
    test_classes: Tensor


def digits() -> Digits:
    """scikit-learn's 1,797 digits: 1,437 to train on, 360 held out, always the same ones."""
    pixels, classes = load_digits(return_X_y=True)
    train, test, train_classes, test_classes = train_test_split(
        torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16.0,
        torch.tensor(classes),
        test_size=0.2,
        stratify=classes,
        random_state=0,
    )
    mean, std = train.mean(), train.std()
    return Digits((train - mean) / std, train_classes, (test - mean) / std, test_classes)


@torch.no_grad()
def probe_accuracy(encoder: Encoder, data: Digits) -> float:
    """Accuracy on the held-out digits of ridge regression on frozen, average-pooled tokens."""
    train, test = (encoder(images).mean(dim=1).double() for images in (data.train, data.test))
    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-6
    train, test = (F.pad((x - mean) / std, (0, 1), value=1.0) for x in (train, test))
    penalty = RIDGE * len(train) * torch.eye(train.shape[1], dtype=train.dtype)
    wanted = F.one_hot(data.train_classes).to(train.dtype)
    weights = torch.linalg.solve(train.T @ train + penalty, train.T @ wanted)
    return float(((test @ weights).argmax(dim=1) == data.test_classes).double().mean())


# --- what is logged ----------------------------------------------------------------------------


class Logging:
    """Everything that sidestep is told, and what it cost; with `enabled=False` it does nothing."""

    def __init__(self, args: argparse.Namespace, *, enabled: bool) -> None:
        self.enabled = enabled
        self.cost_s: list[float] = []  # of each call
        self.run, self.wandb = args.run, args.wandb
        if enabled:
            from sidestep import client

            self.client = client
            wandb = {"project": "sidestep-demo"} if args.wandb else None
            client.connect(args.run, config=vars(args), wandb=wandb)
            client.on_alarm(
                lambda alarm: print(f"alarm: {alarm.state} {alarm.tag}: {alarm.reason}")
            )
            rows = "\n".join(f"| {key} | {value} |" for key, value in vars(args).items())
            client.emit({"config": client.Text(f"| setting | value |\n|---|---|\n{rows}")}, step=0)

    def step(self, step: int, outcome: Outcome, masks: Masks, lr: float, momentum: float) -> None:
        """Three numbers each step; two representations every few steps."""
        if not self.enabled:
            return
        started = time.perf_counter()
        numbers = {"train/loss": outcome.loss, "train/lr": lr, "train/ema_momentum": momentum}
        self.client.emit(numbers, step=step)
        if step % REPRESENTATION_EVERY == 0:
            spectrum_every = 5 * REPRESENTATION_EVERY
            context = self.client.Representation(
                outcome.context,
                paired=pick(outcome.target, masks.visible),
                loss=outcome.loss,
                spectrum_every=spectrum_every,
            )
            target = self.client.Representation(outcome.target, spectrum_every=spectrum_every)
            self.client.emit({"train/context": context, "train/target": target}, step=step)
        self.cost_s.append(time.perf_counter() - started)

    def epoch(self, step: int, values: dict[str, float], encoder: Encoder, picture: Tensor) -> None:
        """Validation, weights and a picture of what is hidden, after each epoch."""
        if not self.enabled:
            return
        started = time.perf_counter()
        named = encoder.named_parameters()
        weights = {f"weights/{name}": self.client.Histogram(p) for name, p in named}
        masked = {"training/images/masked": self.client.Image(picture)}
        self.client.emit({**values, **weights, **masked}, step=step)
        self.cost_s.append(time.perf_counter() - started)

    def finish(self, steps: int) -> None:
        """Say goodbye, and what became of all that was emitted."""
        if not self.enabled:
            return
        delivered, counts = self.client.finish(timeout=30.0), self.client.stats()
        log_dir = Path(os.environ.get("SIDESTEP_LOG_DIR", "results/logs"))
        cost_us, worst_us = 1e6 * sum(self.cost_s) / steps, 1e6 * max(self.cost_s)
        print(f"logging cost    {cost_us:.0f} µs a step in all, {worst_us:.0f} µs at worst")
        print(
            f"records         {counts.emitted} emitted, {counts.acked} durable, "
            f"{counts.held} held, {counts.dropped} dropped, {counts.rejected} rejected"
            + ("" if delivered else " (the next daemon delivers what is held)")
        )
        print(f"event files     {log_dir / 'tensorboard' / self.run}")
        if self.wandb:
            print(f"W&B run         {log_dir / 'wandb'}")
        print("look at it      ./launch_tensorboard.sh")


def masked_picture(images: Tensor, masks: Masks) -> Tensor:
    """Digits, what the context encoder sees of them, and the hidden blocks: (1, H, W) in [0, 1]."""
    shown = images[:PICTURED_DIGITS, 0]
    shown = (shown - shown.min()) / (shown.max() - shown.min())

    def only(positions: Tensor) -> Tensor:
        kept = torch.zeros(len(shown), TOKENS).scatter_(1, positions[: len(shown)], 1.0)
        patches = kept.view(-1, GRID, GRID).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        return shown * patches + 0.3 * (1.0 - patches)

    rows = [shown, only(masks.visible), only(masks.targets)]
    grid = torch.cat([torch.cat(list(F.pad(row, (1, 1, 1, 1))), dim=1) for row in rows])
    return grid.repeat_interleave(PICTURE_SCALE, 0).repeat_interleave(PICTURE_SCALE, 1)[None]


# --- training ----------------------------------------------------------------------------------


def train(args: argparse.Namespace, logging: Logging) -> float:
    """Train for `args.steps` steps; returns the mean time of one, in seconds."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    data = digits()
    model = CollapsingJepa(args.collapse) if args.collapse else Jepa()
    optimizer = torch.optim.AdamW(
        [
            {"params": model.context_encoder.parameters(), "factor": 1.0},
            {"params": model.predictor.parameters(), "factor": PREDICTOR_LR_FACTOR},
        ],
        weight_decay=WEIGHT_DECAY,
    )
    print(f"random encoder: probe accuracy {probe_accuracy(model.target_encoder, data):.4f}")
    steps_per_epoch = len(data.train) // args.batch_size
    losses: list[Tensor] = []
    busy_s = 0.0
    for step in range(args.steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(data.train), generator=generator)
        at = step % steps_per_epoch * args.batch_size
        images = data.train[order[at : at + args.batch_size]]
        started = time.perf_counter()
        done = step / args.steps
        lr = PEAK_LR * min(1.0, step / WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        momentum = EMA_MOMENTUM[0] + (EMA_MOMENTUM[1] - EMA_MOMENTUM[0]) * done
        masks = sample_masks(len(images), generator)
        outcome: Outcome = model(images, masks)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        model.update_target(momentum)
        logging.step(step, outcome, masks, lr, momentum)
        losses.append(outcome.loss.detach())
        busy_s += time.perf_counter() - started
        if (step + 1) % steps_per_epoch == 0 or step + 1 == args.steps:
            values = evaluate(model, data, losses, args.seed)
            epoch = (step + 1) / steps_per_epoch
            print("  ".join([f"epoch {epoch:4.1f}", *(f"{k} {v:.4f}" for k, v in values.items())]))
            picture = masked_picture(images, masks)
            logging.epoch(step, values, model.context_encoder, picture)
            losses.clear()
    return busy_s / float(args.steps)


@torch.no_grad()
def evaluate(model: Jepa, data: Digits, losses: list[Tensor], seed: int) -> dict[str, float]:
    """The epoch's mean loss, the loss on held-out digits under fixed masks, and the probe."""
    masks = sample_masks(len(data.test), torch.Generator().manual_seed(seed))
    return {
        "train_epoch/loss": float(torch.stack(losses).mean()),
        "val/loss": float(model(data.test, masks).loss),
        "val/probe_accuracy": probe_accuracy(model.target_encoder, data),
    }


def main() -> None:
    """Train, log, and say what it cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2640, help="training steps (44 are an epoch)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", default=None, help="name of the run; default: digits-jepa[-HOW]")
    parser.add_argument("--collapse", choices=HOW, help="take away what prevents a collapse")
    parser.add_argument("--no-logging", action="store_true", help="train without sidestep")
    parser.add_argument(
        "--wandb",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write a W&B run too; offline when there is no API key",
    )
    args = parser.parse_args()
    if args.steps < 1 or not 1 <= args.batch_size <= 1437:
        parser.error("--steps must be 1 or more, --batch-size from 1 to 1437")
    default = f"digits-jepa-{args.collapse}" if args.collapse else "digits-jepa"
    args.run = args.run or os.environ.get("SIDESTEP_RUN") or default
    torch.set_num_threads(1)  # a second thread helps only on a machine that does nothing else
    logging = Logging(args, enabled=not args.no_logging)
    mean_s = train(args, logging)
    print(f"\n{args.steps} steps of {1e3 * mean_s:.2f} ms each, logging included")
    logging.finish(args.steps)


if __name__ == "__main__":
    main()
