"""The moments of a representation in float64, and how those of two disjoint parts become one.

Notation: X is n×D, μ its mean, M = (X−μ)ᵀ(X−μ) its centred Gram matrix. Parts are the ranks of a
step or the steps of a window. They are joined by Chan's formula (Chan, Golub, LeVeque 1983),

    μ = μ₁ + δ n₂/n,    M = M₁ + M₂ + δδᵀ n₁n₂/n,    δ = μ₂ − μ₁,    n = n₁ + n₂,

which subtracts nothing large from anything large. What is joined so equals what would have been
computed of the concatenated rows; where that cannot be, the docstring says what is done instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sum of squared deviations of n samples, elementwise.

    Attributes:
        n: number of samples.
        mean: any shape; () for numbers.
        m2: the same shape, Σ(x − mean)².
    """

    n: int
    mean: Floats
    m2: Floats

    def merged(self, other: Spread) -> Spread:
        """Of both samples together."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        m2 = self.m2 + other.m2 + delta * delta * (self.n / n * other.n)
        return Spread(n, mean, m2)


@dataclass(frozen=True, slots=True)
class Average:
    """A figure that is not additive, and the number of rows that it stands for."""

    weight: float
    value: float

    def merged(self, other: Average) -> Average:
        """The mean of both, weighted by their rows."""
        weight = self.weight + other.weight
        if not weight:
            return self
        return Average(weight, self.value + (other.value - self.value) * (other.weight / weight))


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """One token an image: the rows that may be taken for independent samples.

    Attributes:
        n: number of them.
        trace: the unbiased estimate of tr C; its weight is the number of samples behind it.
        square: that of tr C² (see `spectrum.unbiased_square`), from parts of three or more.
        mean: (D,), only with `gram`.
        gram: (D, D), centred, when the spectrum was due.

    Merged with both Gram matrices, the estimates are those of the concatenation. Where only
    traces crossed they are the means of the parts' unbiased estimates, weighted by n: unbiased
    too, but blind to what separates the parts' means. Independent parts of one batch have none;
    a window in which the representation drifts has.
    """

    n: int
    trace: Average
    square: Average
    mean: Floats | None = None
    gram: Floats | None = None


@dataclass(frozen=True, slots=True)
class TwoWay:
    """Sums of squares of (B, N, D) by image and by token position, all D dimensions together.

    Attributes:
        images: B.
        tokens: N.
        mean: (D,), the grand mean.
        by_image: N Σ_b ‖x̄_b − x̄‖².
        by_position: B Σ_n ‖x̄_n − x̄‖².
        total: Σ ‖x − x̄‖².
        position_means: (N, D), when they crossed.
    """

    images: float
    tokens: int
    mean: Floats
    by_image: float
    by_position: float
    total: float
    position_means: Floats | None = None

    def merged(self, other: TwoWay) -> TwoWay | None:
        """Of both sets of images together, seen at the same positions; None when they were not.

        Exact with both parts' position means. Without them `by_position` is the sum of the parts',
        so that the share is the parts' mean: what each part alone overestimates (by about 1/B of
        the residual) stays overestimated.
        """
        if self.tokens != other.tokens:
            return None
        images = self.images + other.images
        share = other.images / images
        delta = other.mean - self.mean
        apart = float(delta @ delta) * self.images * share * self.tokens
        mean = self.mean + delta * share
        by_position, position_means = self.by_position + other.by_position, None
        if self.position_means is not None and other.position_means is not None:
            further = other.position_means - self.position_means
            position_means = self.position_means + further * share
            by_position = images * float(np.square(position_means - mean).sum())
        return TwoWay(
            images,
            self.tokens,
            mean,
            self.by_image + other.by_image + apart,
            by_position,
            self.total + other.total + apart,
            position_means,
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A representation beside its pair y.

    Attributes:
        n: number of pairs.
        cosines: sum of cos(x, y).
        squares: sum of ‖x − y‖².
        mean: (D,), of y.
        m2: Σ ‖y − mean‖², all dimensions together.
    """

    n: int
    cosines: float
    squares: float
    mean: Floats
    m2: float

    def merged(self, other: Target) -> Target:
        """Of both samples together."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        delta = other.mean - self.mean
        apart = float(delta @ delta) * (self.n / n * other.n)
        return Target(
            n,
            self.cosines + other.cosines,
            self.squares + other.squares,
            self.mean + delta * (other.n / n),
            self.m2 + other.m2 + apart,
        )


@dataclass(frozen=True, slots=True)
class Scatter:
    """What LiDAR is made of: V views of each of n images.

    Attributes:
        n: images.
        freedom: degrees of freedom of `between`: n − 1, less one for each further part.
        views: V.
        between: (D', D'), Σ_i (μ_i − μ)(μ_i − μ)ᵀ.
        within: (D', D'), Σ_i Σ_v (x_iv − μ_i)(x_iv − μ_i)ᵀ.
    """

    n: int
    freedom: int
    views: int
    between: Floats
    within: Floats

    def merged(self, other: Scatter) -> Scatter | None:
        """Of both, pooled: the mean μ does not cross, so what separates the parts is not seen."""
        if self.views != other.views or self.between.shape != other.between.shape:
            return None
        return Scatter(
            self.n + other.n,
            self.freedom + other.freedom,
            self.views,
            self.between + other.between,
            self.within + other.within,
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """All that is known of a representation at one step, or of several put together.

    Attributes:
        d: D, the number of dimensions.
        n_images: images that the rows are of.
        rows: the rows without a non-finite element: n, mean (D,), m2 (D,).
        nonfinite: elements that are NaN or infinite.
        norms: L2 norms of the same rows, numbers.
        unit: the rows over their norms, those of norm zero left out: mean (D,), m2 (D,).
        images: one token an image.
        gram: (D, D), centred, of `rows`, when the spectrum was due.
        two_way: when there are several images and several tokens an image.
        target: when the representation has a pair.
        scatter: when there are views, and the spectrum was due.
        averages: optional statistics by their suffix, and ``loss``: what is not additive is
            averaged over rows.
    """

    d: int
    n_images: int
    rows: Spread
    nonfinite: float
    norms: Spread
    unit: Spread
    images: ImageTokens
    gram: Floats | None = None
    two_way: TwoWay | None = None
    target: Target | None = None
    scatter: Scatter | None = None
    averages: Mapping[str, Average] = field(default_factory=dict[str, Average])


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of all rows of `a` and `b`.

    What only one of them has (a Gram matrix, position means, a pair) the result has not, unless
    the other has no rows at all.

    Raises:
        ValueError: their numbers of dimensions differ.
    """
    if a.d != b.d:
        raise ValueError(f"{a.d} and {b.d} dimensions cannot be merged")
    return Moments(
        a.d,
        a.n_images + b.n_images,
        a.rows.merged(b.rows),
        a.nonfinite + b.nonfinite,
        a.norms.merged(b.norms),
        a.unit.merged(b.unit),
        _merged_images(a.images, b.images),
        merged_gram(a.rows.n, a.rows.mean, a.gram, b.rows.n, b.rows.mean, b.gram),
        _merged_two_way(a, b),
        _merged_target(a, b),
        a.scatter.merged(b.scatter) if a.scatter and b.scatter else None,
        _merged_averages(a.averages, b.averages),
    )


