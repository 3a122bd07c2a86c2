"""Histograms: elements or counts travel as they are, buckets are made in the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Self, cast

from .arrays import as_array, is_tensor, on_device, size_of
from .base import EmitContext, InvalidValueError, Prepared, Value
from .media import shape_of, whole

BinRule = Literal["tensorflow", "auto", "fd", "doane", "scott", "stone", "rice", "sturges", "sqrt"]
"""How buckets are chosen: TensorBoard's exponential ones, or one of `numpy.histogram`'s rules."""

_RULES: Final = ("auto", "fd", "doane", "scott", "stone", "rice", "sturges", "sqrt")
_WIRE_NAMES: Final = {"low": "min", "high": "max", "total": "sum"}
_MAX_BINS: Final = 4096
_MAX_EDGES: Final = 100_001


class Histogram(Value):
    """The distribution of all elements of a tensor; the buckets are made in the daemon.

    Counts that are made already are given by `Histogram.from_counts`.

    Args:
        values: torch tensor, numpy array or sequence of numbers, any shape, any real dtype, at
            least one element, at most 64 MiB. bfloat16 travels as float32. Non-finite elements
            are left out of the buckets.
        bins: None or ``"tensorflow"`` for TensorBoard's own exponential buckets; an int from 1 to
            4,096 for that many of equal width; a name of one of numpy's rules (``"auto"``,
            ``"fd"``, ``"doane"``, ``"scott"``, ``"stone"``, ``"rice"``, ``"sturges"``, ``"sqrt"``);
            or the edges themselves, 2 to 100,001 numbers that do not decrease.
        max_bins: merge neighbours until there are about this many at most, as
            `torch.utils.tensorboard` does; None for no limit. W&B never has more than 512.

    Raises:
        InvalidValueError: when emitted, for an empty, complex, sparse or non-numeric input, or
            another `bins` or `max_bins`.
    """

    kind = "histogram"
    over_ranks = "asked"

    def __init__(
        self,
        values: Any,
        *,
        bins: int | BinRule | Sequence[float] | Any | None = None,
        max_bins: int | None = None,
    ) -> None:
        self._values = values
        self._bins = bins
        self._max_bins = max_bins
        self._counted: dict[str, float] | None = None

    @classmethod
    def from_counts(
        cls,
        counts: Any,
        edges: Any,
        *,
        low: float | None = None,
        high: float | None = None,
        num: float | None = None,
        total: float | None = None,
        sum_squares: float | None = None,
    ) -> Self:
        """A histogram whose buckets are filled already.

        Args:
            counts: (n,) how many values lie in each bucket, n from 1 to 100,000.
            edges: (n + 1,) edges of the buckets, as `numpy.histogram` returns them; or (n,) upper
                limits, as `SummaryWriter.add_histogram_raw` takes them. They do not decrease.
            low: the smallest value; None takes the lower edge of the first full bucket.
            high: the largest value; None takes the upper edge of the last full bucket.
            num: how many values there are; None takes the sum of the counts.
            total: the sum of all values; None estimates it from the middles of the buckets.
            sum_squares: the sum of their squares; None estimates it likewise.

        Raises:
            InvalidValueError: when emitted, for shapes that do not fit each other, or counts or
                edges that are no real numbers.
        """
        made = cls(counts, bins=edges)
        given = {"low": low, "high": high, "num": num, "total": total, "sum_squares": sum_squares}
        made._counted = {name: value for name, value in given.items() if value is not None}
        return made

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        if self._counted is not None:
            return self._prepare_counts(self._counted)
        values = as_array(self._values, "Histogram")
        if size_of(values) == 0:
            raise InvalidValueError("Histogram of an empty tensor: at least one element is needed")
        most = self._max_bins
        info: dict[str, object] = {"bins": None}
        if most is not None:
            info["max_bins"] = whole(most, "Histogram max_bins", 1, _MAX_EDGES)
        bins = cast("object", self._bins)
        if bins is None or isinstance(bins, str):
            info["bins"] = _rule(bins)
        elif (
            hasattr(bins, "__index__") and not is_tensor(bins) and getattr(bins, "shape", ()) == ()
        ):
            info["bins"] = whole(bins, "Histogram bins", 1, _MAX_BINS)
        else:
            info["bins"] = "edges"
            return Prepared(self.kind, info, (values, _as_edges(bins)))
        return Prepared(self.kind, info, (values,))

    def _prepare_counts(self, given: dict[str, float]) -> Prepared:
        counts = as_array(self._values, "Histogram counts")
        edges = _as_edges(self._bins, at_least=1)
        shape, limits = shape_of(counts), shape_of(edges)
        if len(shape) != 1 or shape == (0,) or limits[0] not in (shape[0], shape[0] + 1):
            raise InvalidValueError(
                f"Histogram counts of shape {shape} with edges of shape {limits}: expected (n,) "
                "with (n + 1,) edges, or with (n,) upper limits"
            )
        info: dict[str, object] = {}
        for name, value in given.items():
            if is_tensor(value) and on_device(value):
                raise InvalidValueError(
                    f"Histogram {name} is a tensor on a device: reading it would synchronize"
                )
            try:
                info[_WIRE_NAMES.get(name, name)] = float(value)
            except (TypeError, ValueError, OverflowError):
                raise InvalidValueError(f"Histogram {name} must be a number") from None
        return Prepared("histogram_counts", info, (edges, counts))


def _rule(bins: str | None) -> str | None:
    if bins is None or bins == "tensorflow":
        return None
    if bins not in _RULES:
        raise InvalidValueError(
            f"Histogram bins {bins!r:.40}: expected tensorflow, {', '.join(_RULES)}, an int, or a "
            "sequence of edges"
        )
    return bins


def _as_edges(value: Any, at_least: int = 2) -> Any:
    edges = as_array(value, "Histogram edges")
    shape = shape_of(edges)
    if len(shape) != 1 or not at_least <= shape[0] <= _MAX_EDGES:
        raise InvalidValueError(
            f"Histogram edges of shape {shape}: expected {at_least} to {_MAX_EDGES:,} numbers"
        )
    if not on_device(edges):  # on a device it is looked at in the daemon
        steps = edges[1:] >= edges[:-1]  # False for NaN
        if not bool(steps.all()):
            raise InvalidValueError("Histogram edges must be numbers that do not decrease")
    return edges
