"""`MetricsLogger`'s own methods: what each of them makes of its arguments, and emits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sidestep import client as sidestep

from ..cuda import memory_gb
from ..plain import flat_config
from ..refused import attempt
from ..values import is_tensor
from .connection import Connection, harmless
from .hierarchy import comparison, level_losses
from .model_values import gradient_values, weight_values
from .running_mean import RunningMean

_PER_ROW: Final = 4


class MetricsLogger(Connection):
    """Logs to TensorBoard and W&B through the sidecar.

    Args:
        experiment_name: the run's name.
        log_dir: where event files and W&B's files go.
        config: hyperparameters, for W&B and the journal.
        use_wandb: write a W&B run. Where wandb is not installed there is none, and one warning;
            without a key for it the run is an offline one.
        use_tensorboard: write TensorBoard event files.
        wandb_project: W&B's project.
        wandb_entity: W&B's user or team; None for the user's default.
        wandb_tags: labels of the W&B run.

    Attributes:
        client: the connection underneath, for all that this class has no method for.
        experiment_name: the run's name.
        log_dir: where the files go.
        log_frequency: steps between two looks, for a trainer that asks; nothing that is logged
            is ever thinned out by it.
        metrics_buffer: what `accumulate_metrics` has gathered, by name.
        step: the counter: what the next call without a step takes.
        use_tensorboard: whether event files are written.
        use_wandb: whether a W&B run is written.

    Raises:
        ConfigurationError: an argument is wrong. A missing daemon never raises.
    """

    # --- numbers -------------------------------------------------------------------------------

    @harmless
    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        prefix: str = "",
        commit: bool = True,
    ) -> None:
        """Log numbers.

        Args:
            metrics: name to int, float, bool, numpy scalar, or 0-d tensor on any device.
            step: training step.
            prefix: put before each name as it is, such as ``"train/"``.
            commit: False leaves the counter where it is, so that the next call without a step
                joins this one's. The values are handed over at once in either case.
        """
        if prefix:
            metrics = {f"{prefix}{name}": value for name, value in metrics.items()}
        self._emit(metrics, step, advance=commit)

    @harmless
    def log_hierarchical_losses(
        self,
        loss_dict: Mapping[str, Any],
        step: int | None = None,
        prefix: str = "train/hierarchy/",
    ) -> None:
        """Log each level's loss, and its percentage of the sum over all levels.

        Args:
            loss_dict: keys ``loss_level_K`` give ``level_K_loss`` and ``level_K_percentage``;
                others are passed over. Numbers, or 0-d tensors on any device.
            step: training step.
            prefix: put before each name as it is.
        """
        self._emit(level_losses(loss_dict, prefix), step)

    @harmless
    def accumulate_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add numbers to the means that `log_accumulated_metrics` logs.

        Args:
            metrics: name to number, or 0-d tensor on any device (summed there, without a wait).
        """
        for name, value in metrics.items():
            mean = self.metrics_buffer.setdefault(name, RunningMean())
            try:
                mean.add(value)
            except Exception as error:  # noqa: BLE001 - one bad value, and the rest goes on
                self.refuse(name, error)

    @harmless
    def log_accumulated_metrics(
        self, step: int | None = None, prefix: str = "", reset: bool = True
    ) -> None:
        """Log the mean of each accumulated metric; nothing at all if there is none.

        Args:
            step: training step.
            prefix: put before each name as it is, such as ``"train_epoch/"``.
            reset: begin anew.
        """
        means = {f"{prefix}{n}": m.mean() for n, m in self.metrics_buffer.items() if len(m)}
        if reset:
            self.metrics_buffer.clear()
        if means:
            self._emit(means, step)

    @harmless
    def log_system_metrics(self, step: int | None = None) -> None:
        """Log torch's memory on each CUDA device, in GB of 1e9 bytes, once CUDA is in use.

        Utilization, power, host memory and the rest are sampled by the daemon, by itself.

        Args:
            step: training step.
        """
        self._emit(memory_gb(), step)

    # --- pictures, distributions, texts --------------------------------------------------------

    @harmless
    def log_image(
        self, name: str, image: Any, step: int | None = None, caption: str | None = None
    ) -> None:
        """Log a picture.

        Args:
            name: the tag.
            image: tensor or array, CHW (or HWC, or HW); uint8 in [0, 255] or floats in [0, 1].
            step: training step.
            caption: shown beside it.
        """
        self._emit({name: sidestep.Image(image, caption=caption)}, step)

    @harmless
    def log_images(
        self, name: str, images: Any, step: int | None = None, captions: Sequence[str] | None = None
    ) -> None:
        """Log pictures of one size: a grid in TensorBoard, 4 a row; a list in W&B.

        Args:
            name: the tag.
            images: a list of tensors or arrays as for `log_image`, or one of NCHW (or NHWC, NHW).
            step: training step.
            captions: one for each picture.
        """
        self._emit({name: attempt(_grid, images, captions)}, step)

    @harmless
    def log_histogram(self, name: str, values: Any, step: int | None = None) -> None:
        """Log the distribution of all elements of a tensor.

        Args:
            name: the tag.
            values: tensor or array of real numbers, any shape.
            step: training step.
        """
        self._emit({name: sidestep.Histogram(values)}, step)

    @harmless
    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Log a text in Markdown.

        Args:
            name: the tag.
            text: at most 512 KiB of UTF-8.
            step: training step.
        """
        self._emit({name: sidestep.Text(text)}, step)

    # --- the model -----------------------------------------------------------------------------

    @harmless
    def log_model_gradients(self, model: Any, step: int | None = None) -> None:
        """Log a histogram of each parameter's gradient, and the norm of all as ``gradients/norm``.

        See `sidestep.client.Gradients` for what else is written, and for what it cannot take.

        Args:
            model: a `torch.nn.Module`, after `backward` and before `zero_grad`.
            step: training step.
        """
        self._emit(gradient_values(model), step)

    @harmless
    def log_model_weights(self, model: Any, step: int | None = None) -> None:
        """Log a histogram of each parameter, and the norm of all as ``weights/norm``.

        See `sidestep.client.Weights` for what else is written, and for what it cannot take.

        Args:
            model: a `torch.nn.Module`.
            step: training step.
        """
        self._emit(weight_values(model), step)

    @harmless
    def watch_model(self, model: Any, log_freq: int = 1000) -> None:
        """Have gradients and weights logged by themselves, until `finish`.

        They are at the first step of the model's optimizer, right before it, and then once in
        `log_freq` of its steps. They are logged under the step that the counter shows.

        Args:
            model: a `torch.nn.Module` whose parameters a `torch.optim.Optimizer` trains.
            log_freq: steps of the optimizer, 1 or more.
        """

        def look(model: Any) -> None:
            self.client.emit(gradient_values(model) | weight_values(model), self.step)

        self._watch(model, log_freq, look)

    @harmless
    def log_graph(self, model: Any, inputs: Any, step: int | None = None) -> None:
        """Log the graph of a model; it is traced here and now, which takes a forward pass.

        Args:
            model: a `torch.nn.Module`.
            inputs: what it is called with: a tensor, or a tuple of them.
            step: training step.
        """
        self._emit({"graph": attempt(lambda: sidestep.Graph(model, inputs))}, step)

    @harmless
    def log_hparams(
        self,
        hparams: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
    ) -> None:
        """Log hyperparameters, for TensorBoard's HParams page and W&B's configuration.

        Args:
            hparams: name to value; nested ones are joined with "/", what is no number, bool or
                text becomes its text.
            metrics: what came out.
            step: training step.
        """
        value = attempt(lambda: sidestep.HParams(flat_config(hparams), metrics))
        self._emit({"hparams": value}, step)

    # --- representations -----------------------------------------------------------------------

    @harmless
    def log_representations(
        self, context: Any, target: Any, step: int | None = None, prefix: str = "train/"
    ) -> None:
        """Log what tells a collapse: `_std`, `_norm`, `_rank` and more of both encoders.

        Args:
            context: the context encoder's output, (B, D) or (B, N, D), any float dtype, device.
            target: the target encoder's, likewise.
            step: training step.
            prefix: put before ``context`` and ``target`` as it is.
        """
        both = {
            "context": sidestep.Representation(context),
            "target": sidestep.Representation(target),
        }
        self._emit({f"{prefix}{name}": value for name, value in both.items()}, step)

    @harmless
    def log_prediction_comparison(
        self,
        images: Any,
        predictions: Any,
        targets: Any,
        masks: Any,
        step: int | None = None,
        max_images: int = 4,
    ) -> None:
        """Log pictures with and without their masks, and how alike predictions and targets are.

        It writes ``training/images/original_images`` and ``training/images/masked_I``,
        ``predictions/mask_ratio`` and ``predictions/level_K_similarity`` (cosine, [-1, 1]).

        Args:
            images: (B, C, H, W).
            predictions: (B, …), or a list of those, one a level.
            targets: in the same shapes.
            masks: over patches, (B, N) or (B, rows, columns); nonzero where a patch was to be
                predicted.
            step: training step.
            max_images: at most so many pictures.
        """
        self._emit(comparison(images, predictions, targets, masks, max_images), step)

    @harmless
    def log_embeddings(
        self, embeddings: Any, labels: Any = None, tag: str = "embeddings", step: int | None = None
    ) -> None:
        """Log vectors for TensorBoard's projector and as a table in W&B.

        Args:
            embeddings: (N, D), any float dtype, any device.
            labels: N labels; a tensor on a device is waited for.
            tag: the tag.
            step: training step.
        """
        self._emit({tag: attempt(_embedding, embeddings, labels)}, step)


def _grid(images: Any, captions: Sequence[str] | None) -> Any:
    if isinstance(images, Sequence):
        if any(map(is_tensor, images)):
            import torch

            images = torch.stack([torch.as_tensor(image) for image in images])
        else:
            import numpy as np

            images = np.stack(images)
    return sidestep.Images(images, captions=captions, per_row=_PER_ROW)


def _embedding(matrix: Any, labels: Any) -> Any:
    names = labels.tolist() if hasattr(labels, "tolist") else labels
    return sidestep.Embedding(matrix, metadata=names)
