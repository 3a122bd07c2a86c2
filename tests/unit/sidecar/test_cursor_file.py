"""The cursor file: whole or not there, whatever bytes are in it."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep.sidecar.supervision.cursor_file import Cursor, file_name, load, store

_states = st.none() | st.dictionaries(
    st.text(max_size=5), st.integers(0, 2**40) | st.text(), max_size=3
)


@given(row=st.integers(0, 2**60), total=st.integers(0, 2**60), state=_states)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_what_is_stored_is_loaded(
    tmp_path: Path, row: int, total: int, state: dict[str, object] | None
) -> None:
    path = str(tmp_path / "1.tensorboard")
    store(path, Cursor(row, total, state, 77))
    assert load(path, 77) == Cursor(row, total, state, 77)


def test_in_another_journal_only_the_sinks_own_state_means_anything(tmp_path: Path) -> None:
    path = str(tmp_path / "1.tensorboard")
    store(path, Cursor(7, 9, {"file": "x"}, 77))
    assert load(path, 78) == Cursor(0, 0, {"file": "x"}, 78)


def test_each_sink_of_each_run_has_a_file_of_its_own() -> None:
    names = [file_name(run, logs, s) for run in "ab" for logs in "cd" for s in ("x", "y")]
    assert len(set(names)) == 8


def test_no_file_is_the_beginning(tmp_path: Path) -> None:
    assert load(str(tmp_path / "none"), 77) == Cursor(journal=77)


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "1.tensorboard"
    store(str(path), Cursor(7, 9, {"file": "x", "offset": 3}, 77))
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        assert load(str(path), 77) == Cursor(journal=77)
        path.write_bytes(whole[:at])
        assert load(str(path), 77) == Cursor(journal=77)


def test_a_crash_before_the_rename_leaves_the_old_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "1.tensorboard")
    store(path, Cursor(1, 1, None, 77))

    def crash(_old: str, _new: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store(path, Cursor(2, 2, None, 77))
    assert load(path, 77) == Cursor(1, 1, None, 77)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {"state": None, "journal": 77},
        {"row": -1, "total": 0, "state": None, "journal": 77},
        {"row": "7", "total": 0, "state": None, "journal": 77},
        {"row": 1 << 63, "total": 0, "state": None, "journal": 77},
        {"row": 7, "total": 0, "state": "text", "journal": 77},
    ],
    ids=str,
)
def test_a_whole_cursor_of_another_form_is_none_or_the_beginning(
    tmp_path: Path, fields: object
) -> None:
    path = tmp_path / "1.tensorboard"
    data: bytes = msgpack.packb(fields)
    path.write_bytes(zlib.crc32(data).to_bytes(4, "little") + data)
    assert load(str(path), 77) == Cursor(journal=77)
