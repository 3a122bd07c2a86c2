"""The tags under which a writer's numbers travel, where TensorBoard shows them elsewhere.

`add_scalars("loss", {"train": x})` has its curve in a folder of its own, ``loss_train``, under the
tag ``loss``. It travels as ``loss/train``, which is what everything but TensorBoard shows, after a
`Series` that tells TensorBoard where it belongs. Should ``loss/train`` be a number of its own as
well, the second that comes travels as ``loss/train~2``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..values import Value
from ..values.series import Series


class Drawing(NamedTuple):
    """Where and how TensorBoard draws a number.

    Attributes:
        folder: below the run's own; None for the run itself.
        name: its tag there.
        new_style: whether as a tensor.
        double: whether that tensor is float64.
    """

    folder: str | None
    name: str
    new_style: bool = False
    double: bool = False


class SeriesTags:
    """Gives each curve a tag of its own, and announces those that are not what they seem.

    Safe for threads: of two that announce the same, both are right.

    Args:
        announce: emits a value under a tag at a step, before the curve's first number.
    """

    def __init__(self, announce: Callable[[str, Value, Any], None]) -> None:
        self._announce = announce
        self._owners: dict[str, tuple[str | None, str]] = {}
        self._tags: dict[tuple[str | None, str], str] = {}
        self._announced: dict[str, Drawing | None] = {}

    def tag(self, wanted: str, drawing: Drawing, step: Any) -> str:
        """The tag under which the next number of a curve travels.

        Args:
            wanted: what it would like to be.
            drawing: where TensorBoard shows it.
            step: the number's.
        """
        curve = (drawing.folder, drawing.name)
        tag = self._tags.get(curve)
        if tag is None:
            tag, number = wanted, 1
            while self._owners.setdefault(tag, curve) != curve:
                number += 1
                tag = f"{wanted}~{number}"
            self._tags[curve] = tag
        if self._announced.get(tag, self._assumed(tag)) != drawing:
            name = None if drawing.name == tag else drawing.name
            value = Series(
                folder=drawing.folder,
                name=name,
                new_style=drawing.new_style,
                double=drawing.double,
            )
            self._announce(tag, value, step)
            self._announced[tag] = drawing
        return tag

    def forget(self) -> None:
        """Announce everything again: somebody new listens."""
        self._announced = dict.fromkeys(self._announced)

    @staticmethod
    def _assumed(tag: str) -> Drawing | None:
        """What the daemon makes of a tag that nobody spoke of, if that can be known.

        An earlier process may have used ``loss/train`` in `add_scalars`, on the same folder.
        """
        return None if "/" in tag else Drawing(None, tag)
