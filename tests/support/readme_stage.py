"""What the Python blocks of the READMEs find around them: a trainer in the middle of its work.

A block may use these names as a reader's own trainer has them; all else it must make itself.
"""

from __future__ import annotations

import argparse
import ast
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import nn

from sidestep import client

STEP = 7


def names(log_dir: str, address: str) -> dict[str, Any]:
    """The names, made anew for each block.

    Args:
        log_dir: where runs go; what a configuration file of the reader's would say.
        address: the daemon's.
    """
    mpl.use("agg")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(16, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    tokens = torch.randn(16, 9, 8)
    labels = torch.randint(0, 2, (200,))
    return {
        "address": address,
        "args": argparse.Namespace(lr=1e-3, epochs=2),
        "config": {"lr": 1e-3, "model": "vit-b"},
        "loader": [torch.rand(16, 4) for _ in range(2)],
        "train_step": lambda batch: (loss, tokens),
        "model": model,
        "optimizer": optimizer,
        "x": x,
        "loss": loss,
        "lr": 1e-3,
        "step": STEP,
        # What a vision model sees and makes.
        "images": torch.rand(8, 3, 32, 32),
        "mask": torch.rand(4, 4) < 0.5,
        "predicted": torch.rand(16, 8 * 8 * 3),
        "tokens": tokens,
        "context": tokens,
        "target": torch.randn(16, 9, 8),
        "embeddings": torch.randn(16, 8),
        # What an evaluation has.
        "labels": labels,
        "scores": (0.3 * labels + 0.7 * torch.rand(200)).clamp(0, 1),
        "samples": torch.sin(torch.arange(8000) * 0.35),
        "frames": torch.rand(6, 3, 32, 32),
        "weights": model[0].weight.detach(),
        "client": client,
        "np": np,
        "torch": torch,
        "yaml_config": {
            "logging": {
                "experiment_name": "hjepa_default",
                "log_dir": log_dir,
                "tensorboard": {"enabled": True},
            }
        },
        "trainer_state": SimpleNamespace(should_stop=False),
    }


def wants_run(source: str) -> bool:
    """Whether a block uses a `run` that it has not connected itself."""
    uses = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    contexts = {type(node.ctx) for node in uses if node.id == "run"}
    return ast.Load in contexts and ast.Store not in contexts


def calls(source: str) -> list[tuple[str, int, set[str]]]:
    """Each call in a block: the last part of what is called, how many positions, which keywords."""
    found: list[tuple[str, int, set[str]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            keywords = {word.arg for word in node.keywords if word.arg}
            found.append((ast.unparse(node.func), len(node.args), keywords))
    return found
