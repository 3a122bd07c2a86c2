"""The journal, killed at every write: what is opened next holds what was committed, and no more."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies as st

from tests.support import journal_model as model
from tests.support.crash_at_write import Fault, Layer, Outcome, kills
from tests.support.journal_model import Contents, Op

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

SCRIPT = model.normal(
    [
        *(["begin"], ["run", 0], ["client", 0, 0, 0], ["tags", 0, 0, ["a", "b"]], ["commit"]),
        *(["begin"], ["append", 0, 0, 3, 9_000, []], ["client", 0, 0, 3], ["commit"]),
        *(["begin"], ["append", 0, 0, 1, 30_000, ["moments"]], ["cursor", 0, 1], ["rollback"]),
        *(["begin"], ["run", 1], ["client", 1, 1, 5], ["append", 1, 1, 5, 200, []]),
        *(["append", 0, 0, 2, 25_000, ["moments", "image"]], ["commit"]),
        *(["begin"], ["cursor", 0, 3], ["alarm", 0, "x", "WARN"], ["client", 0, 0, 9], ["commit"]),
        ["reopen"],
        *(["begin"], ["append", 1, 1, 4, 12_000, []], ["trim", {"0": 2, "1": 3}], ["commit"]),
        *(["begin"], ["append", 1, 1, 4, 12_000, []], ["tags", 1, 0, ["c"]], ["commit"]),
        *(["begin"], ["trim", {"0": 9, "1": 9}], ["run", 0], ["commit"]),
        *(["begin"], ["append", 0, 0, 7, 100, []], ["alarm", 0, "x", "OK"], ["commit"]),
    ]
)


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    with Layer(tmp_path_factory.mktemp("layer"), "tests.support.journal_model") as made:
        yield made


class Disk:
    """A new folder for each journal, on the fastest file system there is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made = 0

    def folder(self) -> Path:
        shutil.rmtree(self._root / str(self._made), ignore_errors=True)
        self._made += 1
        made = self._root / str(self._made)
        made.mkdir()
        return made


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sst", dir=memory) as root:
        yield Disk(Path(root))


def play(
    layer: Layer, folder: Path, script: list[Op], fault: Fault | None = None, **more: Any
) -> Outcome:
    arguments = {"path": str(folder / "journal.sqlite"), "script": script, **more}
    outcome = layer.run("play", arguments, prefix=folder, fault=fault)
    assert not outcome.error, outcome.error
    return outcome


def check_killed(layer: Layer, disk: Disk, script: list[Op], fault: Fault) -> None:
    """Whatever operation was under way: it happened, or it did not, and what was before it did."""
    folder = disk.folder()
    path = str(folder / "journal.sqlite")
    outcome = play(layer, folder, script, fault)
    assert outcome.killed, fault
    states = model.states(script)
    done = len(outcome.said)
    possible = [states[done], states[min(done + 1, len(script))]]
    model.open_journal(path).close()
    found = model.read(path)
    assert found in possible, (fault, script[done : done + 1], difference(found, possible))
    assert not [name for name in os.listdir(folder) if "damaged" in name]
    # It goes on from there: the rest of the script, from its last commit.
    if found == states[done]:
        check_goes_on(path, found)


def check_goes_on(path: str, before: Contents) -> None:
    journal = model.open_journal(path)
    journal.begin()
    run = journal.put_run(model.spec(7, 7))
    row = journal.append(run, 1, 1, b"after", ())
    journal.commit()
    assert row == before.last_row + 1
    journal.close()
    after = model.read(path)
    assert after.rows == {**before.rows, row: (run, 1, 1, 1, "", b"after")}


def difference(found: Contents, possible: list[Contents]) -> dict[str, Any]:
    return {
        name: (getattr(found, name), [getattr(one, name) for one in possible])
        for name in Contents.__dataclass_fields__
        if all(getattr(found, name) != getattr(one, name) for one in possible)
    }


def test_undisturbed_it_is_the_model(layer: Layer, disk: Disk) -> None:
    folder = disk.folder()
    outcome = play(layer, folder, SCRIPT)
    assert len(outcome.said) == len(SCRIPT)
    assert model.read(str(folder / "journal.sqlite")) == model.states(SCRIPT)[-1]
    print(f"{len(outcome.effects)} effects on the disk")
    assert {effect.kind for effect in outcome.effects} >= set("wcus")


def test_killed_at_every_effect(layer: Layer, disk: Disk) -> None:
    effects = play(layer, disk.folder(), SCRIPT).effects
    for fault in kills(effects, every_part=False):
        check_killed(layer, disk, SCRIPT, fault)


