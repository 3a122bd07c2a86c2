"""A real `Trainer` of transformers on the CPU, logging through `SidestepCallback` into a daemon."""

from __future__ import annotations

import runpy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sidestep.client import ConfigurationError
from tests.support.fixtures import Connect
from tests.support.hosts import host, read_hparams, read_texts
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import ROOT, Sandbox

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore"),  # those of transformers, and of what it calls
]


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return host("transformers")


@pytest.fixture
def facade(transformers: ModuleType) -> ModuleType:
    from sidestep.client import transformers as facade

    return facade


def trainer_of(transformers: ModuleType, folder: str, callback: Any) -> Any:
    """A trainer of a linear model, quiet but for the callback."""

    class Config(transformers.PretrainedConfig):  # type: ignore[misc, name-defined]
        model_type = "tiny"
        width = 4

    class Model(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.linear = nn.Linear(config.width, 1)
            self.post_init()

        def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
            y = self.linear(x).squeeze(-1)
            return {"loss": (y - labels).square().mean(), "logits": y}

    arguments = transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.125,
        logging_steps=2,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = [{"x": torch.rand(4), "labels": torch.rand(())} for _ in range(16)]
    made = transformers.Trainer(
        Model(Config()), arguments, train_dataset=data, eval_dataset=data, callbacks=[callback]
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


def test_a_training_and_an_evaluation_after_it(
    sandbox: Sandbox, connect: Connect, transformers: ModuleType, facade: ModuleType
) -> None:
    sandbox.serve()
    callback = facade.SidestepCallback("hf", autostart=False, config={"mine": 7})
    trainer = trainer_of(transformers, str(sandbox.work / "out"), callback)
    trainer.train()
    assert callback.client is None, "a training that is over keeps nothing"
    trainer.evaluate()
    assert callback.client.finish(30)
    sandbox.drain()

    files = sandbox.event_files("hf")
    found = +read_scalars(files)
    logs = trainer.state.log_history
    assert len(logs) == 4 + 2 + 1 + 1
    expected = points(
        (_expected_tag(key), entry["step"], float(value))
        for entry in logs
        for key, value in entry.items()
        if key != "step"
    )
    assert_exactly(found, expected)
    assert {tag for tag, _, _ in found} >= {"train/loss", "train/learning_rate", "eval/loss"}
    (hparams,) = read_hparams(files)
    assert hparams["learning_rate"] == 0.125
    assert hparams["per_device_train_batch_size"] == 4
    texts = read_texts(files)
    assert '"learning_rate": 0.125' in texts["args"]
    assert '"model_type": "tiny"' in texts["model_config"]
    run = sandbox.run_status("hf")
    assert run is not None
    assert run["records"]["rejected"] == run["records"]["dropped"] == 0


def _expected_tag(key: str) -> str:
    return key.replace("eval_", "eval/") if key.startswith("eval_") else f"train/{key}"


@pytest.fixture
def offline(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon, and none is started."""
    monkeypatch.setenv("SIDESTEP_ENDPOINT", "tcp://127.0.0.1:9")


def arguments(**changes: Any) -> Any:
    given = {
        "output_dir": "out",
        "run_name": None,
        "to_sanitized_dict": lambda: {"lr": 0.1},
        "to_json_string": lambda: "{}",
    }
    return SimpleNamespace(**{**given, **changes})


def state(**changes: Any) -> Any:
    given = {
        "is_world_process_zero": True,
        "is_hyper_param_search": False,
        "trial_name": None,
        "global_step": 3,
    }
    return SimpleNamespace(**{**given, **changes})


def test_the_example(
    sandbox: Sandbox, connect: Connect, facade: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.serve()
    monkeypatch.chdir(sandbox.work)
    monkeypatch.setattr(sys, "argv", ["x", "--run", "example"])
    runpy.run_path(str(ROOT / "client/examples/huggingface_trainer.py"), run_name="__main__")
    sandbox.drain()

    found = sorted(read_scalars(sandbox.event_files("example")))
    assert [step for tag, step, _ in found if tag == "train/loss"] == list(range(5, 41, 5))
    assert [step for tag, step, _ in found if tag == "eval/loss"] == [20, 40]


def test_other_ranks_log_nothing(offline: None, facade: ModuleType) -> None:
    callback = facade.SidestepCallback("hf", outbox_bytes=1 << 20)
    other = state(is_world_process_zero=False)
    callback.on_train_begin(arguments(), other, None)
    callback.on_log(arguments(), other, None, logs={"loss": 1.0})
    callback.on_predict(arguments(), other, None, {"test_loss": 1.0})
    callback.on_train_end(arguments(), other, None)
    assert callback.client is None


@pytest.mark.parametrize(
    ("given", "run_name", "expected"),
    [
        ("mine", "theirs", "mine"),
        (None, "theirs", "theirs"),
        (None, "out", None),
        (None, None, None),
    ],
)
def test_the_runs_name(
    offline: None, facade: ModuleType, given: str | None, run_name: str, expected: str | None
) -> None:
    callback = facade.SidestepCallback(given, outbox_bytes=1 << 20)
    told = arguments(run_name=run_name)
    names = []
    for _ in range(2):
        callback.setup(told, state())
        names.append(callback.client.run)
        callback.client.finish(0)
        callback.on_train_end(told, state(), None)
    assert names[0] == names[1], "a generated name is kept"
    assert expected in (None, names[0])
    assert names[0] != "out"


def test_each_trial_of_a_search_is_a_run(offline: None, facade: ModuleType) -> None:
    callback = facade.SidestepCallback("search", outbox_bytes=1 << 20)
    names = []
    for trial in ("run-0", "run-1"):
        told = state(is_hyper_param_search=True, trial_name=trial)
        callback.on_train_begin(arguments(), told, None)
        names.append(callback.client.run)
        callback.client.finish(0)
    assert names == ["search-run-0", "search-run-1"]


def test_what_is_odd_is_counted_and_does_not_raise(offline: None, facade: ModuleType) -> None:
    huge = {str(k): k for k in range(100_000)}
    config = SimpleNamespace(to_dict=lambda: huge, to_json_string=lambda: "x" * (1 << 20))
    callback = facade.SidestepCallback("hf", outbox_bytes=1 << 20, config={"mine": 1})
    callback.on_train_begin(arguments(), state(), None, model=SimpleNamespace(config=config))
    assert callback.client._settings.run.config == {"mine": 1}, "theirs is too much for a message"
    assert callback.client.stats().rejected == 1
    logs = {"loss": 1.0, "note": "words", "bad": object(), "eval_x": torch.tensor(2.0)}
    callback.on_log(arguments(), state(), None, logs=logs)
    callback.on_log(arguments(), state(), None)
    assert callback.client.stats().rejected == 2
    callback.client.finish(0)


def test_wrong_arguments_are_said_when_the_callback_is_made(
    offline: None, facade: ModuleType
) -> None:
    with pytest.raises(ConfigurationError, match="on_full"):
        facade.SidestepCallback(on_full="wait")


def test_without_transformers_the_import_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "sidestep.client.transformers", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sidestep\[transformers\]'"):
        __import__("sidestep.client.transformers")
