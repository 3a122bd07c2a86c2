"""W&B takes nothing for so long that its backlog reaches the cap: the oldest goes, and is counted.

The books are exact to the record: what W&B was never given is what `dropped` says, whatever its
worker was doing and whoever was killed meanwhile, and TensorBoard has all of it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from sidestep import client
from tests.chaos.test_wandb_faults import environment, sink_of
from tests.support.fixtures import Connect
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until
from tests.support.wandb_server import Fault, WandbServer

pytest.importorskip("wandb")

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

TAGS = [f"v{j}" for j in range(20)]
FEW, MANY = 50, 12_000  # 12,000 emits have 2.4 MB in the journal
CAP = {
    "SIDESTEP_WANDB_BACKLOG_MB": "1",
    "SIDESTEP_HISTORY_MB": "0",
    "SIDESTEP_SAMPLE_INTERVAL_S": "100000",
}


def emit(made: client.Client, first: int, last: int) -> None:
    for step in range(first, last):
        made.emit({tag: step + j / 64 for j, tag in enumerate(TAGS)}, step=step)
    assert made.flush(30)


def ask_journal(sandbox: Sandbox, sql: str) -> list[Any]:
    uri = f"file:{sandbox.state / 'journal.sqlite'}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as journal:
        return journal.execute(sql).fetchall()


def totals_of(sandbox: Sandbox) -> dict[str, int]:
    """Records that there ever were, of each run."""
    sql = "SELECT name, max(total) FROM batches JOIN runs ON runs.id = run_id GROUP BY run_id"
    return dict(ask_journal(sandbox, sql))


def over(sandbox: Sandbox, cap_bytes: int) -> int:
    """Bytes in the journal above what may wait.

    The newest row of a run stays in any case, recent history is measured in MiB, and the cap is
    kept to a row.
    """
    rows = ask_journal(sandbox, "SELECT run_id, length(data) FROM batches ORDER BY id DESC")
    newest: dict[int, int] = dict(reversed(rows))
    largest = max(nbytes for _, nbytes in rows)
    allowed = cap_bytes + (1 << 20) + largest + sum(newest.values())
    return int(sum(nbytes for _, nbytes in rows) - allowed)


def await_trimmed(sandbox: Sandbox, cap_bytes: int) -> None:
    wait_until(
        lambda: over(sandbox, cap_bytes) <= 0,
        60,
        lambda: f"{over(sandbox, cap_bytes)} bytes too many are in the journal",
        0.2,
    )


def dropped(sandbox: Sandbox, *runs: str) -> dict[str, int]:
    return {run: sink_of(sandbox, run)["dropped"] for run in runs}


def records_at(server: WandbServer, run: str) -> tuple[list[int], int]:
    """The steps that W&B has been given, and how many records of the daemon's own."""
    rows = server.rows(run)
    steps = [row["global_step"] for row in rows if TAGS[0] in row]
    # What the machine does and what the books say are two records, also in one row.
    own = [
        any(key.startswith(of) for key in row) for of in ("system/", "sidestep/") for row in rows
    ]
    return steps, sum(own)


def test_the_oldest_is_dropped_for_wandb_alone(sandbox: Sandbox, connect: Connect) -> None:
    runs = ("stopped", "failing", "refused")
    with WandbServer() as server:
        variables = environment(server.url) | CAP | {"WANDB_FINISH_TIMEOUT": "30"}
        server.faults.update(failing=Fault(500), refused=Fault(401))
        daemon = sandbox.serve(**variables)
        made = {run: connect(run, wandb={"id": run, "project": "p"}) for run in runs[:1]}
        emit(made["stopped"], 0, FEW)
        wait_until(lambda: settled(sink_of(sandbox, "stopped")), 30, "W&B is behind")
        (worker,) = sandbox.workers("wandb")
        worker.suspend()
        made |= {run: connect(run, wandb={"id": run, "project": "p"}) for run in runs[1:]}
        for run in runs:
            emit(made[run], 0 if run in runs[1:] else FEW, MANY)
        await_trimmed(sandbox, 1 << 20)
        assert sandbox.await_sink("refused", "failed", name="wandb")["dropped"] > 0

        # The daemon is killed while nothing of it is written down but the gap in the journal.
        before = dropped(sandbox, *runs)
        assert all(0 < gone < MANY for gone in before.values()), before
        shown = sandbox.cli("status").stdout
        assert "refused: W&B was not given" in shown, shown
        assert "wandb_backlog_mb" in shown
        assert daemon.said().count("run 'failing': more than 1 MiB (wandb_backlog_mb)") == 1
        daemon.kill()
        server.faults.clear()
        sandbox.serve(**variables)
        after = dropped(sandbox, *runs)
        assert all(after[run] >= before[run] for run in runs), (before, after)
        for run in runs:
            emit(made[run], MANY, MANY + FEW)
            assert made[run].finish(30)
        sandbox.drain(120)
        totals = totals_of(sandbox)  # the end of a run adds a record of its books
        for run in runs:
            final = dropped(sandbox, run)[run]
            steps, own = records_at(server, run)
            print(f"{run}: {totals[run]} records, {final} dropped, {len(steps)} at W&B")
            assert final + len(steps) + own == totals[run]
            assert len(steps) == len(set(steps))
            assert steps[-FEW:] == list(range(MANY, MANY + FEW))
            assert final >= after[run]
            sink = sandbox.await_sink(run, "closed", name="wandb")
            assert (sink["lag_records"], sink["error"]) == (0, None)
            status = sandbox.run_status(run)
            assert status is not None
            others = [sink["dropped"] for sink in status["sinks"] if sink["name"] != "wandb"]
            assert others == [0, 0]
        await_trimmed(sandbox, 0)
        everything = points(
            (tag, step, step + j / 64) for step in range(MANY + FEW) for j, tag in enumerate(TAGS)
        )
        assert_exactly(read_scalars(sandbox.event_files("refused")), everything)


def settled(sink: dict[str, Any]) -> bool:
    return (sink["state"], sink["lag_records"]) == ("ok", 0)
