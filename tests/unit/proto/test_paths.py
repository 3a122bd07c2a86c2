"""Where a daemon and its clients meet: who decides, and what happens when it is too long."""

from __future__ import annotations

import itertools
import os
import re

import pytest

from sidestep.proto import SidestepError
from sidestep.proto.paths import (
    MAX_SOCKET_PATH_BYTES,
    RuntimePaths,
    outbox_dirs,
    runtime_paths,
    state_dir,
)

ENDPOINTS = ("data_endpoint", "control_endpoint", "feed_endpoint")


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"SIDESTEP_RUNTIME_DIR": "/r", "XDG_RUNTIME_DIR": "/x"}, "/r"),
        ({"SIDESTEP_RUNTIME_DIR": "", "XDG_RUNTIME_DIR": "/x"}, "/x/sidestep"),
        ({"XDG_RUNTIME_DIR": "/x"}, "/x/sidestep"),
        ({"XDG_RUNTIME_DIR": ""}, "/t/sidestep-7"),
        ({"XDG_RUNTIME_DIR": "x"}, "/t/sidestep-7"),
        ({}, "/t/sidestep-7"),
    ],
    ids=str,
)
def test_the_runtime_directory_comes_from_the_first_that_says_it(
    environ: dict[str, str], directory: str
) -> None:
    assert runtime_paths(environ, 7, "/t") == RuntimePaths(directory)


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"SIDESTEP_STATE_DIR": "/s", "XDG_STATE_HOME": "/x"}, "/s"),
        ({"SIDESTEP_STATE_DIR": "", "XDG_STATE_HOME": "/x"}, "/x/sidestep"),
        ({"XDG_STATE_HOME": ""}, "/home/me/.local/state/sidestep"),
        ({"XDG_STATE_HOME": "x"}, "/home/me/.local/state/sidestep"),
        ({}, "/home/me/.local/state/sidestep"),
    ],
    ids=str,
)
def test_the_state_directory_comes_from_the_first_that_says_it(
    environ: dict[str, str], directory: str
) -> None:
    assert state_dir(environ, "/home/me") == directory


def test_relative_directories_are_made_absolute() -> None:
    """A daemon and its clients need not have the same working directory later on."""
    here = os.getcwd()
    assert runtime_paths({"SIDESTEP_RUNTIME_DIR": "r"}, 7, "/t").directory == f"{here}/r"
    assert state_dir({"SIDESTEP_STATE_DIR": "s"}, "/home/me") == f"{here}/s"


def test_the_longest_directory_that_the_kernel_takes() -> None:
    assert MAX_SOCKET_PATH_BYTES == 107
    longest = "/" + "x" * (MAX_SOCKET_PATH_BYTES - len("//data.sock"))
    paths = runtime_paths({"SIDESTEP_RUNTIME_DIR": longest}, 7, "/t")
    lengths = {len(getattr(paths, name).removeprefix("ipc://")) for name in ENDPOINTS}
    assert max(lengths) == MAX_SOCKET_PATH_BYTES
    with pytest.raises(SidestepError, match=f"{MAX_SOCKET_PATH_BYTES + 1} bytes"):
        runtime_paths({"SIDESTEP_RUNTIME_DIR": longest + "x"}, 7, "/t")


def test_the_length_is_counted_in_bytes() -> None:
    with pytest.raises(SidestepError):
        runtime_paths({"SIDESTEP_RUNTIME_DIR": "/" + "é" * 60}, 7, "/t")


@pytest.mark.parametrize("temp_dir", ["/t", "/" + "t" * 200])
@pytest.mark.parametrize("variable", ["SIDESTEP_RUNTIME_DIR", "XDG_RUNTIME_DIR", "neither"])
def test_the_error_says_how_long_it_is_and_names_a_path_that_works(
    variable: str, temp_dir: str
) -> None:
    environ = {variable: "/" + "x" * 200}
    if variable == "neither" and len(temp_dir) < 100:
        assert runtime_paths(environ, 7, temp_dir).directory == "/t/sidestep-7"
        return
    with pytest.raises(SidestepError, match="SIDESTEP_RUNTIME_DIR") as caught:
        runtime_paths(environ, 7, temp_dir)
    assert str(MAX_SOCKET_PATH_BYTES) in str(caught.value)
    named = re.search(r"for example '(.+)'", str(caught.value))
    assert named
    assert runtime_paths({"SIDESTEP_RUNTIME_DIR": named[1]}, 7, temp_dir).directory == named[1]


def test_no_two_names_are_the_same() -> None:
    paths = RuntimePaths("/r")
    names = [name for name, value in vars(RuntimePaths).items() if isinstance(value, property)]
    values = [getattr(paths, name) for name in names]
    assert len(set(values)) == len(values) > 5
    assert all("/r/" in value for value in values)


def test_outboxes_of_different_daemons_and_users_do_not_mix() -> None:
    one = outbox_dirs(RuntimePaths("/r"), "/state", 7)
    assert one == outbox_dirs(RuntimePaths("/r"), "/state", 7)
    assert one[0] == "/r/outboxes"
    assert one[1].startswith("/dev/shm/sidestep-7/")
    assert one[2] == "/state/outboxes"
    others = [
        outbox_dirs(RuntimePaths("/q"), "/state2", 7),
        outbox_dirs(RuntimePaths("/r2"), "/state3", 8, "/shm"),
    ]
    for a, b in itertools.combinations([one, *others], 2):
        assert not set(a) & set(b)
