"""`sidestep status`: the daemon, its runs, the machine, and what is wrong with any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..service.progress import STALLED_S
from . import wording
from .common import CommandError, console, environment_paths
from .control_client import Control, NoAnswerError, NoDaemonError

if TYPE_CHECKING:
    from rich.text import Text

_DESTINATIONS: Final = {
    "wandb": "W&B",
    "tensorboard": "TensorBoard",
    "archive": "the archive",
    "webhook": "the webhook",
}


def status(
    as_json: Annotated[
        bool, typer.Option("--json", help="The same as one JSON object, for programs.")
    ] = False,
) -> None:
    """Is anything wrong? Shows the daemon, its runs, sinks, drops, alarms and GPUs.

    Exit code 0 when a daemon answers; 1 when there is none (with --json: {"daemon": null}), when
    it does not answer, or when it has journalled nothing for half a minute since its disk hangs.
    What is wrong comes last, each with what to do about it.
    """
    control = Control(environment_paths())
    try:
        answer = control.request("status")
    except NoDaemonError:
        if not as_json:
            raise
        print(json.dumps({"daemon": None}))
        raise typer.Exit(1) from None
    except NoAnswerError:
        if not as_json:
            raise
        print(json.dumps(_unresponsive(control)))
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(answer))
    else:
        _show(answer, control.paths.log)
    if _stalled_s(answer.get("daemon") or {}):
        raise typer.Exit(1)


def _stalled_s(daemon: Mapping[str, Any]) -> float:
    """How long ingest has hung, in seconds; 0 while it gets on."""
    stalled = daemon.get("stalled_s")
    return stalled if isinstance(stalled, int | float) and stalled >= STALLED_S else 0.0


def _unresponsive(control: Control) -> dict[str, object]:
    """What can be said of a daemon that holds its lock and does not answer."""
    who = control.daemon()
    if who is None:
        return {"daemon": None}
    daemon = {
        "pid": who.pid,
        "version": who.version,
        "state": "unresponsive",
        "endpoint": who.endpoint,
        "uptime_s": None,
        "state_dir": who.state_dir,
    }
    return {"daemon": daemon, "runs": [], "gpus": [], "host": {}}


def _show(answer: Mapping[str, Any], log: str) -> None:
    out = console()
    daemon = answer.get("daemon")
    if not daemon:
        raise CommandError("the daemon says nothing of itself: is it of another version?")
    out.print(_daemon_line(daemon), style="bold", soft_wrap=True)
    out.print(f"state in {daemon.get('state_dir', '?')}, log in {log}", style="dim", soft_wrap=True)
    runs = answer.get("runs") or ()
    if not runs:
        out.print("\nNo run yet. One begins when training calls `client.connect`.")
    for run in runs:
        out.print()
        for line in _run_lines(run):
            out.print(line, soft_wrap=True)
    out.print()
    for text in _machine(answer):
        out.print(text, soft_wrap=True)
    wrong = list(troubles(answer, log))
    for text in wrong:
        # Whole lines for grep, whole words for eyes.
        out.print(f"! {text}", style="bold yellow", soft_wrap=not out.is_terminal)
    if not wrong:
        out.print("Nothing is wrong.", style="green")
    else:
        out.print("`sidestep doctor` says which command mends what.", style="dim")


def _daemon_line(daemon: Mapping[str, Any]) -> str:
    uptime = daemon.get("uptime_s")
    since = f", up {wording.duration(uptime)}" if isinstance(uptime, int | float) else ""
    return wording.printable(
        f"sidestep {daemon.get('version', '?')}, pid {daemon.get('pid', '?')}: "
        f"{daemon.get('state', '?')}{since}, at {daemon.get('endpoint', '?')}"
    )


def _machine(answer: Mapping[str, Any]) -> Iterator[str]:
    yield from map(wording.gpu, answer.get("gpus") or ())
    host: Mapping[str, Any] = answer.get("host") or {}
    if figures := wording.host(host):
        yield f"host  {figures}"
    if reason := (host.get("gpu_sampler") or {}).get("error"):
        yield wording.printable(f"GPUs  not all can be read: {reason}")


def _run_lines(run: Mapping[str, Any]) -> Iterator[Text]:
    """A run in three lines: itself, its records, its sinks. What is wrong is red."""
    from rich.text import Text

    state = str(run.get("state"))
    title = Text(wording.printable(str(run.get("run"))), style="bold")
    title.append(f"  {wording.printable(state)}", _style(state not in wording.TROUBLED, "green"))
    if run.get("last_step") is not None:
        title.append(f"  step {wording.count(run['last_step'])}", "not bold")
    title.append(f"  clients {wording.count(run.get('clients', 0))}", "not bold")
    if isinstance(attempts := run.get("attempts"), int) and attempts > 1:
        title.append(f"  attempt {wording.count(attempts)}", "not bold")
    if alarm := wording.run_alarm(run):
        title.append(f"  ALARM {alarm}", "bold red")
    yield title
    records: Mapping[str, Any] = run.get("records") or {}
    books = Text("  records  ")
    if "emitted" in records:
        books.append(f"emitted {wording.count(records['emitted'])} = ")
    parts = ["durable", "held", "dropped", *(["unaccounted"] if records.get("unaccounted") else [])]
    for number, key in enumerate(parts):
        many = records.get(key, 0)
        well = not many or key in ("durable", "held")
        books.append(f"{' + ' if number else ''}{key} {wording.count(many)}", _style(well))
    rejected = records.get("rejected", 0)
    books.append("; ").append(f"rejected {wording.count(rejected)}", _style(not rejected))
    yield books
    sinks = Text("  sinks    ")
    for sink in run.get("sinks") or ():
        brief = {key: value for key, value in sink.items() if key != "error"}  # it comes below
        sinks.append(f"{wording.sink(brief)}  ", _style(sink.get("state") not in wording.TROUBLED))
    sinks.right_crop(2)
    if run.get("sinks"):
        yield sinks


def _style(well: bool, normal: str = "") -> str:
    return normal if well else "bold red"


def troubles(answer: Mapping[str, Any], log: str) -> Iterator[str]:
    """What is wrong, each with what to do about it."""
    daemon: Mapping[str, Any] = answer.get("daemon") or {}
    yield from _of_the_disk(daemon)
    if refused := wording.refused(daemon.get("refused")):
        yield refused
    if daemon.get("damaged_journals"):
        yield wording.printable(
            f"{daemon['damaged_journals']} damaged journals were put aside in "
            f"{daemon.get('state_dir')}: what they held and no sink had written is in them alone. "
            "Delete journal.sqlite.damaged-* there when nobody needs them"
        )
    if error := (daemon.get("prometheus") or {}).get("error"):
        yield wording.printable(
            f"Prometheus is shown nothing: {error}. It is tried again; another address is set "
            "with `prometheus` (SIDESTEP_PROMETHEUS)"
        )
    for run in answer.get("runs") or ():
        name = wording.printable(str(run.get("run")))
        if alarm := wording.run_alarm(run):
            yield f"{name}: alarm {alarm}. `sidestep tail '{name}'` shows how it came"
        if run.get("state") == "lost":
            yield f"{name}: its trainer vanished without a goodbye; what it emitted is kept"
        records: Mapping[str, Any] = run.get("records") or {}
        if records.get("dropped"):
            yield (
                f"{name}: {wording.counted(records['dropped'], 'record')} dropped: more came than "
                "the daemon took in time, or than it takes at once. Log less often, or raise "
                "outbox_bytes in client.connect"
            )
        if records.get("rejected"):
            yield (
                f"{name}: {wording.counted(records['rejected'], 'value')} rejected: the trainer's "
                "log names the first of each kind (SIDESTEP_STRICT=1 raises at the line)"
            )
        yield from _unbalanced(name, records)
        yield from _ranks(name, run)
        for sink in run.get("sinks") or ():
            if sink.get("error"):
                yield (
                    f"{name}: {wording.sink(sink)}. It is tried again until it works, and its "
                    f"records are kept meanwhile. More in {log}"
                )
            if sink.get("dropped"):
                yield (
                    f"{name}: {_DESTINATIONS.get(sink['name'], sink['name'])} was not given "
                    f"{wording.counted(sink['dropped'], 'record')}: more waited for it than "
                    "wandb_backlog_mb, so the oldest were dropped for it alone"
                )


def _of_the_disk(daemon: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with where the journal is."""
    where = daemon.get("state_dir")
    if stalled := _stalled_s(daemon):
        yield wording.printable(
            f"the daemon has journalled nothing for {wording.duration(stalled)}: the disk of "
            f"{where} hangs. Trainers hold their metrics meanwhile, as long as they have room; "
            "mend the disk, or move the state directory (SIDESTEP_STATE_DIR)"
        )
    if daemon.get("storage_error"):
        yield wording.printable(
            f"the journal in {where} takes nothing: {daemon['storage_error']}. Trainers hold their "
            "metrics meanwhile, as long as they have room; make space there"
        )


