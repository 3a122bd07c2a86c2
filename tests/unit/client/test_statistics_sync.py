"""Nothing in a representation reads a result: shown without a GPU, by what would have to wait."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import sidestep.client.statistics
from sidestep.client.statistics import Plan, moments
from tests.unit.client.representations import prepare

EXTRAS = ("alignment", "koleo", "lidar", "sigreg", "uniformity", "vicreg_covariance")

WAITING = (
    *("_local_scalar_dense", "is_nonzero", "equal", "_linalg_check_errors"),
    *("nonzero", "unique", "bincount", "masked_select"),
    *("_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_qr", "linalg_inv_ex", "lu_unpack"),
)
"""Operations of aten that wait for a CUDA device, by the begin of their names."""


class Refusing(TorchDispatchMode):
    """Refuses what would wait for a device, and copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen.add(name)
        assert not name.startswith(WAITING), f"{name} waits for the device"
        kwargs = kwargs or {}
        device = kwargs.get("device")
        source = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if source is not None and device is not None and name in ("_to_copy", "to"):
            assert torch.device(device) == source.device, "a copy between devices"
        # An index by a mask asks how many there are.
        if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)):
            assert all(i is None or i.dtype is not torch.bool for i in args[1]), "index by a mask"
        return func(*args, **kwargs)


@pytest.fixture(params=[(64, 8), (16, 8, 12), (24, 6, 5)], ids=str)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(request.param).bfloat16()
    return {
        "x": x,
        "paired": x + 1,
        "loss": torch.tensor(0.5),
        "extras": EXTRAS,
        "views": torch.randn(2, 9, 4),
        # 24 images of 6 tokens: 7 of these, which is no even stride.
        "max_rows": 45 if request.param[0] == 24 else 4096,
    }


def test_nothing_that_waits_is_called(options: dict[str, Any]) -> None:
    x = options.pop("x")
    with Refusing() as mode:
        prepared = prepare(x, **options)
        assert mode.seen <= {"alias", "detach", "unsqueeze", "view", "_unsafe_view"}  # views alone
        prepared.computation.at_once(prepared.arrays)
    assert {"mm", "sum"} <= mode.seen


def test_what_the_modes_are_for_is_refused() -> None:
    x = torch.randn(4, 4)
    for waiting in (
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 0),
        lambda: torch.linalg.eigvalsh(x),
        lambda: torch.linalg.svdvals(x),
        lambda: x[x > 0],
        x.nonzero,
        lambda: x.to("meta"),
    ):
        with pytest.raises(AssertionError), Refusing():
            waiting()


def test_tensors_without_content_are_enough(options: dict[str, Any]) -> None:
    # In a FakeTensor there is nothing to read: what tries raises DataDependentOutputException.
    x = options.pop("x")
    expected = prepare(x, **options)
    shapes = [array.shape for array in expected.computation.at_once(expected.arrays)]
    with FakeTensorMode() as mode:
        fake = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in options.items()
        }
        prepared = prepare(mode.from_tensor(x), **fake)
        results = prepared.computation.at_once(prepared.arrays)
    assert [array.shape for array in results] == shapes
    assert prepared.info == expected.info


def test_the_core_compiles_whole() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    x, views = torch.randn(6, 5, 8), torch.randn(2, 6, 4)
    arguments = (x, x[:, 0], x + 1, torch.tensor(0.5), views)

    def core(*tensors: Any) -> Any:
        return moments(*tensors, plan=Plan(due=True, seed=7, extras=EXTRAS))

    compiled = torch.compile(core, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for one, other in zip(compiled(*arguments), core(*arguments), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_statement_asks_for_a_number() -> None:
    waiting = {"item", "tolist", "cpu", "numpy", "cuda", "synchronize", "to"}
    switches = {"allow_tf32", "set_float32_matmul_precision", "fp32_precision"}
    for module in Path(sidestep.client.statistics.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in waiting | switches, f"{module.name}:{node.lineno}"
