"""How many steps a run is to have, out of its configuration; a guess by the names that people use.

Of the names in `NAMES`, the first that stands for a whole positive number, at the top of the
configuration or in the mappings inside it (a key with dots counts by its last part; what stands
higher up wins). Else steps per epoch times epochs; else `steps` or `iterations`, at the top alone,
since deeper down they may be a sampler's. -1 and 0 mean "not said", as in Hugging Face's and
Lightning's arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, cast

NAMES: Final = (
    "total_steps",
    "max_steps",
    "num_training_steps",
    "total_training_steps",
    "num_train_steps",
    "training_steps",
    "train_steps",
    "num_steps",
    "n_steps",
    "max_iters",
    "total_iters",
    "num_iterations",
    "max_iterations",
    "total_iterations",
)
EPOCHS: Final = ("epochs", "num_epochs", "max_epochs", "num_train_epochs", "n_epochs")
STEPS_PER_EPOCH: Final = (
    "steps_per_epoch",
    "num_steps_per_epoch",
    "iters_per_epoch",
    "iterations_per_epoch",
    "batches_per_epoch",
)
AT_THE_TOP: Final = ("steps", "iterations", "iters")

_MAX_KEYS: Final = 2000
_MAX_DEPTH: Final = 4


def total_steps(config: Mapping[str, object]) -> int | None:
    """The steps that `config` says the run will have, None when it does not."""
    found = _numbers(config)
    for name in NAMES:
        if name in found:
            return found[name]
    epochs = next((found[name] for name in EPOCHS if name in found), None)
    steps = next((found[name] for name in STEPS_PER_EPOCH if name in found), None)
    if epochs and steps:
        return epochs * steps
    alone = (_whole(config.get(name)) for name in AT_THE_TOP)
    return next((number for number in alone if number is not None), None)


def _numbers(config: Mapping[str, object]) -> dict[str, int]:
    """The numbers of steps and epochs in `config`, of each name the one that is highest up."""
    wanted = {*NAMES, *EPOCHS, *STEPS_PER_EPOCH}
    found: dict[str, int] = {}
    waiting: deque[tuple[int, Mapping[Any, object]]] = deque([(1, config)])
    looked = 0
    while waiting:
        depth, mapping = waiting.popleft()
        for key, value in mapping.items():
            looked += 1
            if looked > _MAX_KEYS:
                return found
            name = str(key).rpartition(".")[2].lower().replace("-", "_")
            if name in wanted and (number := _whole(value)) is not None:
                found.setdefault(name, number)
            if isinstance(value, Mapping) and depth < _MAX_DEPTH:
                waiting.append((depth + 1, cast("Mapping[Any, object]", value)))
    return found


def _whole(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 < value < 1 << 53 or value != int(value):
        return None
    return int(value)
