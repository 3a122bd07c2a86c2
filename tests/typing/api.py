"""The documented public API, as users write it: checked by mypy and pyright, never run.

A line that stops type-checking here is a breaking change for somebody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sidestep import client
from sidestep.client.lightning import SidestepLogger
from sidestep.client.metrics_logger import MetricsLogger
from sidestep.client.tensorboard import FileWriter, SummaryWriter
from sidestep.client.transformers import SidestepCallback

if TYPE_CHECKING:
    from collections.abc import Mapping

loss = torch.zeros(())
context = torch.zeros(8, 16, 32)
image = torch.zeros(3, 8, 8)
cfg: dict[str, object] = {"lr": 1e-3, "optimizer": {"name": "adamw"}}


def on_alarm(alarm: object) -> None:
    """Take whatever an alarm is."""


# --- connect: everything has a default, and everything can be said ---

client.connect()
client.connect("vit-b", config=cfg)
connected: client.Client = client.connect(
    "vit-b",
    log_dir="results/logs",
    config=cfg,
    tags=("baseline", "vit-base"),
    tensorboard=True,
    wandb=None,
    endpoint=None,
    autostart=True,
    rank=None,
    world_size=None,
    ranks="zero",
    on_full="drop",
    outbox_bytes=64 << 20,
    strict=None,
)
client.connect(None, wandb=True, on_full="block", rank=0, world_size=8, strict=True)
client.connect(wandb={"project": "h-jepa", "entity": None, "tags": ["a"], "mode": "offline"})

# --- emit: numbers, and tensors that are still on their device ---

client.emit({"train/loss": loss, "train/lr": 1e-3}, step=1)
client.emit({"train/epoch": 3, "train/warm": True})
client.emit({"val/loss": np.float32(0.5), "val/top1": np.float64(0.7)}, step=2, wall_time=1.7e9)
client.emit({"train/loss": loss}, step=3, reduce="mean")

# A mapping of one kind of value is as good as one of many.
floats: dict[str, float] = {"train/loss": 0.5}
tensors: Mapping[str, torch.Tensor] = {"train/loss": loss}
client.emit(floats)
client.emit(tensors)

# --- emit: values with a shape ---

client.emit(
    {
        "train/context": client.Representation(context),
        "train/target": client.Representation(
            context, paired=context, loss=0.5, extras=["koleo", "lidar"], views=context
        ),
        "input": client.Image(image),
        "activations": client.Histogram(context),
        "note": client.Text("a sentence"),
        "train/loss": loss,
    },
    step=4,
)
image_value: client.Image = client.Image(image)
histogram_value: client.Histogram = client.Histogram(np.zeros(10))
text_value: client.Text = client.Text("a sentence")
representation_value: client.Representation = client.Representation(context)
client.emit({"a": image_value, "b": histogram_value, "c": text_value, "d": representation_value})
client.emit(
    {
        "boxes": client.Image(image, boxes=[[0, 0, 4, 4]], labels=["cat"], rescale=2),
        "batch": client.Images([image, image], captions=["a", "b"], per_row=4),
        "mask": client.MaskedImage(image, np.zeros(4, bool), patch_size=(4, 4), predicted=image),
        "sound": client.Audio(np.zeros((2, 100)), sample_rate=16_000),
        "film": client.Video(np.zeros((5, 3, 8, 8)), fps=2.5),
        "weights": client.Histogram(context, bins="fd", max_bins=64),
        "edges": client.Histogram(context, bins=[0.0, 1.0]),
        "counts": client.Histogram.from_counts([1, 2], [0.0, 1.0, 2.0], num=3),
        "figure": client.Figure(object(), close=False, caption="a plot"),
    }
)

client.emit(
    {
        "solid": client.Mesh(image, colors=image, faces=np.zeros((1, 3), int), config={"a": 1}),
        "curve": client.PRCurve([0, 1], loss, num_thresholds=11, weights=0.5),
        "counts": client.PRCurve.from_counts([1], [1], [1], [1], [1], [1], num_thresholds=1),
        "points": client.Embedding(context, metadata=["a", 2], label_images=image),
        "columns": client.Embedding(context, metadata=[("a", 2)], metadata_header=["x", "y"]),
        "model": client.Graph(object(), image, use_strict_trace=False),
        "onnx": client.Graph.from_onnx("model.onnx"),
        "hp": client.HParams({"lr": 0.1}, {"acc": loss}, {"lr": [0.1, 0.2]}, folder="x"),
        "layout": client.CustomScalars({"a": {"b": ["Multiline", ["loss"]]}}),
    }
)
module, optimizer = torch.nn.Linear(2, 1), torch.optim.AdamW([context])
client.emit(
    {
        "gradients": client.Gradients(module),
        "weights": client.Weights(module, optimizer=optimizer),
        "head": client.Weights([("head.weight", context)]),
    }
)
client.connect("vit-b", tensorboard={"folder": ".", "suffix": ".eval"})

# --- façades ---

with MetricsLogger.from_config({"logging": {"log_frequency": 50}}) as same:
    frequency: int = same.log_frequency
    same.log_hparams(cfg, {"acc": 0.5})
logger = MetricsLogger("vit-b", "results/logs", cfg, wandb_tags=["baseline"])
logger.log_metrics({"loss": loss, "lr": 1e-3}, step=1, prefix="train/", commit=False)
logger.log_images("grid", [image, image], captions=["a", "b"])
logger.log_prediction_comparison(image[None], [context], [context], loss, max_images=2)
logger.accumulate_metrics(tensors)
logger.log_accumulated_metrics(prefix="train_epoch/")
logger.log_embeddings(context[:, 0], labels=None, tag="embeddings", step=3)
logger.watch_model(torch.nn.Linear(1, 1), log_freq=1000)
finished_too: bool = logger.finish()

lightning_logger = SidestepLogger("vit-b", prefix="jepa/", log_graph=True, wandb=True)
lightning_logger.log_metrics({"loss": 0.5, "levels": {"0": 0.1}}, 3)
callback = SidestepCallback("vit-b", log_dir="results/logs", config=cfg)
callback_client: client.Client | None = callback.client

with SummaryWriter("runs/vit-b", purge_step=3, filename_suffix=".a") as summary:
    summary.add_scalar("train/loss", loss, 3, walltime=1.7e9, new_style=True)
    summary.add_scalars("loss", {"train": loss, "val": 0.5}, global_step=3)
    summary.add_image("input", image, dataformats="CHW")
    summary.add_figure("figure", object(), 3, close=False)
    summary.add_hparams({"lr": 1e-3}, {"acc": loss}, {"lr": [1e-3, 1e-4]}, run_name="a")
    folder: object = summary.get_logdir()
    summary.flush()
file_writer = FileWriter("runs/vit-b")
file_writer.add_summary(object(), global_step=3)
its_client: client.Client = file_writer.client

# --- the end of a run ---

written: bool = client.flush()
written = client.flush(timeout=1.0)
counts: client.Stats = client.stats()
print(counts.emitted, counts.acked, counts.held, counts.dropped, counts.rejected)
client.on_alarm(on_alarm)
finished: bool = client.finish()
finished = client.finish(timeout=30.0)

# --- the same as an object, and as a context manager ---

with client.connect("vit-b", config=cfg) as run:
    run.on_alarm(on_alarm)
    run.emit({"train/loss": loss, "input": client.Image(image)}, step=1)
    written = run.flush(timeout=1.0)
    counts = run.stats()
    finished = run.finish()
