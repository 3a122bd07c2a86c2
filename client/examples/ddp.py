"""Data-parallel training: every rank emits, and the run has one curve of each value.

`reduce` says how the daemon puts the ranks' values together; no rank waits for another. "spread"
also writes how far they lie apart (`train/loss_std _min _max`). It runs alone as well as in many
processes, on GPUs (nccl) or on the CPU (gloo):

    sidestep run -- torchrun --nproc-per-node 2 client/examples/ddp.py
    sidestep run -- python client/examples/ddp.py
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sidestep import client


def main() -> None:
    """Train a linear teacher's student on each rank's own data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", default="ddp")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()

    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    parallel = "RANK" in os.environ  # torchrun says so
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if parallel:
        distributed.init_process_group("nccl" if on_gpu else "gloo")

    torch.manual_seed(0)
    teacher, student = nn.Linear(8, 1).to(device), nn.Linear(8, 1).to(device)
    model = DistributedDataParallel(student) if parallel else student
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(rank)  # each rank has its own data

    client.connect(args.name, config=vars(args))  # rank and world size are torchrun's
    for step in range(args.steps):
        x = torch.randn(32, 8, generator=generator).to(device)
        loss = (model(x) - teacher(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        client.emit({"train/loss": loss.detach()}, step=step, reduce="spread")
        client.emit({"train/samples": len(x)}, step=step, reduce="sum")
        client.emit({"train/lr": 0.05}, step=step)  # the same everywhere: rank 0's is written
    client.finish()

    if parallel:
        distributed.destroy_process_group()
    print(f"rank {rank}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
