"""One script of calls for each method of a SummaryWriter, made alike to torch's and to ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

T0: Final = 1_700_000_000.123456
"""Wall times are given wherever a method takes one, so that they can be compared to the bit."""

RNG = np.random.default_rng(5)
NOISE: Final = RNG.random((6, 3, 9, 7), dtype=np.float32)
WAVE: Final = np.sin(np.linspace(0, 90, 2000)).astype(np.float32)
POINTS: Final = RNG.normal(size=(12, 5)).astype(np.float32)

SCALARS: Final[tuple[Any, ...]] = (
    *(0.5, 7, True, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1e39, 1 / 3, 2**53 + 1, "0.25"),
    *(np.float16(0.1), np.float64(0.1), np.int8(-128), np.bool_(True), Fraction(1, 3)),
    *(np.array(2.5), np.array([2.5]), np.array([[[7]]]), np.zeros((1, 1), np.uint8)),
    *(torch.tensor(0.1), torch.tensor([0.1]), torch.ones(1, 1, 1), torch.tensor([[True]])),
    *(torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor([3]), torch.tensor(0.1).half()),
    torch.tensor([1.25], requires_grad=True),
)

TAGS: Final = ("plain", "a/b/c", "損失 🙂", " a  b?&%<c>\n", "..", "/", ".hidden/", "x" * 900)

TENSORS: Final = ("float32", "float64", "int8", "int16", "int32", "int64", "bool", "complex64")
MISREAD: Final = ("float16", "bfloat16", "uint8")
"""Of these torch's writer puts the elements where no reader looks for them."""

STEPS: Final[tuple[Any, ...]] = (
    *(
        3,
        0,
        -2,
        2**62,
        np.int64(5),
        np.uint8(6),
        7.9,
        "8",
        True,
        torch.tensor(9),
        torch.tensor([4]),
    ),
)


def add_scalar(w: Any) -> None:
    for step, number in enumerate(SCALARS):
        w.add_scalar("scalar/numbers", number, step, T0 + step / 7)
    for tag in TAGS:
        w.add_scalar(f"scalar/tags/{tag}", 1.0, 1, T0)
    for step in STEPS:
        w.add_scalar("scalar/steps", 1.0, step, T0)
    for time in (0, 1, 1.5, 1e9 + 1e-6, np.float64(T0), np.float32(1.5e9), np.int64(12)):
        w.add_scalar("scalar/times", 1.0, 1, time)
    w.add_scalar("scalar/no_step", 2.0)
    w.add_scalar(tag="scalar/named", scalar_value=3.0, global_step=4, walltime=T0, new_style=False)
    for step in range(3):
        w.add_scalar("scalar/new_style", 0.1, step, T0, new_style=True)
        w.add_scalar("scalar/double", 0.1, step, T0, True, True)
        w.add_scalar("scalar/single", 0.1, step, T0, False, True)


def add_scalars(w: Any) -> None:
    for step in range(3):
        named = {"train": step / 3, "val (ema)": torch.tensor([2.0]), "top-1%: é": np.float32(0.1)}
        w.add_scalars("scalars", named, step, T0 + step)
        w.add_scalars("scalars/of/groups", {"a": 1, "b/c": 2}, step, T0)
        # A number of its own that is called as one of those is elsewhere.
        w.add_scalar("scalars/train", 10.0 + step, step, T0)
    odd = ("..", "/x", "a//b", ".h", 'a:b*?"<>|', " s ", "x" * 200)
    w.add_scalars("scalars", dict.fromkeys(odd, 1.0), 3, T0)
    w.add_scalars(".scalars", {"a": 1.0}, 3, T0)
    w.add_scalar("scalars_own/a", 1.0, 0, T0)
    w.add_scalars("scalars_own", {"a": 2.0}, 0, T0)
    w.add_scalars(main_tag="scalars_named", tag_scalar_dict={"a": 5.0}, global_step=7)
    w.add_scalars("scalars_no_step", {"a": 5.0})


def add_tensor(w: Any) -> None:
    for dtype in TENSORS:
        tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
        w.add_tensor(f"tensor/{dtype}", tensor, 2, T0)
    for dtype in MISREAD:
        tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
        w.add_tensor(f"misread/{dtype}", tensor, 2, T0)
    w.add_tensor("tensor/none", torch.zeros(0, 4), walltime=T0)
    w.add_tensor("tensor/one", tensor=torch.tensor(math.nan), global_step=3)


