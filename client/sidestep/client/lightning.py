"""`SidestepLogger`: a Lightning `Logger` that hands everything to the sidecar.

    Trainer(logger=SidestepLogger("vit-b", wandb={"project": "jepa"}))

It connects when the first value comes, in the process of rank zero, wherever the trainer's
strategy has put that; the other ranks log nothing.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Unpack

from sidestep import client
from sidestep.proto.naming import safe_name

from .connect_arguments import ConnectArguments, settled
from .plain import flat_config
from .refused import Refused, attempt

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import rank_zero_experiment
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from lightning.pytorch.loggers import Logger
else:

    def _lightning() -> str:
        """The package that is there: the one that the trainer has imported, if it has."""
        packages = ["lightning.pytorch", "pytorch_lightning"]
        packages.sort(key=lambda package: package not in sys.modules)
        for package in packages:
            try:
                import_module(package)
            except ModuleNotFoundError as error:
                if error.name not in (package, package.partition(".")[0]):
                    raise
            else:
                return package
        raise ModuleNotFoundError(
            "SidestepLogger needs Lightning: pip install 'sidestep[lightning]'", name="lightning"
        )

    _package = _lightning()
    _loggers = import_module(f"{_package}.loggers.logger")
    Logger, rank_zero_experiment = _loggers.Logger, _loggers.rank_zero_experiment
    rank_zero_only = import_module(f"{_package}.utilities.rank_zero").rank_zero_only


class SidestepLogger(Logger):
    """Logs what a `Trainer` and its modules log.

    Args:
        run: the run's name; `$SIDESTEP_RUN`, else a generated one. Training again under the same
            name continues the run.
        prefix: put before each metric's name as it is, such as ``"jepa/"``.
        log_graph: log the model's graph when the fit begins, if the module has an
            ``example_input_array``; this traces the model, which takes a forward pass.
        **arguments: further arguments of `connect`.

    Raises:
        ConfigurationError: an argument is wrong. A missing daemon never raises.
    """

    def __init__(
        self,
        run: str | None = None,
        *,
        prefix: str = "",
        log_graph: bool = False,
        **arguments: Unpack[ConnectArguments],
    ) -> None:
        super().__init__()
        # Lightning knows its ranks, and does not tell them by RANK. Rank zero alone connects.
        self._arguments = ConnectArguments({"rank": 0, "world_size": 1, **arguments})
        spec = settled(run, self._arguments).run
        self._run, self._log_dir = spec.name, spec.log_dir
        self._prefix = prefix
        self._log_graph = log_graph
        self._client: client.Client | None = None
        self._pid = 0
        self._hparams: Any = None

    # --- what Lightning asks -------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The run's name."""
        return self._run

    @property
    def version(self) -> str:
        """Empty: a run is what its name says. Checkpoints go to ``LOG_DIR/RUN/checkpoints``."""
        return ""

    @property
    def save_dir(self) -> str:
        """The directory under which everything goes."""
        return self._log_dir

    @property
    def root_dir(self) -> str:
        """The directory of all runs' event files."""
        return os.path.join(self._log_dir, "tensorboard")

    @property
    def log_dir(self) -> str:
        """The directory of this run's event files."""
        return os.path.join(self.root_dir, safe_name(self._run))

    @property
    @rank_zero_experiment
    def experiment(self) -> client.Client:
        """The client, for values that Lightning has no method for; on other ranks a dummy.

        After `finalize`, and in a process forked from the one that connected, a new one.
        """
        if self._client is None or self._pid != os.getpid():
            self._client = client.connect(self._run, **self._arguments)
            self._pid = os.getpid()
        return self._client

    # --- what Lightning tells ------------------------------------------------------------------

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers; returns at once.

        Args:
            metrics: name to number, or to a mapping of names to numbers, which are joined
                with "/".
            step: the step; None takes the last one plus 1.
        """
        self.experiment.emit(_flat(metrics, self._prefix), step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace | None,
        metrics: Mapping[str, Any] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Log hyperparameters, for TensorBoard's HParams page and W&B's configuration.

        Args:
            params: name to value; nested ones are joined with "/", what is no number, bool or
                text becomes its text.
            metrics: what came out: name to number, or one number, ``hp_metric``.
            step: the step; None takes 0.
        """
        given = vars(params) if isinstance(params, Namespace) else params or {}
        hparams = attempt(flat_config, given)
        # Lightning says them again at the start of each fit, validation and test.
        if metrics is not None or hparams != self._hparams:
            self._hparams = hparams
            self.experiment.emit({"hparams": attempt(_hparams, hparams, metrics)}, step or 0)

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Log the graph of a model, if the logger was made with ``log_graph=True``.

        Args:
            model: a `LightningModule` or any `torch.nn.Module`.
            input_array: what it is called with; None takes its ``example_input_array``, and
                without one nothing is logged.
        """
        if not self._log_graph:
            return
        inputs = getattr(model, "example_input_array", None) if input_array is None else input_array
        if inputs is not None:
            value = attempt(lambda: client.Graph(model, _on_its_device(model, inputs)))
            self.experiment.emit({"graph": value}, 0)

    def save(self) -> None:
        """Do nothing: what was logged is out of this process's hands already."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Finish: Lightning calls this at the end of each fit, validation and test.

        What is logged later goes on in the same run.

        Args:
            status: ``"success"``, ``"failed"`` or ``"finished"``; the same is done for each.
        """
        if self._client is not None and self._pid == os.getpid():
            self._client.finish()
            self._client = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the client: another process connects by itself."""
        return {**self.__dict__, "_client": None, "_pid": 0}


def _flat(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{prefix}{name}/")
        else:
            values[f"{prefix}{name}"] = value
    return values


def _hparams(hparams: Any, metrics: Any) -> Any:
    if isinstance(hparams, Refused):
        return hparams
    # One number is what Lightning calls the metric of the hyperparameters.
    results = {"hp_metric": metrics} if isinstance(metrics, (int, float)) else metrics
    return client.HParams(hparams, results)


def _on_its_device(model: Any, inputs: Any) -> Any:
    """`inputs` as the trainer would hand them to a LightningModule."""
    for name in ("_on_before_batch_transfer", "_apply_batch_transfer_handler"):
        if (transfer := getattr(model, name, None)) is not None:
            inputs = transfer(inputs)
    return inputs


__all__ = ["SidestepLogger"]
