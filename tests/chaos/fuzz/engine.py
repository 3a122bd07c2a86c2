"""Runs one target under atheris: ``python -m tests.chaos.fuzz.engine TARGET [OPTION]…``."""

from __future__ import annotations

import random
import sys

import atheris

from . import catalogue

_STRUCTURED = 0.75
"""Of all mutations those that the target makes itself; the others are libFuzzer's."""


def main() -> None:
    """Search until libFuzzer's options say that it is enough, or the invariant is broken."""
    name = sys.argv.pop(1)
    # What libFuzzer starts itself again by, to merge: through a shell.
    sys.argv[0] = f"{sys.executable} -m {__spec__.name} {name}"
    with atheris.instrument_imports(include=["sidestep"]):
        target = catalogue.target(name)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < _STRUCTURED:
            found = target.mutate(bytes(data), rng)
            if found != data:
                return found[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    atheris.Setup(sys.argv, target.check, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
