"""Random faults at random moments over several trainers and a daemon, and the books afterwards.

python -m tests.chaos --seconds 60 --seed 1
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.runner.plan import draw
from tests.chaos.runner.world import Outcome, play


def main(argv: Sequence[str]) -> int:
    """Play one plan; 0 when everything emitted is written once, held or counted."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults happen")
    parser.add_argument("--seed", type=int, default=None, help="what all of it is drawn from")
    parser.add_argument(
        "--keep", type=Path, default=None, help="leave everything here, also when all is well"
    )
    parser.add_argument("--plan", action="store_true", help="print the plan and do nothing")
    arguments = parser.parse_args(argv)
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    plan = draw(seed, arguments.seconds)
    print(plan.text, flush=True)
    if arguments.plan:
        return 0
    again = f"python -m tests.chaos --seconds {arguments.seconds:g} --seed {seed}"
    print(f"to repeat it: {again}", flush=True)
    keep = arguments.keep or Path(f"/tmp/sidestep-chaos-{seed}-{int(time.time())}")
    began = time.monotonic()
    always = arguments.keep is not None
    outcome = play(plan, lambda words: print(words, flush=True), keep, always=always)
    report(outcome, time.monotonic() - began)
    if outcome.wrong:
        print(f"to repeat it: {again}\nall that was left is in {keep}", flush=True)
    return 1 if outcome.wrong else 0


def report(outcome: Outcome, seconds: float) -> None:
    """Say what came of it."""
    for run, figures in outcome.figures.items():
        print(f"run {run}: " + ", ".join(f"{name} {many:,}" for name, many in figures.items()))
    if summary := outcome.summary:
        print(
            f"{summary['trainers']} trainers, {summary['emits']:,} emits, of them "
            f"{summary['over_5_ms']} over 5 ms, the worst {summary['worst_ms']:.1f} ms; "
            f"{seconds:.0f} s in all"
        )
    for words in outcome.wrong:
        print(f"WRONG: {words}")
    print("the books balance" if not outcome.wrong else f"{len(outcome.wrong)} things are wrong")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
