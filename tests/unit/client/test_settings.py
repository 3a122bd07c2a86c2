"""Argument before environment before file before default; what is wrong is named."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sidestep.client.config_file import ConfigurationError, logging_block
from sidestep.client.plain import plain_config
from sidestep.client.settings import Settings, generated_name, resolve
from sidestep.proto import Hello, decode, encode

DEFAULTS: dict[str, Any] = {
    "run": None,
    "log_dir": None,
    "config": None,
    "tags": (),
    "tensorboard": None,
    "wandb": None,
    "endpoint": None,
    "autostart": True,
    "rank": None,
    "world_size": None,
    "ranks": "zero",
    "on_full": "drop",
    "outbox_bytes": 64 << 20,
    "strict": None,
}


def settings(environ: dict[str, str] | None = None, **arguments: Any) -> Settings:
    return resolve(environ or {}, **{**DEFAULTS, **arguments})


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "sidestep.yaml"
    path.write_text(
        """
logging:
  experiment_name: "from-file"
  log_dir: "/file/logs"
  log_frequency: 100
  wandb: {enabled: true, project: "file-project", entity: null, tags: ["baseline"]}
  tensorboard: {enabled: false}
sidecar: {}
"""
    )
    return path


# --- precedence --------------------------------------------------------------------------------


def test_defaults() -> None:
    found = settings({"XDG_RUNTIME_DIR": "/run/me", "HOME": "/nowhere"})
    assert found.run.name.count("-") == 3
    assert found.run.log_dir == str(Path("results/logs").absolute())
    assert (found.run.tensorboard, found.run.wandb, found.run.config) == (True, None, {})
    assert found.endpoint == "ipc:///run/me/sidestep/data.sock"
    assert (found.rank, found.world_size, found.attempt) == (0, 1, 0)
    assert (found.strict, found.disabled, found.autostart) == (False, False, True)


@pytest.mark.parametrize(("said", "may"), [("", True), ("1", True), ("0", False), ("no", False)])
def test_the_environment_can_forbid_to_start_a_daemon(said: str, may: bool) -> None:
    assert settings({"SIDESTEP_AUTOSTART": said}).autostart is may
    assert settings({"SIDESTEP_AUTOSTART": said}, autostart=False).autostart is False


def test_argument_before_environment_before_file(config_file: Path) -> None:
    environ = {"SIDESTEP_CONFIG": str(config_file)}
    found = settings(environ)
    assert (found.run.name, found.run.log_dir) == ("from-file", "/file/logs")
    assert found.run.tensorboard is False
    assert found.run.wandb == {"project": "file-project", "tags": ["baseline"]}

    environ |= {
        "SIDESTEP_RUN": "from-environment",
        "SIDESTEP_LOG_DIR": "/environment/logs",
        "SIDESTEP_ENDPOINT": "tcp://localhost:1",
        "RANK": "1",
        "WORLD_SIZE": "4",
        "SIDESTEP_STRICT": "1",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }
    found = settings(environ)
    assert (found.run.name, found.run.log_dir) == ("from-environment", "/environment/logs")
    assert found.endpoint == "tcp://localhost:1"
    assert (found.rank, found.world_size, found.attempt, found.strict) == (1, 4, 2, True)

    found = settings(
        environ,
        run="argument",
        log_dir=Path("/argument/logs"),
        endpoint="ipc:///argument",
        rank=3,
        world_size=8,
        strict=False,
        tensorboard=True,
        wandb={"project": "argument"},
    )
    assert (found.run.name, found.run.log_dir) == ("argument", "/argument/logs")
    assert found.endpoint == "ipc:///argument"
    assert (found.rank, found.world_size, found.strict) == (3, 8, False)
    assert found.run.tensorboard is True
    assert found.run.wandb == {"project": "argument", "tags": ["baseline"]}


def test_empty_means_not_given(config_file: Path) -> None:
    environ = {"SIDESTEP_CONFIG": str(config_file), "SIDESTEP_RUN": "", "RANK": ""}
    assert settings(environ, run="").run.name == "from-file"
    assert settings({"SIDESTEP_CONFIG": ""}).run.tensorboard is True


@pytest.mark.parametrize(
    ("argument", "file_says", "expected"),
    [
        (None, "enabled: false", None),
        (None, "project: p", {"project": "p"}),
        (False, "project: p", None),
        (True, "project: p", {"project": "p"}),
        (True, "enabled: false", {}),
        ({"mode": "offline"}, "project: p", {"project": "p", "mode": "offline"}),
    ],
)
def test_wandb(tmp_path: Path, argument: Any, file_says: str, expected: Any) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"logging: {{wandb: {{{file_says}}}}}")
    assert settings({"SIDESTEP_CONFIG": str(path)}, wandb=argument).run.wandb == expected


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (False, False),
        ({}, True),
        ({"folder": None, "suffix": ""}, True),
        ({"folder": "."}, {"folder": "."}),
        ({"suffix": ".eval"}, {"suffix": ".eval"}),
    ],
)
def test_tensorboard(argument: Any, expected: Any) -> None:
    assert settings(tensorboard=argument).run.tensorboard == expected


@pytest.mark.parametrize("text", ["", "{}", "logging:", "sidecar: {a: 1}", "logging: {wandb: }"])
def test_a_file_that_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    found = settings({"SIDESTEP_CONFIG": str(path)})
    assert (found.run.tensorboard, found.run.wandb) == (True, None)


@pytest.mark.parametrize(
    ("value", "on"),
    [("1", True), ("true", True), ("Yes", True), ("0", False), ("false", False), ("off", False)]
    + [("", False), (" no ", False)],
)
def test_switches_of_the_environment(value: str, on: bool) -> None:
    found = settings({"SIDESTEP_DISABLED": value, "SIDESTEP_STRICT": value})
    assert (found.disabled, found.strict) == (on, on)


# --- what is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": 5}, "run must be a str, not int"),
        ({"run": " "}, "run must be a name of 1 to 1024 bytes"),
        ({"run": "é" * 513}, "run must be a name of 1 to 1024 bytes"),
        ({"run": "\ud800"}, "run must be valid Unicode text"),
        ({"log_dir": 5}, "log_dir must be a str, not int"),
        ({"log_dir": b"logs"}, "log_dir must be a str, not bytes"),
        ({"log_dir": "a\0b"}, "log_dir must not hold a NUL"),
        ({"log_dir": "s3://runs/a"}, "start the daemon with SIDESTEP_MIRROR=s3://runs/a"),
        ({"config": [1]}, r"config must be a mapping such as vars\(args\), not list"),
        ({"config": {"a": "x" * 300_000}}, "config, tags or wandb are too much for a message"),
        ({"config": {"a": list(range(9000))}}, "config, tags or wandb are too much"),
        ({"tags": "baseline"}, "tags must be a list of str"),
        ({"tags": 5}, "tags must be a list of str"),
        ({"tags": [5]}, "a tag must be a str, not int"),
        ({"tags": tuple(map(str, range(2000)))}, "config, tags or wandb are too much"),
        ({"tensorboard": "no"}, "tensorboard must be True, False or a mapping"),
        ({"tensorboard": {"sufix": "x"}}, "unknown key 'sufix'; did you mean 'suffix'"),
        ({"tensorboard": {"folder": "runs"}}, "folder is None .* or '.' .*, not 'runs'"),
        ({"tensorboard": {"suffix": 5}}, "suffix must be a str, not int"),
        ({"tensorboard": {"suffix": "a/b"}}, "at most 100 bytes without '/', not 'a/b'"),
        ({"tensorboard": {"suffix": "é" * 51}}, "at most 100 bytes"),
        ({"autostart": None}, "autostart must be True or False, not None"),
        ({"strict": 1}, "strict must be True or False, not 1"),
        ({"wandb": "offline"}, "wandb must be None, True, False or a mapping"),
        ({"wandb": {"projct": "x"}}, "wandb: unknown key 'projct'; did you mean 'project'"),
        ({"wandb": {"mode": "offline", "dir": "x"}}, "wandb: unknown key 'dir'"),
        ({"endpoint": "localhost:5"}, "endpoint must be ipc://PATH, of at most 107 bytes, or tcp"),
        ({"endpoint": "tcp://localhost"}, "endpoint must be"),
        ({"endpoint": "tcp://:5"}, "endpoint must be"),
        ({"endpoint": "tcp://host:0"}, "endpoint must be"),
        ({"endpoint": "tcp://host:65536"}, "endpoint must be"),
        ({"endpoint": "ipc://"}, "endpoint must be"),
        ({"endpoint": "ipc://" + "x" * 108}, "endpoint must be"),
        ({"endpoint": 7}, "endpoint must be a str, not int"),
        ({"rank": -1}, "rank must be an int of 0 or more, not -1"),
        ({"rank": True}, "rank must be an int of 0 or more, not True"),
        ({"rank": 1.0}, "rank must be an int"),
        ({"rank": 2, "world_size": 2}, "rank 2 of a world of 2: ranks begin at 0"),
        ({"world_size": 0}, "world_size must be an int of 1 or more"),
        ({"world_size": 1 << 40}, "world_size must be an int up to 131072, not 1099511627776"),
        ({"ranks": "some"}, "ranks must be one of zero, all, not 'some'"),
        ({"on_full": "wait"}, "on_full must be one of drop, block, not 'wait'"),
        ({"outbox_bytes": 1000}, "outbox_bytes must be an int from 262144 on, not 1000"),
        ({"outbox_bytes": 1 << 50}, "outbox_bytes must be"),
        ({"outbox_bytes": "64MiB"}, "outbox_bytes must be"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_wrong_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(**arguments)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "one"}, "the environment's rank must be an integer: 'one'"),
        ({"RANK": "--1"}, "the environment's rank must be an integer"),
        ({"RANK": "²"}, "the environment's rank must be an integer"),
        ({"RANK": "-1"}, "rank must be an int of 0 or more, not -1"),
        ({"RANK": "1"}, "set both rank and world_size, or both RANK and WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "world_size must be an int of 1 or more"),
        ({"SIDESTEP_RUN": "x" * 1025}, "run must be a name of 1 to 1024 bytes"),
        ({"SIDESTEP_ENDPOINT": "nonsense"}, "endpoint must be ipc://PATH"),
        ({"SIDESTEP_CONFIG": "/not/there"}, "cannot read SIDESTEP_CONFIG '/not/there'"),
        ({"SIDESTEP_RUNTIME_DIR": "/" + "x" * 120}, "Set SIDESTEP_RUNTIME_DIR to a shorter path"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_wrong_environment(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logging: {experiment: x}", "logging: unknown key 'experiment'; did you mean 'experim"),
        ("logging: {logdir: x}", "did you mean 'log_dir'"),
        ("logging: {wandb: {projct: x}}", "logging.wandb: unknown key 'projct'; did you mean 'pro"),
        ("logging: {tensorboard: {on: true}}", "logging.tensorboard: unknown key"),
        ("logging: {'': x}", "unknown key ''"),
        ("logging: {5: x}", "unknown key 5"),
        ("loging: {}", "unknown key 'loging'; did you mean 'logging'"),
        ("logging: [1]", "logging must be a mapping of experiment_name"),
        ("logging: {wandb: true}", "logging.wandb must be a mapping of enabled"),
        ("logging: {tensorboard: true}", "logging.tensorboard must be a mapping of enabled"),
        ("logging: {tensorboard: {enabled: 1}}", "enabled must be true or false, not 1"),
        ("logging: {wandb: {enabled: 'no'}}", "enabled must be true or false, not 'no'"),
        ("logging: {experiment_name: 5}", "run must be a str, not int"),
        ("logging: {log_dir: [1]}", "log_dir must be a str, not list"),
        ("- a list", "must be a mapping of logging, sidecar"),
        ("just text", "must be a mapping of logging, sidecar"),
        ("{", "cannot read SIDESTEP_CONFIG"),
        ("a: !!python/object:os.system x", "cannot read SIDESTEP_CONFIG"),
        ("\x00", "cannot read SIDESTEP_CONFIG"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        settings({"SIDESTEP_CONFIG": str(path)})


def test_a_mapping_is_read_like_a_file() -> None:
    block = logging_block({"experiment_name": "x", "wandb": {"enabled": False}})
    assert (block.experiment_name, block.log_dir, block.tensorboard) == ("x", None, None)
    assert block.wandb is None


# --- configurations ----------------------------------------------------------------------------


class Odd:
    def __str__(self) -> str:
        raise RuntimeError


def test_a_configuration_travels_in_plain_types() -> None:
    circle: list[Any] = []
    circle.append(circle)
    found = plain_config(
        {
            "lr": np.float32(0.5),
            "steps": np.int64(3),
            "flag": np.bool_(True),
            "array": np.zeros(2),
            "zero-d": np.array(7),
            "path": Path("/x"),
            "huge": 2**70,
            "text": "a\ud800b",
            "odd": Odd(),
            3: (1, {2}, frozenset({"x"})),
            "nested": {"a": {"b": [None, True, b"raw"]}},
            "circle": circle,
        }
    )
    assert found["lr"] == 0.5
    assert (found["steps"], found["flag"], found["zero-d"]) == (3, True, 7)
    assert (found["array"], found["path"], found["huge"]) == ("[0. 0.]", "/x", str(2**70))
    assert (found["text"], found["odd"], found["3"]) == ("a?b", "<Odd>", [1, [2], ["x"]])
    assert found["nested"] == {"a": {"b": [None, True, b"raw"]}}
    found.pop("circle")
    hello = Hello(bytes(16), 0, 0, settings(config=found).run)
    decoded = decode(encode(hello))
    assert isinstance(decoded, Hello)
    assert decoded.run.config == found


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
configs = st.dictionaries(
    st.text() | st.integers(),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    ),
    max_size=5,
)


@given(configs)
def test_any_configuration_can_be_told(config: dict[Any, Any]) -> None:
    spec = settings(config=config).run
    decoded = decode(encode(Hello(bytes(16), 0, 0, spec)))
    assert isinstance(decoded, Hello)
    assert decoded.run == spec


def test_generated_names_are_readable() -> None:
    name = generated_name(0.0, random.Random(1))
    assert set(name) <= set(string.ascii_lowercase + string.digits + "-")
    assert name == generated_name(0.0, random.Random(1))