def add_histogram(w: Any) -> None:
    normal = RNG.normal(size=5000)
    values: dict[str, Any] = {
        "normal": normal,
        "float32": torch.from_numpy(normal).float().reshape(50, 100),
        "constant": np.full(9, 3.0),
        "zeros": torch.zeros(4),
        "ints": torch.arange(-50, 50),
        "one": np.array([1e-20]),
        "wide": np.geomspace(1e-9, 1e9, 400) * np.resize([1, -1], 400),
        "gradient": torch.ones(3, requires_grad=True),
    }
    for name, value in values.items():
        w.add_histogram(f"histogram/{name}", value, 3, walltime=T0)
    rules = ["auto", "fd", "doane", "scott", "rice", "sturges", "sqrt"]
    for bins in (*rules, 1, 30, [-1.0, -0.5, 0.5, 1.0], np.linspace(-2, 2, 11)):
        w.add_histogram("histogram/bins", normal, 1, bins, T0)
    for most in (1, 7, 100, 10_000):
        w.add_histogram("histogram/max_bins", normal, 1, bins=500, walltime=T0, max_bins=most)
        w.add_histogram("histogram/max_of_default", normal, walltime=T0, max_bins=most)


def add_histogram_raw(w: Any) -> None:
    counts, edges = np.histogram(RNG.normal(size=100), bins=12)
    limits = edges[1:]
    w.add_histogram_raw("raw/arrays", -3.5, 3.5, 100, 0.25, 99.5, limits, counts, 4, T0)
    w.add_histogram_raw("raw/lists", 0, 9, 5, 6, 7, [1, 2, 3], [0, 5, 0], 4, T0)
    w.add_histogram_raw(
        tag="raw/tensors",
        min=0.5,
        max=2,
        num=3,
        sum=4.0,
        sum_squares=6.0,
        bucket_limits=torch.tensor([1.0, 2.0]),
        bucket_counts=torch.tensor([1.0, 2.0]),
        walltime=T0,
    )


def add_image(w: Any) -> None:
    chw, rgba = NOISE[0], RNG.random((4, 5, 6)).astype(np.float32)
    w.add_image("image/chw", chw, 1, T0)
    w.add_image("image/grey", torch.from_numpy(chw[:1]), 1, T0)
    w.add_image("image/rgba", rgba, 1, T0)
    for formats in ("HWC", "WHC", "CWH", "WCH", "hwc"):
        order = ["CHW".index(axis) for axis in formats.upper()]
        w.add_image(f"image/{formats}", chw.transpose(order), 1, T0, formats)
    w.add_image("image/HW", chw[0], 1, T0, dataformats="HW")
    w.add_image("image/WH", torch.from_numpy(chw[0]), 1, T0, dataformats="WH")
    w.add_image("image/batch", NOISE, 1, T0, dataformats="NCHW")
    for dtype in ("uint8", "int32", "int64", "float16", "float64", "bool"):
        shades = chw * 255 if dtype == "uint8" else chw * 1.5
        w.add_image(f"image/of_{dtype}", shades.astype(dtype), 1, T0)
    w.add_image("image/of_bfloat16", torch.from_numpy(chw).bfloat16().requires_grad_(), 1, T0)
    w.add_image("image/beyond", chw * 3 - 1, 1, T0)
    w.add_image("image/no_step", img_tensor=chw)


def add_images(w: Any) -> None:
    w.add_images("images/nchw", NOISE, 2, T0)
    w.add_images("images/many", RNG.random((19, 1, 4, 5)), 2, T0)
    w.add_images("images/NHWC", NOISE.transpose(0, 2, 3, 1), 2, T0, "NHWC")
    w.add_images("images/CNWH", torch.from_numpy(NOISE.transpose(1, 0, 3, 2)), 2, T0, "CNWH")
    w.add_images("images/uint8", (NOISE * 255).astype(np.uint8), 2, T0)
    w.add_images("images/one", NOISE[0], 2, T0, dataformats="CHW")


