"""Stand-ins for Slurm's commands: nodes are folders, tasks are processes of this machine.

They understand the options that deploy/slurm uses and refuse all others, and give each task the
variables that Slurm gives it (https://slurm.schedmd.com/srun.html). What they cannot show: control
groups, how a step's GPUs are shared, and what a real controller does with signals.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_SRUN = """#!{python}
import argparse, os, signal, subprocess, sys

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--overlap", action="store_true")
parser.add_argument("--kill-on-bad-exit", type=int, default=0)
parser.add_argument("--job-name", default="bash")
for name in ("--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task"):
    parser.add_argument(name, type=int)
parser.add_argument("command", nargs=argparse.REMAINDER)
asked = parser.parse_args()
nodes = asked.nodes or int(os.environ["SLURM_JOB_NUM_NODES"])
each = asked.ntasks_per_node or int(os.environ["SLURM_NTASKS_PER_NODE"])
assert asked.ntasks in (None, nodes * each), asked
tasks = []
for rank in range(nodes * each):
    node, local = divmod(rank, each)
    here = os.path.join(os.environ["FAKE_SLURM"], "n%d" % node)
    os.makedirs(here, exist_ok=True)
    env = dict(
        os.environ, SLURM_PROCID=str(rank), SLURM_LOCALID=str(local), SLURM_NODEID=str(node),
        SLURM_NTASKS=str(nodes * each), SLURM_NNODES=str(nodes), SLURM_TMPDIR=here,
        # By this each node's processes are found, whatever becomes of the test.
        FAKE_SLURM_NODE=here,
    )
    tasks.append(subprocess.Popen(asked.command, env=env))
# As Slurm's own does: to end srun is to kill its step.
signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
with open(os.path.join(os.environ["FAKE_SLURM"], "step-" + asked.job_name), "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""

_SCONTROL = """#!/bin/sh
[ "$1 $2" = "show hostnames" ] || exit 1
i=0; while [ "$i" -lt "$SLURM_JOB_NUM_NODES" ]; do echo 127.0.0.1; i=$((i + 1)); done
"""

_SQUEUE = """#!/bin/sh
[ "$*" = "--noheader --steps --jobs=1 --format=%i %j" ] || exit 1
printf '1.0 bash\\n1.7 ranks\\n'
"""

_SCANCEL = """#!/bin/sh
[ "$*" = "--signal=TERM 1.7" ] && kill -TERM $(cat "$FAKE_SLURM/step-ranks")
"""


def install(folder: Path, *, nodes: int, ranks_per_node: int) -> Mapping[str, str]:
    """Put the stand-ins into `folder`; the environment of a batch script that is to find them."""
    bin_dir = folder / "bin"
    bin_dir.mkdir()
    srun = _SRUN.format(python=sys.executable)
    programs = {"srun": srun, "scontrol": _SCONTROL, "squeue": _SQUEUE, "scancel": _SCANCEL}
    for name, text in programs.items():
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)
    return {
        "PATH": f"{bin_dir}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin",
        "FAKE_SLURM": str(folder),
        "USER": "u",
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": f"n[0-{nodes - 1}]",
        "SLURM_NTASKS_PER_NODE": str(ranks_per_node),
        "SLURM_SUBMIT_DIR": str(folder),
    }
