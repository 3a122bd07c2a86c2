"""`torch.utils.tensorboard`'s writers, line for line the same to call, that never wait.

Only the import changes:

    -from torch.utils.tensorboard import SummaryWriter
    +from sidestep.client.tensorboard import SummaryWriter
"""

from __future__ import annotations

from .file_writer import FileWriter
from .writer import SummaryWriter

__all__ = ["FileWriter", "SummaryWriter"]
