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

TagsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tags",
        "-t",
        metavar="GLOB",
        show_default=False,
        help="Only tags that match, for example 'train/*' (quote it). Can be given repeatedly.",
    ),
]


def absolute_config(config: str | None) -> str | None:
    """The file as a path that another process can use."""
    return os.path.abspath(config) if config else None
