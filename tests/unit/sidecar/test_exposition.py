"""What Prometheus is shown: last values, families, and who may ask for them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from sidestep.proto import RunSpec, Value
from sidestep.proto.records import Scalars, encode_scalars, encode_value
from sidestep.proto.tag_sets import ReducedTags
from sidestep.sidecar.config import ConfigurationError, SidecarSettings, load
from sidestep.sidecar.exposition import address
from sidestep.sidecar.exposition.families import Own, families
from sidestep.sidecar.exposition.last_values import LastValues, RunValues, _points
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.rows.points import MixedBlock

OWN = Own(True, 4096, 0, 0, 0, 0, 0)
SECOND_NS = 1_000_000_000


# --- the address, and who may reach it ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9400", ("127.0.0.1", 9400)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9400", ("::1", 9400)),
        ("0.0.0.0:9400", ("0.0.0.0", 9400)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert address.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["9400", "127.0.0.1", "127.0.0.1:", "::1:9400", "a.example:9400", "127.0.0.1:99999", ""]
)
def test_what_is_no_address_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9400"):
        address.parse(text)


@pytest.mark.parametrize(
    "header", [None, "localhost", "localhost:9400", "127.0.0.1:9400", "[::1]:9400", "[::1]"]
)
def test_names_of_this_machine(header: str | None) -> None:
    assert address.is_own_name(header)


@pytest.mark.parametrize("header", ["evil.example", "evil.example:9400", "", "127.0.0.1.example"])
def test_names_that_somebody_has_registered(header: str) -> None:
    assert not address.is_own_name(header)


def test_beyond_the_loopback_a_further_setting_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"prometheus_token.*prometheus_anyone"):
        load(None, {}, prometheus="0.0.0.0:9400")
    assert load(None, {}, prometheus="127.0.0.1:9400").prometheus == "127.0.0.1:9400"
    assert load(None, {}, prometheus="0.0.0.0:9400", prometheus_anyone=True).prometheus_anyone
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    settings: SidecarSettings = load(None, {}, prometheus="0.0.0.0:9400", prometheus_token=token)
    assert settings.prometheus_token == token
    assert address.read_token(token) == "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("short", 0o600, "at least 16"),
        ("0123456789 abcdef", 0o600, "one word"),
        ("0123456789abcdef", 0o644, "chmod 600"),
        (None, 0, "cannot read it"),
    ],
)
def test_a_token_that_is_none(tmp_path: Path, text: str | None, mode: int, said: str) -> None:
    token = tmp_path / "token"
    if text is not None:
        token.write_text(text)
        token.chmod(mode)
    with pytest.raises(ConfigurationError, match=said):
        load(None, {}, prometheus="127.0.0.1:9400", prometheus_token=token)


# --- last values -------------------------------------------------------------------------------


class World:
    """A journal with a run of one client, whose daemon has a say of its own."""

    def __init__(self, folder: Path, max_series: int = 100) -> None:
        self.journal = Journal(str(folder / "journal.sqlite"), history_bytes=0)
        self.reader = JournalReader(str(folder / "journal.sqlite"))
        self.full = 0
        self.values = LastValues(max_series, self._is_full)
        self.journal.begin()
        self.run = self.journal.put_run(RunSpec("run", "/logs"))
        self.client, self.daemon = (
            self.journal.put_client(ClientRow(0, uuid, self.run, 0, 0, 1, state, 0, 0, 0, 0, None))
            for uuid, state in ((b"c" * 16, "live"), (b"system/1", "daemon"))
        )
        self.journal.commit()
        self._sets: dict[tuple[int, tuple[str, ...]], int] = {}

    def _is_full(self) -> None:
        self.full += 1

    def emit(
        self, *rows: dict[str, float], second: int = 1, client: int | None = None, reduce: str = ""
    ) -> int:
        """One journal row with these records; its id."""
        client = self.client if client is None else client
        self.journal.begin()
        data = b""
        for numbers in rows:
            tags = ReducedTags(numbers, reduce) if reduce else tuple(numbers)
            number = self._sets.setdefault((client, tags), len(self._sets))
            self.journal.put_tag_set(client, number, tags)
            values = tuple(numbers.values())
            data += encode_scalars(Scalars(number, 1, second * SECOND_NS, values))
        self.journal.append(self.run, client, len(rows), data)
        self.journal.commit()
        return self.reader.rows(0)[-1].id

    def read(self, until: int | None = None) -> RunValues:
        """Read on, to the newest row if nothing else is said."""
        self.values.keep([self.run])
        until = until or max((row.id for row in self.reader.rows(0)), default=0)
        while self.values.read(self.reader, until):
            pass
        return self.values.runs[self.run]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.reader.close()
    made.journal.close()


def test_the_newest_value_of_each_tag(world: World) -> None:
    world.emit({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 2.0}, {"a": 3.0}, {"b": 4.0, "c": math.inf})
    assert world.read().values == {"a": 3.0, "b": 4.0, "c": math.inf}
    world.emit({"a": 5.0})
    assert world.read().values == {"a": 5.0, "b": 4.0, "c": math.inf}
    assert world.values.series == 3


def test_tag_sets_in_turn_end_with_what_was_emitted_last(world: World) -> None:
    many = [{"a": float(i), f"t{i % 7}": float(-i)} for i in range(500)]
    world.emit(*many)
    found = world.read().values
    assert found["a"] == 499
    assert {tag: found[tag] for tag in found if tag != "a"} == {
        f"t{i % 7}": float(-i) for i in range(493, 500)
    }


def test_of_thousands_of_tag_sets_in_turn_each_tag_has_its_newest_value(tmp_path: Path) -> None:
    world = World(tmp_path, max_series=10_000)
    draw = random.Random(7)
    rows = [
        {f"t{tag}": draw.random() for tag in draw.sample(range(500), draw.randint(1, 3))}
        for _ in range(3000)
    ]
    world.emit(*rows)
    expected: dict[str, float] = {}
    for row in rows:
        expected.update(row)
    points = _points(world.reader, world.reader.rows(0)[0]) or []
    assert any(isinstance(point, MixedBlock) for point in points)  # else this shows nothing
    assert world.read().values == expected


def test_who_emits_only_values_or_parts_of_reductions_emits(world: World) -> None:
    world.journal.begin()
    head, *arrays = encode_value(Value("text", "note", 1, 7 * SECOND_NS, {"text": "x"}))[1]
    world.journal.append(world.run, world.client, 1, b"".join([head, *arrays]))
    world.journal.commit()
    assert world.read().newest_ns == 7 * SECOND_NS
    world.emit({"loss": 1.0}, second=8, reduce="mean")
    assert world.read().newest_ns == 8 * SECOND_NS
    assert world.read().values == {}


def test_rows_after_the_status_are_read_with_the_next_one(world: World) -> None:
    first = world.emit({"a": 1.0})
    world.emit({"a": 2.0})
    assert world.read(until=first).values == {"a": 1.0}
    assert world.read().values == {"a": 2.0}


def test_only_what_clients_emit_tells_when_the_run_emitted(world: World) -> None:
    world.emit({"a": 1.0}, second=5)
    world.emit({"system/x": 1.0}, second=9, client=world.daemon)
    assert world.read().newest_ns == 5 * SECOND_NS


def test_alarms_have_a_place_of_their_own(world: World) -> None:
    world.emit({"sidestep/alarm/encoder": 3.0}, client=world.daemon)
    assert world.read().alarms == {"encoder": 3.0}
    assert world.read().values == {}


def test_beyond_the_cap_tags_are_counted_once_each(tmp_path: Path) -> None:
    world = World(tmp_path, max_series=2)
    for value in (1.0, 2.0):
        world.emit({"a": value, "b": value, "c": value, "d": value})
    assert world.read().values == {"a": 2.0, "b": 2.0}
    assert (world.values.series, world.values.left_out, world.full) == (2, 2, 1)


def test_runs_that_are_not_wanted_any_more_make_room(tmp_path: Path) -> None:
    world = World(tmp_path, max_series=1)
    world.emit({"a": 1.0, "b": 1.0})
    world.read()
    world.values.keep([])
    assert (world.values.series, world.values.left_out) == (0, 0)
    world.emit({"b": 2.0})
    assert world.read().values == {"b": 2.0}


def test_rows_that_left_before_they_were_read_are_counted(world: World) -> None:
    world.emit({"a": 1.0})
    world.read()
    gone = world.emit(*[{"a": float(i)} for i in range(10)])
    world.emit({"a": 99.0})
    world.journal.begin()
    world.journal.trim({world.run: gone})
    world.journal.commit()
    assert world.read().values == {"a": 99.0}
    assert world.values.skipped == 10


def test_a_row_that_cannot_be_read_is_counted(world: World) -> None:
    world.journal.begin()
    world.journal.append(world.run, world.client, 3, b"\0" * 24)
    world.journal.commit()
    world.emit({"a": 1.0})
    assert world.read().values == {"a": 1.0}
    assert world.values.skipped == 3


# --- families ----------------------------------------------------------------------------------


def run(run_id: int, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": run_id,
        "run": name,
        "state": "running",
        "last_step": 7,
        "attempts": 1,
        "clients": 1,
        "alarm_level": 0,
        "records": {"durable": 5, "held": 0, "dropped": 0, "rejected": 0, "unaccounted": 0},
        "sinks": [],
        **changes,
    }


def status(*runs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    daemon = {
        "version": "1",
        "start_time_s": 1e9,
        "storage_error": False,
        "damaged_journals": 0,
        "rows": 3,
        "refused": {"records": 2},
    }
    nothing: dict[str, Any] = {"left_out": 0, "gpus": [], "host": {}}
    return {"daemon": daemon, "runs": list(runs), **nothing, **changes}


def exposed(
    told: dict[str, Any] | None, values: dict[int, RunValues] | None = None, own: Own = OWN
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper reads: values by name and labels; no series twice."""

    class Once(Collector):
        def collect(self) -> Any:
            return families(told, values or {}, own)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    text = generate_latest(registry).decode()
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_before_the_daemon_has_answered_there_is_only_what_is_known() -> None:
    own = Own(False, None, 0, 0, 0, 0, 0)
    found = exposed(None, own=own)
    assert found["sidestep_daemon_responding", ()] == 0
    assert not [name for name, _ in found if "journal_bytes" in name or "build" in name]


