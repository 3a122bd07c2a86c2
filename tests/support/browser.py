"""A headless Chromium that looks at TensorBoard, through all its shadow roots and frames."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from selenium import webdriver
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from .waiting import wait_until

PAGE_S: Final = (
    150.0  # a page takes seconds; the projector, on a machine that others use too, a minute
)

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU, for meshes and the projector
    "--disable-quic",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-first-run",
    "--window-size=1400,1000",
)

# Elements in all open shadow roots and frames, and the text that has a place on the page. A
# selector does not reach into a shadow root, so what an element is inside of is asked apart.
_LOOK: Final = """
const [wanted, outer] = arguments, found = [], words = [];
const silent = new Set(['STYLE', 'SCRIPT', 'TEMPLATE', 'DOM-MODULE']);
function walk(root, inside) {
  for (const element of root.querySelectorAll('*')) {
    const within = inside || element.closest(outer) !== null;
    if (within && element.matches(wanted)) found.push(element);
    if (element.shadowRoot) walk(element.shadowRoot, within);
    if (element.contentDocument) walk(element.contentDocument, within);
    if (silent.has(element.tagName)) continue;
    const text = [...element.childNodes].filter(c => c.nodeType === 3)
      .map(c => c.textContent.trim()).filter(t => t);
    if (text.length && element.getBoundingClientRect().width > 0) words.push(...text);
  }
}
walk(document, false);
return [found, words];
"""


def missing() -> str | None:
    """What of Chromium is not installed, or None."""
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            return f"no {name} (Debian: apt-get install chromium chromium-driver)"
    return None


class Browser:
    """One window.

    Args:
        profile: an empty folder for its profile.
        pictures: where `shoot` puts what it sees.
    """

    def __init__(self, profile: Path, pictures: Path) -> None:
        options = Options()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        self._driver: Any = webdriver.Chrome(
            options=options, service=Service(str(shutil.which("chromedriver")))
        )
        self._pictures = pictures

    def close(self) -> None:
        """End Chromium."""
        self._driver.quit()

    def open(self, url: str) -> None:
        """Load a page anew, also when only what follows the # differs."""
        self._driver.get("about:blank")
        self._driver.get(url)

    def elements(self, selector: str, inside: str = "body") -> list[Any]:
        """Elements that match a CSS selector, somewhere inside of one that matches another."""
        found: list[Any] = self._look(selector, inside)[0]
        return found

    def words(self) -> list[str]:
        """The texts that can be seen, each as it stands in its element."""
        words: list[str] = self._look("no-such-element", "body")[1]
        return words

    def run(self, script: str, *arguments: Any) -> Any:
        """What `script` returns in the page."""
        return self._driver.execute_script(script, *arguments)

    def await_words(self, *patterns: str) -> None:
        """Wait until each regular expression is found in some text."""

        def seen() -> bool:
            words = self.words()
            return all(any(re.search(pattern, word) for word in words) for pattern in patterns)

        wait_until(seen, PAGE_S, lambda: f"{patterns} in {self.words()}")

    def await_element(self, inside: str, selector: str, holds: Callable[[Any], bool]) -> Any:
        """Wait until such an element is as `holds` says, and return it; see `elements`."""
        found: list[Any] = []

        def there() -> bool:
            found[:] = [element for element in self.elements(selector, inside) if holds(element)]
            return bool(found)

        wait_until(
            there, PAGE_S, lambda: f"{selector} in {inside}: {self.elements(selector, inside)}"
        )
        return found[0]

    def shoot(self, name: str) -> Path:
        """Take a picture of what can be seen."""
        self._pictures.mkdir(parents=True, exist_ok=True)
        path = self._pictures / f"{name}.png"
        self._driver.save_screenshot(str(path))
        return path

    def _look(self, selector: str, inside: str) -> Any:
        try:
            return self._driver.execute_script(_LOOK, selector, inside)
        except JavascriptException:  # the page is between two documents
            return [[], []]
