"""The thresholds of the alarms: one object, all of it to be set, with what each figure means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Rules:
    """When a representation counts as collapsed.

    Attributes:
        enabled: False: no alarms at all.
        warmup_observations: judged observations before the first verdict. The network at its
            beginning is no baseline.
        ewma_weight: of the newest observation in a moving average.
        full_images: an observation of fewer images weighs less in the averages, in proportion.
        min_images: an observation of fewer images is not judged (but for non-finite values).
        debounce_met: a condition is believed when it is met in so many ...
        debounce_of: ... of so many last observations.
        critical_in_a_row: observations past a critical threshold until COLLAPSED.
        clear_in_a_row: observations past a clear threshold until OK.
        complete_warn: variance share V below which the representation is one constant vector.
        complete_critical: the same, beyond doubt.
        complete_clear: V above which that is over.
        dimensional_warn: how many times smaller than its best the average of
            r = `pr_images` / D must be. The drawdown ln(best) - ln(now) exceeds ln of this.
        dimensional_critical: the same, beyond doubt.
        dimensional_clear: the factor below which that is over.
        dimensional_critical_pr: `pr_images`, newest and average, below which no baseline is needed
            to see a collapse; where D is at least four times as large.
        token_warn: share of the variance that the image, or the position, alone explains.
        token_critical: the same, beyond doubt.
        token_clear: below which that is over.
        lying_variance: how many times the targets' variance has shrunk, since the prediction
            error last improved, while the loss went on falling.
        lying_variance_clear: the factor below which that is over.
        lying_loss_fall: share of itself by which the loss must have fallen meanwhile.
        lying_error_gain: share of itself by which the error must fall to have improved.
    """

    enabled: bool = True
    warmup_observations: int = 20
    ewma_weight: float = 0.2
    full_images: int = 32
    min_images: int = 8
    debounce_met: int = 3
    debounce_of: int = 5
    critical_in_a_row: int = 2
    clear_in_a_row: int = 3
    complete_warn: float = 1e-2
    complete_critical: float = 1e-3
    complete_clear: float = 3e-2
    dimensional_warn: float = 2.0
    dimensional_critical: float = 4.0
    dimensional_clear: float = 1.5
    dimensional_critical_pr: float = 2.0
    token_warn: float = 0.98
    token_critical: float = 0.999
    token_clear: float = 0.95
    lying_variance: float = 2.0
    lying_variance_clear: float = 1.5
    lying_loss_fall: float = 0.2
    lying_error_gain: float = 0.1

    def __post_init__(self) -> None:
        """See that the thresholds make sense together.

        Raises:
            ValueError: they do not; says which and why.
        """
        for wrong, sentence in (
            (self.warmup_observations < 0, "warmup_observations must not be negative"),
            (not 0 < self.ewma_weight <= 1, "ewma_weight must be above 0 and at most 1"),
            (self.min_images < 1, "min_images must be at least 1"),
            (self.full_images < 1, "full_images must be at least 1"),
            (
                not 1 <= self.debounce_met <= self.debounce_of <= _MAX_DEBOUNCE,
                f"debounce_met must be 1 to debounce_of, and that at most {_MAX_DEBOUNCE}",
            ),
            (
                not 1 <= self.critical_in_a_row <= self.debounce_of,
                "critical_in_a_row must be 1 to debounce_of",
            ),
            (
                not 1 <= self.clear_in_a_row <= self.debounce_of,
                "clear_in_a_row must be 1 to debounce_of",
            ),
            (
                not 0 <= self.complete_critical <= self.complete_warn <= self.complete_clear <= 1,
                "complete_critical <= complete_warn <= complete_clear must be from 0 to 1",
            ),
            (
                not 1
                <= self.dimensional_clear
                <= self.dimensional_warn
                <= self.dimensional_critical,
                "dimensional_clear <= dimensional_warn <= dimensional_critical must be at least 1",
            ),
            (
                not self.dimensional_critical_pr >= 0,
                "dimensional_critical_pr must not be negative",
            ),
            (
                not 0 <= self.token_clear <= self.token_warn <= self.token_critical <= 1,
                "token_clear <= token_warn <= token_critical must be from 0 to 1",
            ),
            (
                not 1 <= self.lying_variance_clear <= self.lying_variance,
                "lying_variance_clear <= lying_variance must be at least 1",
            ),
            (
                not 0 < self.lying_loss_fall < 1 or not 0 < self.lying_error_gain < 1,
                "lying_loss_fall and lying_error_gain must be between 0 and 1",
            ),
        ):
            if wrong:
                raise ValueError(sentence)

    def plain(self) -> dict[str, Any]:
        """Names and values, of MessagePack types."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """What `plain` made.

        Raises:
            TypeError: there is a name that is none of the rules'.
            ValueError: the thresholds do not make sense together.
        """
        return cls(**plain)


_MAX_DEBOUNCE = 100
