"""I-JEPA on handwritten digits: a whole self-supervised training run in about a minute, on a CPU.

A context encoder sees a part of each digit; a predictor tells from that what a target encoder, a
slow copy of the first (an exponential moving average, EMA), makes of the blocks that were hidden
(Assran et al. 2023, arXiv:2301.08243). No label is used but by the linear probe that judges the
target encoder after each epoch. All that sidestep is told stands in the class `Logging`.

    python client/examples/digits_jepa.py
    ./launch_tensorboard.sh
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

# Patches of 2x2 make 16 tokens of the 8x8 pixels: enough for blocks that hide a stroke and leave
# one, and a quarter of the time that a token per pixel takes. Larger pictures would hold no more.
PATCH = 2
GRID = 8 // PATCH
TOKENS = GRID * GRID

DIM, DEPTH, HEADS, MLP_RATIO = 64, 3, 4, 2
PREDICTOR_DIM, PREDICTOR_DEPTH = 48, 2
TARGET_BLOCKS = 3
BLOCK_SHAPES = ((2, 2), (1, 2), (2, 1))  # height and width in patches; one is drawn per batch
MIN_VISIBLE = 5

PEAK_LR = 2e-3
WARMUP_STEPS = 132
PREDICTOR_LR_FACTOR = 2.0  # a predictor that lags lets the target shrink to what it can predict
WEIGHT_DECAY = 0.05
EMA_MOMENTUM = (0.98, 0.996)  # at the first step, at the last

RIDGE = 1e-2
REPRESENTATION_EVERY = 10
PICTURED_DIGITS, PICTURE_SCALE = 8, 8


# --- the model ---------------------------------------------------------------------------------


def position_codes(dim: int) -> Tensor:
    """Fixed 2-D sine and cosine codes of the grid, (TOKENS, dim); dim is a multiple of 4."""
    # Wavelengths fit 4 positions; the usual base of 10,000 would make most codes constant.
    frequency = 4.0 ** -(torch.arange(dim // 4) / (dim / 4))
    angle = torch.arange(GRID)[:, None] * frequency
    code = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = code[:, None].expand(GRID, GRID, -1)
    columns = code[None].expand(GRID, GRID, -1)
    return 0.5 * torch.cat([rows, columns], dim=-1).reshape(TOKENS, dim)


def pick(tokens: Tensor, positions: Tensor) -> Tensor:
    """The tokens (B, N, D) at `positions` (B, M): (B, M, D)."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


