"""The oracle of a chaos run: what each trainer emitted, what TensorBoard sees, what the books say.

Emitted is what was noted before and after each `emit`. Of each trainer process each record is in
the event files once, or not at all and then in the counts of dropped records; an emit that was
under way when its trainer was killed may be there, whole, or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from tests.support.oracle import OWN, assert_whole

from .part import MOMENTS, prefix, row32, salt_of
from .plan import DOOMED
from .troupe import Actor

_MAX_SAID: Final = 5
_BLOCK_MS: Final = 59_000.0


@dataclass
class Found:
    """What the event files hold of one trainer process.

    Attributes:
        rows: for each step, a bit for each of its numbers.
        values: how often the value of each step is there.
        wrong: what cannot be, in words.
    """

    rows: dict[int, int] = field(default_factory=dict)
    values: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def read(files: Iterable[Path], actors: Mapping[str, Actor]) -> dict[str, Found]:
    """Everything that is not the daemon's own in event files, by the trainers' prefixes."""
    found: dict[str, Found] = defaultdict(Found)
    for path in files:
        assert_whole(path)
        for step, tag, number in _values(path):
            name, _, rest = tag.partition("/")
            if name not in actors:
                found[""].wrong.append(f"tag {tag!r} of nobody in {path.name}")
                continue
            _take(found[name], actors[name], step, rest, number)
    return found


def _values(path: Path) -> Iterator[tuple[int, str, float]]:
    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if not value.tag.startswith(OWN):
                yield event.step, value.tag, value.simple_value


def _take(found: Found, actor: Actor, step: int, rest: str, number: float) -> None:
    if rest.startswith(actor.part.value or "\0"):
        # A representation becomes many figures: this one is always among them.
        if actor.part.value != MOMENTS or rest == f"{MOMENTS}_std":
            found.values[step] += 1
        return
    if actor.part.is_value(step) or not rest.startswith("v"):
        found.wrong.append(f"{rest} at step {step} was never emitted")
        return
    j = int(rest[1:])
    if found.rows.get(step, 0) & 1 << j:
        found.wrong.append(f"{rest} at step {step} is there twice")
    found.rows[step] = found.rows.get(step, 0) | 1 << j
    if number != row32(salt_of(actor.slot, actor.attempt), step, actor.part.tags)[j]:
        found.wrong.append(f"{rest} at step {step} is {number}")


@dataclass
class Account:
    """One trainer process's records, counted.

    Attributes:
        returned: emits that returned.
        written: those of them, and of one more, that are in the event files.
        under_way: 1 if an emit was under way at the end, 1 of `written` if it is there.
        under_way_written: 1 if that one is there.
    """

    returned: int
    written: int
    under_way: int
    under_way_written: int

    @property
    def missing(self) -> int:
        """Emits that returned and are not there."""
        return self.returned - (self.written - self.under_way_written)


def account(actor: Actor, found: Found) -> tuple[Account, list[str]]:
    """What became of a trainer's records, and what is wrong with it."""
    wrong = [f"{actor}: {words}" for words in found.wrong[:_MAX_SAID]]
    returned, begun = actor.record["returned"], actor.record["begun"]
    whole = (1 << actor.part.tags) - 1
    torn = [step for step, mask in found.rows.items() if mask != whole]
    twice = [step for step, count in found.values.items() if count != 1]
    beyond = [step for step in (*found.rows, *found.values) if not 0 <= step < begun]
    for name, steps in (("torn", torn), ("there twice", twice), ("never emitted", beyond)):
        if steps:
            wrong.append(f"{actor}: {len(steps)} records {name}: steps {sorted(steps)[:_MAX_SAID]}")
    there = {*found.rows, *found.values}
    last_there = int(begun > returned and returned in there)
    return Account(returned, len(there), begun - returned, last_there), wrong


