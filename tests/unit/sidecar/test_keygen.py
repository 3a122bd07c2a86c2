"""Keys: made whole or not at all, never overwritten, and refused where others can get at them."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sidestep.client.config_file import ConfigurationError
from sidestep.client.keys import for_endpoint
from sidestep.proto.addresses import is_loopback, tcp_host
from sidestep.proto.keys import CLIENTS, PUBLIC, SECRET, KeysError, key_text, parse_key
from sidestep.sidecar.cli.app import app
from sidestep.sidecar.peers.key_files import add_client, make_folder
from sidestep.sidecar.peers.keys import AllowList, load, read_key

FAR = "tcp://192.0.2.7:5790"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    make_folder(str(made))
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_their_modes(folder: Path) -> None:
    umask = os.umask(0)
    try:
        add_client(str(folder), "gpu-7.b")
    finally:
        os.umask(umask)
    found = {str(path.relative_to(folder)): mode(path) for path in folder.rglob("*")}
    assert found == {
        "daemon.secret": 0o600,
        "daemon.public": 0o644,
        "client.secret": 0o600,
        "clients": 0o700,
        "clients/client.public": 0o644,
        "clients/gpu-7.b.public": 0o644,
        "trainers": 0o700,
        "trainers/gpu-7.b": 0o700,
        "trainers/gpu-7.b/client.secret": 0o600,
        "trainers/gpu-7.b/daemon.public": 0o644,
    }
    assert mode(folder) == 0o700
    secrets = {path.read_text() for path in folder.rglob("*.secret")}
    assert len(secrets) == 3


def test_the_command_says_what_to_do_and_shows_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    run = CliRunner().invoke
    made = run(app, ["keygen", str(keys)])
    added = run(app, ["keygen", str(keys), "--client", "gpu7"])
    assert (made.exit_code, added.exit_code) == (0, 0)
    assert "SIDESTEP_KEYS" in made.output
    assert f"{keys}/trainers/gpu7" in added.output
    for path in keys.rglob("*.secret"):
        assert path.read_text().split()[-1] not in made.output + added.output


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(KeysError, match="is there already"):
        make_folder(str(folder))
    with pytest.raises(KeysError, match="is there already"):
        add_client(str(folder), "client")
    add_client(str(folder), "a")
    (folder / CLIENTS / "a.public").unlink()
    with pytest.raises(KeysError, match="is there already"):
        add_client(str(folder), "a")  # its secret key is still here
    for name in ("", "../x", "a/b", ".hidden", "x" * 65, "a\n"):
        with pytest.raises(KeysError, match="a client's name has"):
            add_client(str(folder), name)
    assert all(path.read_bytes() == data for path, data in before.items())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in ("file", "link"):
        with pytest.raises(KeysError):
            make_folder(str(tmp_path / taken))
    assert (tmp_path / "file").read_text() == "mine"
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(KeysError, match=r"daemon\.public"):
        add_client(str(tmp_path / "nowhere"), "a")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    make_folder(str(tmp_path / "keys"))
    assert mode(tmp_path / "keys") == 0o700


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602])
def test_a_secret_that_others_can_touch_is_refused(folder: Path, bits: int) -> None:
    for name in ("daemon.secret", "client.secret"):
        (folder / name).chmod(bits)
    with pytest.raises(KeysError, match=f"chmod 600 {folder}/daemon.secret"):
        load(str(folder))
    with pytest.raises(ConfigurationError, match=f"chmod 600 {folder}/client.secret"):
        for_endpoint(FAR, str(folder))


@pytest.mark.parametrize("inner", [".", CLIENTS])
def test_a_folder_that_others_can_write_is_refused(folder: Path, inner: str) -> None:
    (folder / inner).chmod(0o770)
    with pytest.raises(KeysError, match="chmod go-w"):
        load(str(folder))


@pytest.mark.parametrize(
    "text",
    ["", "hello", f"{SECRET} 00", f"{SECRET} {'00' * 33}", f"{SECRET} {'0g' * 32}", "\0" * 5000]
    + [f"{SECRET} {'00' * 32}\n{SECRET} {'01' * 32}", key_text(PUBLIC, bytes(32), "public")],
    ids=range(8),
)
def test_what_is_no_key_is_refused_without_repeating_it(folder: Path, text: str) -> None:
    for name in ("daemon.secret", "client.secret"):
        (folder / name).write_text(text)
    with pytest.raises(KeysError, match=r"daemon\.secret holds") as daemons:
        load(str(folder))
    with pytest.raises(ConfigurationError, match=r"client\.secret holds") as clients:
        for_endpoint(FAR, str(folder))
    assert not text or text[-20:] not in str(daemons.value) + str(clients.value)


def test_a_key_is_read_as_it_was_written() -> None:
    key = bytes(range(32))
    assert parse_key(key_text(SECRET, key, "a comment"), SECRET, "x") == key


def test_a_missing_file_or_folder_is_named(folder: Path) -> None:
    for name in ("daemon.public", "client.secret"):
        hidden = (folder / name).rename(folder / "hidden")
        with pytest.raises(ConfigurationError, match=f"{name}: No such file"):
            for_endpoint(FAR, str(folder))
        hidden.rename(folder / name)
    with pytest.raises(ConfigurationError, match="sidestep keygen DIR"):
        for_endpoint(FAR, str(folder / "nowhere"))
    with pytest.raises(KeysError, match="sidestep keygen DIR"):
        load(str(folder / "nowhere"))
    (folder / "client.secret").unlink()
    os.mkfifo(folder / "client.secret", 0o600)
    with pytest.raises(ConfigurationError, match="no regular file"):
        for_endpoint(FAR, str(folder))


def test_who_needs_keys() -> None:
    assert for_endpoint("ipc:///tmp/x", "/nowhere") is None
    assert for_endpoint("tcp://127.0.0.1:1", None) is None
    with pytest.raises(ConfigurationError, match="TCP does that with keys alone"):
        for_endpoint(FAR, None)
    with pytest.raises(ConfigurationError, match="keys must be the path of a folder, not int"):
        for_endpoint(FAR, 5)


def test_a_secret_is_in_no_repr(folder: Path) -> None:
    client, daemon = for_endpoint(FAR, str(folder)), load(str(folder))
    assert client is not None
    assert repr(client.secret) not in repr(client)
    assert repr(daemon.secret) not in repr(daemon)


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.8.9.10:1", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://0.0.0.0:1", False),
        ("tcp://*:1", False),
        ("tcp://[::]:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://127.0.0.1.example.org:1", False),
        ("tcp://localhost.example.org:1", False),
    ],
)
def test_what_is_loopback(endpoint: str, loopback: bool) -> None:
    assert is_loopback(endpoint) is loopback
    assert tcp_host("tcp://[::1]:1") == "::1"


def test_the_list_follows_its_folder(folder: Path) -> None:
    said: list[str] = []
    listed = AllowList(str(folder / CLIENTS), said.append)
    assert set(listed.names().values()) == {"client"}
    add_client(str(folder), "b")
    key = read_key(str(folder / CLIENTS / "b.public"), PUBLIC)
    assert listed.names()[key] == "b"
    # A secret key by mistake, and what is no key at all: left out, and said once.
    shutil.copy(folder / "client.secret", folder / CLIENTS / "oops.public")
    os.mkfifo(folder / CLIENTS / "pipe.public")  # nobody may wait for it
    (folder / CLIENTS / "folder.public").mkdir()
    (folder / CLIENTS / "notes.txt").write_text("x")
    for _ in range(3):
        os.utime(folder / CLIENTS)
        assert set(listed.names().values()) == {"client", "b"}
    assert len(said) == 3
    assert "Is a directory" in said[0]
    assert "holds a secret key where a public one belongs" in said[1]
    assert "is no regular file" in said[2]
    (folder / CLIENTS / "b.public").unlink()
    assert key not in listed.names()
    (folder / CLIENTS).rename(folder / "away")
    assert listed.names() == {}
    (folder / "away").rename(folder / CLIENTS)
    assert set(listed.names().values()) == {"client"}
    (folder / CLIENTS).chmod(0o777)
    os.utime(folder / CLIENTS)
    assert listed.names() == {}, "anybody could have listed anybody"
