"""`MetricsLogger`: tags, steps and means as ported trainers know them, and nothing that raises."""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidestep import client as sidestep
from sidestep.client import ConfigurationError, InvalidValueError
from sidestep.client.metrics_logger import MetricsLogger
from sidestep.client.metrics_logger.hierarchy import level_losses
from sidestep.client.metrics_logger.running_mean import RunningMean
from sidestep.proto.paths import RuntimePaths
from tests.unit.client.emitted import rows, values

MakeLogger = Callable[..., MetricsLogger]


@pytest.fixture
def make(places: RuntimePaths, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLogger]:
    """Makes loggers that no daemon answers, and that start none."""
    monkeypatch.setenv("SIDESTEP_ENDPOINT", "tcp://127.0.0.1:9")
    # Memory for as little as is logged here: to reserve 64 MiB takes longer than a test.
    small = functools.partial(sidestep.connect, outbox_bytes=1 << 20)
    monkeypatch.setattr(sidestep, "connect", small)
    made: list[MetricsLogger] = []

    def logger(**arguments: Any) -> MetricsLogger:
        given = {"use_wandb": False, **arguments}
        made.append(MetricsLogger("test", Path(places.directory).parent / "logs", **given))
        return made[-1]

    yield logger
    for one in made:
        one.client.finish(0)


@pytest.fixture
def logger(make: MakeLogger) -> MetricsLogger:
    return make()


def emitted(logger: MetricsLogger) -> dict[tuple[str, int], Any]:
    """All that was emitted by tag and step: numbers, and the kinds of everything else."""
    found: dict[tuple[str, int], Any] = {
        (tag, row.step): number
        for row in rows(logger.client)
        for tag, number in row.numbers.items()
    }
    return found | {(v.tag, v.step): v.kind for v in values(logger.client)}


def steps_of(logger: MetricsLogger) -> list[int]:
    return [step for _, step in emitted(logger)]


def rejected(logger: MetricsLogger) -> int:
    return logger.client.stats().rejected


# --- steps -------------------------------------------------------------------------------------


def test_none_takes_the_counter_and_adds_one_and_an_explicit_step_sets_it(
    logger: MetricsLogger,
) -> None:
    for k, step in enumerate([None, None, 40, None, None, 7, None]):
        logger.log_metrics({f"a{k}": 1.0}, step)
    assert steps_of(logger) == [0, 1, 40, 40, 41, 7, 7]
    assert logger.step == 8


def test_the_rule_is_the_same_for_every_method(logger: MetricsLogger) -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    picture, rows_ = torch.rand(3, 8, 8), torch.rand(4, 3)
    calls: list[Callable[[int | None], None]] = [
        lambda step: logger.log_metrics({"a": 1}, step),
        lambda step: logger.log_image("b", picture, step),
        lambda step: logger.log_images("c", [picture, picture], step),
        lambda step: logger.log_histogram("d", rows_, step),
        lambda step: logger.log_model_gradients(model, step),
        lambda step: logger.log_model_weights(model, step),
        lambda step: logger.log_hierarchical_losses({"loss_level_0": 1.0}, step),
        lambda step: logger.log_embeddings(rows_, step=step),
        lambda step: logger.log_representations(rows_, rows_, step),
        lambda step: logger.log_text("e", "words", step),
        lambda step: logger.log_hparams({"lr": 1.0}, step=step),
        logger.log_system_metrics,
    ]
    for number, call in enumerate(calls):
        assert logger.step == number
        call(None)
    for call in calls:
        call(100)
        assert logger.step == 100
    assert rejected(logger) == 0


def test_values_that_are_not_committed_join_the_next_call(logger: MetricsLogger) -> None:
    logger.log_metrics({"a": 1}, commit=False)
    logger.log_metrics({"b": 2})
    logger.log_metrics({"c": 3})
    assert emitted(logger) == {("a", 0): 1, ("b", 0): 2, ("c", 1): 3}


@pytest.mark.parametrize("step", ["7", 1.5, 1 << 64, torch.tensor(3, device="meta")])
def test_a_step_that_is_none_is_refused_and_leaves_the_counter(
    logger: MetricsLogger, step: Any
) -> None:
    logger.log_metrics({"a": 1.0}, 5)
    logger.log_metrics({"a": 2.0, "b": 2.0}, step)
    assert logger.step == 5
    assert emitted(logger) == {("a", 5): 1.0}
    assert rejected(logger) == 2