def judge(
    actors: Iterable[Actor], status: Mapping[str, Any], root: Path
) -> tuple[list[str], dict[str, dict[str, int]]]:
    """What is wrong, in sentences; and each run's figures."""
    wrong: list[str] = []
    figures: dict[str, dict[str, int]] = {}
    by_run: dict[tuple[str, str], list[Actor]] = defaultdict(list)
    for actor in actors:
        by_run[actor.part.logs, actor.part.run].append(actor)
        if trouble := actor.trouble():
            wrong.append(f"{actor} {trouble}")
    for (place, run), those in by_run.items():
        books = _books(status, run, root / place)
        if books is None:
            wrong.append(f"run {run}: status does not know it")
            continue
        if place == DOOMED:
            wrong += _weakly(run, those, books)
            continue
        files = sorted((root / place / "tensorboard" / run).glob("events.out.tfevents.*"))
        names = {prefix(a.slot, a.attempt): a for a in those}
        try:
            found = read(files, names)
        except Exception as error:
            wrong.append(f"run {run}: its event files cannot be read: {error!r}")
            continue
        wrong += [f"run {run}: {words}" for words in found[""].wrong[:_MAX_SAID]]
        accounts: list[Account] = []
        for name, actor in names.items():
            one, bad = account(actor, found[name])
            accounts.append(one)
            wrong += bad + _own_books(actor, one)
        wrong += _balance(run, accounts, books)
        figures[run] = {
            "trainers": len(those),
            "emitted": sum(a.returned for a in accounts),
            "written": sum(a.written for a in accounts),
            "dropped": books["dropped"],
        }
    return wrong, figures


def _books(status: Mapping[str, Any], run: str, log_dir: Path) -> dict[str, int] | None:
    for one in status["runs"]:
        if one["run"] == run and one["log_dir"] == str(log_dir):
            return one["records"]
    return None


def _balance(run: str, accounts: list[Account], books: Mapping[str, int]) -> list[str]:
    """The run's books in `status` beside what was counted here."""
    written = sum(a.written for a in accounts)
    missing = sum(a.missing for a in accounts)
    unsure = sum(a.under_way - a.under_way_written for a in accounts)
    wrong: list[str] = []
    if books["durable"] != written:
        wrong.append(f"run {run}: {books['durable']} durable, {written} in the event files")
    if not missing <= books["dropped"] <= missing + unsure:
        wrong.append(f"run {run}: {books['dropped']} dropped, {missing} (+{unsure}) missing")
    if books["held"] or books["rejected"] or books.get("unaccounted"):
        wrong.append(f"run {run}: held, rejected or unaccounted for at the end: {books}")
    return wrong


def _weakly(run: str, actors: list[Actor], books: Mapping[str, int]) -> list[str]:
    """Of a run whose files were deleted: only the books, without the files."""
    returned = sum(actor.record["returned"] for actor in actors)
    begun = sum(actor.record["begun"] for actor in actors)
    there = books["durable"] + books["dropped"]
    if returned <= there <= begun and not books["held"] and not books.get("unaccounted"):
        return []
    return [f"run {run}: {returned} to {begun} emitted, the books say {books}"]


def _own_books(actor: Actor, found: Account) -> list[str]:
    """`client.stats()` at the trainer's end beside what was counted here."""
    stats = actor.stats()
    if stats is None:
        return []
    wrong: list[str] = []
    for unit in ("", "_bytes"):
        parts = [stats[name + unit] for name in ("acked", "held", "dropped")]
        if min(parts) < 0 or stats["emitted" + unit] != sum(parts):
            wrong.append(f"{actor}: its books do not balance: {stats}")
    if stats["emitted"] != found.returned:
        wrong.append(f"{actor}: {found.returned} emits returned, its books: {stats}")
    if stats["dropped"] != found.missing:
        wrong.append(f"{actor}: {found.missing} are missing, its books: {stats}")
    if not stats["held"] and stats["held_bytes"]:
        wrong.append(f"{actor}: nothing is held, of {stats['held_bytes']} bytes")
    # Longer than that it need not wait: see `connect(on_full="block")`.
    if actor.part.on_full == "block" and stats["dropped"] and max(actor.latencies_ms()) < _BLOCK_MS:
        wrong.append(f"{actor}: {stats['dropped']} dropped, and no emit has waited a minute")
    if stats["rejected"]:
        wrong.append(f"{actor}: {stats['rejected']} values rejected")
    return wrong
