"""Options that several commands share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="F",
        show_default=False,
        help="Configuration file (YAML, blocks `logging:` and `sidecar:`). "
        "Default: $SIDESTEP_CONFIG.",
    ),
]


def absolute_config(config: str | None) -> str | None:
    """The file as a path that another process can use."""
    return os.path.abspath(config) if config else None
