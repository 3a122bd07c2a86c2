"""The mark of a restart: what TensorBoard has from this step on is not shown any more."""

from __future__ import annotations

from .base import EmitContext, Prepared, Value


class Purge(Value):
    """Training goes on from this step: TensorBoard hides what it has of it and of later ones.

    For façades; only TensorBoard's sink takes notice. The tag says nothing.
    """

    kind = "purge"

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        return Prepared(self.kind)
