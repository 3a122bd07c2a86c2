"""Says what W&B's failures mean and what a person can do, and hears of those that wandb hides.

wandb-core takes rows into its file whether or not W&B takes them from it, and uploads at its own
pace. What W&B answers it tells the wandb library, which prints it and forgets it; after a refusal
it uploads nothing more, and finishes the run as if all were well.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from typing import Any, Final

from sidestep.proto import SidestepError

from .base import SinkUnusableError

_OF_A_PERSON: Final = {
    401: "it does not accept the API key: set another WANDB_API_KEY, or run `wandb login`",
    403: "this API key may not write there: see the run's `entity` and `project`",
    404: "it knows no such entity or project: see the run's `entity` and `project`, and "
    "WANDB_BASE_URL",
}
_STATUS: Final = re.compile(r"(?:error|HTTP|status:?)\s+(\d{3})\b")
_ANSWERED: Final = re.compile(r"(\d{3}) encountered \((.*)\), retrying request", re.DOTALL)
_LIMITED: Final = 429

_REMEMBERED_S: Final = 90.0
"""wandb-core tries an upload again after a minute at most, and says nothing when that succeeds."""

_ASK_S: Final = 2.0


class WandbError(SidestepError):
    """W&B cannot take the run's metrics; the message says why and what to do."""


def without_key(error: object) -> str:
    """What `error` says, in one line and without the API key."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


def start_error(error: Exception, url: str) -> SidestepError:
    """What to raise when W&B cannot start a run.

    Args:
        error: what wandb has raised.
        url: where W&B was looked for.
    """
    text = without_key(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    if status in _OF_A_PERSON:
        return SinkUnusableError(
            f"W&B cannot start the run: {_OF_A_PERSON[status]} (error {status} of {url}: {text})"
        )
    return WandbError(f"W&B cannot start the run: {_remedy(status, url)} ({text})")


def _remedy(status: int, url: str) -> str:
    if status == _LIMITED:
        return f"{url} wants fewer requests at the moment"
    if status >= 500:
        return f"{url} has trouble of its own at the moment"
    return f"is {url} reachable from here? If not, mode: offline keeps the run in its files"


class UploadWatch:
    """Hears what wandb says of uploads that fail.

    Args:
        wandb: the module; its `termlog` is replaced, which prints nothing in a worker.
        clock: monotonic seconds.
    """

    def __init__(self, wandb: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = ""
        self._heard_at = 0.0
        self.refused: str | None = None
        wandb.termlog = self.hear

    @property
    def trouble(self) -> str | None:
        """Why W&B takes nothing at the moment, None if nothing is known of that."""
        if self.refused is not None:
            return self.refused
        recent = self._heard and self._clock() - self._heard_at < _REMEMBERED_S
        return self._heard if recent else None

    def listen_to_the_end(self, run: Any, log: Callable[[str], None]) -> None:
        """Ask once more when `run` is finished: of its last rows wandb itself asks nothing."""
        try:
            from wandb.sdk.wandb_run import TeardownHook, TeardownStage

            hook = TeardownHook(lambda: self._ask(run), TeardownStage.LATE)
            run._teardown_hooks.append(hook)
        except (ImportError, AttributeError) as error:
            log(f"W&B: whether it takes the last rows cannot be seen: {error}")

    def _ask(self, run: Any) -> None:
        with contextlib.suppress(Exception):  # without an answer nothing is known, as before
            answer = run._interface.deliver_network_status().wait_or(timeout=_ASK_S)
            for one in answer.response.network_status_response.network_responses:
                text = str(one.http_response_text)
                self.hear(f"{one.http_status_code} encountered ({text}), retrying request")

    def hear(self, text: object = "", *_: Any, **__: Any) -> None:
        """Take what wandb would print."""
        said = without_key(text)
        found = _ANSWERED.search(said)
        if found is None:
            if "retry" in said:
                self._note(f"W&B takes no rows at the moment ({said}); they are in the run's file")
            return
        status = int(found[1])
        if 400 <= status < 500 and status not in (408, _LIMITED):
            remedy = _OF_A_PERSON.get(status, "it does not take the run's rows")
            self.refused = f"W&B takes no more rows: {remedy} (error {status}: {found[2]})"
        else:
            self._note(
                f"W&B takes no rows at the moment (error {status}: {found[2]}); they are in the "
                "run's file, and are uploaded when it takes them again"
            )

    def _note(self, sentence: str) -> None:
        self._heard, self._heard_at = sentence, self._clock()
