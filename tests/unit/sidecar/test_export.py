"""What `export` writes reads back to the bit, in memory that does not grow; which run it takes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import RunSpec
from sidestep.proto.paths import RuntimePaths
from sidestep.sidecar.cli import export as export_module
from sidestep.sidecar.cli.common import CommandError
from sidestep.sidecar.cli.control_client import Control
from sidestep.sidecar.cli.export_formats import WRITERS
from sidestep.sidecar.cli.export_source import Source, open_source
from sidestep.sidecar.cli.follow import Block
from sidestep.sidecar.cli.tail_output import json_lines
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import Journal
from sidestep.sidecar.rows.points import ScalarBlock, wall_times_s
from sidestep.sidecar.supervision import cursor_file
from sidestep.sidecar.supervision.cursor_file import Cursor
from tests.support.archive import Home, exact
from tests.support.event_reader import block

RUN = 'vit "b", größer\n'

Line = tuple[str, str, int, float, bytes]


def expected(blocks: Sequence[ScalarBlock]) -> list[Line]:
    return [
        (RUN, tag, step, wall_times_s(time_ns), value)
        for tag, step, time_ns, value in exact(blocks)
    ]


def line(run: str, tag: str, step: Any, wall_time: Any, value: Any) -> Line:
    return run, tag, int(step), float(wall_time), struct.pack("<d", float(value))


def read(format_name: str, data: bytes) -> list[Line]:
    """What a reader of the format sees, by the standard library or pyarrow."""
    if format_name == "csv":
        head, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
        assert head == ["run", "tag", "step", "wall_time", "value"]
        return [line(*row) for row in rows]
    if format_name == "jsonl":
        return [line(*json.loads(text).values()) for text in data.decode().split("\n")[:-1]]
    return [line(*row.values()) for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def write(format_name: str, blocks: Sequence[ScalarBlock]) -> bytes:
    out = io.BytesIO()
    writer = WRITERS[format_name](out, RUN)
    for part in blocks:
        writer.add(part)
    writer.close()
    return out.getvalue()


INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
# The sign of a NaN is not text.
FLOATS = st.floats(width=64).map(lambda x: math.nan if math.isnan(x) else x) | st.sampled_from(
    [math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308]
)
TAGS = st.text(st.characters(exclude_categories=("Cs",)), max_size=5) | st.sampled_from(
    ["a,b", 'q"', "line\r\nline", "", " ", "=1+1", "{}", "%s"]
)


@st.composite
def blocks(draw: st.DrawFn) -> ScalarBlock:
    tags = draw(st.lists(TAGS, min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(1, 5))
    column = st.lists(INT64, min_size=rows, max_size=rows)
    size = rows * len(tags)
    values = np.array(draw(st.lists(FLOATS, min_size=size, max_size=size)), np.float64)
    return block(tags, draw(column), values.reshape(rows, len(tags)), draw(column))


@settings(max_examples=60, deadline=None)
@given(st.lists(blocks(), max_size=4))
def test_every_format_reads_back_to_the_bit(parts: list[ScalarBlock]) -> None:
    for format_name in WRITERS:
        data = write(format_name, parts)
        assert read(format_name, data) == expected(parts), format_name


@settings(max_examples=60, deadline=None)
@given(blocks())
def test_json_lines_are_those_of_tail(part: ScalarBlock) -> None:
    times = wall_times_s(part.times_ns).tolist()
    shown = json_lines(Block(RUN, part.tags, part.steps.tolist(), times, part.values.tolist()))
    assert write("jsonl", [part]).decode() == shown


def test_long_blocks_are_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.sidecar.cli.export_formats._TEXT_POINTS", 100)
    monkeypatch.setattr("sidestep.sidecar.cli.export_formats._ROW_GROUP_POINTS", 1000)
    values = np.random.default_rng(1).standard_normal((1234, 3))
    parts = [
        block(["a", "b", "c"], range(1234), values),
        block(["b", "x"], [1], [[1, 2]]),
        block([f"t{i}" for i in range(300)], [7, 8], np.ones((2, 300))),
    ]
    for format_name in WRITERS:
        assert read(format_name, write(format_name, parts)) == expected(parts)
    groups = pq.ParquetFile(io.BytesIO(write("parquet", parts))).metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert max(sizes) < 2000
    assert sum(sizes) == 1234 * 3 + 2 + 600


def test_nothing_is_a_file_too() -> None:
    assert write("csv", []) == b"run,tag,step,wall_time,value\n"
    assert write("jsonl", []) == b""
    assert pq.read_table(io.BytesIO(write("parquet", []))).num_rows == 0


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    program = """if True:
        import resource, sys
        from pathlib import Path
        import numpy as np
        from sidestep.sidecar.cli.export_formats import WRITERS
        from tests.support.archive import Home
        from sidestep.sidecar.rows.points import ScalarBlock

        def make(name, points):
            home = Home(Path(sys.argv[1]), name)
            sink = home.open()
            values = np.random.default_rng(0).standard_normal((1000, 20))
            tags = tuple(f"t/{i}" for i in range(20))
            for first in range(0, points // 20, 1000):
                steps = np.arange(first, first + 1000)
                sink.write([ScalarBlock(tags, steps, steps, values)])
                home.commit(sink)
            sink.close(finished=True)
            return home.archive()

        small, large = make("small", 600_000), make("large", 2_000_000)
        for name in ("csv", "parquet"):  # JSON lines are made as CSV is
            writer_of = WRITERS[name]
            for run in (small, large):
                with open("/dev/null", "wb") as out:
                    writer, points = writer_of(out, "run"), 0
                    for block in run.blocks():
                        writer.add(block)
                        points += block.values.size
                    writer.close()
                peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                print(name, points, peak_kib)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=55,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    print(done.stdout)
    rows = [text.split() for text in done.stdout.splitlines()]
    assert [int(points) for _, points, _ in rows] == [600_000, 2_000_000] * 2
    for (name, _, before), (_, _, after) in zip(rows[::2], rows[1::2], strict=True):
        assert int(after) - int(before) < 16 << 10, name  # the run itself has 16 MB and more


def test_without_pyarrow_it_is_said_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CommandError, match=r"pip install 'sidestep\[parquet\]'"):
        WRITERS["parquet"](io.BytesIO(), "run")


