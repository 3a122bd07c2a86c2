"""A client's value as a sink gets it: prepared, encoded as a record, and decoded again."""

from __future__ import annotations

from sidestep.client.values import EmitContext, Prepared, Value, to_host
from sidestep.proto import Value as ValueRecord
from sidestep.proto.records import decode_value, encode_value


def travelled(
    value: Value, tag: str, step: int, time_ns: int = 1_700_000_000 * 10**9
) -> ValueRecord:
    """What a sink is handed when `value` is emitted under `tag` at `step`."""
    prepared = value.prepare(EmitContext(step, {}))
    assert isinstance(prepared, Prepared)
    arrays = [to_host(array) for array in prepared.arrays]
    record = ValueRecord(prepared.kind, tag, step, time_ns, prepared.info, arrays)
    return decode_value(b"".join(encode_value(record)[1]))