def test_steps_of_numpy_are_steps(logger: MetricsLogger) -> None:
    logger.log_metrics({"a": 1.0}, np.int64(9))  # type: ignore[arg-type]
    logger.log_metrics({"b": 1.0})
    assert steps_of(logger) == [9, 9]


# --- tags and values ---------------------------------------------------------------------------


def test_a_prefix_is_put_before_the_name_as_it_is(logger: MetricsLogger) -> None:
    logger.log_metrics({"loss": 0.5}, 1, prefix="train/")
    logger.log_metrics({"loss": 0.25}, 1, prefix="val_")
    assert emitted(logger) == {("train/loss", 1): 0.5, ("val_loss", 1): 0.25}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what draws graphs needs it
def test_what_each_method_writes(logger: MetricsLogger) -> None:
    logger.log_image("training/images/input", torch.rand(3, 8, 8), 1, caption="x")
    logger.log_images("grid", [np.zeros((3, 4, 4), np.float32)] * 5, 1, captions=list("abcde"))
    logger.log_images("mixed", [torch.zeros(3, 4, 4), np.zeros((3, 4, 4), np.float32)], 1)
    logger.log_images("stacked", torch.zeros(2, 3, 4, 4), 1)
    logger.log_histogram("h", np.arange(5), 1)
    logger.log_text("t", "**words**", 1)
    logger.log_embeddings(torch.rand(6, 3), torch.arange(6), step=1)
    logger.log_representations(torch.rand(8, 4), torch.rand(8, 2, 4), 1)
    logger.log_hparams({"lr": 0.1, "opt": {"name": "adamw", "betas": (0.9, 0.95)}}, {"acc": 0.5}, 1)
    logger.log_graph(nn.Linear(2, 1), torch.rand(1, 2), 1)
    assert emitted(logger) == {
        ("training/images/input", 1): "image",
        ("grid", 1): "images",
        ("mixed", 1): "images",
        ("stacked", 1): "images",
        ("h", 1): "histogram",
        ("t", 1): "text",
        ("embeddings", 1): "embedding",
        ("train/context", 1): "moments",
        ("train/target", 1): "moments",
        ("hparams", 1): "hparams",
        ("graph", 1): "graph",
    }
    by_tag = {value.tag: value for value in values(logger.client)}
    assert by_tag["grid"].info["per_row"] == 4
    assert by_tag["grid"].info["captions"] == list("abcde")
    hparams = by_tag["hparams"].info["hparams"]
    assert hparams == {"lr": 0.1, "opt/name": "adamw", "opt/betas": "[0.9, 0.95]"}
    assert rejected(logger) == 0


def named(logger: MetricsLogger, tag: str, step: int) -> list[str]:
    """The parameters that a value of all of them holds."""
    (found,) = [v for v in values(logger.client) if (v.tag, v.step) == (tag, step)]
    return bytes(found.arrays[-1].data).decode().split("\n")


def test_gradients_and_weights_are_one_value_of_all_parameters(logger: MetricsLogger) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    logger.log_model_gradients(model, 0)  # none yet: nothing to log, nothing to refuse
    model(torch.ones(1, 3)).sum().backward()
    model[1].bias.grad = None
    logger.log_model_gradients(model, 1)
    logger.log_model_weights(model, 2)
    assert emitted(logger) == {("gradients", 1): "parameters", ("weights", 2): "parameters"}
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert named(logger, "gradients", 1) == names[:3]
    assert named(logger, "weights", 2) == names
    assert rejected(logger) == 0


def test_levels_have_their_loss_and_their_share(logger: MetricsLogger) -> None:
    losses = {"loss_level_0": 3.0, "loss_level_1": torch.tensor(1.0, requires_grad=True), "loss": 9}
    logger.log_hierarchical_losses(losses, 5)
    assert emitted(logger) == {
        ("train/hierarchy/level_0_loss", 5): 3.0,
        ("train/hierarchy/level_0_percentage", 5): 75.0,
        ("train/hierarchy/level_1_loss", 5): 1.0,
        ("train/hierarchy/level_1_percentage", 5): 25.0,
    }


@pytest.mark.parametrize(
    ("losses", "shares"),
    [([0.0, 0.0], [0.0, 0.0]), ([-1.0, 0.5], [0.0, 0.0]), ([math.nan, 1.0], [math.nan] * 2)],
)
def test_shares_of_a_sum_that_is_not_positive(losses: list[float], shares: list[float]) -> None:
    given = {f"loss_level_{k}": loss for k, loss in enumerate(losses)}
    found = level_losses(given, "")
    assert [found[f"level_{k}_percentage"] for k in (0, 1)] == pytest.approx(shares, nan_ok=True)


