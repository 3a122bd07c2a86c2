"""The cursor file: whole or not there, whatever bytes are in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep.sidecar.cursor_file import Cursor, load, store

_states = st.none() | st.dictionaries(
    st.text(max_size=5), st.integers(0, 2**40) | st.text(), max_size=3
)


@given(row=st.integers(0, 2**60), total=st.integers(0, 2**60), state=_states)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_what_is_stored_is_loaded(
    tmp_path: Path, row: int, total: int, state: dict[str, object] | None
) -> None:
    path = str(tmp_path / "1.tensorboard")
    store(path, Cursor(row, total, state))
    assert load(path) == Cursor(row, total, state)


def test_no_file_is_the_beginning(tmp_path: Path) -> None:
    assert load(str(tmp_path / "none")) == Cursor()


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "1.tensorboard"
    store(str(path), Cursor(7, 9, {"file": "x", "offset": 3}))
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        assert load(str(path)) == Cursor()
        path.write_bytes(whole[:at])
        assert load(str(path)) == Cursor()


def test_a_crash_before_the_rename_leaves_the_old_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "1.tensorboard")
    store(path, Cursor(1, 1, None))

    def crash(_old: str, _new: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store(path, Cursor(2, 2, None))
    assert load(path) == Cursor(1, 1, None)
