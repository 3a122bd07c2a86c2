"""The long way of an `emit`: looks at each value, and one that is wrong harms only itself.

Numbers of one `emit` become one record; numbers on a device another one, when they have arrived;
every other value one of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from struct import error as struct_error
from typing import Any, Final, cast

from sidestep.proto import Value as ValueRecord
from sidestep.proto.records import DTYPE_SIZES, SCALARS_HEAD, encode_value

from .checks import check_number_tensor, number, tag_of
from .outbox import Outbox, OutboxClosedError
from .ranks import Ranks, part_of, spread_of_one
from .rejections import Rejections
from .renders import Renders
from .stages import Stages
from .values import (
    Deferred,
    EmitContext,
    InvalidValueError,
    Prepared,
    Value,
    dtype_name,
    is_tensor,
    on_device,
    to_host,
)

_MAX_REMEMBERED: Final = 10_000
"""Tags of which a value's memory is kept from one `emit` to the next."""


class Sorter:
    """Takes apart what one `emit` was given.

    Args:
        outbox: where the records go.
        stages: where values on a device go first.
        renders: where values that take long to make go first.
        rejections: where refused values are counted.
        ranks: which process of its job this is.
        await_room: called with a record's bytes before it is put.

    Attributes:
        packable: the types of numbers that a tag set can pack as they are.
    """

    def __init__(
        self,
        outbox: Outbox,
        stages: Stages,
        renders: Renders,
        rejections: Rejections,
        ranks: Ranks,
        await_room: Callable[[int], None],
    ) -> None:
        self.packable: set[type] = {float, int, bool}
        self._outbox = outbox
        self._stages = stages
        self._renders = renders
        self._rejections = rejections
        self._ranks = ranks
        self._prefix = ranks.prefix
        self._prefix_bytes = len(self._prefix)
        self._await_room = await_room
        self._memory: dict[str, dict[str, Any]] = {}

    def emit_known(self, values: Any, step: Any, reduce: Any) -> bool:
        """Put numbers that are reduced, if it was done before under these tags; whether it was."""
        if type(step) is not int or type(values) is not dict or type(reduce) is not str:
            return False
        numbers = cast("dict[str, Any]", values)
        # With no call between these two, or another thread could change the dict there.
        tags = (*numbers,)
        row = (*numbers.values(),)
        tag_sets = self._outbox.tag_sets
        if self._ranks.several:
            plans = tag_sets.reduced_plans.get(reduce)
        else:
            plans = tag_sets.plans if reduce in tag_sets.reduced_plans else None
        tag_set = plans.get(tags) if plans and (reduce != "spread" or self._ranks.several) else None
        if tag_set is None or not self.packable.issuperset(map(type, row)):
            return False
        self._await_room(tag_set.size)
        try:
            self._outbox.put_scalars(tag_set, step, time.time_ns(), row)
        except (struct_error, OverflowError):
            return False
        return True

    def leaves_out(self, values: Mapping[Any, Any]) -> bool:
        """Whether it is plain numbers of a silent rank: they cost less than where they travel."""
        if not self._ranks.silent or type(values) is not dict:
            return False
        row = (*values.values(),)
        return self.packable.issuperset(map(type, row))

    def emit(
        self, values: Mapping[Any, Any], step: int, time_ns: int, reduce: str = ""
    ) -> InvalidValueError | None:
        """Put everything that can be put.

        Args:
            values: by tag.
            step: of all of them.
            time_ns: likewise.
            reduce: how they are combined over ranks; "" when they are not.

        Returns:
            The first of the errors; all of them were counted.
        """
        numbers: dict[str, float] = {}
        staged: dict[int, list[tuple[str, Any]]] = {}
        errors: list[InvalidValueError] = []
        silent = self._ranks.silent and not reduce
        for tag, value in self._pairs(values, errors):
            if silent and getattr(type(value), "over_ranks", "") != "always":
                continue
            try:
                name = tag_of(tag, self._prefix_bytes)
                if isinstance(value, Value):
                    self._put_value(name, value, step, time_ns, reduce)
                elif on_device(value):
                    check_number_tensor(value)
                    if value.device.type == "cuda":
                        pair = (name, value.detach())
                        staged.setdefault(int(value.device.index), []).append(pair)
                    else:
                        # Copies of other devices (MPS) that do not block have corrupted data.
                        numbers[name] = float(value.detach().cpu())
                else:
                    numbers[name] = number(value)
                    self._learn(value)
            except OutboxClosedError:
                raise
            except Exception as error:  # noqa: BLE001 - a value's own code may raise anything
                errors.append(self._rejections.note_error(tag, error))
        if numbers:
            errors += self._put_numbers(numbers, step, time_ns, reduce)
        for index, pairs in staged.items():
            try:
                self._stage_numbers(index, pairs, step, time_ns, reduce)
            except Exception as error:  # noqa: BLE001 - a device's failure
                errors.append(self._rejections.note_error(pairs[0][0], error, len(pairs)))
        return errors[0] if errors else None

    def _pairs(
        self, values: Mapping[Any, Any], errors: list[InvalidValueError]
    ) -> list[tuple[Any, Any]]:
        """Tags and values; a mapping that is no dict may compute them, and fail at one."""
        if type(values).items is dict.items:
            # One call of C: no other thread changes the dict meanwhile.
            return list(values.items())
        pairs: list[tuple[Any, Any]] = []
        for tag in list(values):
            try:
                pairs.append((tag, values[tag]))
            except Exception as error:  # noqa: BLE001 - the mapping's own code
                errors.append(self._rejections.note_error(tag, error))
        return pairs

    # --- numbers -----------------------------------------------------------------------------

    def _put_numbers(
        self, numbers: Mapping[str, float], step: int, time_ns: int, reduce: str
    ) -> list[InvalidValueError]:
        if not self._ranks.several:
            numbers = spread_of_one(numbers) if reduce == "spread" else numbers
            reduce = ""
        tags, row = tuple(numbers), tuple(numbers.values())
        known = tags in self._outbox.tag_sets.plans_of(reduce)
        groups = [tags] if known else self._outbox.tag_sets.groups(tags, self._outbox.max_tags)
        errors: list[InvalidValueError] = []
        start = 0
        for group in groups:
            end = start + len(group)
            self._await_room(SCALARS_HEAD.size + 8 * len(group))
            homeless = self._outbox.put_row(group, step, time_ns, row[start:end], reduce)
            if homeless:
                reason = "no room for more tags: too many different ones were emitted"
                errors.append(self._rejections.note(homeless[0], reason, len(homeless)))
            start = end
        return errors

    def _stage_numbers(
        self, index: int, pairs: Sequence[tuple[str, Any]], step: int, time_ns: int, reduce: str
    ) -> None:
        tags = [tag for tag, _ in pairs]

        def landed(start: int, numbers: Any) -> None:
            try:
                row = numbers.tolist()
                arrived = dict(zip(tags[start:], row, strict=False))
                self._put_numbers(arrived, step, time_ns, reduce)
            except Exception as error:  # noqa: BLE001 - this runs in a later, unrelated call
                self._rejections.note_error(tags[start], error)

        self._stages.stage_numbers(index, [tensor for _, tensor in pairs], landed)

    def _learn(self, value: Any) -> None:
        """A numpy scalar that was good once is packed as it is from now on."""
        kind = type(value)
        numpy: Any = sys.modules.get("numpy")
        if kind not in self.packable and numpy is not None and issubclass(kind, numpy.generic):
            self.packable.add(kind)

    # --- everything else ---------------------------------------------------------------------

    def _put_value(self, tag: str, value: Value, step: int, time_ns: int, reduce: str) -> None:
        reduction = self._ranks.reduction(value, reduce)
        memory = self._memory.get(tag, {})
        most = self._ranks.record_bytes(self._outbox.max_record_bytes)
        prepared = value.prepare(EmitContext(step, memory, most))
        if memory and len(self._memory) < _MAX_REMEMBERED:
            self._memory[tag] = memory

        def encoded(made: Prepared, arrays: Sequence[Any]) -> Callable[[], object]:
            hosts = [to_host(array) for array in arrays]
            if reduction:
                kind, info = part_of(made, reduction)
                record = ValueRecord(kind, tag, step, time_ns, info, hosts)
            else:
                name = self._prefix + tag
                record = ValueRecord(made.kind, name, step, time_ns, made.info, hosts)
            total, pieces = encode_value(record)
            self._check_size(made.kind, total)
            self._await_room(total)
            return lambda: self._outbox.put_record(total, pieces)

        def failed(error: Exception) -> None:
            self._rejections.note_error(tag, error)

        if isinstance(prepared, Deferred):
            deferred = prepared
            self._check_size(deferred.kind, deferred.nbytes)

            def make() -> Callable[[], object]:
                made = deferred.make()
                return encoded(made, made.arrays)

            self._renders.submit(make, failed)
            return

        def arrived(arrays: Sequence[Any]) -> None:
            try:
                encoded(prepared, arrays)()
            except Exception as error:  # noqa: BLE001 - this runs in a later, unrelated call
                failed(error)

        computation = prepared.computation
        nbytes = computation.result_bytes if computation else sum(map(_host_bytes, prepared.arrays))
        self._check_size(prepared.kind, nbytes)  # before any copy
        devices = {int(array.device.index) for array in prepared.arrays if _on_cuda(array)}
        if not devices:
            arrays = computation.at_once(prepared.arrays) if computation else prepared.arrays
            # Copies of other devices (MPS) that do not block have corrupted data.
            hosts = [array.cpu() if on_device(array) else array for array in arrays]
            encoded(prepared, hosts)()
        elif len(devices) > 1:
            raise InvalidValueError(f"{prepared.kind} with arrays on several devices")
        elif computation is None:
            self._stage_arrays(devices.pop(), prepared.arrays, arrived)
        else:
            self._stages.stage_computed(devices.pop(), prepared.arrays, computation, arrived)

    def _stage_arrays(
        self, index: int, arrays: Sequence[Any], arrived: Callable[[Sequence[Any]], None]
    ) -> None:
        """Stage those that are on device `index`; the others are copied, and wait for them."""
        held = [array if _on_cuda(array) else _copied(array) for array in arrays]

        def joined(staged: Sequence[Any]) -> None:
            hosts = iter(staged)
            arrived([next(hosts) if _on_cuda(array) else array for array in held])

        self._stages.stage_arrays(index, [array for array in held if _on_cuda(array)], joined)

    def _check_size(self, kind: str, nbytes: int) -> None:
        most = self._outbox.max_record_bytes
        if nbytes > most:
            raise InvalidValueError(
                f"{kind} of {nbytes} bytes: this outbox takes up to {most}; make "
                "outbox_bytes larger, or emit less"
            )


def _host_bytes(array: Any) -> int:
    """Bytes of an array once it is on the host, where what numpy lacks becomes float32."""
    if is_tensor(array):
        size = DTYPE_SIZES.get(dtype_name(array), 4)
        return int(array.numel()) * size
    return int(array.nbytes)


def _copied(array: Any) -> Any:
    """An array on the host that its owner may change from now on."""
    if on_device(array):
        return array.cpu()
    return array.clone() if is_tensor(array) else array.copy()


def _on_cuda(array: Any) -> bool:
    return is_tensor(array) and array.device.type == "cuda"