@pytest.mark.slow
def test_killed_at_every_part_of_every_effect(layer: Layer, disk: Disk) -> None:
    effects = play(layer, disk.folder(), SCRIPT).effects
    faults = list(kills(effects, every_part=True))
    for fault in faults:
        check_killed(layer, disk, SCRIPT, fault)
    print(f"{len(faults)} kills at {len(effects)} effects")


def check_failing(layer: Layer, disk: Disk, script: list[Op], fault: Fault) -> None:
    """A transaction that failed is done again, as ingest does: nothing is lost, nothing twice."""
    folder = disk.folder()
    play(layer, folder, script, fault, retry=True)
    path = str(folder / "journal.sqlite")
    found, expected = model.read(path), model.states(script)[-1]
    assert found == expected, (fault, difference(found, [expected]))
    assert not [name for name in os.listdir(folder) if "damaged" in name]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_write_fails_and_works_again(layer: Layer, disk: Disk, error: int) -> None:
    effects = play(layer, disk.folder(), SCRIPT).effects
    for number in range(error % 4, len(effects), 4):
        keep = effects[number].size // 2
        times = 1 + number % 4
        check_failing(layer, disk, SCRIPT, Fault(number, keep, error, times))


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_write_fails_for_a_while(layer: Layer, disk: Disk, error: int) -> None:
    effects = play(layer, disk.folder(), SCRIPT).effects
    for number, effect in enumerate(effects):
        for keep in sorted({0, effect.size // 2, effect.size - 1} - {-1}):
            for times in (1, 2, 5):
                check_failing(layer, disk, SCRIPT, Fault(number, keep, error, times))


# --- scripts that nobody thought of ---------------------------------------------------------------

RUNS = st.integers(0, 2)
CLIENTS = st.integers(0, 3)
OPS = st.one_of(
    st.tuples(st.just("run"), RUNS),
    st.tuples(st.just("client"), CLIENTS, RUNS, st.integers(0, 99)),
    st.tuples(st.just("tags"), CLIENTS, st.integers(0, 2), st.lists(st.sampled_from("abc"))),
    st.tuples(
        st.just("append"),
        RUNS,
        CLIENTS,
        st.integers(1, 9),
        st.sampled_from([0, 1, 100, 8_000, 25_000]),
        st.lists(st.sampled_from(["moments", "image"]), unique=True),
    ),
    st.tuples(st.just("cursor"), RUNS, st.integers(0, 30)),
    st.tuples(st.just("alarm"), RUNS, st.sampled_from("xy"), st.sampled_from(["OK", "WARN"])),
    st.tuples(
        st.just("trim"), st.dictionaries(st.sampled_from("012"), st.integers(0, 30), max_size=3)
    ),
)
TRANSACTIONS = st.tuples(
    st.lists(OPS.map(list), max_size=6),
    st.sampled_from([["commit"], ["commit"], ["commit"], ["rollback"]]),
    st.sampled_from([[], [], [["reopen"]]]),
).map(lambda parts: [["begin"], *parts[0], parts[1], *parts[2]])
SCRIPTS = st.lists(TRANSACTIONS, min_size=1, max_size=8).map(
    lambda parts: model.normal(
        [["begin"], ["run", 0], ["client", 0, 0, 0], *(op for part in parts for op in part)]
    )
)


def check_script(layer: Layer, disk: Disk, script: list[Op], moment: float, part: float) -> None:
    folder = disk.folder()
    effects = play(layer, folder, script).effects
    assert model.read(str(folder / "journal.sqlite")) == model.states(script)[-1]
    number = int(moment * (len(effects) - 1))
    keep = int(part * effects[number].size)
    check_killed(layer, disk, script, Fault(number, keep))
    check_failing(layer, disk, script, Fault(number, keep, errno.ENOSPC, 1 + number % 3))


UNIT = st.floats(0, 1, exclude_max=True)


@seed(1)
@settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(script=SCRIPTS, moment=UNIT, part=UNIT)
def test_any_script_killed_anywhere(
    layer: Layer, disk: Disk, script: list[Op], moment: float, part: float
) -> None:
    check_script(layer, disk, script, moment, part)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=SCRIPTS, moment=UNIT, part=UNIT)
def test_very_many_scripts_killed_anywhere(
    layer: Layer, disk: Disk, script: list[Op], moment: float, part: float
) -> None:
    check_script(layer, disk, script, moment, part)
