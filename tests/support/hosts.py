"""What the tests of façades share: tidy imports of their hosts, and hyperparameters read back."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.plugins.hparams import metadata

from .oracle import read_values

_SESSION_START = "_hparams_/session_start_info"


def host(name: str) -> ModuleType:
    """A package that another one's façade is for; the warnings of its import are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[dev]'")
        return importlib.import_module(name)


def read_hparams(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The hyperparameters of each session in event files, as TensorBoard's plugin reads them."""
    sessions = []
    for _, _, value in read_values(files):
        if value.tag == _SESSION_START:
            content = value.metadata.plugin_data.content
            start = metadata.parse_session_start_info_plugin_data(content)
            sessions.append(
                {name: getattr(v, str(v.WhichOneof("kind"))) for name, v in start.hparams.items()}
            )
    return sessions


def read_texts(files: Iterable[Path]) -> dict[str, str]:
    """The texts in event files by tag; the last of each."""
    return {
        value.tag.removesuffix("/text_summary"): value.tensor.string_val[0].decode()
        for _, _, value in read_values(files)
        if value.metadata.plugin_data.plugin_name == "text"
    }
