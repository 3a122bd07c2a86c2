"""Takes the README's pictures of the demo: `tail` in a terminal, and TensorBoard in Chromium.

    make pictures

Both are what a user sees: the demo runs under ``sidestep run``, ``sidestep tail`` in a window of
tmux, TensorBoard by ``launch_tensorboard.sh``. The terminal becomes an SVG of its text and colours.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from tests.support.browser import Browser
from tests.support.sandbox import ROOT, SIDESTEP, Sandbox
from tests.support.tmux import Window
from tests.support.waiting import wait_until

PLACE: Final = ROOT / "client" / "examples" / "pictures"
RUN: Final = "digits-jepa"
WIDTH, HEIGHT = 100, 30
SHOWN: Final = ("loss", "lr", "context_pr_images", "context_variance_share", "target_pr_images")
"""Curves that must be on TensorBoard's page, under ``train/``."""

AFTER_STEP: Final = 400
"""When the picture of `tail` is taken: its sparklines have a past then."""

_PAGE: Final = "#scalars&tagFilter=^train/(loss|lr|(context|target)_(pr_images|variance_share))$"
_PATIENCE_S: Final = 600.0


def of_tail(sandbox: Sandbox) -> str:
    """The window of `tail` while the demo trains, with the sequences of its styles."""
    demo = [*SIDESTEP, "run", "--", sys.executable, ROOT / "client/examples/digits_jepa.py"]
    with Window(str(sandbox.work), WIDTH, HEIGHT, sandbox.env()) as window:
        trainer = subprocess.Popen(
            demo, cwd=sandbox.work, env=sandbox.env(), stdout=subprocess.DEVNULL
        )
        try:
            window.command(*SIDESTEP, "tail")

            def is_far() -> bool:
                status = sandbox.run_status(RUN)
                return status is not None and (status["last_step"] or 0) >= AFTER_STEP

            wait_until(is_far, _PATIENCE_S, "the demo does not train", 0.2)
            window.wait_for("train/")
            seen = window.text(styles=True)
        finally:
            trainer.wait(_PATIENCE_S)
    return seen


def svg(terminal: str) -> str:
    """A picture of a terminal's text."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in terminal.rstrip("\n").split("\n"):
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop")
    picture = console.export_svg(title="sidestep tail", unique_id="tail")
    return re.sub(r"@font-face {.*?}\s*", "", picture, flags=re.DOTALL)  # nothing from elsewhere


@contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """The address of a TensorBoard over `logs`."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [ROOT / "launch_tensorboard.sh", logs.name, str(port)],  # the page shows the path
        cwd=logs.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        runs = f"http://localhost:{port}/data/runs"
        with suppress(OSError), urllib.request.urlopen(runs, timeout=10) as reply:
            return RUN.encode() in reply.read()
        return False

    try:
        wait_until(answers, _PATIENCE_S, "TensorBoard does not answer", 0.2)
        yield f"http://localhost:{port}/"
    finally:
        process.terminate()
        process.wait(60)


def of_tensorboard(logs: Path, place: Path) -> None:
    """TensorBoard's page of curves, as ``tensorboard.png``."""
    profile = Path(tempfile.mkdtemp())
    browser = Browser(profile, place)
    try:
        with tensorboard(logs) as url:
            browser.open(url + _PAGE)
            browser.await_words(*(f"^train/{tag}$" for tag in SHOWN))
            for _ in SHOWN:
                browser.await_element("vz-line-chart2", "path", _is_drawn)
            browser.shoot("tensorboard")
    finally:
        browser.close()
        shutil.rmtree(profile, ignore_errors=True)


def _is_drawn(line: Any) -> bool:
    return (line.get_attribute("d") or "").count("L") >= 4


def main() -> None:
    """Train, and take both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--place", type=Path, default=PLACE)
    place: Path = parser.parse_args().place
    os.makedirs(place, exist_ok=True)
    with Sandbox() as sandbox:
        (place / "tail.svg").write_text(svg(of_tail(sandbox)))
        of_tensorboard(sandbox.logs / "tensorboard", place)
    print(f"{place}/tail.svg and tensorboard.png")


if __name__ == "__main__":
    main()
