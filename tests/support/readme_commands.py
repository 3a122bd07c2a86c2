"""Whether a command that a README shows could be typed: program, command, options, paths, targets.

Looks at ours: `sidestep`, `make`, scripts of this repository, `pip install 'sidestep[...]'`. Of
anything else the shell's syntax is checked, no more.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sidestep.sidecar.cli.app import app

from .sandbox import ROOT

_ENDS = {";", "&&", "||", "|", "&", "(", ")", "<", ">", ">>", "$(", "{", "}"}
_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
_MAKEFILE = (ROOT / "Makefile").read_text()


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a script, without the variables set before it."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _ENDS:
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def inline_commands(text: str) -> Iterator[list[str]]:
    """The commands in a README's sentences and tables: code that begins with one of ours."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`((?:sidestep|make) [^`]+)`", prose):
        # [--now] may be left out; csv\|jsonl: either; … and A/B stand for more of the like.
        plain = re.sub(r"\\?\|[\w-]+", "", code.replace("…", "").replace("...", ""))
        plain = re.sub(r"[\[\]]", "", re.sub(r"(?<=')\[", "[", plain))
        words = shlex.split(" ".join(plain.split()))
        yield [word for word in words if word]


def check_syntax(script: str) -> None:
    """Let bash read it."""
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def check(words: list[str], *, whole: bool = True) -> bool:
    """Whether the command is ours.

    Args:
        words: the command.
        whole: whether it could be typed as it is; else it may lack arguments, as one that a
            sentence speaks of.

    Raises:
        AssertionError: it is, and it would be refused; says why.
    """
    while words and words[0] in ("srun", "nohup", "exec", "env", "sudo", "torchrun", "time"):
        words = words[1:]
    program = words[0].rpartition("/")[2] if words else ""
    if program == "sidestep":
        _check_sidestep(words[1:], whole=whole)
    elif program == "make":
        _check_make(words[1:])
    elif re.fullmatch(r"python[\d.]*", program):
        _check_python(words[1:])
    elif program.endswith(".sh"):
        assert (ROOT / words[0]).is_file(), f"{words[0]}: there is no such script"
    elif program == "pip":
        _check_pip(words[1:])
    else:
        return False
    return True


def _check_sidestep(words: list[str], *, whole: bool) -> None:
    root: Any = typer.main.get_command(app)
    context = root.make_context("sidestep", words or ["--help"], resilient_parsing=True)
    if not (rest := [word for word in words if word not in ("--version", "--help")]):
        return
    try:
        name, command, arguments = root.resolve_command(context, rest)
        if not any(help_ in arguments for help_ in ("-h", "--help")):
            command.make_context(name, list(arguments), parent=context)
    except Exception as error:  # click's, and typer's own copies of them
        if not whole and type(error).__name__ == "MissingParameter":
            return
        said = getattr(error, "format_message", error.__repr__)()
        raise AssertionError(f"sidestep {shlex.join(words)}: {said}") from None


def _check_make(words: list[str]) -> None:
    for word in words:
        if "=" in word:
            name = word.partition("=")[0]
            assert re.search(rf"^{name} [?:]?=", _MAKEFILE, re.MULTILINE), f"make knows no {name}"
        elif not word.startswith("-") and word.islower():
            target = rf"^{re.escape(word)}:"
            assert re.search(target, _MAKEFILE, re.MULTILINE), f"make: no target {word}"


def _check_python(words: list[str]) -> None:
    if words[:1] == ["-m"]:
        module = words[1]
        if module.startswith(("tests", "sidestep")):
            inside = module.replace(".", "/")
            homes = [ROOT, *(ROOT / room for room in ("proto", "client", "sidecar"))]
            found = any((h / f"{inside}.py").is_file() or (h / inside).is_dir() for h in homes)
            assert found, f"there is no module {module}"
        paths, options = ([w for w in words[2:] if w.startswith("tests/")], [])
    else:
        paths = [words[0]] if words and words[0].startswith(("client/", "tests/")) else []
        options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    for path in paths:
        file = ROOT / path.partition("::")[0]
        assert file.exists(), f"{path}: there is no such file"
        text = _with_neighbours(file) if options else ""
        for option in options:
            assert f'"{option}"' in text, f"{path} has no option {option}"


def _with_neighbours(script: Path) -> str:
    return "".join(path.read_text() for path in script.parent.glob("*.py"))


def _check_pip(words: list[str]) -> None:
    for extras in re.findall(r"sidestep\[([^\]]+)\]", " ".join(words)):
        unknown = {extra.strip() for extra in extras.split(",")} - set(_EXTRAS)
        assert not unknown, f"pip install: no extra {unknown}"
