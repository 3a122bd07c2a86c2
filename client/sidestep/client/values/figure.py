"""Figures of matplotlib: drawn in the trainer, where they live, and sent as pixels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final, cast

from .base import Deferred, EmitContext, InvalidValueError, Prepared, Value
from .media import clean_text

_MAX_SIDE: Final = 16_384
_PER_ROW: Final = 8


class Figure(Value):
    """A figure of matplotlib, or several of one size, which make a grid.

    Drawing takes tens of milliseconds. With `close`, the figure is handed over: pyplot forgets it
    as soon as this is made, and it is drawn in a thread of the client's own while the training goes
    on. Neither it nor what it shares with other figures (axes, transforms) may be changed any more.
    Without `close` it is drawn before `emit` returns. It is always drawn by Agg, whatever the
    backend.

    Args:
        figure: a `matplotlib.figure.Figure`, or a sequence of some, at most 16,384 pixels wide
            and high, all of one size.
        close: hand it over.
        caption: shown beside the picture, at most 64 KiB of UTF-8.

    Raises:
        InvalidValueError: when emitted, for anything else. What fails while it is drawn is counted
            as rejected and logged.
    """

    kind = "figure"

    def __init__(self, figure: Any, *, close: bool = True, caption: str | None = None) -> None:
        self._several = isinstance(figure, (list, tuple))
        self._figures = list(cast("Sequence[Any]", figure)) if self._several else [figure]
        self._close = close
        self._caption = caption
        if close:  # here, since a rank that sends nothing never comes to `prepare`
            _forget(self._figures)

    def prepare(self, context: EmitContext) -> Prepared | Deferred:  # noqa: D102
        several, figures = self._several, self._figures
        info: dict[str, object] = {"layout": "NHWC", "per_row": _PER_ROW}
        if not several:
            info = {"layout": "HWC"}
        if self._caption is not None:
            info["caption"] = clean_text(self._caption, "caption")
        wide, high = _common_size(figures)
        kind = "images" if several else "image"
        # Takes the place of a window's canvas, which is the main thread's alone.
        canvases = [_agg_canvas(figure) for figure in figures]

        def make() -> Prepared:
            import numpy as np

            drawn = [_drawn(canvas) for canvas in canvases]
            return Prepared(kind, info, (np.stack(drawn) if several else drawn[0],))

        if not self._close:
            return make()
        return Deferred(kind, len(figures) * wide * high * 3, make)


def _forget(figures: Sequence[Any]) -> None:
    """Have pyplot forget `figures`, which closes their windows."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        for figure in figures:
            if isinstance(figure, pyplot.Figure):  # of a number it would close another one
                pyplot.close(figure)


def _common_size(figures: Sequence[Any]) -> tuple[int, int]:
    """Width and height in pixels of all `figures`."""
    # If matplotlib was never imported, this is none of its figures.
    module: Any = sys.modules.get("matplotlib.figure")
    for figure in figures:
        if module is None or not isinstance(figure, module.Figure):
            raise InvalidValueError(
                f"Figure takes a matplotlib.figure.Figure, not {type(figure).__name__}; axes and "
                "seaborn's grids have theirs as .figure"
            )
    sizes = {(int(figure.bbox.width), int(figure.bbox.height)) for figure in figures}
    if len(sizes) != 1:
        raise InvalidValueError(f"figures of {len(sizes)} sizes: expected one or more of one size")
    wide, high = sizes.pop()
    if not (0 < wide <= _MAX_SIDE and 0 < high <= _MAX_SIDE):
        raise InvalidValueError(f"Figure of {wide} by {high} pixels: at most {_MAX_SIDE} each way")
    return wide, high


def _agg_canvas(figure: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure)


def _drawn(canvas: Any) -> Any:
    """Its pixels, (H, W, 3)."""
    import numpy as np

    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]
