"""What the tests on a GPU share: a device, and a client that no daemon answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.unit.client.conftest import connect, places

__all__ = ["connect", "cuda", "places"]


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """The first CUDA device, idle before and after, with torch's switches as they were."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    torch.cuda.synchronize()
    tf32 = torch.backends.cuda.matmul.allow_tf32
    yield torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_sync_debug_mode("default")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.cuda.synchronize()