def _ranks(name: str, run: Mapping[str, Any]) -> Iterator[str]:
    """Which rank of a run holds up the others, and what was shown without some."""
    if straggler := run.get("straggler"):
        host = f" on {wording.printable(str(straggler['host']))}" if straggler.get("host") else ""
        yield f"{name}: rank {straggler.get('rank')}{host} {straggler.get('reason')}"
    reductions: Mapping[str, Any] = run.get("reductions") or {}
    if partial := reductions.get("partial"):
        yield (
            f"{name}: {wording.counted(partial, 'value')} shown without all ranks: TAG_ranks says "
            "how many each has. Ranks that died are not waited for, others reduce_timeout_s"
        )
    if late := reductions.get("late"):
        yield (
            f"{name}: {wording.counted(late, 'value')} of a rank came after its reduction had been "
            "shown, and are left out. Raise reduce_timeout_s if ranks are so far apart"
        )
    if pushed_out := reductions.get("pushed_out"):
        yield (
            f"{name}: {wording.counted(pushed_out, 'value')} shown early, without all ranks: more "
            "was awaited than memory is to hold. Reduce less often, or fewer values"
        )


def _unbalanced(name: str, records: Mapping[str, Any]) -> Iterator[str]:
    """What the books of a run do not say of all that was emitted."""
    many = records.get("unaccounted", 0)
    if many > 0:
        yield (
            f"{name}: the books do not balance: {wording.count(many)} of "
            f"{wording.count(records.get('emitted', 0))} records are neither durable, held nor "
            "dropped. They were with a trainer that vanished, and so has its outbox"
        )
    if many < 0:
        yield (
            f"{name}: the books do not balance: {wording.count(-many)} records more are durable or "
            "dropped than were emitted. Please report it, with the daemon's log"
        )
    if elsewhere := records.get("elsewhere"):
        yield (
            f"{name}: {wording.count(elsewhere)} of its durable records were acknowledged by "
            "another journal, which was damaged or is in another state directory. What of them was "
            "not written yet is there"
        )
