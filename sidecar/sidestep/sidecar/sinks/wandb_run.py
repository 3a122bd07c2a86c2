"""Starts the W&B run that belongs to a run: its id, its mode, its settings.

What a W&B user has set up (WANDB_MODE, WANDB_API_KEY, ~/.netrc, a settings file) counts here as it
does in a training script. With no API key anywhere, W&B would ask for one; nobody is there to
answer, so the run is kept offline.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import psutil

from sidestep.proto import RunSpec

from .base import SinkUnusableError
from .wandb_errors import WandbError, start_error, without_key
from .wandb_rows import STEP_METRIC

FOLDER: Final = "wandb"
"""The folder in the run's log directory that W&B writes to."""

SETTINGS: Final = (
    "entity",
    "group",
    "id",
    "job_type",
    "mode",
    "name",
    "notes",
    "project",
    "tags",
)
"""What a run may say about its W&B run; each means what it means to `wandb.init`."""

_INIT_TIMEOUT_S: Final = 30.0
"""For a server that does not answer. wandb's own 90 s would leave a user too long in the dark."""

_FINISH_TIMEOUT_S: Final = 30.0
"""For what is still to be uploaded at the end; what is not by then stays in the file."""

_FILE_INTERVAL_S: Final = 0.05
"""How often wandb-core writes what it has taken to the file: what a commit waits for."""

_FILE_SETTING: Final = "x_transaction_log_flush_interval"
"""Since wandb 0.31. Before, wandb-core writes 32 KiB at a time, and what it keeps dies with it."""

