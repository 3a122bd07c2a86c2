"""The five conditions of a collapse: what each makes of one observation, and says of it.

A judge looks at one observation and at what is remembered. It says how bad things are and, in
words, what it saw; None where the figures that it needs are absent: then the observation does not
take part in its debounce at all.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .averages import Averages
from .observation import Observation
from .rules import Rules


class Verdict(enum.IntEnum):
    """How bad one observation is, by one condition."""

    CLEAR = 0  # on the well side of the clear threshold
    BETWEEN = 1  # neither met nor clear
    MET = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """A judge's verdict with what it saw.

    Attributes:
        verdict: how bad it is.
        figure: the number that it is read from.
        text: the same in words, with where it came from.
    """

    verdict: Verdict
    figure: float
    text: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a judge may look at.

    Attributes:
        now: the observation.
        averages: with this observation in them.
        usual: average of the judge's own figure while all was well; None when it never was.
    """

    now: Observation
    averages: Averages
    usual: float | None


_WIDE: Final = 4
"""How many times more dimensions there must be than are too few: two of two are all."""

Judge = Callable[[Evidence, Rules], Finding | None]


def complete(evidence: Evidence, rules: Rules) -> Finding | None:
    """Every row the same vector: V = tr C / (tr C + |mean|²) goes to zero, at any scale."""
    share = evidence.now.variance_share
    if share is None:
        return None
    verdict = _below(share, rules.complete_clear, rules.complete_warn, rules.complete_critical)
    return Finding(
        verdict,
        share,
        f"variance share {_from(evidence.usual)}{_number(share)}: the rows are nearly one constant "
        "vector",
    )


def dimensional(evidence: Evidence, rules: Rules) -> Finding | None:
    """The variance withdraws into few directions: the participation ratio falls far below its best.

    Of r = pr_images / D: over min(D, n) it would move with the batch size.
    """
    now, averages = evidence.now, evidence.averages
    if now.pr_images is None or not averages.ratio or averages.best is None:
        return None
    fallen = averages.best / averages.ratio  # the drawdown is the logarithm of it
    dims = now.n_dims or 1.0
    few = rules.dimensional_critical_pr
    wide = now.n_dims is None or dims >= _WIDE * few
    # The average too: of few images one observation of a healthy 3 is now and then below 2.
    narrow = wide and now.pr_images < few and averages.ratio * dims < few
    if fallen > rules.dimensional_critical or narrow:
        verdict = Verdict.CRITICAL
    elif fallen > rules.dimensional_warn:
        verdict = Verdict.MET
    else:
        verdict = Verdict.CLEAR if fallen < rules.dimensional_clear else Verdict.BETWEEN
    return Finding(
        verdict,
        averages.ratio * dims,
        f"participation ratio of the images from {_number(averages.best * dims)} at step "
        f"{averages.best_step:,} to {_number(averages.ratio * dims)} (last {_number(now.pr_images)}"
        + (f") of {now.n_dims:.0f} dimensions" if now.n_dims is not None else ")"),
    )


def token(evidence: Evidence, rules: Rules) -> Finding | None:
    """The tokens of an image are alike, or those of a position: one of two axes says nothing."""
    shares = {"image": evidence.now.share_image, "position": evidence.now.share_position}
    known = {name: share for name, share in shares.items() if share is not None}
    if not known:
        return None
    name = max(known, key=lambda each: known[each])
    share = known[name]
    if share > rules.token_critical:
        verdict = Verdict.CRITICAL
    elif share > rules.token_warn:
        verdict = Verdict.MET
    else:
        verdict = Verdict.CLEAR if share < rules.token_clear else Verdict.BETWEEN
    what = "all tokens of an image" if name == "image" else "all images at a position"
    return Finding(
        verdict,
        share,
        f"share of the variance between {name}s {_from(evidence.usual)}{_number(share)}: {what} "
        "are nearly alike",
    )


def lying_loss(evidence: Evidence, rules: Rules) -> Finding | None:
    """The loss falls because its targets shrink, and not because they are predicted better.

    Measured from where the error (by the targets' variance) last improved.
    """
    averages = evidence.averages
    now = evidence.now
    if now.target_error is None or now.target_variance is None or now.loss is None:
        return None
    if averages.anchor is None or averages.variance is None or averages.loss is None:
        return None
    _, variance, loss = averages.anchor
    shrunk = variance / averages.variance if averages.variance > 0.0 else float("inf")
    fell = (loss - averages.loss) / abs(loss) if loss else 0.0
    if shrunk > rules.lying_variance and fell > rules.lying_loss_fall:
        verdict = Verdict.MET
    elif shrunk < rules.lying_variance_clear or fell < rules.lying_loss_fall / 2:
        verdict = Verdict.CLEAR
    else:
        verdict = Verdict.BETWEEN
    return Finding(
        verdict,
        averages.variance,
        f"since step {averages.anchor_step:,} the loss fell from {_number(loss)} to "
        f"{_number(averages.loss)} and the targets' variance from {_number(variance)} to "
        f"{_number(averages.variance)}, while the error by that variance stayed at "
        f"{_number(averages.error or 0.0)}",
    )


def nonfinite(evidence: Evidence, rules: Rules) -> Finding | None:  # noqa: ARG001 - a Judge
    """Any value that is NaN or infinite."""
    many = evidence.now.nonfinite
    if many is None:
        return None
    verdict = Verdict.CRITICAL if many > 0 else Verdict.CLEAR
    return Finding(verdict, many, f"{many:,.0f} elements are NaN or infinite")


NONFINITE: Final = "nonfinite"
"""The one condition that is judged at once: in the warm-up, and of however few images."""

JUDGES: Final[Mapping[str, Judge]] = {
    NONFINITE: nonfinite,
    "complete": complete,
    "dimensional": dimensional,
    "token": token,
    "lying_loss": lying_loss,
}
"""The conditions by name; of several that are equally bad the first gives the reason."""

ADVICE: Final[Mapping[str, str]] = {
    NONFINITE: (
        "look at the learning rate, the loss scale and the last batches; go back to a checkpoint "
        "before it"
    ),
    "complete": (
        "look at {tag}_variance_share and {tag}_cosine (the norm and std of layer-normed vectors "
        "stay constant); then at the stop-gradient, the teacher's momentum and the learning rate"
    ),
    "dimensional": (
        "look at {tag}_spectrum, {tag}_pr_images and {tag}_rank; then at the weight decay, the "
        "predictor's learning rate and what keeps the dimensions apart"
    ),
    "token": (
        "look at {tag}_share_image and {tag}_share_position; then at the masking, the position "
        "codes and the attention of the last layers"
    ),
    "lying_loss": (
        "look at {tag}_target_error and {tag}_target_variance instead of the loss; then at the "
        "teacher's momentum and the normalisation of the targets"
    ),
}
"""What to look at, by condition."""


def _below(figure: float, clear: float, warn: float, critical: float) -> Verdict:
    if figure < critical:
        return Verdict.CRITICAL
    if figure < warn:
        return Verdict.MET
    return Verdict.CLEAR if figure > clear else Verdict.BETWEEN


def _from(usual: float | None) -> str:
    return "" if usual is None else f"from {_number(usual)} to "


def _number(figure: float) -> str:
    return f"{figure:.3g}"