# --- where it is written -----------------------------------------------------------------------


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("before")

    def interrupted() -> None:
        with export_module._file(str(path)) as out:
            out.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path] == list(tmp_path.iterdir())
    assert path.read_text() == "before"
    with export_module._file(str(path)) as out:
        out.write(b"whole")
        out.flush()
        assert path.read_text() == "before"
    assert [path] == list(tmp_path.iterdir())
    assert path.read_text() == "whole"


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with export_module._file(str(tmp_path / "link")) as out:
        out.write(b"1")
    assert (tmp_path / "target").read_text() == "1"
    assert (tmp_path / "link").is_symlink()
    with export_module._file(os.devnull) as out:
        out.write(b"1")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


# --- which run it is ---------------------------------------------------------------------------


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`open_source` with neither a daemon nor anything of the user's."""
    for name in ("SIDESTEP_LOG_DIR", "SIDESTEP_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIDESTEP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    control = Control(RuntimePaths(str(tmp_path / "rt")))

    def source(name: str, log_dir: str | None = None) -> Source:
        return open_source(control, name, log_dir)

    return source


def test_it_is_looked_for_where_it_was_said(
    find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = block(["a"], [1], [[1.0]])
    for folder in ("results/logs", "of-env", "named"):
        Home(tmp_path / folder, "same").write(step)
    assert find("same").run.log_dir == Path("results/logs")
    monkeypatch.setenv("SIDESTEP_LOG_DIR", "of-env")
    assert find("same").run.log_dir == Path("of-env")
    assert find("same", "named").run.log_dir == Path("named")
    assert find("same").missing is None


def test_a_run_that_is_in_the_journal_alone_is_known(find: Any, tmp_path: Path) -> None:
    logs, state = str(tmp_path / "elsewhere"), tmp_path / "state"
    state.mkdir()
    journal = Journal(str(state / "journal.sqlite"))
    journal.begin()
    run_id = journal.put_run(RunSpec("only", logs))
    journal.append(run_id, 1, 1, b"")
    journal.commit()
    source = find("only")
    assert source.run is None
    assert "1 record in the journal" in source.missing
    identity = JournalReader(journal.path).identity()
    cursor = cursor_file.file_name("only", logs, "archive")
    (state / "cursors").mkdir()
    cursor_file.store(str(state / "cursors" / cursor), Cursor(1, 1, None, identity))
    assert find("only", logs).missing is None
    journal.close()
    with pytest.raises(CommandError, match="There are: only"):
        find("other")


def test_an_unknown_run_is_answered_with_those_that_there_are(find: Any, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No run is there at all"):
        find("vit")
    for name in ("vit-b", "vit-l", "resnet\x1b[31m", *(f"x{i}" for i in range(20))):
        Home(tmp_path / "results" / "logs", name).write()
    with pytest.raises(CommandError) as error:
        find("vitb")
    text = str(error.value)
    assert "no run 'vitb' in " + str(tmp_path / "results" / "logs") in text
    assert "Did you mean 'vit-b'?" in text
    assert "There are: resnet\\x1b[31m, vit-b, vit-l, x0" in text
    assert text.endswith("and 13 more")
    with pytest.raises(CommandError, match="elsewhere"):
        find("vit-b", "elsewhere")
