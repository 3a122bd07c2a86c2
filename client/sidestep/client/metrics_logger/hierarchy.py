"""What a hierarchical model is judged by: losses by level, predictions beside targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sidestep import client as sidestep

from ..checks import check_number_tensor, number
from ..refused import Refused, attempt
from ..values import InvalidValueError, is_tensor, on_device

_LEVEL: Final = "loss_level_"
_PER_ROW: Final = 4


def level_losses(losses: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Each level's loss and its share of all levels' sum.

    Args:
        losses: those under keys ``loss_level_K``, numbers or 0-d tensors on any device; others
            are passed over.
        prefix: put before each tag as it is.

    Returns:
        ``level_K_loss`` as given, and ``level_K_percentage`` in percent, 0 where the sum is not
        positive.
    """
    levels = {
        str(key).removeprefix(_LEVEL): attempt(_plain, loss)
        for key, loss in losses.items()
        if str(key).startswith(_LEVEL)
    }
    total: Any = sum(loss for loss in levels.values() if not isinstance(loss, Refused))
    values: dict[str, Any] = {}
    for level, loss in levels.items():
        values[f"{prefix}level_{level}_loss"] = loss
        if not isinstance(loss, Refused):
            values[f"{prefix}level_{level}_percentage"] = _percentage(loss, total)
    return values


def _plain(loss: Any) -> Any:
    """A float, or a float tensor where reading it would wait for a device."""
    if not on_device(loss):
        return number(loss)
    check_number_tensor(loss)
    return loss.detach().float()


def _percentage(loss: Any, total: Any) -> Any:
    if is_tensor(total):
        import torch

        # A condition in Python would have to read the sum.
        return torch.where(total <= 0, 0.0, loss / total * 100)
    # `<=` and not a negated `>`: the share of a sum that is NaN is NaN.
    return 0.0 if total <= 0 else loss / total * 100


def comparison(
    images: Any, predictions: Any, targets: Any, masks: Any, max_images: int
) -> dict[str, Any]:
    """Pictures with and without their masks, and how alike predictions and targets are.

    Args:
        images: (B, C, H, W).
        predictions: a tensor (B, …) or a list of them, one a level. One in the shape of `images`
            is shown in the places of the masked patches.
        targets: the same shapes.
        masks: over patches, (B, N) or (B, rows, columns), nonzero where a patch was to be
            predicted; N patches are taken for square.
        max_images: at most so many pictures.
    """
    levels = [predictions] if is_tensor(predictions) else list(predictions)
    wanted = [targets] if is_tensor(targets) else list(targets)
    values: dict[str, Any] = {
        "training/images/original_images": attempt(
            lambda: sidestep.Images(images[:max_images], per_row=_PER_ROW)
        ),
        "predictions/mask_ratio": attempt(lambda: masks.detach().float().mean()),
    }
    shown = next((p for p in levels if tuple(p.shape) == tuple(images.shape)), None)
    for i in range(min(len(images), max_images)):
        predicted = None if shown is None else shown[i]
        values[f"training/images/masked_{i}"] = attempt(_masked, images[i], masks[i], predicted)
    for level, pair in enumerate(zip(levels, wanted, strict=False)):
        values[f"predictions/level_{level}_similarity"] = attempt(_similarity, *pair)
    return values


def _masked(image: Any, mask: Any, predicted: Any) -> Any:
    size = _patch_size(tuple(image.shape), tuple(mask.shape))
    if mask.ndim != 2:
        mask = mask.reshape(-1)
    return sidestep.MaskedImage(image, mask, patch_size=size, predicted=predicted)


def _patch_size(image: Sequence[int], mask: Sequence[int]) -> tuple[int, int]:
    """Height and width of a patch of a (C, H, W) image under a mask.

    Raises:
        InvalidValueError: the patches do not tile the image.
    """
    height, width = image[-2:]
    if len(mask) == 2:
        rows, columns = mask
    else:
        patches = math.prod(mask)
        side = math.isqrt(height * width // max(1, patches))
        rows, columns = (height // side, width // side) if side else (0, 0)
        if rows * columns != patches:
            rows = 0
    if not rows or not columns or height % rows or width % columns:
        raise InvalidValueError(
            f"a mask of shape {tuple(mask)} over an image of shape {tuple(image)}: expected "
            "(rows, columns) of patches that tile it, or as many square patches as do"
        )
    return height // rows, width // columns


def _similarity(prediction: Any, target: Any) -> Any:
    """Mean over the batch of the cosine similarity of all that belongs to one image."""
    import torch

    with torch.no_grad(), torch.autocast(prediction.device.type, enabled=False):
        pair = (prediction.flatten(1).float(), target.flatten(1).float())
        return torch.nn.functional.cosine_similarity(*pair, dim=1).mean()
