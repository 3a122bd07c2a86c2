"""A real Lightning `Trainer` on the CPU, logging through `SidestepLogger` into a real daemon."""

from __future__ import annotations

import pickle
import runpy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sidestep import client
from sidestep.client import ConfigurationError
from tests.support.fixtures import Connect
from tests.support.hosts import host, read_hparams
from tests.support.oracle import assert_exactly, points, read_scalars, read_values
from tests.support.sandbox import ROOT, Sandbox

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore"),  # Lightning's own, and those of what it calls
]


@pytest.fixture(scope="module")
def lightning() -> ModuleType:
    return host("lightning.pytorch")


@pytest.fixture
def facade(lightning: ModuleType) -> ModuleType:
    from sidestep.client import lightning as facade

    return facade


def module_of(lightning: ModuleType) -> Any:
    """A module that writes down what it logs."""

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, lr: float = 0.1, dims: tuple[int, ...] = (4, 2)) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.linear = nn.Linear(4, 1)
            self.example_input_array = torch.ones(1, 4)
            self.losses: list[float] = []

        def forward(self, x: torch.Tensor) -> Any:
            return self.linear(x)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self(batch).square().mean()
            self.log("train/loss", loss)
            self.losses.append(loss.item())
            if self.global_step == 2:
                self.logger.experiment.emit({"mine": client.Histogram(batch)}, 2)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val/loss", 0.25)

        def test_step(self, batch: Any, index: int) -> None:
            self.log("test/loss", 0.125)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()


def test_a_fit_and_a_test(
    sandbox: Sandbox, connect: Connect, lightning: ModuleType, facade: ModuleType
) -> None:
    sandbox.serve()
    logger = facade.SidestepLogger("lit", log_graph=True, autostart=False)
    trainer = lightning.Trainer(
        max_epochs=2,
        logger=logger,
        accelerator="cpu",
        log_every_n_steps=2,
        default_root_dir=sandbox.work,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = module_of(lightning)
    data = torch.utils.data.DataLoader(torch.rand(16, 4), batch_size=4)
    trainer.fit(module, data, data)
    assert logger._client is None, "a fit that is over keeps nothing"
    trainer.test(module, data, verbose=False)
    sandbox.drain()

    files = sandbox.event_files("lit")
    found = +read_scalars(files)
    expected = points(
        [
            *(("train/loss", step, module.losses[step]) for step in (1, 3, 5, 7)),
            *(("epoch", step, float(step // 4)) for step in (1, 3, 5, 7)),
            *(
                row
                for step in (3, 7)
                for row in [("val/loss", step, 0.25), ("epoch", step, step // 4)]
            ),
            ("test/loss", 8, 0.125),
            ("epoch", 8, 2.0),
        ]
    )
    assert_exactly(found, expected)
    assert read_hparams(files) == [{"lr": 0.1, "dims": "[4, 2]"}]
    assert {v.tag for _, _, v in read_values(files)} >= {"mine"}
    run = sandbox.run_status("lit")
    assert run is not None
    assert run["records"]["rejected"] == run["records"]["dropped"] == 0
    assert trainer.checkpoint_callback.best_model_path.startswith(
        f"{sandbox.logs}/lit/checkpoints/"
    )
    assert (logger.log_dir, logger.version) == (str(files[0].parent), "")


@pytest.fixture
def offline(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon, and none is started."""
    monkeypatch.setenv("SIDESTEP_ENDPOINT", "tcp://127.0.0.1:9")


def test_the_example(
    sandbox: Sandbox, connect: Connect, facade: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.serve()
    monkeypatch.chdir(sandbox.work)
    monkeypatch.setattr(sys, "argv", ["x", "--run", "example", "--epochs", "2"])
    runpy.run_path(str(ROOT / "client/examples/lightning_trainer.py"), run_name="__main__")
    sandbox.drain()

    steps: dict[str, list[int]] = {}
    for tag, step, _ in sorted(read_scalars(sandbox.event_files("example"))):
        steps.setdefault(tag, []).append(step)
    assert steps["train/loss"] == list(range(3, 32, 4))
    assert steps["val/loss"] == [15, 31]
    assert steps["train/code_std"] == [0, 16]


def test_other_ranks_log_nothing(
    offline: None, facade: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade.rank_zero_only, "rank", 1)
    logger = facade.SidestepLogger("lit")
    logger.experiment.emit({"a": 1.0})
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    assert logger._client is None


def test_rank_zero_connects_as_such_whatever_the_environment_says(
    offline: None, facade: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    logger = facade.SidestepLogger("lit", outbox_bytes=1 << 20)
    settings = logger.experiment._settings
    assert (settings.rank, settings.world_size) == (0, 1), "nobody waits for the others"
    logger.experiment.finish(0)


def test_what_is_odd_is_counted_and_does_not_raise(offline: None, facade: ModuleType) -> None:
    logger = facade.SidestepLogger("lit", prefix="p/", outbox_bytes=1 << 20)
    logger.log_metrics({"a": 1.0, "b": {"c": 2.0, "d": "x"}, "e": None}, 1)
    logger.log_hyperparams(SimpleNamespace(), None)
    logger.log_hyperparams({"f": object(), "g": float("nan"), "h": {}}, 0.5)
    logger.log_hyperparams({"f": 1}, {"m": "no number"})
    logger.log_graph(nn.Linear(1, 1))
    logger.save()
    stats = logger.experiment.stats()
    assert stats.rejected == 4
    assert stats.emitted == 2
    logger.experiment.finish(0)


def test_a_logger_travels_to_other_processes_without_its_client(
    offline: None, facade: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = facade.SidestepLogger(outbox_bytes=1 << 20)
    first = logger.experiment
    assert first.run == logger.name, "a generated name is known before, and kept"
    assert logger.experiment is first
    copy = pickle.loads(pickle.dumps(logger))
    assert (copy.name, copy.save_dir, copy._client) == (logger.name, logger.save_dir, None)
    logger._pid -= 1  # as in a fork
    second = logger.experiment
    assert second is not first
    for one in (first, second):
        one.finish(0)


def test_wrong_arguments_are_said_when_the_logger_is_made(
    offline: None, facade: ModuleType
) -> None:
    with pytest.raises(ConfigurationError, match="on_full"):
        facade.SidestepLogger(on_full="wait")
    with pytest.raises(TypeError, match="wandbb"):
        facade.SidestepLogger(wandbb=True)


def test_without_lightning_the_import_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sidestep.client.lightning", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sidestep\[lightning\]'"):
        __import__("sidestep.client.lightning")
