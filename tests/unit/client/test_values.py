"""What travels of each value, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sidestep.client import Histogram, Image, InvalidValueError, Text, Value
from sidestep.client.values import EmitContext, Prepared, as_array, to_host
from sidestep.proto.records import DTYPE_SIZES


def prepare(value: Value) -> Prepared:
    return value.prepare(EmitContext(0, {}))


def as_numpy(array: Any) -> np.ndarray:
    """An array as a sink reads it."""
    host = to_host(array)
    return np.frombuffer(host.data, host.dtype).reshape(host.shape)


# --- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(DTYPE_SIZES))
def test_every_dtype_arrives_bit_by_bit(dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    for given in (array, torch.from_numpy(array)):
        host = to_host(as_array(given, "x"))
        assert (host.dtype, host.shape) == (dtype, (2, 3))
        assert bytes(host.data) == array.tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_what_numpy_lacks_becomes_float32(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, -2.0, 0.5]).to(dtype)
    host = to_host(as_array(tensor, "x"))
    assert host.dtype == "float32"
    assert bytes(host.data) == tensor.float().numpy().tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6.0).astype(">f8"),
        np.float64(3.0),
        np.zeros((0, 3)),
        np.array(5),
    ],
    ids=["strided", "fortran", "big-endian", "scalar", "empty", "0-d"],
)
def test_every_layout_arrives_in_c_order(array: Any) -> None:
    found = as_numpy(as_array(array, "x"))
    assert found.shape == np.shape(array)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(8.0)[::2],
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, requires_grad=True),
        torch.nn.Parameter(torch.randn(3)),
        torch.tensor(2.0),
    ],
    ids=["permuted", "strided", "channels last", "gradient", "parameter", "0-d"],
)
def test_every_tensor_arrives_in_c_order(tensor: torch.Tensor) -> None:
    found = as_numpy(as_array(tensor, "x"))
    np.testing.assert_array_equal(found, tensor.detach().numpy())
    assert found.shape == tuple(tensor.shape)


def test_a_view_that_stands_for_the_negative_of_its_memory() -> None:
    tensor = torch.tensor([1 + 2j]).conj().imag
    assert tensor.is_neg()
    assert as_numpy(as_array(tensor, "x")).tolist() == [-2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a"]), "dtype <U1: expected real numbers"),
        (np.array([None]), "dtype object: expected real numbers"),
        (np.zeros(2, complex), "dtype complex128: expected real numbers"),
        (np.array(["2024"], "datetime64[Y]"), "expected real numbers"),
        (np.zeros(2, np.longdouble), "expected real numbers"),
        (torch.zeros(2, dtype=torch.complex64), "dtype complex64"),
        (torch.zeros(2, 2).to_sparse(), "call .to_dense"),
        ([[1], [1, 2]], "takes a tensor or an array, not list"),
    ],
    ids=str,
)
def test_what_is_no_array_of_real_numbers(value: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        as_array(value, "Histogram")


# --- histograms --------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [None, 1, 4096])
def test_a_histogram_sends_the_raw_values(bins: int | None) -> None:
    prepared = prepare(Histogram([1.0, 2.0], bins=bins))
    assert (prepared.kind, prepared.info) == ("histogram", {"bins": bins})
    np.testing.assert_array_equal(as_numpy(prepared.arrays[0]), [1.0, 2.0])


@pytest.mark.parametrize("bins", [0, -1, 4097])
def test_bins_are_bounded(bins: int) -> None:
    with pytest.raises(InvalidValueError, match="bins must be an int from 1 to 4,096"):
        prepare(Histogram([1.0], bins=bins))


@pytest.mark.parametrize("empty", [[], np.zeros((0, 3)), torch.zeros(0)], ids=repr)
def test_a_histogram_of_nothing(empty: Any) -> None:
    with pytest.raises(InvalidValueError, match="at least one element"):
        prepare(Histogram(empty))


# --- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((3, 8, 9), None, "CHW"),
        ((8, 9, 3), None, "HWC"),
        ((8, 9, 4), None, "HWC"),
        ((1, 8, 9), None, "CHW"),
        ((3, 9, 3), None, "CHW"),
        ((3, 9, 3), "HWC", "HWC"),
        ((8, 9), None, "HW"),
        ((8, 9), "HW", "HW"),
    ],
)
def test_layouts_of_an_image(shape: tuple[int, ...], layout: str | None, expected: str) -> None:
    for pixels in (torch.zeros(shape), np.zeros(shape, np.uint8)):
        prepared = prepare(Image(pixels, layout=layout))
        assert prepared.info == {"layout": expected}
        assert prepared.arrays[0].shape == shape
    assert prepare(Image(torch.zeros(shape), caption="x")).info["caption"] == "x"


@pytest.mark.parametrize(
    ("pixels", "layout", "message"),
    [
        (np.zeros((2, 8, 9)), None, r"shape \(2, 8, 9\): expected a non-empty CHW, HWC or HW"),
        (np.zeros((3, 8, 9)), "HWC", "as HWC"),
        (np.zeros((3, 8, 9)), "WHC", "as WHC"),
        (np.zeros((3, 8, 9)), "HW", "as HW"),
        (np.zeros((0, 9)), None, "non-empty"),
        (np.zeros(3), None, "with 1, 3 or 4 channels"),
        (np.zeros((1, 3, 8, 9)), None, "CHW, HWC or HW"),
        (np.zeros((8, 9), np.int64), None, "Image of int64"),
        (np.zeros((8, 9), np.complex64), None, "Image of dtype complex64"),
    ],
    ids=lambda x: str(x)[:12],
)
def test_what_is_no_image(pixels: Any, layout: str | None, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        prepare(Image(pixels, layout=layout))


# --- texts -------------------------------------------------------------------------------------


def test_a_text() -> None:
    assert prepare(Text("**hé**")).info == {"text": "**hé**"}
    assert prepare(Text("a\ud800b")).info == {"text": "a?b"}
    assert prepare(Text("x" * (512 << 10))).kind == "text"


@pytest.mark.parametrize(
    ("text", "message"),
    [(5, "Text takes a str, not int"), ("é" * (256 << 10) + "x", "Text of 524289 bytes")],
    ids=["int", "long"],
)
def test_what_is_no_text(text: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        prepare(Text(text))
