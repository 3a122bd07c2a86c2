"""Every page of TensorBoard shows what one run emitted, in a real browser."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.browser import Browser

pytestmark = pytest.mark.timeout(400)

Open = Callable[..., Browser]


@pytest.fixture
def page(browser: Browser, tensorboard: str, request: pytest.FixtureRequest) -> Open:
    """Opens one of TensorBoard's pages; a picture of it is kept."""

    def opened(name: str, state: str = "") -> Browser:
        browser.open(f"{tensorboard}#{name}{state}")
        request.addfinalizer(lambda: browser.shoot(name))
        return browser

    return opened


def test_scalars(page: Open) -> None:
    shown = page("scalars", "&tagFilter=train/l")  # groups after the second one are closed
    shown.await_words(r"^train$", r"^train/loss$", r"^train/lr$")
    # The curve is a path of as many points as there are steps.
    shown.await_element(
        "vz-line-chart2", "path", lambda line: (line.get_attribute("d") or "").count("L") >= 4
    )


def test_images(page: Open) -> None:
    shown = page("images")
    shown.await_words(r"^images$", "images/grid", "images/masked", "images/boxes")

    def loaded(image: object) -> bool:
        size = shown.run("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", image)
        return bool(size == [128, 64])  # eight pictures of 32 by 32, four in a row

    shown.await_element("tf-image-loader", "img", loaded)


def test_histograms(page: Open) -> None:
    shown = page("histograms")
    shown.await_words("weights/layer", "weights/counted")
    shown.await_element("vz-histogram-timeseries", "path", _is_drawn)


def test_distributions(page: Open) -> None:
    shown = page("distributions")
    shown.await_words("weights/layer", "weights/counted")
    shown.await_element("vz-distribution-chart", "path", _is_drawn)


def test_text(page: Open) -> None:
    shown = page("text")
    shown.await_words("notes/text_summary", r"^step 4$", "all is well")
    assert shown.elements("strong", "tf-markdown-view"), "Markdown is rendered"


def test_hparams(page: Open) -> None:
    shown = page("hparams")
    shown.await_words(r"^optimizer$", r"^adamw$", r"^accuracy$", r"^0\.90000$", r"^5\.0000$")


def test_audio(page: Open) -> None:
    shown = page("audio")
    shown.await_words("sound/tone")
    shown.await_element(
        "tf-audio-loader",
        "audio",
        lambda tone: shown.run("return arguments[0].duration", tone) == 1,
    )


def test_pr_curves(page: Open) -> None:
    shown = page("pr_curves")
    shown.await_words(r"^quality$", r"^step 4$")
    shown.await_element("tf-pr-curve-card", "path", _is_drawn)


def test_mesh(page: Open) -> None:
    shown = page("mesh")
    shown.await_words("solid")
    shown.await_element("tf-mesh-loader", "canvas", lambda canvas: canvas.size["width"] > 100)


def test_graphs(page: Open) -> None:
    shown = page("graphs")
    shown.await_words("Main Graph")
    shown.await_element("tf-graph-scene", "g.node", bool)


def test_projector(page: Open) -> None:
    shown = page("projector")
    shown.await_words("1 tensor found", r"Total variance described")
    shown.await_words(r"^60$", r"^8$")


def test_custom_scalars(page: Open) -> None:
    shown = page("custom_scalars")
    shown.await_words(r"^curves$", r"^both$", r"Matches \(2\)")


def _is_drawn(path: object) -> bool:
    return len(path.get_attribute("d") or "") > 50  # type: ignore[attr-defined]
