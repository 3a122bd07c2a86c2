"""Graphs of models, which the trainer has made: two events without a step."""

from __future__ import annotations

from sidestep.proto import Value

from ..rendering.arrays import numpy_of
from .rendered import Rendered, new_event


def graph(value: Value) -> Rendered:
    """The graph, and what is known of a run of it."""
    data = [numpy_of(array).tobytes() for array in value.arrays]
    if not 0 < len(data) <= 2:
        raise ValueError(f"a graph of {len(data)} arrays")
    event = new_event(value, stepless=True)
    event.graph_def = data[0]
    events = [("", bytes(event.SerializeToString()))]
    if len(data) == 2:
        event = new_event(value, stepless=True)
        event.tagged_run_metadata.tag = "step1"
        event.tagged_run_metadata.run_metadata = data[1]
        events.append(("", bytes(event.SerializeToString())))
    return Rendered(events)
