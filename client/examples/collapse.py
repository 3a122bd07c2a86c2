"""The same I-JEPA with what prevents a collapse taken away, in three ways that people fall into.

The EMA target and the stop-gradient are gone in all three: the target encoder is the context
encoder, and the gradient flows through both. So the loss can be made small by targets that are easy
to tell instead of by telling them, and what is left to learn is what the remaining terms ask for.

``complete``
    Nothing remains. One constant vector is the easiest target of all. The targets are
    layer-normed, so their norm and their standard deviation within a token stay what they were.
``dimensional``
    The variance term of VICReg (Bardes, Ponce and LeCun 2022, arXiv:2105.04906) remains, without
    its covariance term: each dimension must vary from image to image, but all of them may say the
    same. One direction is enough.
``token``
    Both terms remain, but the tokens of all images count as one batch. Then tokens that differ by
    their position alone are varied enough, and the predictor is told the positions anyway:
    nothing of the image is left.

The alarm (WARN or worse, of ``train/target``) rises within `ALARM_WITHIN` steps, by the daemon's
default rules. These judge nothing before 20 observations, which are 200 steps here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch.nn import functional as F

from jepa import DIM, Jepa, Masks

if TYPE_CHECKING:
    from torch import Tensor

HOW: Final = ("complete", "dimensional", "token")

ALARM_WITHIN: Final = 300
"""Steps, with a margin: of four seeds each, complete and token warned at step 220, and dimensional
was called collapsed at 210. Complete was called collapsed at 220 to 250; token stays a warning
until hardly a thousandth of the variance is left to the images."""

# VICReg has 1 to 0.04. With so much of the covariance term the image is kept a little; with none,
# the positions take up one direction only, which would be a dimensional collapse as well.
VARIANCE_WEIGHT, COVARIANCE_WEIGHT = 1.0, 0.01


class CollapsingJepa(Jepa):
    """An I-JEPA without EMA target and stop-gradient.

    Args:
        how: one of `HOW`.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.target_encoder = self.context_encoder
        self.how = how

    def targets(self, images: Tensor) -> Tensor:
        # No stop-gradient.
        return F.layer_norm(self.context_encoder(images), (DIM,))

    def update_target(self, momentum: float) -> None:
        """Nothing to do: there is one encoder."""

    def loss(self, predicted: Tensor, target: Tensor, masks: Masks) -> Tensor:
        loss = super().loss(predicted, target, masks)
        if self.how == "dimensional":
            loss = loss + VARIANCE_WEIGHT * too_little_variance(target)
        elif self.how == "token":
            rows = target.flatten(0, 1)
            loss = loss + VARIANCE_WEIGHT * too_little_variance(rows)
            loss = loss + COVARIANCE_WEIGHT * covariance(rows)
        return loss


def too_little_variance(x: Tensor) -> Tensor:
    """How far the standard deviations over the first dimension are below 1, on average."""
    return F.relu(1.0 - (x.var(dim=0) + 1e-4).sqrt()).mean()


def covariance(rows: Tensor) -> Tensor:
    """The squared covariances of different dimensions of (n, D), summed, by D."""
    centred = rows - rows.mean(dim=0)
    found = centred.T @ centred / (len(rows) - 1)
    return (found - found.diag().diag_embed()).square().sum() / rows.shape[1]
