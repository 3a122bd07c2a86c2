"""A sink's worker, killed at every write: the next one makes of it what an undisturbed one makes.

Event files, the files beside them, the archive and the cursor are one model: byte for byte what
they are when nothing happens, each record once, as TensorBoard's own reader sees it.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies as st

from tests.support import sink_script as script
from tests.support.crash_at_write import Effect, Fault, Layer, Outcome, kills
from tests.support.oracle import assert_exactly, points, read_scalars

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

ROWS = 7
SINKS = ("tensorboard", "archive")


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    with Layer(tmp_path_factory.mktemp("layer"), "tests.support.sink_script") as made:
        yield made


@dataclass
class Bench:
    """A journal that is never disturbed, and a folder for the sinks that is made anew.

    Attributes:
        effects: what an undisturbed worker does to the disk, by sink.
        model: what it leaves there.
    """

    layer: Layer
    folder: Path
    effects: dict[str, list[Effect]]
    model: dict[str, dict[str, list[bytes]]]

    @property
    def journal(self) -> str:
        return str(self.folder / "journal.sqlite")

    @property
    def root(self) -> Path:
        return self.folder / "out"

    def fresh(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()

    def work(self, sink: str, fault: Fault | None = None) -> Outcome:
        arguments = {"journal": self.journal, "root": str(self.root), "sink": sink}
        outcome = self.layer.run("work", arguments, prefix=self.root, fault=fault)
        assert not outcome.error, (fault, outcome.error)
        return outcome

    def check(self, sink: str, *faults: Fault) -> None:
        """One worker after the other, the last one undisturbed; then all is as in the model."""
        self.fresh()
        rows = [0]
        for fault in faults:
            outcome = self.work(sink, fault)
            # What a worker has said is written stays so, whatever becomes of it.
            rows += [row for state, row in outcome.said if state == "ok"]
            assert rows == sorted(rows), (faults, rows)
        self.work(sink)
        assert script.tree(self.root) == self.model[sink], faults
        cursor = script.cursor(self.journal, self.root, sink)
        assert (cursor.row, cursor.total) == (ROWS, 2 * ROWS + 6), faults
        assert not [*self.root.rglob("*.new")], faults


@pytest.fixture(scope="module")
def bench(layer: Layer) -> Iterator[Bench]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sst", dir=memory) as folder:
        made = Bench(layer, Path(folder), {}, {})
        made.fresh()
        script.fill(made.journal, str(made.root), ROWS)
        for sink in SINKS:
            made.fresh()
            made.effects[sink] = made.work(sink).effects
            made.model[sink] = script.tree(made.root)
        yield made


def test_undisturbed_it_is_what_was_journalled(bench: Bench) -> None:
    bench.fresh()
    outcome = bench.work("tensorboard")
    assert [row for state, row in outcome.said if state == "ok"] == list(range(ROWS + 1))
    files = sorted((bench.root / "tensorboard").rglob("events*"))
    assert len(files) == 2, "the run's own, and one of its series"
    assert_exactly(read_scalars(files), points(script.shown(ROWS)))
    names = set(bench.model["tensorboard"])
    assert any("projector_config" in name for name in names)
    for sink, effects in bench.effects.items():
        print(f"{sink}: {len(effects)} effects on the disk")
        assert {effect.kind for effect in effects} >= set("wcr")
    bench.fresh()
    bench.work("archive")
    assert_exactly(points(script.archived(bench.root)), points(script.expected(ROWS)))


@pytest.mark.parametrize("sink", SINKS)
def test_killed_at_every_effect(bench: Bench, sink: str) -> None:
    for fault in kills(bench.effects[sink], every_part=False):
        bench.check(sink, fault)


@pytest.mark.parametrize("sink", SINKS)
def test_the_last_cursor_cannot_be_stored_and_then_it_is_killed(bench: Bench, sink: str) -> None:
    """What it says is written after that is what the next one finds."""
    last = len(bench.effects[sink])
    for number in range(last - 3, last + 1):
        full = Fault(number, 0, errno.ENOSPC, 1)
        bench.check(sink, full, Fault(1, 0))


@pytest.mark.slow
@pytest.mark.parametrize("sink", SINKS)
def test_killed_at_every_part_of_every_effect(bench: Bench, sink: str) -> None:
    faults = list(kills(bench.effects[sink], every_part=True))
    for fault in faults:
        bench.check(sink, fault)
    print(f"{len(faults)} kills at {len(bench.effects[sink])} effects")


@pytest.mark.parametrize("sink", SINKS)
def test_any_write_fails_and_works_again(bench: Bench, sink: str) -> None:
    """The same worker goes on: no restart."""
    for number, effect in enumerate(bench.effects[sink]):
        if sink == "tensorboard" and number % 2:
            continue  # those are in the long variant
        error = (errno.ENOSPC, errno.EIO)[number // 2 % 2]
        bench.check(sink, Fault(number, effect.size // 2, error, 1 + number % 3))


@pytest.mark.slow
@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_write_fails_for_a_while(bench: Bench, sink: str, error: int) -> None:
    for number, effect in enumerate(bench.effects[sink]):
        for keep in sorted({0, 1, effect.size // 2, effect.size - 1} - {-1}):
            for times in (1, 2, 5):
                bench.check(sink, Fault(number, keep, error, times))


FAULTS = st.lists(
    st.tuples(
        st.integers(0, 70),
        st.integers(0, 400),
        st.sampled_from([0, 0, errno.ENOSPC, errno.EIO]),
        st.integers(1, 4),
    ).map(lambda fields: Fault(*fields)),
    min_size=1,
    max_size=6,
)


@seed(1)
@settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(sink=st.sampled_from(SINKS), faults=FAULTS)
def test_life_after_life(bench: Bench, sink: str, faults: list[Fault]) -> None:
    bench.check(sink, *faults)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(sink=st.sampled_from(SINKS), faults=FAULTS)
def test_very_many_lives(bench: Bench, sink: str, faults: list[Fault]) -> None:
    bench.check(sink, *faults)
