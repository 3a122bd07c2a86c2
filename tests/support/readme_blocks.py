"""The fenced blocks of the READMEs, by language, as Sybil finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from .sandbox import ROOT

SHELL = ("bash", "sh", "console")


def readmes() -> list[Path]:
    """The README of every room, and of the house."""
    rooms = ("client", "deploy", "proto", "sidecar", "tests")
    return [ROOT / "README.md", *sorted(path for room in rooms for path in _below(ROOT / room))]


def _below(room: Path) -> Iterator[Path]:
    return (path for path in room.rglob("README.md") if "corpus" not in path.parts)


def name_of(path: Path) -> str:
    """What a person calls it."""
    return str(path.relative_to(ROOT))


def python_blocks(path: Path) -> list[Example]:
    """The Python blocks; `evaluate()` runs one, with the README's own lines in tracebacks."""
    return _examples(path, "python", PythonEvaluator())


def blocks(path: Path, *languages: str) -> list[tuple[int, str]]:
    """Line and text of each block in one of these languages."""
    found = [one for language in languages for one in _examples(path, language, _ignore)]
    return sorted((one.line, str(one.parsed)) for one in found)


def _examples(path: Path, language: str, evaluator: Callable[[Example], None]) -> list[Example]:
    return list(Sybil([CodeBlockParser(language, evaluator)]).parse(path).examples())


def _ignore(example: Example) -> None:
    """These are not run."""
