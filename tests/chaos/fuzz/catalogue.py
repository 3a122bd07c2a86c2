"""The targets by their names, and the inputs that are kept of each."""

from __future__ import annotations

import hashlib
import importlib
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

CORPUS = Path(__file__).parent / "corpus"

TARGETS = (
    "codec",
    "records",
    "server",
    "client",
    "zmtp",
    "outbox",
    "journal",
    "rows",
    "archive",
    "cursor",
    "control",
    "values",
    "derive",
)


class Target(Protocol):
    """A module in `targets`; its first line is the invariant."""

    def check(self, data: bytes) -> None:
        """Raise anything if the invariant does not hold for this input."""

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        """Another input near this one."""

    def seeds(self) -> Iterable[bytes]:
        """Inputs to begin with, made of real messages, records and files."""


def target(name: str) -> Target:
    """The target called `name`."""
    return cast("Target", importlib.import_module(f"{__package__}.targets.{name}"))


def corpus(name: str) -> list[Path]:
    """The kept inputs of a target."""
    return sorted((CORPUS / name).glob("*"))


def keep(name: str, inputs: Iterable[bytes]) -> None:
    """Keep these inputs, under names that say their content."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