def test_base_units() -> None:
    gpu = {
        "index": 1,
        "uuid": "GPU-1",
        "name": "H100",
        "parent": "",
        "values": {"utilization": 50.0, "memory_used_gb": 4.04, "sm_clock_mhz": 1980.0},
    }
    host = {"system/cpu_percent": 25.0, "system/disk_read_mb_s": 1.5}
    found = exposed(status(gpus=[gpu], host=host))
    label = (("gpu", "1"), ("uuid", "GPU-1"))
    assert found["sidestep_gpu_utilization_ratio", label] == 0.5
    assert found["sidestep_gpu_memory_used_bytes", label] == 4_040_000_000
    assert found["sidestep_gpu_sm_clock_hertz", label] == 1_980_000_000
    assert found["sidestep_host_cpu_utilization_ratio", ()] == 0.25
    assert found["sidestep_host_disk_read_bytes_per_second", ()] == 1_500_000
    assert not [name for name, _ in found if "power" in name]  # what was not read is absent


def test_a_step_that_nobody_knows_is_absent() -> None:
    assert "sidestep_step" not in {name for name, _ in exposed(status(run(1, "a", last_step=None)))}


def test_of_runs_with_one_name_the_newest_has_it() -> None:
    found = exposed(status(run(9, "a"), run(3, "a", last_step=2), run(4, "b")))
    steps = {labels: value for (name, labels), value in found.items() if name == "sidestep_step"}
    assert steps == {(("run", "a"),): 7, (("run", "a~3"),): 2, (("run", "b"),): 7}


def test_two_gpus_that_nothing_tells_apart_are_one() -> None:
    gpu = {"index": 0, "uuid": "", "name": "x", "parent": "", "values": {"power_w": 1.0}}
    found = exposed(status(gpus=[gpu, gpu]))
    assert found["sidestep_gpu_power_watts", (("gpu", "0"), ("uuid", ""))] == 1.0


@given(
    tags=st.dictionaries(st.text(min_size=1, max_size=40), st.floats()), name=st.text(max_size=40)
)
def test_any_tag_and_any_value_arrive_as_they_are(tags: dict[str, float], name: str) -> None:
    try:
        "".join([*tags, name]).encode()
    except UnicodeEncodeError:
        return  # a lone surrogate is refused long before
    found = exposed(status(run(1, name)), {1: RunValues(values=tags)})
    scalars = {
        dict(labels)["tag"]: value
        for (family, labels), value in found.items()
        if family == "sidestep_scalar"
    }
    assert scalars.keys() == tags.keys()
    for tag, value in tags.items():
        assert scalars[tag] == value or (math.isnan(value) and math.isnan(scalars[tag]))
