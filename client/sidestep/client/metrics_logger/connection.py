"""What every method of `MetricsLogger` stands on: the client, the counter of steps, the end."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Self, TypeVar

from sidestep import client as sidestep

from ..checks import step_number
from ..config_file import LOGGING_KEYS, known_keys, logging_block
from ..connect_arguments import ConnectArguments, settled
from ..refused import Refused
from ..values import InvalidValueError
from .running_mean import RunningMean
from .watching import Watch

if TYPE_CHECKING:
    import os

logger = logging.getLogger("sidestep")

_LOG_FREQUENCY: Final = 100
_PROJECT: Final = "h-jepa"


class Connection:
    """A run that is logged to; see `MetricsLogger` for its arguments and attributes."""

    client: sidestep.Client
    experiment_name: str
    log_dir: Path
    log_frequency: int
    metrics_buffer: dict[str, RunningMean]
    step: int
    use_tensorboard: bool
    use_wandb: bool

    def __init__(
        self,
        experiment_name: str,
        log_dir: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        use_wandb: bool = True,
        use_tensorboard: bool = True,
        wandb_project: str = _PROJECT,
        wandb_entity: str | None = None,
        wandb_tags: Sequence[str] | None = None,
    ) -> None:
        wandb: dict[str, Any] | None = None
        if use_wandb:
            wandb = {"project": wandb_project, "tags": list(wandb_tags or ())}
            if wandb_entity is not None:
                wandb["entity"] = wandb_entity
        self._begin(experiment_name, log_dir, config, wandb, use_tensorboard, _LOG_FREQUENCY)

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> Self:
        """A logger as a configuration describes it.

        Args:
            mapping: a whole configuration with a block ``logging:``, which then is the run's
                hyperparameters too; or that block itself: ``experiment_name``, ``log_dir``,
                ``log_frequency``, ``wandb: {enabled, project, entity, tags, mode, …}``,
                ``tensorboard: {enabled}``, ``keys``. Without a block ``wandb`` there is no W&B run.

        Raises:
            ConfigurationError: a key is unknown (its nearest match is named), or a value wrong.
        """
        given: Any = mapping
        whole = isinstance(given, Mapping) and "logging" in given
        if not whole:
            # "logging" among the known ones, for the sake of who has misspelt it.
            known_keys(mapping, (*LOGGING_KEYS, "logging"), "logging")
        block = logging_block(mapping["logging"] if whole else mapping)
        made = cls.__new__(cls)
        made._begin(
            block.experiment_name,
            block.log_dir,
            mapping if whole else None,
            None if block.wandb is None else {"project": _PROJECT, **block.wandb},
            True if block.tensorboard is None else block.tensorboard,
            block.log_frequency or _LOG_FREQUENCY,
            block.keys,
        )
        return made

    def _begin(
        self,
        name: str | None,
        log_dir: str | os.PathLike[str] | None,
        config: Mapping[str, Any] | None,
        wandb: dict[str, Any] | None,
        tensorboard: bool,
        log_frequency: int,
        keys: str | None = None,
    ) -> None:
        if wandb is not None and importlib.util.find_spec("wandb") is None:
            logger.warning(
                "sidestep: wandb is not installed, so there will be no W&B run: "
                "pip install 'sidestep[wandb]', or say use_wandb=False"
            )
            wandb = None
        arguments: ConnectArguments = {
            "log_dir": log_dir,
            "config": config,
            "tensorboard": tensorboard,
            "wandb": False if wandb is None else wandb,
        }
        if keys is None:
            self.client = sidestep.connect(name, **arguments)
        else:
            settings = settled(name, arguments, keys)
            self.client = sidestep._use(settings)  # pyright: ignore[reportPrivateUsage]
        self.experiment_name = self.client.run
        self.log_dir = Path(self.client.log_dir if log_dir is None else log_dir)
        self.use_wandb = wandb is not None
        self.use_tensorboard = tensorboard
        self.log_frequency = log_frequency
        self.metrics_buffer = {}
        self.step = 0
        self._watches: dict[int, Watch] = {}

    def finish(self) -> bool:
        """Hand over all that is left, and end; idempotent.

        Returns:
            Whether all that was logged is durable in the daemon. What is not stays where the next
            daemon finds it.
        """
        for watch in self._watches.values():
            watch.stop()
        self._watches.clear()
        return self.client.finish()

    def __enter__(self) -> Self:
        """The logger itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish."""
        self.finish()

    # --- for the methods that log --------------------------------------------------------------

    def _watch(self, model: Any, every: int, look: Callable[[Any], object]) -> None:
        if every < 1:
            raise ValueError(f"a frequency must be 1 or more steps, not {every}")
        known = self._watches.pop(id(model), None)
        if known is not None:
            known.stop()
        self._watches[id(model)] = Watch(model, every, look)

    def _emit(self, values: Mapping[str, Any], step: int | None, *, advance: bool = True) -> None:
        if step is None:
            step = self.step
            self.step += int(advance)
        else:
            try:
                self.step = step = step_number(step)
            except InvalidValueError:
                pass  # the client says so, and counts what it refuses for it
        self.client.emit(values, step)

    def refuse(self, name: str, error: Exception) -> None:
        """Count and log that what `name` stands for could not be logged."""
        self.client.emit({name: Refused(error)}, self.step)


_Logger = TypeVar("_Logger", bound=Connection)
_Args = ParamSpec("_Args")


def harmless(
    method: Callable[Concatenate[_Logger, _Args], None],
) -> Callable[Concatenate[_Logger, _Args], None]:
    """`method`, but what goes wrong in it is counted and does not reach the trainer."""

    @wraps(method)
    def guarded(self: _Logger, /, *args: _Args.args, **kwargs: _Args.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except InvalidValueError:
            raise  # only `emit` lets one out, counted, and only when it is strict
        except Exception as error:  # noqa: BLE001 - the trainer's own data, and its arguments
            self.refuse(method.__name__, error)

    return guarded
