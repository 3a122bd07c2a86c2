"""What a masked-image model sees and predicts, side by side: original, mask, masked, predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from .arrays import as_array
from .base import EmitContext, InvalidValueError, Prepared, Value
from .media import as_pixels, clean_text, layout_of, shape_of


class MaskedImage(Value):
    """An image, its mask over patches, what the mask leaves of it, and what a model predicts.

    The four (or three) panels stand side by side in one picture, drawn in the daemon. Masked
    patches are white in the mask and grey in the masked image; the predicted image has the
    prediction in the masked patches and the original everywhere else.

    Args:
        image: (C, H, W), (H, W, C) or (H, W), as `Image` takes it; H and W are multiples of the
            patch's height and width.
        mask: (gh, gw) or (gh * gw,) in row order, with gh = H / patch height, gw = W / patch width;
            bool or any real dtype: True (not 0) where the patch is masked.
        patch_size: side of a patch in pixels, or (height, width).
        predicted: an image of the same shape and layout, or patches (gh * gw, ph * pw * C),
            each with its channels last (``"(h w) (p q c)"``, as MAE's ``patchify``). Dtype and
            range as those of `Image`.
        layout: of `image`: ``"CHW"``, ``"HWC"`` or ``"HW"``; None guesses, CHW first.
        caption: shown beside the picture.

    Raises:
        InvalidValueError: when emitted, for shapes that do not fit each other, or a wrong dtype.
    """

    kind = "masked_image"

    def __init__(
        self,
        image: Any,
        mask: Any,
        *,
        patch_size: int | tuple[int, int],
        predicted: Any = None,
        layout: str | None = None,
        caption: str | None = None,
    ) -> None:
        self._image = image
        self._mask = mask
        self._patch_size = patch_size
        self._predicted = predicted
        self._layout = layout
        self._caption = caption

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        image = as_pixels(self._image, "MaskedImage")
        shape = shape_of(image)
        layout = layout_of(shape, self._layout, ("CHW", "HWC", "HW"), "MaskedImage")
        high, wide = shape[layout.index("H")], shape[layout.index("W")]
        patch = _patch(self._patch_size)
        if high % patch[0] or wide % patch[1]:
            raise InvalidValueError(
                f"MaskedImage of {high} by {wide} pixels (H, W) does not divide into patches of "
                f"{patch[0]} by {patch[1]}"
            )
        grid = (high // patch[0], wide // patch[1])
        mask = as_array(self._mask, "MaskedImage mask")
        if shape_of(mask) not in (grid, (grid[0] * grid[1],)):
            raise InvalidValueError(
                f"MaskedImage mask of shape {shape_of(mask)}: expected one element for each patch, "
                f"{grid} or {(grid[0] * grid[1],)}"
            )
        info: dict[str, object] = {"layout": layout, "patch_size": list(patch), "predicted": None}
        arrays = [image, mask]
        if self._predicted is not None:
            channels = shape[layout.index("C")] if "C" in layout else 1
            flat = (grid[0] * grid[1], patch[0] * patch[1] * channels)
            predicted = as_pixels(self._predicted, "MaskedImage predicted")
            info["predicted"] = _form(shape_of(predicted), shape, flat)
            arrays.append(predicted)
        if self._caption is not None:
            info["caption"] = clean_text(self._caption, "caption")
        return Prepared(self.kind, info, arrays)


def _patch(patch_size: object) -> tuple[int, int]:
    sizes: Sequence[object] = [patch_size, patch_size]
    if isinstance(patch_size, (list, tuple)):
        sizes = cast("Sequence[object]", patch_size)
    match sizes:
        case [int() as high, int() as wide] if high > 0 and wide > 0:
            return high, wide
        case _:
            raise InvalidValueError("patch_size must be a positive int, or (height, width) of them")


def _form(shape: tuple[int, ...], image: tuple[int, ...], patches: tuple[int, ...]) -> str:
    if shape == image:
        return "image"
    if shape == patches:
        return "patches"
    raise InvalidValueError(
        f"MaskedImage predicted of shape {shape}: expected the image's own {image}, or patches "
        f"{patches}, channels last"
    )
