"""`export` against a real daemon: all that was emitted, to the bit, whoever is killed meanwhile."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import re
import struct
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.fixtures import Connect
from tests.support.sandbox import SIDESTEP, Sandbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

Line = tuple[str, str, int, float, bytes]

T0 = 1_700_000_000.25


def line(run: str, tag: str, step: object, wall_time: object, value: object) -> Line:
    bits = struct.pack("<d", float(value))  # type: ignore[arg-type]
    return run, tag, int(step), float(wall_time), bits  # type: ignore[call-overload,arg-type]


def export(sandbox: Sandbox, run: str, format_name: str, *arguments: str) -> list[Line]:
    """The run's lines as a reader of the format sees them, less the daemon's own."""
    path = sandbox.work / f"out.{format_name}"
    done = sandbox.cli("export", run, "--format", format_name, "-o", str(path), *arguments)
    assert done.returncode == 0, done.stderr
    if format_name == "csv":
        rows = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
        assert next(rows) == ["run", "tag", "step", "wall_time", "value"]
        found = [line(*row) for row in rows]
    elif format_name == "jsonl":
        found = [line(*json.loads(text).values()) for text in path.read_text().splitlines()]
    else:
        found = [line(*row.values()) for row in pq.read_table(path).to_pylist()]
    return [one for one in found if not one[1].startswith(("system/", "sidestep/"))]


VALUES = (0.1, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3)


def test_all_that_was_emitted_whoever_is_killed(sandbox: Sandbox, connect: Connect) -> None:
    daemon = sandbox.serve()
    clients = [connect("vit/b ü"), connect("vit/b ü"), connect("other")]
    emitted: list[Line] = []
    choose = np.random.default_rng(4)
    for step in range(2000):
        number = int(choose.integers(3))
        one = clients[number]
        tags = (("loss",), ("loss", "lr"), ("val/acc, top 1", 'q"', "ü"))[int(choose.integers(3))]
        values = {tag: VALUES[int(choose.integers(8))] * (1 + step) for tag in tags}
        one.emit(dict(values), step=step, wall_time=T0 + step)
        if number < 2:
            emitted += [line("vit/b ü", t, step, T0 + step, v) for t, v in values.items()]
        if step % 1000 == 500:
            assert one.flush(30)
            for worker in wait_until(lambda: sandbox.workers("archive"), 60, "no worker came"):
                worker.kill()
        if step == 900:
            daemon.kill()
            sandbox.serve()
    assert all(one.flush(60) for one in clients)
    assert sorted(export(sandbox, "vit/b ü", "csv")) == sorted(emitted)
    assert all(one.finish(30) for one in clients)
    assert sandbox.cli("stop").returncode == 0
    assert sorted(export(sandbox, "vit/b ü", "jsonl")) == sorted(emitted)
    some = [one for one in emitted if one[1] in {'q"', "lr"}]
    assert sorted(export(sandbox, "vit/b ü", "parquet", "--tags", "q*", "-t", "lr")) == sorted(some)
    assert len(list((sandbox.logs / "scalars").glob("vit*/scalars.*"))) == 1


def test_a_run_that_goes_on_is_complete_up_to_the_call(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.logs.mkdir()
    elsewhere = sandbox.root / "elsewhere"
    sandbox.serve()
    made, _same = connect("live", log_dir=elsewhere), connect("live")
    for part in range(2):
        for step in range(part * 400, (part + 1) * 400):
            made.emit({"a": step / 3}, step=step, wall_time=T0)
        assert made.flush(30)
        found = export(sandbox, "live", "jsonl", "--log-dir", str(elsewhere))
        assert found == [line("live", "a", step, T0, step / 3) for step in range((part + 1) * 400)]
    # The environment's log directory is the one that is meant when nothing is said ...
    assert export(sandbox, "live", "jsonl") == []
    # ... and without it, that there are two is said.
    asked = sandbox.cli("export", "live", "--format", "csv", SIDESTEP_LOG_DIR="")
    assert asked.returncode == 1
    assert str(elsewhere) in asked.stderr
    assert "--log-dir" in asked.stderr
    made.emit({"only": 1.0}, step=0)
    assert made.finish(30)

    # A reader that has seen enough, a terminal, a run that is not there, a place that is not there.
    command = " ".join([*SIDESTEP, "export", "live", "--log-dir", str(elsewhere), "--format"])
    piped = subprocess.run(
        ["bash", "-c", f"{command} parquet | head -c 3; echo ${{PIPESTATUS[0]}}"],
        env=sandbox.env(),
        cwd=sandbox.work,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert piped.stdout[3:].strip() == b"0"
    assert piped.stderr == b""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*command.split(), "parquet"], env=sandbox.env(), stdout=theirs, stderr=-1, check=False
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 1
    assert b"terminal" in done.stderr
    lost = sandbox.cli("export", "liv", "--format", "csv", SIDESTEP_LOG_DIR="")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert "Did you mean 'live'?" in lost.stderr
    unwritable = sandbox.cli("export", "live", "--format", "csv", "-o", "no/where/x.csv")
    assert unwritable.returncode == 1
    assert "no/where/x.csv" in unwritable.stderr


def test_what_is_not_archived_is_said(sandbox: Sandbox, connect: Connect) -> None:
    daemon = sandbox.serve()
    made = connect("behind")
    made.emit({"a": 1.0}, step=1, wall_time=T0)
    assert made.flush(30)
    first = export(sandbox, "behind", "csv")
    assert first == [line("behind", "a", 1, T0, 1.0)]
    (worker,) = sandbox.workers("archive")
    worker.suspend()
    made.emit({"a": 2.0}, step=2, wall_time=T0)
    assert made.finish(30)
    daemon.kill()
    worker.kill()
    asked = sandbox.cli("export", "behind", "--format", "csv")
    assert asked.returncode == 1
    own = [t for t in asked.stdout.splitlines() if ",system/" not in t and ",sidestep/" not in t]
    assert own[1:] == [f"behind,a,1,{T0!r},1.0"]
    # Samples of the machine and of the books may be among them.
    assert re.search(r": [1-4] records? in the journal", asked.stderr), asked.stderr
    assert "sidestep drain" in asked.stderr
    sandbox.drain()
    assert export(sandbox, "behind", "csv") == [*first, line("behind", "a", 2, T0, 2.0)]

    # A bit that flipped afterwards: what is before it is written, and the loss is said.
    (path,) = (sandbox.logs / "scalars" / "behind").iterdir()
    data = bytearray(path.read_bytes())
    data[data.rindex(struct.pack("<q", int(T0) * 10**9 + 250_000_000))] ^= 1  # not the daemon's own
    path.write_bytes(data)
    asked = sandbox.cli("export", "behind", "--format", "jsonl")
    assert asked.returncode == 1
    found = [json.loads(text) for text in asked.stdout.splitlines()]
    assert [one["value"] for one in found if one["tag"] == "a"] == [1.0]
    assert str(path) in asked.stderr
    assert "damaged" in asked.stderr


def test_no_archive_when_none_is_wanted(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve(SIDESTEP_ARCHIVE="false")
    made = connect("without")
    made.emit({"a": 1.0}, step=1)
    assert made.flush(30)
    asked = sandbox.cli("export", "without", "--format", "csv")
    assert asked.returncode == 1
    assert asked.stdout == "run,tag,step,wall_time,value\n"
    assert "archive: true" in asked.stderr
    assert not (sandbox.logs / "scalars").exists()
    assert made.finish(30)
