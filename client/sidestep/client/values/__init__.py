"""The values that `emit` takes beside numbers: what each one is, and what of it travels.

A value is turned into a `Prepared`: its kind, a few settings, and arrays that may still live on a
device. The emitter copies the arrays into the outbox (after staging, when they are on a device);
all rendering happens in the daemon. A new kind of value is one class in a file here with its
`kind`, and one renderer per sink under the same name. The classes themselves are offered by
`sidestep.client`, each loaded when it is first asked for.
"""

from __future__ import annotations

from .arrays import as_array, dtype_name, is_tensor, on_device, size_of, to_host
from .base import Computation, Deferred, EmitContext, InvalidValueError, Prepared, Value

__all__ = [
    "Computation",
    "Deferred",
    "EmitContext",
    "InvalidValueError",
    "Prepared",
    "Value",
    "as_array",
    "dtype_name",
    "is_tensor",
    "on_device",
    "size_of",
    "to_host",
]