def test_losses_and_means_on_a_device_are_not_read() -> None:
    # A meta tensor has no content: whoever reads it gets an error instead of waiting.
    loss = torch.ones((), device="meta")
    found = level_losses({"loss_level_0": loss, "loss_level_1": 2.0}, "")
    assert found["level_1_percentage"].device.type == "meta"
    mean = RunningMean()
    for _ in range(3):
        mean.add(loss)
    assert mean.mean().device.type == "meta"


def test_one_level_that_is_no_number_harms_only_itself(logger: MetricsLogger) -> None:
    logger.log_hierarchical_losses({"loss_level_0": "x", "loss_level_1": 2.0}, 1)
    assert emitted(logger) == {
        ("train/hierarchy/level_1_loss", 1): 2.0,
        ("train/hierarchy/level_1_percentage", 1): 100.0,
    }
    assert rejected(logger) == 1


def test_predictions_beside_targets(logger: MetricsLogger) -> None:
    images, masks = torch.rand(6, 3, 16, 16), torch.rand(6, 16) < 0.5
    target = torch.rand(6, 16, 5)
    predictions = [target, -target, images]
    logger.log_prediction_comparison(images, predictions, [target, target, images], masks, 3)
    found = emitted(logger)
    assert found.pop(("training/images/original_images", 3)) == "images"
    for i in range(4):
        assert found.pop((f"training/images/masked_{i}", 3)) == "masked_image"
    assert found.pop(("predictions/mask_ratio", 3)) == pytest.approx(masks.float().mean().item())
    assert found == {
        ("predictions/level_0_similarity", 3): pytest.approx(1, abs=1e-6),
        ("predictions/level_1_similarity", 3): pytest.approx(-1, abs=1e-6),
        ("predictions/level_2_similarity", 3): pytest.approx(1, abs=1e-6),
    }
    by_tag = {value.tag: value for value in values(logger.client)}
    assert by_tag["training/images/masked_0"].info["patch_size"] == [4, 4]
    assert len(by_tag["training/images/masked_0"].arrays) == 3, "one level predicts pixels"
    assert by_tag["training/images/original_images"].arrays[0].shape[0] == 4
    assert rejected(logger) == 0


def test_masks_that_do_not_tile_the_picture_harm_only_themselves(logger: MetricsLogger) -> None:
    images, target = torch.rand(2, 3, 16, 16), torch.rand(2, 7)
    logger.log_prediction_comparison(images, target, target, torch.ones(2, 7), 1, max_images=1)
    assert {tag for tag, _ in emitted(logger)} == {
        "training/images/original_images",
        "predictions/mask_ratio",
        "predictions/level_0_similarity",
    }
    assert rejected(logger) == 1


@pytest.mark.parametrize("shape", [(16,), (4, 4), (1, 4, 4), (2, 8)])
def test_masks_by_their_shape(logger: MetricsLogger, shape: tuple[int, ...]) -> None:
    images, target = torch.rand(2, 1, 16, 16), torch.rand(2, 7)
    logger.log_prediction_comparison(images, target, target, torch.ones(2, *shape), 1)
    (found,) = [v for v in values(logger.client) if v.tag == "training/images/masked_1"]
    assert found.info["patch_size"] == ([8, 2] if shape == (2, 8) else [4, 4])


# --- means -------------------------------------------------------------------------------------


def test_accumulated_metrics_are_logged_as_means(logger: MetricsLogger) -> None:
    logger.log_accumulated_metrics()
    assert logger.step == 0, "nothing was logged"
    running = torch.zeros(())
    for k in range(4):
        running += k
        logger.accumulate_metrics({"loss": k, "sum": running})
    logger.accumulate_metrics({"loss": np.float32(4), "once": True})
    assert {name: len(mean) for name, mean in logger.metrics_buffer.items()} == {
        "loss": 5,
        "sum": 4,
        "once": 1,
    }
    logger.log_accumulated_metrics(step=8, prefix="train_epoch/", reset=False)
    logger.log_accumulated_metrics()
    assert logger.metrics_buffer == {}
    assert emitted(logger) == {
        ("train_epoch/loss", 8): 2.0,
        ("train_epoch/sum", 8): 2.5,
        ("train_epoch/once", 8): 1.0,
        ("loss", 8): 2.0,
        ("sum", 8): 2.5,
        ("once", 8): 1.0,
    }


