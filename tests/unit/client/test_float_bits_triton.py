"""The Triton kernel counts what the torch path counts; in Triton's interpreter, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SCRIPT = """
import torch
from sidestep.client import float_bits_triton as kernel
from sidestep.client.float_bits import histogram

kernel._BLOCKS_A_PIECE = 2  # several programs a tensor, without millions of elements
kernel._PIECE = 2 * kernel._BLOCK
generator = torch.Generator().manual_seed(0)
odd = [float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3e38]
tensors = [
    torch.randn(5000, generator=generator),
    torch.randn(3, 7, generator=generator).bfloat16(),
    torch.zeros(10),
    torch.tensor(odd),
    torch.tensor(odd).bfloat16(),
    torch.randn(9000, generator=generator).bfloat16(),
]
for tensor, row in zip(tensors, kernel.histograms(tensors)):
    assert torch.equal(row.long(), histogram(tensor)), tensor
"""


def test_against_the_reference() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
