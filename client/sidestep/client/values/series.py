"""Where TensorBoard draws the scalars of a tag."""

from __future__ import annotations

from .base import EmitContext, InvalidValueError, Prepared, Value


class Series(Value):
    """From now on the scalars under this value's tag are drawn elsewhere; for façades.

    Only TensorBoard's sink takes notice. A `Series()` undoes it.

    Args:
        folder: a folder below the run's (names divided by "/"); None for the run's own.
        name: the tag that they are drawn under; None for their own.
        new_style: as tensors instead of simple values.
        double: with `new_style`, in float64 instead of float32.

    Raises:
        InvalidValueError: when emitted, if a name is no str.
    """

    kind = "series"

    def __init__(
        self,
        folder: str | None = None,
        name: str | None = None,
        *,
        new_style: bool = False,
        double: bool = False,
    ) -> None:
        self._folder = folder
        self._name = name
        self._new_style = new_style
        self._double = double

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        names: list[object] = [self._folder, self._name]
        for name in names:
            if name is not None and not isinstance(name, str):
                raise InvalidValueError(
                    f"Series takes names, which are str, not {type(name).__name__}"
                )
        info: dict[str, object] = {
            "folder": self._folder,
            "name": self._name,
            "new_style": bool(self._new_style),
            "double": bool(self._double),
        }
        return Prepared(self.kind, info)