def test_a_bad_metric_is_no_part_of_any_mean(logger: MetricsLogger) -> None:
    logger.accumulate_metrics({"a": 1.0, "b": "x", "c": torch.ones(2)})
    logger.accumulate_metrics({"a": None, "b": 2.0})
    logger.log_accumulated_metrics(1)
    assert emitted(logger) == {("a", 1): 1.0, ("b", 1): 2.0}
    assert rejected(logger) == 3


# --- nothing raises ----------------------------------------------------------------------------

BAD_CALLS: list[tuple[str, tuple[Any, ...], int]] = [
    ("log_metrics", (None,), 1),
    ("log_metrics", ({"a": object()},), 1),
    ("log_metrics", ([1.0], 0, "train/"), 1),
    ("log_image", ("a", torch.zeros(5, 5, 5, 5)), 1),
    ("log_image", ("a", "picture.png"), 1),
    ("log_images", ("a", []), 1),
    ("log_images", ("a", [torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)]), 1),
    ("log_histogram", ("a", torch.zeros(0)), 1),
    ("log_model_gradients", ("no model",), 1),
    ("log_model_weights", (None,), 1),
    ("log_hierarchical_losses", (3,), 1),
    ("log_prediction_comparison", (None, None, None, None), 1),
    ("log_embeddings", (torch.zeros(3),), 1),
    ("log_embeddings", (torch.zeros(3, 2), [1, 2]), 1),
    ("accumulate_metrics", (7,), 1),
    ("log_representations", (torch.zeros(1, 4), None), 2),
    ("log_text", ("a", b"bytes"), 1),
    ("log_hparams", ("lr",), 1),
    ("log_graph", (nn.Linear(2, 1), torch.zeros(1, 3)), 1),
    ("watch_model", (nn.Linear(1, 1), 0), 1),
    ("watch_model", (None,), 1),
    ("log_text", (), 1),
    ("log_metrics", ({"": 1.0, "x" * 2000: 1.0, "\ud800": 1.0, "good": 1.0},), 3),
]


@pytest.mark.parametrize(("method", "arguments", "count"), BAD_CALLS)
def test_what_cannot_be_logged_is_counted_and_does_not_raise(
    logger: MetricsLogger, method: str, arguments: tuple[Any, ...], count: int
) -> None:
    getattr(logger, method)(*arguments)
    assert rejected(logger) == count
    logger.log_metrics({"after": 1.0}, 9)
    assert emitted(logger)["after", 9] == 1.0


