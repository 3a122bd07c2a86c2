"""Texts as W&B shows them."""

from __future__ import annotations

import html

from sidestep.proto import Value


def text(value: Value) -> object:
    """A text, shown as it was emitted."""
    import wandb

    content = value.info.get("text")
    if not isinstance(content, str):
        raise TypeError(f"text must be a string, not {type(content).__name__}")
    # Escaped: the text is shown as it was emitted, and nothing in it runs in the reader's browser.
    shown = html.escape(content.encode("utf-8", "replace").decode())
    page = f'<meta charset="utf-8"><pre style="white-space: pre-wrap">{shown}</pre>'
    return wandb.Html(page, data_is_not_path=True)
