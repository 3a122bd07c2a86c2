"""Searches inputs that break an invariant: ``python -m tests.chaos.fuzz [--seconds N] [TARGET]…``.

Each target runs in a process of its own, under atheris. What it finds that is new goes to a folder
outside the repository, or with ``--keep``, minimised, to the corpus in it. An input that breaks an
invariant is written to ``results/fuzz`` and ends the run with code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import catalogue, scratch

ROOT = Path(__file__).resolve().parents[3]
FOUND = ROOT / "results" / "fuzz"
_MAX_INPUT_BYTES = {"codec": 4096, "values": 4096, "derive": 8192}
_DEFAULT_INPUT_BYTES = 16384
_RSS_LIMIT_MB = 1024
_ONE_INPUT_S = 10


def main() -> int:
    """Search in all targets; how it ended."""
    options = _options()
    failed: list[str] = []
    for name in options.targets or catalogue.TARGETS:
        with tempfile.TemporaryDirectory(prefix="sst-fuzz-", dir=scratch.parent()) as folder:
            os.environ[scratch.WHERE] = folder
            work = Path(folder)
            (work / "new").mkdir()
            if options.seed or not catalogue.corpus(name):
                catalogue.keep(name, catalogue.target(name).seeds())
            if not _search(name, work, options.seconds):
                failed.append(name)
            if options.keep:
                _minimise(name, work)
    if failed:
        print(f"broken: {', '.join(failed)}; the inputs are in {FOUND}", file=sys.stderr)
    return bool(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(catalogue.TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="what is new goes to the corpus")
    parser.add_argument("--seed", action="store_true", help="make the first inputs anew")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(catalogue.TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    return options


def _search(name: str, work: Path, seconds: int) -> bool:
    FOUND.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    done = _engine(
        name,
        str(work / "new"),
        str(catalogue.CORPUS / name),
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_INPUT_BYTES.get(name, _DEFAULT_INPUT_BYTES)}",
        f"-rss_limit_mb={_RSS_LIMIT_MB}",
        f"-timeout={_ONE_INPUT_S}",
        f"-artifact_prefix={FOUND}/{name}-",
        "-print_final_stats=1",
    )
    took = time.monotonic() - started
    executed = re.findall(r"number_of_executed_units:\s+(\d+)", done.stdout)
    peak = re.findall(r"peak_rss_mb:\s+(\d+)", done.stdout)
    covered = re.findall(r"cov: (\d+)", done.stdout)
    new = len(list((work / "new").iterdir()))
    print(
        f"{name:<8} {_last(executed):>9} inputs in {took:4.0f} s, peak {_last(peak)} MB, "
        f"{_last(covered)} branches, {new} new inputs: {'BROKEN' if done.returncode else 'ok'}",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-6000:])
    return done.returncode == 0


def _last(found: list[str]) -> str:
    return found[-1] if found else "?"


def _minimise(name: str, work: Path) -> None:
    """The corpus with what is new, less all that adds no coverage."""
    kept = work / "kept"
    kept.mkdir()
    done = _engine(name, "-merge=1", str(kept), str(catalogue.CORPUS / name), str(work / "new"))
    if done.returncode or not any(kept.iterdir()):
        print(f"{name}: not minimised:\n{done.stdout[-2000:]}")
        return
    shutil.rmtree(catalogue.CORPUS / name)
    catalogue.keep(name, (path.read_bytes() for path in kept.iterdir()))


def _engine(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"{__package__}.engine", name, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


if __name__ == "__main__":
    sys.exit(main())
