"""Measures sidestep and its peers side by side in one run: `python -m tests.bench --help`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as `python tests/bench`, which puts this folder on the path instead
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.bench import wandb_faults
from tests.bench.harness import run_all
from tests.bench.machine import describe_machine
from tests.bench.metrics import ROWS
from tests.bench.more_systems import ALL_SYSTEMS, MORE_SYSTEMS
from tests.bench.plan import selected, steps
from tests.bench.report import as_json, render
from tests.bench.summary import Ratios, lost_ratios, stored_ratios, summarize
from tests.bench.systems import SYSTEMS


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A converter of comma-separated names for argparse."""

    def convert(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        unknown = [name for name in found if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return found

    return convert


def positive(text: str) -> int:
    """A converter of counts for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures sidestep beside its peers and prints tables of medians and ratios.",
        epilog="Exit code: 0 well; 1 a trial failed, or --check found a lost ratio; 2 wrong usage.",
    )
    parser.add_argument("--quick", action="store_true", help="one short round: two minutes or so")
    parser.add_argument(
        "--rows", type=names(ROWS), default=[], metavar="A,B", help=f"only these: {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--systems",
        type=names(list(ALL_SYSTEMS)),
        default=list(SYSTEMS),
        metavar="A,B",
        help=f"only these: {', '.join(SYSTEMS)}; also, if installed: {', '.join(MORE_SYSTEMS)}",
    )
    parser.add_argument(
        "--rounds", type=positive, help="rounds of every workload (default: by workload)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there, too")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="BASELINE.json",
        help="fail when a ratio of that report (of --json) is lost by more than the noise of both",
    )
    parser.add_argument(
        "--wandb-faults",
        action="store_true",
        help="only this: emit to event file, W&B off beside W&B failing in every way",
    )
    options = parser.parse_args(argv)
    options.baseline = {}
    if options.check and (options.rounds or (1 if options.quick else 2)) < 2:
        parser.error("--check needs the noise of two rounds or more: add --rounds 3")
    if options.check:  # now, not after minutes of measuring
        try:
            options.baseline = load_baseline(options.check, quick=options.quick)
        except (OSError, ValueError) as error:
            parser.error(f"--check {options.check}: {error}")
    return options


def load_baseline(path: Path, *, quick: bool) -> Ratios:
    """The ratios of a stored report.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or it is not of a run of this length.
    """
    report = json.loads(path.read_text())
    ratios = stored_ratios(report)
    if report.get("quick", False) != quick:
        raise ValueError("--quick runs are compared with --quick runs, whole ones with whole ones")
    if not any(spread.rounds > 1 for by_peer in ratios.values() for spread in by_peer.values()):
        raise ValueError("no ratio in it has two rounds or more, so that its noise is not known")
    return ratios


def main(argv: Sequence[str]) -> int:
    """Run what was asked for; returns the exit code."""
    options = parse(argv)
    if options.wandb_faults:
        rounds = options.rounds or (1 if options.quick else 3)
        waits = wandb_faults.measure(rounds, steps=40 if options.quick else 200)
        print(wandb_faults.render(waits))
        return 0
    metrics = selected(options.rows)
    todo = list(steps(metrics, options.systems, options.rounds, quick=options.quick))
    with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as base:
        machine = describe_machine(Path(base))
        results = run_all(todo, metrics, Path(base), lambda line: print(line, file=sys.stderr))
    summary = summarize(results.samples, metrics)
    print(render(summary, machine, results.errors, metrics))
    if options.json:
        report = as_json(summary, machine, results.errors, quick=options.quick)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    lost = lost_ratios(summary.ratios, options.baseline)
    for line in lost:
        print(f"lost: {line}", file=sys.stderr)
    return 1 if results.errors or lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
