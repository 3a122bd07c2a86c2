"""One observation of a representation: of all its statistics those that the alarms stand on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

FIGURES: Final = (
    "nonfinite",
    "n_images",
    "n_dims",
    "variance_share",
    "pr_images",
    "share_image",
    "share_position",
    "target_error",
    "target_variance",
    "loss",
)
"""The statistics by their suffixes. One that is undefined is absent."""

ZERO_VARIANCE: Final = "std"
"""The statistic that says of rows which are all zero that they do not vary: V is 0/0 there."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The figures of one representation at one step; None is what could not be said.

    Attributes:
        step: training step.
        nonfinite: elements that were NaN or infinite.
        n_images: images that the figures are made of.
        n_dims: D.
        variance_share: V = tr C / (tr C + |mean|²).
        pr_images: debiased participation ratio of one token an image.
        share_image: share of the variance that is between images.
        share_position: share of the variance that is between positions.
        target_error: mean squared distance to the paired targets, by their variance.
        target_variance: tr C_y of the targets.
        loss: the training's own loss.
    """

    step: int
    nonfinite: float | None = None
    n_images: float | None = None
    n_dims: float | None = None
    variance_share: float | None = None
    pr_images: float | None = None
    share_image: float | None = None
    share_position: float | None = None
    target_error: float | None = None
    target_variance: float | None = None
    loss: float | None = None

    @classmethod
    def of(cls, step: int, figures: Mapping[str, float]) -> Self:
        """From statistics by their suffixes, with or without the underscore.

        A figure that is not finite says nothing: what is wrong then is in `nonfinite`.
        """
        found = {name.lstrip("_"): float(x) for name, x in figures.items() if math.isfinite(x)}
        if "variance_share" not in found and found.get(ZERO_VARIANCE) == 0.0:
            found["variance_share"] = 0.0
        if found.get("n_dims", 1.0) < 1.0:
            del found["n_dims"]  # of a file that somebody wrote by hand
        return cls(step, **{name: found.get(name) for name in FIGURES})
