"""A small I-JEPA for 8x8 pictures: two encoders, a predictor, and masks of several blocks.

A context encoder sees a part of each picture; a predictor tells from that what a target encoder, a
slow copy of the first (an exponential moving average, EMA), makes of the blocks that were hidden
(Assran et al. 2023, arXiv:2301.08243).
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
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
        target = self.targets(images)
        context = self.context_encoder(images, masks.visible)
        predicted = self.predictor(context, *masks)
        return Outcome(self.loss(predicted, target, masks), context, target)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """What is to be predicted of `images`, (B, TOKENS, DIM), behind a stop-gradient."""
        return F.layer_norm(self.target_encoder(images), (DIM,))

    def loss(self, predicted: Tensor, target: Tensor, masks: Masks) -> Tensor:
        """How far the predictions (B, M, DIM) are from the targets at their positions."""
        return F.smooth_l1_loss(predicted, pick(target, masks.targets))

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Moves the target encoder towards the context encoder."""
        slow = list[Tensor](self.target_encoder.parameters())
        fast = list[Tensor](self.context_encoder.parameters())
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)
