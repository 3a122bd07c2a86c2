"""A real Slurm of one node, this machine: controller, node daemon, munge; all the test's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from .sandbox import ROOT
from .waiting import wait_until

_PROGRAMS: Final = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "scancel", "squeue")
_CONF: Final = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.out
SlurmdLogFile={folder}/slurmd.out
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=p Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing() -> str | None:
    """Why there can be none here; None when there can."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"needs Debian's slurm-wlm and munge: no {', '.join(lacking)}" if lacking else None


class RealSlurm:
    """Up on entry; on exit every process that has its configuration is ended.

    Args:
        folder: a folder with a short name, since sockets are in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "slurm"
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        conf = self.folder / "slurm.conf"
        host = socket.gethostname().partition(".")[0]
        cpus = os.cpu_count() or 1
        conf.write_text(_CONF.format(host=host, folder=self.folder, ports=_ports(), cpus=cpus))
        self.env = {
            "SLURM_CONF": str(conf),
            "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "USER": "u",
        }
        self._host = host
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        key = self.folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        places = {"key-file": key, "socket": self.folder / "munge.sock"}
        for name in ("pid-file", "log-file", "seed-file"):
            places[name] = self.folder / f"munge.{name}"
        self._start("munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in places.items()))
        wait_until(places["socket"].exists, 20, "munge")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", self._host)
        wait_until(lambda: "idle" in self.run("sinfo", "--noheader"), 30, self.said, 0.1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.env["SLURM_CONF"]:
                    process.kill()
        for process in self._started:
            process.wait(30)

    def _start(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.out").open("wb") as out:
            self._started.append(
                subprocess.Popen(
                    [program, *arguments],
                    env=self.env,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            )

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command,
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout + done.stderr

    def said(self) -> str:
        """What its daemons have printed."""
        return "\n".join(f.read_text(errors="replace") for f in self.folder.glob("*.out"))

    def state(self, job: str) -> dict[str, str]:
        """What the controller knows of a job."""
        words = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def _ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in (one, other)]
