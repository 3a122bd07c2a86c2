"""A real terminal for a test: a window of a tmux server of its own, with a shell in it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from .waiting import wait_until

_PATIENCE_S = 30.0


class Window:
    """A window; keys go in, what it shows comes out.

    Args:
        directory: where its socket and files are; short.
        width: columns.
        height: lines.
        env: the shell's environment.
    """

    def __init__(self, directory: str, width: int, height: int, env: Mapping[str, str]) -> None:
        if shutil.which("tmux") is None:
            pytest.skip("tmux is not installed: the live table is tested in its windows")
        self._tmux = ("tmux", "-u", "-f", "/dev/null", "-S", f"{directory}/tmux")
        self._raw = Path(directory, "raw")
        # COLUMNS and LINES are lies, as in a shell that got them from its parent.
        lies = {"LC_ALL": "C.UTF-8", "PS1": "$ ", "COLUMNS": "77", "LINES": "7"}
        size = ("-x", str(width), "-y", str(height))
        shell = ("bash", "--norc", "--noprofile")
        subprocess.run(
            [*self._tmux, "new-session", "-d", *size, *shell],
            env={**env, **lies},
            check=True,
            timeout=10,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, timeout=10)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments],
            capture_output=True,
            encoding="utf-8",
            check=True,
            timeout=10,
        )
        return done.stdout

    def type(self, *keys: str) -> None:
        """Press keys, by tmux's names: C-c, Enter, PageDown."""
        self._run("send-keys", *keys)

    def type_text(self, text: str) -> None:
        """Press the keys of a text."""
        self._run("send-keys", "-l", text)

    def command(self, *words: str) -> None:
        """Type a command and Enter."""
        self.type_text(shlex.join(words))
        self.type("Enter")

    def text(self, *, styles: bool = False) -> str:
        """What it shows, line by line; with the styles' sequences if wanted."""
        return self._run("capture-pane", "-p", *(["-e"] if styles else []))

    def lines(self) -> list[str]:
        """What it shows."""
        return self.text().rstrip("\n").split("\n")

    def wait_for(self, what: Callable[[str], object] | str, timeout_s: float = _PATIENCE_S) -> str:
        """Wait until it shows something; all that it shows then."""
        seen = [""]

        def shows() -> bool:
            seen[0] = self.text()
            return what in seen[0] if isinstance(what, str) else bool(what(seen[0]))

        wait_until(shows, timeout_s, lambda: f"{what}; the window shows:\n{seen[0]}", 0.05)
        return seen[0]

    def resize(self, width: int, height: int) -> None:
        """Make it another size."""
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def record(self) -> None:
        """From now on keep the bytes that are written to it."""
        self._run("pipe-pane", "-O", f"cat >> {shlex.quote(str(self._raw))}")

    def recorded(self) -> bytes:
        """Those bytes so far."""
        return self._raw.read_bytes() if self._raw.exists() else b""