def test_it_raises_only_where_it_was_asked_to(
    make: MakeLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    logger = make()
    for bad in ({"a": "x"}, None):
        with pytest.raises(InvalidValueError):
            logger.log_metrics(bad)  # type: ignore[arg-type]
    assert rejected(logger) == 2


def test_after_the_end_it_is_silent_and_counts(logger: MetricsLogger) -> None:
    logger.log_metrics({"a": 1.0})
    logger.client.finish(0)
    with logger as same:
        assert same is logger
    logger.log_metrics({"a": 1.0})
    logger.log_image("b", torch.rand(3, 4, 4))
    assert not logger.finish()
    assert rejected(logger) == 2


def test_disabled(make: MakeLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTEP_DISABLED", "1")
    logger = make()
    logger.log_metrics({"a": object()})
    logger.log_image("b", None)
    assert logger.finish()
    assert rejected(logger) == 0


# --- configuration -----------------------------------------------------------------------------

BLOCK: dict[str, Any] = {
    "experiment_name": "hjepa_default",
    "log_dir": "results/logs",
    "log_frequency": 25,
    "wandb": {"enabled": True, "project": "h-jepa", "entity": None, "tags": ["baseline"]},
    "tensorboard": {"enabled": False},
}


@pytest.fixture
def from_config(make: MakeLogger) -> Iterator[Callable[[Any], MetricsLogger]]:
    made: list[MetricsLogger] = []

    def logger(mapping: Any) -> MetricsLogger:
        made.append(MetricsLogger.from_config(mapping))
        return made[-1]

    yield logger
    for one in made:
        one.client.finish(0)


@pytest.mark.parametrize("whole", [False, True])
def test_a_block_alone_or_in_its_configuration(
    from_config: Callable[[Any], MetricsLogger], whole: bool
) -> None:
    given = {"model": {"dim": 8}, "logging": BLOCK} if whole else BLOCK
    logger = from_config(given)
    spec = logger.client._settings.run
    assert (spec.name, spec.log_dir) == ("hjepa_default", str(Path("results/logs").absolute()))
    assert spec.tensorboard is False
    assert spec.wandb == {"project": "h-jepa", "tags": ["baseline"]}
    assert spec.config == (given if whole else {})
    assert logger.log_dir == Path("results/logs")
    assert (logger.log_frequency, logger.use_wandb, logger.use_tensorboard) == (25, True, False)
    assert (logger.experiment_name, logger.step) == ("hjepa_default", 0)


def test_what_a_block_does_not_say(from_config: Callable[[Any], MetricsLogger]) -> None:
    logger = from_config({"logging": None})
    assert logger.client._settings.run.wandb is None, "nothing is uploaded that nobody asked for"
    assert logger.use_tensorboard
    assert logger.log_frequency == 100
    assert logger.experiment_name
    logger = from_config({"wandb": {"enabled": False, "project": "p"}, "tensorboard": None})
    assert not logger.use_wandb
    logger = from_config({"wandb": {"mode": "offline"}})
    assert logger.client._settings.run.wandb == {"project": "h-jepa", "mode": "offline"}


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ({"log_frequenzy": 1}, "log_frequency"),
        ({"model": {}, "loging": {}}, "did you mean"),
        ({"loging": {}}, "logging"),
        ({"logging": {"wandb": {"projct": "p"}}}, "project"),
        ({"tensorboard": {"enable": True}}, "enabled"),
        ({"log_frequency": 0}, "1 or more"),
        ({"log_frequency": True}, "1 or more"),
        ({"tensorboard": {"enabled": "yes"}}, "true or false"),
        ({"logging": ["a"]}, "mapping"),
        (None, "mapping"),
        ({"experiment_name": 7}, "str"),
    ],
)
def test_a_wrong_configuration_is_an_error_that_says_what_is_right(
    from_config: Callable[[Any], MetricsLogger], mapping: Any, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        from_config(mapping)


def test_arguments_reach_the_run(make: MakeLogger) -> None:
    logger = make(config={"lr": 1e-3}, use_wandb=True, wandb_entity="team", wandb_tags=("a", "b"))
    spec = logger.client._settings.run
    assert spec.wandb == {"project": "h-jepa", "tags": ["a", "b"], "entity": "team"}
    assert spec.config == {"lr": 1e-3}
    assert logger.use_wandb
    with pytest.raises(ConfigurationError, match="config"):
        make(config=3)


def test_without_wandb_there_is_one_warning_and_no_wandb_run(
    make: MakeLogger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING, "sidestep"):
        logger = make(use_wandb=True)
    assert not logger.use_wandb
    assert logger.client._settings.run.wandb is None
    assert len(caplog.records) == 1
    assert "pip install" in caplog.text


# --- watching ----------------------------------------------------------------------------------


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_a_watched_model_is_logged_once_in_so_many_steps(logger: MetricsLogger) -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    ours = torch.optim.SGD(model.parameters(), 0.1)
    theirs = torch.optim.SGD(other.parameters(), 0.1)
    logger.watch_model(model, log_freq=3)
    logger.watch_model(model, log_freq=3)  # again: not twice as much
    for step in range(7):
        logger.log_metrics({"loss": 1.0}, step)
        train(other, theirs)
        train(model, ours)
    found = emitted(logger)
    looks = {(tag, step) for tag, step in found if tag != "loss"}
    assert looks == {(tag, step) for tag in ("gradients", "weights") for step in (0, 3, 6)}
    assert named(logger, "gradients", 3) == named(logger, "weights", 6) == ["weight", "bias"]
    (gradients,) = [v for v in values(logger.client) if (v.tag, v.step) == ("gradients", 3)]
    norms = np.frombuffer(gradients.arrays[3].data, "f4")
    assert norms.tolist() == pytest.approx([math.sqrt(2), 1])
    assert rejected(logger) == 0


def test_watching_ends_with_the_logger_and_with_the_model(
    logger: MetricsLogger, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = len(hooks)
    model, short = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    logger.watch_model(model)
    logger.watch_model(short)
    assert len(hooks) == before + 2
    del short
    train(model, optimizer)  # a hook that went in the middle of it would break torch's loop
    logger.client.finish(0)
    logger.finish()
    assert len(hooks) == before
    train(model, optimizer)
    assert not caplog.records


def test_keys_of_the_configuration_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIDESTEP_KEYS", raising=False)
    monkeypatch.setenv("SIDESTEP_ENDPOINT", "tcp://127.0.0.1:9")
    block = {"experiment_name": "x", "log_dir": str(tmp_path), "keys": str(tmp_path / "keys")}
    with pytest.raises(ConfigurationError, match=f"cannot read the folder {tmp_path}/keys"):
        MetricsLogger.from_config({"logging": block})
