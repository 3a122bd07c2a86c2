"""All that was gathered, as one thing: what each area is shown, and judges."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sidestep.proto.naming import safe_name
from sidestep.proto.paths import RuntimePaths

from .isolate import doing

_RUNS: Final = 5
"""So many runs that are over are looked at besides the living ones: the newest."""


@dataclass(frozen=True, slots=True)
class RunSeen:
    """A run, as the daemon and the journal speak of it.

    Attributes:
        name: its name.
        log_dir: where it logs; "" when unknown.
        state: ``running``, ``lost``, ``finished``, or "" when no daemon says it.
        last_step: of what was emitted.
        tensorboard: what it asked for; None when unknown.
        wandb: its W&B settings; None when it asked for none, or unknown.
        asked: whether the two are known.
        sinks: what the daemon says of each; without one, what the cursors on the disk say.
        cursors: those, by sink.
        books: the daemon's account of its records.
        alarm: the run's own state of health.
    """

    name: str
    log_dir: str
    state: str = ""
    last_step: int | None = None
    clients: int = 0
    tensorboard: bool | Mapping[str, Any] | None = None
    wandb: Mapping[str, Any] | None = None
    asked: bool = False
    records: int = 0
    sinks: Sequence[Mapping[str, Any]] = ()
    cursors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    books: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def event_folder(self) -> str:
        """Where its event files are, as the sink chooses it."""
        shown = self.tensorboard
        if isinstance(shown, Mapping) and shown.get("folder") == ".":
            return self.log_dir
        return os.path.join(self.log_dir, "tensorboard", safe_name(self.name))

    @property
    def goes_to(self) -> str:
        """The daemon that it is passed on to and that writes it; "" when it is written here."""
        from ...supervision.wanted import FORWARD

        found = self.sink(FORWARD)
        return "" if found is None else str(found.get("address") or "the next daemon")

    @property
    def has_events(self) -> bool:
        """Whether there should be event files of it, made here."""
        return not self.goes_to and bool(self.tensorboard or self.sink("tensorboard"))

    def sink(self, name: str) -> Mapping[str, Any] | None:
        """What is known of one of its sinks."""
        return next((sink for sink in self.sinks if sink.get("name") == name), None)


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that the areas may look at.

    Attributes:
        environ: of this command.
        cwd: where it was called.
        now: seconds since the epoch.
        uid: the user.
        paths: the runtime directory; None when the environment names an impossible one.
        paths_problem: why.
        state_dir: of the daemon, or the one that the settings name.
        logdir: `--logdir`, absolute; "" when not given.
        within: event folders of runs that are below it.
        wanted: `--run`; "" when not given.
        daemon: see `facts.daemon`.
        trainers: see `facts.trainers`.
        strangers: see `facts.strangers`.
        processes: see `facts.processes`.
        gpus: see `facts.gpus`.
        journal_damage: why the journal cannot be read; "" when it can, or is not there.
        runs: all of them, the newest last.
        problems: facts that could not be had, and why.
    """

    environ: Mapping[str, str]
    cwd: str
    now: float
    uid: int
    paths: RuntimePaths | None
    paths_problem: str
    state_dir: str
    logdir: str
    within: frozenset[str]
    wanted: str
    daemon: Mapping[str, Any]
    trainers: Sequence[Mapping[str, Any]]
    strangers: Sequence[Mapping[str, Any]]
    processes: Mapping[str, Sequence[Mapping[str, Any]]]
    gpus: Mapping[str, Any]
    journal_damage: str
    runs: Sequence[RunSeen]
    problems: Mapping[str, str]

    @property
    def status(self) -> Mapping[str, Any]:
        """The daemon's answer; empty without one."""
        return self.daemon.get("status") or {}

    @property
    def pid(self) -> int:
        """The daemon's; 0 for none."""
        return int(self.daemon.get("pid") or 0)

    @property
    def lives(self) -> bool:
        """Whether there is a daemon, in whatever state."""
        return bool(self.pid) or bool(self.daemon.get("problem"))

    @property
    def daemon_environ(self) -> Mapping[str, str]:
        """What of the daemon's environment could be read; this command's own without one."""
        found = (self.daemon.get("process") or {}).get("environ")
        return self.environ if found is None else found

    @property
    def chosen(self) -> list[RunSeen]:
        """The runs that are looked at closely, the newest first.

        Those of `--run` and `--logdir`; else all that live or whose sinks are in trouble, and the
        newest of the others.
        """
        runs = [run for run in reversed(self.runs) if self._is_meant(run)]
        if self.wanted:
            return runs
        lively = [run for run in runs if run.state == "running" or _is_troubled(run)]
        rest = [run for run in runs if run not in lively][: max(1, _RUNS - len(lively))]
        return lively + rest

    def _is_meant(self, run: RunSeen) -> bool:
        if self.wanted:
            return run.name == self.wanted
        return not self.logdir or run.event_folder in self.within

    def alive(self, run: str = "") -> list[Mapping[str, Any]]:
        """The trainers that live, of all runs or of one."""
        return [t for t in self.trainers if t["alive"] and run in ("", t.get("run"))]


def is_within(path: str, folder: str) -> bool:
    """Whether a path is a folder or below it, links followed; may hang with a file server."""
    doing(f"looking at {folder} and {path}")
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def _is_troubled(run: RunSeen) -> bool:
    return run.state == "lost" or any(sink.get("error") for sink in run.sinks)


def merge_runs(
    status: Mapping[str, Any], journal: Sequence[Mapping[str, Any]] | None
) -> list[RunSeen]:
    """The runs of the daemon's answer and of the journal, in the journal's order."""
    told = {(str(r.get("run")), str(r.get("log_dir"))): r for r in status.get("runs") or ()}
    found: list[RunSeen] = []
    for entry in journal or ():
        key = str(entry["run"]), str(entry["log_dir"])
        cursors = entry["cursors"]
        found.append(
            _seen(
                key,
                told.pop(key, None),
                tensorboard=entry["tensorboard"],
                wandb=entry["wandb"],
                asked=True,
                records=int(entry["records"]),
                cursors=cursors,
                sinks=[_at_rest(name, cursors[name], entry) for name in cursors],
            )
        )
    return found + [_seen(key, run) for key, run in told.items()]


def _seen(key: tuple[str, str], told: Mapping[str, Any] | None, **known: Any) -> RunSeen:
    if told is None:
        return RunSeen(*key, **known)
    fields: dict[str, Any] = {
        **known,
        "state": str(told.get("state")),
        "last_step": told.get("last_step"),
        "clients": int(told.get("clients") or 0),
        "sinks": told.get("sinks") or (),
        "books": told.get("records") or {},
    }
    if "asked" not in known:
        fields["tensorboard"] = any(s.get("name") == "tensorboard" for s in fields["sinks"])
    return RunSeen(*key, **fields)


def _at_rest(name: str, cursor: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A sink without a daemon, in the words of one."""
    lag = max(0, int(entry["records"]) - int(cursor["total"]))
    return {"name": name, "state": "idle", "lag_records": lag, "error": None, "dropped": 0}