class Block(nn.Module):
    """A pre-norm transformer block on (B, N, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.project(attended)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Encoder(nn.Module):
    """A small ViT: digits (B, 1, 8, 8) to tokens (B, N, DIM), of all patches or the visible."""

    position: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, DIM, PATCH, PATCH)
        nn.init.normal_(self.patches.weight, std=0.5)  # content as loud as position
        self.blocks = nn.Sequential(*(Block(DIM) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(DIM)
        self.register_buffer("position", position_codes(DIM))

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        if visible is not None:
            tokens = pick(tokens, visible)
        out: Tensor = self.norm(self.blocks(tokens))
        return out


class Predictor(nn.Module):
    """Tells the target tokens (B, M, DIM) from the visible ones (B, N, DIM) and all positions."""

    position: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(DIM, PREDICTOR_DIM), nn.Linear(PREDICTOR_DIM, DIM)
        self.mask_token = nn.Parameter(0.02 * torch.randn(PREDICTOR_DIM))
        self.blocks = nn.Sequential(*(Block(PREDICTOR_DIM) for _ in range(PREDICTOR_DEPTH)))
        self.norm = nn.LayerNorm(PREDICTOR_DIM)
        self.register_buffer("position", position_codes(PREDICTOR_DIM))

    def forward(self, context: Tensor, visible: Tensor, targets: Tensor) -> Tensor:
        seen = self.enter(context) + self.position[visible]
        asked = self.mask_token + self.position[targets]
        tokens = self.blocks(torch.cat([seen, asked], dim=1))[:, -targets.shape[1] :]
        out: Tensor = self.leave(self.norm(tokens))
        return out


class Masks(NamedTuple):
    """Token positions per digit: `visible` (B, N), and `targets` (B, M) of all blocks."""

    visible: Tensor
    targets: Tensor


def sample_masks(batch: int, generator: torch.Generator) -> Masks:
    """Multi-block masks: random target blocks; visible is the rest, cut to a common length."""
    shape = int(torch.randint(len(BLOCK_SHAPES), (), generator=generator))
    height, width = BLOCK_SHAPES[shape]
    grid = torch.arange(TOKENS).view(GRID, GRID)
    places = grid.unfold(0, height, 1).unfold(1, width, 1).reshape(-1, height * width)

    def draw(count: int) -> Tensor:
        chosen = torch.randint(len(places), (count, TARGET_BLOCKS), generator=generator)
        return places[chosen].flatten(1)

    targets = draw(batch)
    while True:
        free = torch.ones(batch, TOKENS).scatter_(1, targets, 0.0)
        cramped = free.sum(dim=1) < MIN_VISIBLE
        if not cramped.any():
            break
        targets[cramped] = draw(int(cramped.sum()))
    visible = torch.multinomial(free, int(free.sum(dim=1).min()), generator=generator)
    return Masks(visible.sort(dim=1).values, targets)


class Outcome(NamedTuple):
    """One forward pass: the loss, context tokens (B, N, DIM) and target tokens (B, TOKENS, DIM)."""

    loss: Tensor
    context: Tensor
    target: Tensor


class Jepa(nn.Module):
    """The two encoders and the predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.context_encoder = Encoder()
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)
        self.predictor = Predictor()

    def forward(self, images: Tensor, masks: Masks) -> Outcome:
        with torch.no_grad():
            target = F.layer_norm(self.target_encoder(images), (DIM,))
        context = self.context_encoder(images, masks.visible)
        predicted = self.predictor(context, *masks)
        loss = F.smooth_l1_loss(predicted, pick(target, masks.targets))
        return Outcome(loss, context, target)

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Moves the target encoder towards the context encoder."""
        slow = list[Tensor](self.target_encoder.parameters())
        fast = list[Tensor](self.context_encoder.parameters())
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)


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
            rows = "\n".join(f"| {key} | {value} |" for key, value in vars(args).items())
            client.emit({"config": client.Text(f"| setting | value |\n|---|---|\n{rows}")}, step=0)

    def step(self, step: int, outcome: Outcome, lr: float, momentum: float) -> None:
        """Three numbers each step; two representations every few steps."""
        if not self.enabled:
            return
        started = time.perf_counter()
        numbers = {"train/loss": outcome.loss, "train/lr": lr, "train/ema_momentum": momentum}
        self.client.emit(numbers, step=step)
        if step % REPRESENTATION_EVERY == 0:
            both = {"train/context": outcome.context, "train/target": outcome.target}
            self.client.emit(
                {
                    tag: self.client.Representation(x, spectrum_every=5 * REPRESENTATION_EVERY)
                    for tag, x in both.items()
                },
                step=step,
            )
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
    data, model = digits(), Jepa()
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
        logging.step(step, outcome, lr, momentum)
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
    parser.add_argument("--run", default=None, help="name of the run; default: digits-jepa")
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
    args.run = args.run or os.environ.get("SIDESTEP_RUN") or "digits-jepa"
    torch.set_num_threads(1)  # a second thread helps only on a machine that does nothing else
    logging = Logging(args, enabled=not args.no_logging)
    mean_s = train(args, logging)
    print(f"\n{args.steps} steps of {1e3 * mean_s:.2f} ms each, logging included")
    logging.finish(args.steps)


if __name__ == "__main__":
    main()
