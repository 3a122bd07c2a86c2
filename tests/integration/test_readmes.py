"""What the READMEs show works: every Python block runs, every command of ours could be typed.

All blocks run in this process against one daemon, each with the names of `readme_stage.names`, and
all that they emit is in the journal and refused by nobody in the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidestep import client
from sidestep.client.config_file import ConfigurationError
from sidestep.client.connect_arguments import settled
from sidestep.client.emitter import Client
from sidestep.sidecar import config
from tests.support import readme_commands, readme_stage
from tests.support.readme_blocks import SHELL, blocks, name_of, python_blocks, readmes
from tests.support.sandbox import ROOT, Sandbox

pytestmark = pytest.mark.timeout(120)

PYTHON = [
    pytest.param(path, index, id=f"{name_of(path)}:{example.line}")
    for path in readmes()
    for index, example in enumerate(python_blocks(path))
]
SCRIPTS = [
    pytest.param(text, id=f"{name_of(path)}:{line}")
    for path in readmes()
    for line, text in blocks(path, *SHELL)
]
YAML = [
    pytest.param(text, id=f"{name_of(path)}:{line}")
    for path in readmes()
    for line, text in blocks(path, "yaml")
]


@pytest.fixture(scope="module")
def node() -> Iterator[Sandbox]:
    """A node whose daemon the READMEs' trainers find."""
    with Sandbox() as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.variables().items():
            patch.setenv(name, value)
        for name in ("SIDESTEP_RUN", "SIDESTEP_CONFIG", "SIDESTEP_ENDPOINT", "RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        patch.setenv("SIDESTEP_STRICT", "1")  # what is refused says so in the block's traceback
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(made.work)
        made.serve(WANDB_MODE="offline")
        yield made


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Client]]:
    """Every client that is made."""
    made: list[Client] = []
    begin = Client.__init__

    def recorded(self: Client, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        made.append(self)

    monkeypatch.setattr(Client, "__init__", recorded)
    yield made
    for one in made:
        one.finish(0)


@pytest.mark.parametrize(("path", "index"), PYTHON)
def test_a_python_block_runs(path: Path, index: int, node: Sandbox, clients: list[Client]) -> None:
    example = python_blocks(path)[index]
    example.namespace.update(readme_stage.names(str(node.logs), node.paths.data_endpoint))
    if readme_stage.wants_run(str(example.parsed)):
        example.namespace["run"] = client.connect(f"{path.parent.name}-{index}")

    example.evaluate()

    for one in clients:
        assert one.finish(30), "not all of it became durable"
        now = one.stats()
        assert now.emitted == now.acked, now
        assert (now.rejected, now.dropped) == (0, 0), now


def test_all_that_the_blocks_emitted_is_written(node: Sandbox) -> None:
    node.drain()
    seen = node.status()
    assert seen["runs"], "no block has emitted anything"
    for run in seen["runs"]:
        assert run["records"]["rejected"] == run["records"]["dropped"] == 0, run
        assert [sink for sink in run["sinks"] if sink["error"]] == []
    skipped = [line for line in node.said().splitlines() if "skipped" in line]
    assert skipped == []


def documented() -> dict[str, Callable[..., Any]]:
    """What `client/README.md` owes an example of: calls and values, by how they are written."""
    found = [getattr(client, name) for name in client.__all__]
    kinds = {o.__name__: o for o in found if isinstance(o, type) and issubclass(o, client.Value)}
    kinds.pop("Value")
    calls = {name: getattr(client, name) for name in client.__all__ if name.islower()}
    for name in ("emit", "flush", "finish", "stats", "on_alarm"):
        calls[name] = getattr(client, name)
    further = (client.Histogram.from_counts, client.PRCurve.from_counts)
    return {**calls, **kinds, **{one.__qualname__: one for one in further}}


@pytest.mark.parametrize("name", sorted(documented()))
def test_each_argument_has_an_example(name: str) -> None:
    blocks_ = python_blocks(ROOT / "client/README.md")
    calls = [call for block in blocks_ for call in readme_stage.calls(str(block.parsed))]
    mine = [call for call in calls if call[0].split(".", 1)[-1] == name]
    parameters = list(inspect.signature(documented()[name]).parameters)
    shown = {word for _, _, keywords in mine for word in keywords}
    shown.update(parameters[: max((count for _, count, _ in mine), default=0)])
    assert mine, f"{name} has no example"
    assert set(parameters) - {"verbose"} <= shown


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_of_a_shell_block_exist(script: str) -> None:
    readme_commands.check_syntax(script)
    for words in readme_commands.shell_commands(script):
        readme_commands.check(words)


@pytest.mark.parametrize("path", readmes(), ids=name_of)
def test_the_commands_in_a_sentence_exist(path: Path) -> None:
    for words in readme_commands.inline_commands(path.read_text()):
        assert readme_commands.check(words, whole=False)


@pytest.mark.parametrize("text", YAML)
def test_a_configuration_is_taken(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = yaml.safe_load(text)
    if not isinstance(whole, dict) or not whole.keys() & {"logging", "sidecar"}:
        return  # another program's
    file = tmp_path / "sidestep.yaml"
    file.write_text(text)
    config.load(str(file), {})
    monkeypatch.setenv("SIDESTEP_CONFIG", str(file))
    settled(None, {})


@pytest.mark.parametrize(
    "wrong",
    [
        "sidestep tial",
        "sidestep tail --colour",
        "sidestep drain --timeout soon",
        "make demonstrate",
        "make chaos HOURS=3",
        ".venv/bin/python client/examples/nothing.py",
        ".venv/bin/python client/examples/digits_jepa.py --fall",
        "pip install 'sidestep[everything]'",
    ],
)
def test_a_command_that_does_not_exist_is_found(wrong: str) -> None:
    (words,) = readme_commands.shell_commands(wrong)
    with pytest.raises(AssertionError):
        readme_commands.check(words)


def test_a_configuration_with_a_wrong_key_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text("sidecar: {histroy_mb: 3}\n")
    with pytest.raises(config.ConfigurationError, match="history_mb"):
        config.load(str(file), {})
    file.write_text("logging: {log_dri: x}\n")
    monkeypatch.setenv("SIDESTEP_CONFIG", str(file))
    with pytest.raises(ConfigurationError, match="log_dir"):
        settled(None, {})