_OF_ANOTHER_PROCESS: Final = ("WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
"""A daemon that a trainer started has inherited these: the address of the trainer's own wandb-core,
which dies with it, and a sweep, whose run would take the place of the one that is asked for."""

_MAX_ID_CHARS: Final = 64


def start_run(spec: RunSpec, log: Callable[[str], None]) -> Any:
    """Start or resume the W&B run of `spec`; None if the user has disabled W&B.

    Raises:
        SinkUnusableError: the settings or the key are wrong, or W&B is not installed.
        WandbError: W&B cannot start the run.
        OSError: the log directory cannot be written.
    """
    given = checked_settings(spec.wandb or {})
    wandb = _import_wandb()
    settings = _settings(wandb)
    mode = _mode(wandb, given)
    if mode == "disabled":
        log("W&B is disabled by its mode: nothing is sent there and nothing is kept for it")
        return None
    folder = _writable_folder(spec.log_dir)
    run_id = str(given.get("id") or stable_id(spec))
    before = _folders_of(folder, run_id)
    try:
        run = wandb.init(
            project=given.get("project"),
            entity=given.get("entity"),
            group=given.get("group"),
            job_type=given.get("job_type"),
            notes=given.get("notes"),
            name=given.get("name") or spec.name,
            tags=_tags(spec, given) or None,
            id=run_id,
            resume="allow",
            dir=spec.log_dir,
            config=dict(spec.config),
            allow_val_change=True,  # a resumed run may have another configuration
            mode=mode or "offline",
            settings=settings,
        )
    except Exception as error:  # noqa: BLE001  # wandb's, pydantic's, the system's
        for path in _folders_of(folder, run_id) - before:
            shutil.rmtree(path, ignore_errors=True)  # an empty one for each attempt
        raise start_error(error, str(wandb.setup().settings.base_url)) from None
    if not os.path.samefile(Path(run.settings.sync_file).parents[1], folder):
        raise WandbError(f"W&B would write to {run.settings.sync_file}, not into {folder}")
    run.define_metric(STEP_METRIC, hidden=True)
    run.define_metric("*", step_metric=STEP_METRIC)
    if mode is None:
        log(
            "W&B has no API key (WANDB_API_KEY, or `wandb login`), so the run is kept offline; to "
            f"upload it: wandb sync {Path(run.settings.sync_file).parent}"
        )
    if not keeps_up(run):
        log(
            f"wandb {wandb.__version__} writes to its file when it likes: up to 32 KiB are lost if "
            "this worker is killed; pip install 'wandb>=0.31' mends that"
        )
    return run


def keeps_up(run: Any) -> bool:
    """Whether wandb-core writes to the run's file soon after it has taken something."""
    return hasattr(run.settings, _FILE_SETTING)


def core_is_alive() -> bool:
    """Whether this process has a wandb-core that runs (or is stopped)."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "wandb-core" and child.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def checked_settings(given: Mapping[str, object]) -> dict[str, Any]:
    """What of `given` is set.

    Raises:
        SinkUnusableError: there is a setting that W&B does not have; the nearest one is named.
    """
    for key in given:
        if key not in SETTINGS:
            near = get_close_matches(key, SETTINGS, 1, 0.0)[0]
            raise SinkUnusableError(f"wandb: unknown setting {key!r:.80}; did you mean {near!r}?")
    return {key: value for key, value in given.items() if value is not None}


def stable_id(spec: RunSpec) -> str:
    """The id of a run that was given none: the same whenever the same run goes on."""
    digest = hashlib.sha256(f"{spec.log_dir}\0{spec.name}".encode("utf-8", "replace")).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", spec.name).strip("-")
    return f"{readable[: _MAX_ID_CHARS - 13]}-{digest[:12]}".lstrip("-")


def _import_wandb() -> Any:
    for name in _OF_ANOTHER_PROCESS:
        os.environ.pop(name, None)
    os.environ.setdefault("WANDB_SILENT", "true")
    # Reports of wandb's own errors and timings go to W&B over the network: not from here.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # On a full disk each line of wandb's own log would become a traceback in the daemon's.
    logging.raiseExceptions = False
    try:
        import wandb
    except ImportError as error:
        raise SinkUnusableError(
            f"wandb cannot be imported ({error}); pip install 'sidestep[wandb]'"
        ) from error
    return wandb


def _mode(wandb: Any, given: Mapping[str, Any]) -> str | None:
    """The mode that the run or the user asks for; None if it must be offline for want of a key.

    Raises:
        WandbError: the run is to be online, and there is no key.
    """
    # Settings files and the environment, read as `wandb.init` reads them.
    default = str(wandb.setup().settings.mode)
    mode = str(given.get("mode", default))
    if mode != "online" or default != "online" or _has_key(wandb):
        return mode
    if "mode" in given or "WANDB_MODE" in os.environ:  # wandb would ask for the key, and wait
        raise WandbError("W&B has no API key: set WANDB_API_KEY or run `wandb login`")
    return None


def _has_key(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # before 0.30 it could not be asked without a prompt
        return wandb.api.api_key is not None
    except Exception as error:  # noqa: BLE001  # one that is malformed, a file that is unreadable
        raise WandbError(f"W&B's API key: {without_key(error)}") from None


def _writable_folder(log_dir: str) -> Path:
    """``LOG_DIR/wandb``. wandb would go elsewhere without a word if it could not write there."""
    folder = Path(log_dir, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, which is not followed here", str(folder))
    for path in (Path(log_dir), folder):
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{path} cannot be written")
    return folder


def _folders_of(folder: Path, run_id: str) -> set[Path]:
    return {path for path in folder.iterdir() if run_id in path.name}


def _tags(spec: RunSpec, given: Mapping[str, Any]) -> list[str]:
    tags = given.get("tags") or ()
    named = [tags] if isinstance(tags, str) else [str(tag) for tag in tags]
    return list(dict.fromkeys([*spec.tags, *named]))


def _settings(wandb: Any) -> Any:
    """The settings of a run that is nothing but metrics, as far as this wandb knows them."""
    wanted: dict[str, object] = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "use_dot_wandb": False,
        "stop_fn": _ignore_stop,
        "finish_timeout_raises": True,
        # They would be the worker's, not the trainer's.
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "x_skip_transaction_log": False,
        _FILE_SETTING: _FILE_INTERVAL_S,
    }
    if "WANDB_INIT_TIMEOUT" not in os.environ:
        wanted["init_timeout"] = _INIT_TIMEOUT_S
    if "WANDB_FINISH_TIMEOUT" not in os.environ:
        wanted["finish_timeout"] = _FINISH_TIMEOUT_S
    known = getattr(wandb.Settings, "model_fields", None)
    if known is None:
        raise WandbError(f"wandb {wandb.__version__} is too old; pip install 'wandb>=0.31'")
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _ignore_stop() -> None:
    """The stop button of W&B's page is for a training script, and this is none."""