def add_image_with_boxes(w: Any) -> None:
    picture = RNG.random((3, 60, 80)).astype(np.float32)
    boxes = np.array([[5, 6, 40, 50], [30.5, 10, 70, 20]])
    w.add_image_with_boxes("boxes/plain", picture, boxes, 1, T0)
    w.add_image_with_boxes("boxes/tensors", torch.from_numpy(picture), torch.from_numpy(boxes))
    w.add_image_with_boxes("boxes/large", picture, boxes, 1, T0, 2, labels=["cat", "dog"])
    w.add_image_with_boxes("boxes/small", picture, boxes, 1, T0, rescale=0.5)
    hwc = (picture.transpose(1, 2, 0) * 255).astype(np.uint8)
    w.add_image_with_boxes("boxes/HWC", hwc, boxes[:1], 1, T0, 1, "HWC", "cat")
    w.add_image_with_boxes("boxes/wrong_labels", picture, boxes, 1, T0, labels=["cat"])
    w.add_image_with_boxes("boxes/none", picture, np.zeros((0, 4)), 1, T0)


def add_figure(w: Any) -> None:
    from matplotlib.figure import Figure

    def drawn(height: float) -> Figure:
        figure = Figure(figsize=(2, 1.5), dpi=50)
        figure.subplots().plot([0, 1, height])
        return figure

    w.add_figure("figure/one", drawn(2), 1, walltime=T0)
    w.add_figure("figure/kept", drawn(3), 1, close=False, walltime=T0)
    w.add_figure("figure/several", [drawn(n) for n in range(3)], 1, False, T0)


def add_video(w: Any) -> None:
    frames = np.kron(RNG.integers(0, 2, (3, 4, 3, 6, 8)), np.ones((4, 4))).astype(np.uint8)
    w.add_video("video/uint8", torch.from_numpy(frames * 255), 1, 4, T0)
    w.add_video("video/float", frames[:1].astype(np.float32) * 0.6, 1, fps=10, walltime=T0)


def add_audio(w: Any) -> None:
    wave = WAVE
    w.add_audio("audio/plain", torch.from_numpy(wave)[None], 1, 8000, T0)
    w.add_audio("audio/default_rate", wave.astype(np.float64), 1, walltime=T0)
    w.add_audio("audio/column", wave[:, None, None], 1, 16_000, T0)
    w.add_audio("audio/loud", wave * 3, 1, 8000, T0)
    w.add_audio("half/audio", torch.from_numpy(wave).half(), 1, 8000, T0)


def add_text(w: Any) -> None:
    for step, text in enumerate(("plain", "", "**bold**\n\n|a|b|\n|-|-|\n|1|2|", "損失 🙂" * 99)):
        w.add_text("text/of", text, step, T0 + step)
    w.add_text("text/no_step", text_string="words")


def add_pr_curve(w: Any) -> None:
    labels, predictions = RNG.integers(0, 2, 300), RNG.random(300)
    w.add_pr_curve("pr/plain", labels, predictions, 1, walltime=T0)
    w.add_pr_curve("pr/tensors", torch.from_numpy(labels == 1), torch.from_numpy(predictions), 1)
    w.add_pr_curve("pr/few", labels, predictions, 1, 11, None, T0)
    w.add_pr_curve("pr/many", labels, predictions, 1, num_thresholds=500, walltime=T0)
    w.add_pr_curve("pr/weights", labels, predictions, 1, weights=RNG.random(300), walltime=T0)
    w.add_pr_curve("pr/weight", labels, predictions, 1, weights=2.5, walltime=T0)
    w.add_pr_curve("pr/all_true", np.ones(5), np.array([0.0, 0.25, 0.5, 0.999, 1.0]), 1)


def add_pr_curve_raw(w: Any) -> None:
    rows = RNG.random((6, 9))
    w.add_pr_curve_raw("pr_raw/plain", *rows, 1, 9, None, T0)
    w.add_pr_curve_raw("pr_raw/default", *rows, global_step=1, walltime=T0)
    w.add_pr_curve_raw("pr_raw/many", *RNG.random((6, 300)), 1, 300)


