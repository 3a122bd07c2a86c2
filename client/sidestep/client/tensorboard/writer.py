"""`SummaryWriter`: every method of torch's, handing its values to the daemon."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from ..refused import attempt
from ..values.audio import Audio
from ..values.custom_scalars import CustomScalars
from ..values.embedding import Embedding
from ..values.figure import Figure
from ..values.graph import Graph
from ..values.histogram import Histogram
from ..values.hparams import HParams
from ..values.mesh import Mesh
from ..values.pr_curve import PRCurve
from ..values.tensor import Tensor
from ..values.text import Text
from ..values.video import Video
from .arguments import boxed, pictures, raw_histogram, scalar_of, shades, squeezed
from .lifetime import Writer
from .series import Drawing

_LAYOUT_TAG: Final = "custom_scalars__config__"


class SummaryWriter(Writer):
    """Writes to the event files of one folder as `torch.utils.tensorboard.SummaryWriter` does.

    Each method takes what torch's takes and TensorBoard shows the same for it. No method waits for
    a disk or a GPU, and none raises into the training: what torch would refuse with an exception is
    counted and logged once (with ``SIDESTEP_STRICT=1`` it raises `InvalidValueError`). Several
    writers may live at once, also on one folder.

    Args:
        log_dir: the folder of the event files; its last component is the run's name. None takes
            ``LOG_DIR/tensorboard/RUN`` where `SIDESTEP_LOG_DIR`, `SIDESTEP_RUN` or the file that
            `SIDESTEP_CONFIG` names say where runs go, else torch's ``runs/<date>_<host>``.
        comment: appended to the name that is made when there is no other.
        purge_step: TensorBoard forgets what this folder has from this step on.
        max_queue: accepted, without effect: nothing waits for a queue to fill.
        flush_secs: accepted, without effect: all is on its way at once.
        filename_suffix: the end of the event files' names.

    Attributes:
        log_dir: the folder.
        file_writer: the writer behind it; None after `close`, until something is added.
        all_writers: the same, by its folder.

    Raises:
        ConfigurationError: the environment is wrong, or `log_dir` is no folder (``s3://...``).
    """

    # --- numbers ---------------------------------------------------------------------------------

    def add_scalar(
        self,
        tag: str,
        scalar_value: Any,
        global_step: Any = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Add a number: anything with one element, on any device, or a text that says one.

        `new_style` and `double_precision` are how TensorBoard's event stores it; elsewhere every
        number is a float64.
        """
        writer = self.file_writer or self._get_file_writer()
        given: Any = tag
        if not isinstance(given, str):
            self._refuse_tag(given)
            return
        double = bool(new_style and double_precision)
        wire = self._series.tag(given, Drawing(None, given, bool(new_style), double), global_step)
        writer.emit({wire: scalar_of(scalar_value)}, global_step, walltime)

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add numbers that share a chart; everything but TensorBoard calls them ``main_tag/sub``.

        TensorBoard has each in a run of its own, ``<run>/<main_tag>_<sub>``, under `main_tag`.
        """
        main: Any = main_tag
        numbers: Any = tag_scalar_dict
        if not isinstance(main, str):
            self._refuse_tag(main)
            return
        if not isinstance(numbers, Mapping):
            self._refuse(main, f"add_scalars takes a dict, not a {type(numbers).__name__}")
            return
        writer = self.file_writer or self._get_file_writer()
        values: dict[str, Any] = {}
        for name, value in numbers.items():
            if isinstance(name, str):
                drawing = Drawing(f"{main.replace('/', '_')}_{name}", main)
                tag = self._series.tag(f"{main}/{name}", drawing, global_step)
                values[tag] = scalar_of(value)
            else:
                self._refuse(
                    main, f"a name in add_scalars must be a str, not a {type(name).__name__}"
                )
        writer.emit(values, global_step, walltime)

    def add_tensor(
        self, tag: str, tensor: Any, global_step: Any = None, walltime: float | None = None
    ) -> None:
        """Add a tensor as it is; only TensorBoard's data has it, none of its pages."""
        self._emit(tag, Tensor(tensor), global_step, walltime)

    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: Any = None,
        bins: Any = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Add the distribution of `values`, of any shape; NaN and infinities are left out."""
        value = Histogram(values, bins=bins, max_bins=max_bins)
        self._emit(tag, value, global_step, walltime)

    def add_histogram_raw(
        self,
        tag: str,
        min: float,  # noqa: A002 - torch's names
        max: float,  # noqa: A002
        num: int,
        sum: float,  # noqa: A002
        sum_squares: float,
        bucket_limits: Any,
        bucket_counts: Any,
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add a histogram that is made already: upper limits and counts of its buckets."""
        value = attempt(
            lambda: raw_histogram(bucket_limits, bucket_counts, min, max, num, sum, sum_squares)
        )
        self._emit(tag, value, global_step, walltime)

    def add_pr_curve(
        self,
        tag: str,
        labels: Any,
        predictions: Any,
        global_step: Any = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add a precision-recall curve of binary `labels` and `predictions` in [0, 1]."""
        value = PRCurve(labels, predictions, num_thresholds=num_thresholds, weights=weights)
        self._emit(tag, value, global_step, walltime)

    def add_pr_curve_raw(
        self,
        tag: str,
        true_positive_counts: Any,
        false_positive_counts: Any,
        true_negative_counts: Any,
        false_negative_counts: Any,
        precision: Any,
        recall: Any,
        global_step: Any = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add a precision-recall curve that is counted already, one element a threshold."""
        value = PRCurve.from_counts(
            true_positive_counts,
            false_positive_counts,
            true_negative_counts,
            false_negative_counts,
            precision,
            recall,
            num_thresholds=num_thresholds,
        )
        self._emit(tag, value, global_step, walltime)

    # --- pictures, sounds, texts -----------------------------------------------------------------

    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """Add a picture, or a grid of a batch: uint8, or anything else with 1 for white."""
        self._emit(tag, attempt(pictures, img_tensor, dataformats), global_step, walltime)

    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Add a batch of pictures as a grid, 8 in a row."""
        self._emit(tag, attempt(pictures, img_tensor, dataformats), global_step, walltime)

    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Any,
        box_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: Any = None,
    ) -> None:
        """Add a picture with boxes, (n, 4) of xmin, ymin, xmax, ymax in pixels."""
        value = attempt(boxed, img_tensor, box_tensor, rescale, dataformats, labels)
        self._emit(tag, value, global_step, walltime)

    def add_figure(
        self,
        tag: str,
        figure: Any,
        global_step: int | None = None,
        close: bool = True,
        walltime: float | None = None,
    ) -> None:
        """Add a figure of matplotlib, or a list of some of one size as a grid."""
        self._emit(tag, Figure(figure, close=close), global_step, walltime)

    def add_video(
        self,
        tag: str,
        vid_tensor: Any,
        global_step: Any = None,
        fps: float = 4,
        walltime: float | None = None,
    ) -> None:
        """Add videos of shape (N, T, C, H, W), beside each other in one GIF."""
        value = attempt(lambda: Video(shades(vid_tensor), fps=fps, layout="NTCHW"))
        self._emit(tag, value, global_step, walltime)

    def add_audio(
        self,
        tag: str,
        snd_tensor: Any,
        global_step: Any = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        """Add a sound of shape (1, L), in [-1, 1]."""
        value = attempt(lambda: Audio(squeezed(snd_tensor), sample_rate=sample_rate))
        self._emit(tag, value, global_step, walltime)

    def add_text(
        self, tag: str, text_string: str, global_step: Any = None, walltime: float | None = None
    ) -> None:
        """Add a text in Markdown."""
        self._emit(tag, Text(text_string), global_step, walltime)

    # --- structures ------------------------------------------------------------------------------

    def add_graph(
        self,
        model: Any,
        input_to_model: Any = None,
        verbose: bool = False,
        use_strict_trace: bool = True,
    ) -> None:
        """Add the graph of a model, traced in this call with `input_to_model`."""
        value = Graph(
            model, input_to_model, use_strict_trace=use_strict_trace, verbose=bool(verbose)
        )
        self._emit("graph", value)

    def add_onnx_graph(self, prototxt: Any) -> None:
        """Add the graph in an ONNX file, read in this call; needs the package onnx."""
        self._emit("graph", attempt(Graph.from_onnx, prototxt))

    def add_embedding(
        self,
        mat: Any,
        metadata: Any = None,
        label_img: Any = None,
        global_step: Any = None,
        tag: str = "default",
        metadata_header: Any = None,
    ) -> None:
        """Add vectors, (n, d), for the projector, with labels and pictures (n, C, H, W)."""
        value = Embedding(
            mat, metadata=metadata, label_images=label_img, metadata_header=metadata_header
        )
        self._emit(tag, value, global_step)

    def add_mesh(
        self,
        tag: str,
        vertices: Any,
        colors: Any = None,
        faces: Any = None,
        config_dict: Any = None,
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add meshes or clouds of points, each (B, N, 3)."""
        value = Mesh(vertices, colors=colors, faces=faces, config=config_dict)
        self._emit(tag, value, global_step, walltime)

    def add_hparams(
        self,
        hparam_dict: dict[str, Any],
        metric_dict: dict[str, Any],
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        """Add hyperparameters and the metrics to compare them by, as a run below this one."""
        value = HParams(
            hparam_dict, metric_dict, hparam_domain_discrete, folder=run_name or str(time.time())
        )
        self._emit("hparams", value, global_step)

    def add_custom_scalars(self, layout: Mapping[str, Any]) -> None:
        """Lay out the page Custom Scalars: {category: {title: ["Multiline", tags]}}; once."""
        self._emit(_LAYOUT_TAG, CustomScalars(layout))

    def add_custom_scalars_multilinechart(
        self, tags: list[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Lay out one chart with a line for each tag."""
        self.add_custom_scalars({category: {title: ["Multiline", tags]}})

    def add_custom_scalars_marginchart(
        self, tags: list[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Lay out one chart of three tags: a value, its lower and its upper margin."""
        self.add_custom_scalars({category: {title: ["Margin", tags]}})