def merged_gram(
    n_a: int,
    mean_a: Floats | None,
    gram_a: Floats | None,
    n_b: int,
    mean_b: Floats | None,
    gram_b: Floats | None,
) -> Floats | None:
    """The centred Gram matrix (D, D) of the rows of both; None unless both parts have one."""
    if not n_a or not n_b:
        return gram_a if n_a else gram_b
    if gram_a is None or gram_b is None or mean_a is None or mean_b is None:
        return None
    delta = mean_b - mean_a
    return gram_a + gram_b + np.outer(delta, delta) * (n_a / (n_a + n_b) * n_b)


def image_tokens(n: int, mean: Floats | None, gram: Floats | None) -> ImageTokens:
    """`ImageTokens` by their Gram matrix (D, D); none when there is none."""
    trace = square = float("nan")
    if gram is not None:
        trace, square = float(np.trace(gram)), float(np.vdot(gram, gram))
    return image_traces(n, trace, square, mean, gram)


def image_traces(
    n: int,
    trace: float,
    square: float,
    mean: Floats | None = None,
    gram: Floats | None = None,
) -> ImageTokens:
    """`ImageTokens` by the trace and the squared Frobenius norm of their centred Gram matrix."""
    m = n - 1
    has = m > 1 and np.isfinite(trace) and np.isfinite(square)
    if not has:
        nothing = Average(0.0, 0.0)
        return ImageTokens(n, nothing, nothing, mean, gram)
    return ImageTokens(
        n,
        Average(n, trace / m),
        Average(n, unbiased_square(trace / m, square / m**2, n)),
        mean,
        gram,
    )


def unbiased_square(trace: float, square: float, n: int) -> float:
    """The unbiased estimate of tr Σ² for Gaussian rows (Srivastava 2005, eq. 2.4).

    t = m²/((m−1)(m+2)) · (tr C² − (tr C)²/m) with m = n−1 degrees of freedom.

    Args:
        trace: tr C, C the unbiased covariance of n rows.
        square: tr C².
        n: number of rows, 3 or more.

    Returns:
        t, which may be negative when the rows are few.
    """
    m = n - 1
    return m / (m - 1) * (m / (m + 2)) * (square - trace * trace / m)


def _merged_images(a: ImageTokens, b: ImageTokens) -> ImageTokens:
    if not a.n or not b.n:
        return a if a.n else b
    n = a.n + b.n
    gram = merged_gram(a.n, a.mean, a.gram, b.n, b.mean, b.gram)
    if gram is not None and a.mean is not None and b.mean is not None:
        return image_tokens(n, a.mean + (b.mean - a.mean) * (b.n / n), gram)
    return ImageTokens(n, a.trace.merged(b.trace), a.square.merged(b.square))


def _merged_two_way(a: Moments, b: Moments) -> TwoWay | None:
    if not a.rows.n or not b.rows.n:
        return a.two_way if a.rows.n else b.two_way
    return a.two_way.merged(b.two_way) if a.two_way and b.two_way else None


def _merged_target(a: Moments, b: Moments) -> Target | None:
    if not a.rows.n or not b.rows.n:
        return a.target if a.rows.n else b.target
    return a.target.merged(b.target) if a.target and b.target else None


def _merged_averages(a: Mapping[str, Average], b: Mapping[str, Average]) -> Mapping[str, Average]:
    both = {name: a[name].merged(b[name]) for name in a if name in b}
    return {**a, **b, **both}