def add_mesh(w: Any) -> None:
    vertices = torch.from_numpy(RNG.normal(size=(2, 8, 3)).astype(np.float32))
    colors = torch.from_numpy(RNG.integers(0, 256, (2, 8, 3)).astype(np.uint8))
    faces = torch.from_numpy(RNG.integers(0, 8, (2, 5, 3)))
    config = {"camera": {"cls": "PerspectiveCamera", "fov": 75}, "lights": [{"cls": "A"}]}
    w.add_mesh("mesh/all", vertices, colors, faces, config, 1, T0)
    w.add_mesh("mesh/cloud", vertices, global_step=1, walltime=T0)
    w.add_mesh("mesh/colors", vertices.numpy(), colors=colors.int(), walltime=T0)
    w.add_mesh("mesh/faces", vertices.double(), faces=faces.int(), walltime=T0)


def add_embedding(w: Any) -> None:
    pictures = torch.from_numpy(RNG.random((12, 3, 4, 4)).astype(np.float32))
    names = [f"point {n} é" for n in range(12)]
    w.add_embedding(torch.from_numpy(POINTS), names, pictures, 3, "all")
    w.add_embedding(POINTS)
    w.add_embedding(POINTS.astype(np.float64), list(range(12)), global_step=12, tag="numbers")
    w.add_embedding(torch.arange(24).reshape(12, 2), global_step=100_000, tag="a/b\\c%")
    rows = [[n, f"name {n}"] for n in range(12)]
    w.add_embedding(POINTS, rows, None, 4, "columns", metadata_header=["number", "name"])
    w.add_embedding(POINTS[:5], label_img=pictures[:5, :1], global_step=5, tag="pictures")


def add_hparams(w: Any) -> None:
    hparams = {"lr": 0.1, "layers": 3, "name": "adam", "bias": True, "none": None}
    hparams["tensor"] = torch.tensor([2.5])
    metrics = {"hparam/accuracy": 0.9, "hparam/loss": torch.tensor(0.25), "plain": 3}
    domains = {"lr": [0.1, 0.01], "name": ["adam", "sgd"], "bias": [True, False]}
    w.add_hparams(hparams, metrics, domains, "hparams_all", 5)
    w.add_hparams({"lr": 1.0}, {"hparam/accuracy": 0.5}, run_name="hparams_few")
    w.add_hparams({}, {}, run_name="hparams/nested")
    w.add_hparams({"lr": 3.0}, {"hparam/accuracy": 0.25}, run_name=".hparams")
    w.add_hparams({"lr": 2.0}, {"hparam/accuracy": 0.75})


def add_custom_scalars(w: Any) -> None:
    w.add_custom_scalars_multilinechart(["scalar/numbers", "scalar/steps"])
    w.add_custom_scalars_multilinechart(["a.*"], "category", title="title")
    w.add_custom_scalars_marginchart(["a", "b", "c"], category="margins", title="of c")
    layout = {"one": {"x": ["Multiline", ["a", "b"]], "y": ["Margin", ["a", "b", "c"]]}, "two": {}}
    w.add_custom_scalars(layout)


class Model(torch.nn.Module):
    """Has a name scope, a constant, a list of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x) * 2.0).softmax(-1)


def add_graph(w: Any) -> None:
    torch.manual_seed(0)
    w.add_graph(Model(), torch.zeros(3, 4))


SCRIPTS: Final[tuple[Callable[[Any], None], ...]] = (
    *(add_scalar, add_scalars, add_tensor, add_histogram, add_histogram_raw, add_image),
    *(add_images, add_image_with_boxes, add_figure, add_video, add_audio, add_text),
    *(add_pr_curve, add_pr_curve_raw, add_mesh, add_embedding, add_hparams),
    *(add_custom_scalars, add_graph),
)


def everything(writer: Any) -> None:
    """Each method; the random numbers are the same for every writer."""
    global RNG  # noqa: PLW0603
    RNG = np.random.default_rng(7)
    for script in SCRIPTS:
        script(writer)


def onnx_file(folder: Path) -> str:
    """A model in ONNX."""
    from onnx import TensorProto, helper, save

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    nodes = [
        helper.make_node("Relu", ["x"], ["hidden"], name="relu"),
        helper.make_node("LeakyRelu", ["hidden"], ["y"], alpha=0.25),
    ]
    path = folder / "model.onnx"
    save(helper.make_model(helper.make_graph(nodes, "graph", [x], [y])), str(path))
    return str(path)
