"""`SidestepCallback`: a callback of transformers' `Trainer` that hands all its logs to the sidecar.

Trainer(..., args=TrainingArguments(..., report_to="none"), callbacks=[SidestepCallback()])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from sidestep import client

from .connect_arguments import ConnectArguments, settled
from .plain import flat_config
from .refused import attempt

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "SidestepCallback needs transformers: pip install 'sidestep[transformers]'",
            name="transformers",
        ) from None


class SidestepCallback(TrainerCallback):
    """Logs what a `Trainer` logs, on the process of rank zero.

    ``eval_*`` goes to ``eval/*``, ``test_*`` to ``test/*`` and the rest to ``train/*``, at the
    trainer's global step. The arguments of the training and the model's configuration are
    hyperparameters of the run and two texts, ``args`` and ``model_config``.

    Args:
        run: the run's name; None takes ``TrainingArguments.run_name``, else `$SIDESTEP_RUN`, else
            a generated one. In a hyperparameter search the trial's name is put behind it.
        **arguments: further arguments of `connect`; ``config`` is completed by the above.

    Raises:
        ConfigurationError: an argument is wrong. A missing daemon never raises.
    """

    def __init__(self, run: str | None = None, **arguments: Unpack[ConnectArguments]) -> None:
        # The trainer knows its ranks, however it was launched. Rank zero alone connects.
        self._arguments = ConnectArguments({"rank": 0, "world_size": 1, **arguments})
        settled(run, self._arguments)  # what is wrong is said here, not when training begins
        self._run = run
        self._generated: str | None = None
        self._client: client.Client | None = None

    @property
    def client(self) -> client.Client | None:
        """The client, for values that the trainer does not log; None while nothing is logged."""
        return self._client

    def setup(self, args: Any, state: Any, model: Any = None) -> None:
        """Connect, on rank zero, and say what is trained and how.

        Args:
            args: the `TrainingArguments`.
            state: the `TrainerState`.
            model: the model, or None.
        """
        if self._client is not None or not state.is_world_process_zero:
            return
        name = self._name(args, state)
        arguments = ConnectArguments({**self._arguments})
        given = arguments.get("config") or {}
        try:
            arguments["config"] = {**_described(args, model), **given}
            self._client = client.connect(name, **arguments)
        except client.ConfigurationError:  # a description that is too much for a message
            arguments["config"] = given
            self._client = client.connect(name, **arguments)
        if name is None:
            self._generated = self._client.run

    def on_train_begin(  # noqa: D102 - of the base class, like all that follow
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.is_hyper_param_search:
            self._finish()  # the trial before
        self.setup(args, state, model)
        if self._client is not None:
            self._client.emit(_descriptions(args, model), state.global_step)

    def on_log(  # noqa: D102
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._log(args, state, logs, kwargs.get("model"))

    def on_predict(  # noqa: D102
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any], **kwargs: Any
    ) -> None:
        self._log(args, state, metrics, kwargs.get("model"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self._finish()

    # --- inside --------------------------------------------------------------------------------

    def _log(self, args: Any, state: Any, logs: Mapping[str, Any] | None, model: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        self.setup(args, state, model)  # an evaluation without a training, or after it
        if self._client is not None:
            values = {_tag(name): _value(value) for name, value in logs.items()}
            self._client.emit(values, state.global_step)

    def _finish(self) -> None:
        """End the client; what is logged later goes on in the same run."""
        if self._client is not None:
            self._client.finish()
            self._client = None

    def _name(self, args: Any, state: Any) -> str | None:
        name = self._run
        # The directory is what transformers takes for a name when there is none.
        if name is None and args.run_name != args.output_dir:
            name = args.run_name
        trial = state.trial_name if state.is_hyper_param_search else None
        return "-".join(filter(None, (name or self._generated, trial))) or None


def _tag(name: str) -> str:
    for folder in ("eval", "test"):
        if name.startswith(f"{folder}_"):
            return f"{folder}/{name.removeprefix(folder + '_')}"
    return f"train/{name}"


def _value(value: Any) -> Any:
    return client.Text(value) if isinstance(value, str) else value


def _described(args: Any, model: Any) -> dict[str, Any]:
    """Training arguments (access tokens masked) and the model's configuration, if it has one."""
    config: Any = getattr(model, "config", None)
    described = config.to_dict() if hasattr(config, "to_dict") else {}
    return {**described, **args.to_sanitized_dict()}


def _descriptions(args: Any, model: Any) -> dict[str, Any]:
    """Values that say what is trained and how."""
    values = {
        "args": attempt(lambda: _json_text(args.to_json_string())),
        "hparams": attempt(lambda: client.HParams(flat_config(args.to_sanitized_dict()))),
    }
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_json_string"):
        values["model_config"] = attempt(lambda: _json_text(config.to_json_string()))
    return values


def _json_text(text: str) -> client.Text:
    return client.Text(f"```json\n{text}\n```")


__all__ = ["SidestepCallback"]
