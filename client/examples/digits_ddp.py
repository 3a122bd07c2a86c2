"""I-JEPA on handwritten digits, data-parallel: each rank has its part of every batch.

The model and the data are those of `digits_jepa`. All ranks draw the same batch and the same masks
and take their own images of it, so the training is the same with any number of ranks; what is
logged is that of the whole batch, and no rank waits for another to log it:

    sidestep run -- torchrun --nproc-per-node 4 client/examples/digits_ddp.py
    sidestep run -- python client/examples/digits_ddp.py
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from digits_jepa import EMA_MOMENTUM, PEAK_LR, WARMUP_STEPS, WEIGHT_DECAY, digits
from jepa import Jepa, Masks, Outcome, pick, sample_masks
from sidestep import client


def train(args: argparse.Namespace, rank: int, ranks: int) -> float:
    """Train on this rank's part of each batch; the last loss on it."""
    torch.manual_seed(args.seed)  # the same on all ranks: one model, one order, the same masks
    generator = torch.Generator().manual_seed(args.seed)
    images = digits().train
    jepa = Jepa()
    model: nn.Module = DistributedDataParallel(jepa) if ranks > 1 else jepa
    trained = [p for p in jepa.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=WEIGHT_DECAY)
    loss = torch.zeros(())
    mine = slice(rank * args.batch_size // ranks, (rank + 1) * args.batch_size // ranks)

    for step in range(args.steps):
        batch = torch.randperm(len(images), generator=generator)[: args.batch_size]
        masks = Masks(*(part[mine] for part in sample_masks(len(batch), generator)))
        lr = PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = lr
        outcome: Outcome = model(images[batch[mine]], masks)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        jepa.update_target(EMA_MOMENTUM[0])  # the ranks' encoders are equal, and so are the targets

        loss = outcome.loss.detach()
        client.emit({"train/loss": loss}, step=step, reduce="mean")
        client.emit({"train/lr": lr}, step=step)  # the same everywhere: rank 0's is written
        if step % args.representation_every == 0:
            context = client.Representation(
                outcome.context,
                paired=pick(outcome.target, masks.visible),
                loss=loss,
                spectrum_every=args.representation_every,  # the model is small
            )
            target = client.Representation(outcome.target, spectrum_every=args.representation_every)
            client.emit({"train/context": context, "train/target": target}, step=step)
    return float(loss)


def main() -> None:
    """Say who this rank is, train, say goodbye."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", default="digits-ddp")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64, help="of all ranks together")
    parser.add_argument("--representation-every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if args.steps < 1 or not 1 <= args.batch_size <= 1437 or args.batch_size % ranks:
        parser.error(f"--batch-size must be from 1 to 1437, a multiple of the {ranks} ranks")
    torch.set_num_threads(1)
    if ranks > 1:
        distributed.init_process_group("gloo")

    client.connect(args.name, config=vars(args))  # rank and world size are torchrun's
    loss = train(args, rank, ranks)
    client.finish()
    if ranks > 1:
        distributed.destroy_process_group()
    print(f"rank {rank}: loss {loss:.4f}")


if __name__ == "__main__":
    main()
