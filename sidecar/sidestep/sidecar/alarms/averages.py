"""What an alarm remembers of the past: moving averages, the best of them, and an anchor.

The baseline of the dimensional collapse is the running best after the warm-up. A best is for ever,
so it must not be a stroke of luck: of eight images the debiased participation ratio is now and then
four times too large. An observation of few images therefore weighs less in the averages, by as much
as it is less sure, and no ratio counts as more than all dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .observation import Observation
from .rules import Rules


@dataclass(frozen=True, slots=True)
class Averages:
    """All of it for one representation; None is what was never observed.

    Attributes:
        ratio: average of r = pr_images / D.
        best: the largest `ratio` after the warm-up.
        best_step: where that was.
        error: average of the prediction error by the targets' variance.
        variance: average of the targets' variance.
        loss: average of the loss.
        anchor: (error, variance, loss) when the error last improved, or the variance was largest.
        anchor_step: where that was.
    """

    ratio: float | None = None
    best: float | None = None
    best_step: int = 0
    error: float | None = None
    variance: float | None = None
    loss: float | None = None
    anchor: tuple[float, float, float] | None = None
    anchor_step: int = 0

    def after(self, observation: Observation, rules: Rules, *, warm: bool) -> Averages:
        """With `observation` in them; `warm` says whether baselines are taken."""
        images = rules.full_images if observation.n_images is None else observation.n_images
        weight = rules.ewma_weight * min(1.0, images / rules.full_images)
        found = self
        if observation.pr_images is not None:
            found = found._with_ratio(observation, weight, warm)
        targets = observation.target_error, observation.target_variance, observation.loss
        error, variance, loss = targets
        if error is not None and variance is not None and loss is not None:
            now = (
                _mixed(self.error, error, weight),
                _mixed(self.variance, variance, weight),
                _mixed(self.loss, loss, weight),
            )
            found = found._with_targets(now, observation.step, rules, warm)
        return found

    def _with_ratio(self, observation: Observation, weight: float, warm: bool) -> Averages:
        assert observation.pr_images is not None
        newest = observation.pr_images
        if observation.n_dims is not None:
            newest = min(1.0, newest / observation.n_dims)
        ratio = _mixed(self.ratio, newest, weight)
        if warm and (self.best is None or ratio > self.best):
            return replace(self, ratio=ratio, best=ratio, best_step=observation.step)
        return replace(self, ratio=ratio)

    def _with_targets(
        self, now: tuple[float, float, float], step: int, rules: Rules, warm: bool
    ) -> Averages:
        found = replace(self, error=now[0], variance=now[1], loss=now[2])
        improved = 1.0 - rules.lying_error_gain
        anchor = self.anchor
        if warm and (anchor is None or now[0] < improved * anchor[0] or now[1] > anchor[1]):
            return replace(found, anchor=now, anchor_step=step)
        return found


def _mixed(average: float | None, newest: float, weight: float) -> float:
    return newest if average is None else (1.0 - weight) * average + weight * newest
