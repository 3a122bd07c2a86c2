"""What is posted: which transitions are worth it, and the JSON that says them. No I/O.

The body is what Slack's incoming webhooks take, and those who speak their language (Mattermost,
Rocket.Chat, Discord's `/slack` addresses): `text` for people, and beside it the same in fields for
programs, which such services leave alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from sidestep.proto import RunSpec, Value

from .. import alarms
from ..alarms import State
from ..rows.points import wall_times_s

MAX_NOTICES: Final = 100
"""What waits at most; of more, the oldest go, and the message says how many."""

_MAX_LINES: Final = 20
_MAX_TEXT: Final = 500
_MAX_NAME: Final = 200
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Notice:
    """One transition of one representation.

    Attributes:
        id: the same whenever this transition is posted: a message may come twice.
        recovered: whether it is no alarm any more.
        time: when it was observed, in seconds since the epoch.
        text: the daemon's sentence: what happened, since when, what to look at.
    """

    id: str
    representation: str
    state: str
    previous: str
    recovered: bool
    step: int
    since_step: int
    condition: str
    reason: str
    text: str
    time: float

    def packed(self) -> dict[str, Any]:
        """It as MessagePack takes it."""
        return asdict(self)


def unpacked(stored: object) -> list[Notice]:
    """What `Notice.packed` made of some; what is of another version is left out."""
    found: list[Notice] = []
    for each in cast("Sequence[Any]", stored) if isinstance(stored, list | tuple) else ():
        try:
            found.append(Notice(**each))
        except TypeError:
            continue
    return found


def notice_of(run: RunSpec, value: Value, min_state: State) -> Notice | None:
    """A journalled transition as a notice; None when it is beneath `min_state`.

    A state that is well again, or beneath `min_state` again, is worth a notice when the one before
    was.

    Raises:
        KeyError, TypeError, ValueError: the value is not as its kind says.
    """
    info = value.info
    state, previous = State(str(info["state"])), State(str(info["previous"]))
    least = alarms.level(min_state)
    if max(alarms.level(state), alarms.level(previous)) < least:
        return None
    tag = str(info["representation"])
    told = "\0".join((run.name, run.log_dir, tag, state, str(value.step), str(value.time_ns)))
    return Notice(
        hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        tag,
        state.value,
        previous.value,
        alarms.level(state) < least,
        value.step,
        int(cast("int", info["since_step"])),
        str(info["condition"]),
        str(info["reason"])[:_MAX_TEXT],
        str(info["text"])[:_MAX_TEXT],
        wall_times_s(value.time_ns),
    )


def body(run: RunSpec, host: str, notices: Sequence[Notice], left_out: int = 0) -> dict[str, Any]:
    """The message that says `notices`, oldest first.

    Args:
        run: whose they are.
        host: the daemon's machine.
        notices: at least one.
        left_out: older ones that were too many.
    """
    name = plain(run.name)
    lines = [_line(notice) for notice in notices]
    if len(lines) == 1:
        text = f"{lines[0]} (run {name} on {plain(host)})"
    else:
        total = len(lines) + left_out
        text = "\n".join(
            [f"sidestep: {total:,} changes in run {name} on {plain(host)}", *lines[:_MAX_LINES]]
        )
        if total > _MAX_LINES:
            text += f"\n... and {total - min(len(lines), _MAX_LINES):,} more"
    return {
        "text": text,
        "source": "sidestep",
        "run": run.name,
        "host": host,
        "alarms": [notice.packed() for notice in notices],
        "left_out": left_out,
    }


def _line(notice: Notice) -> str:
    state = f"*{notice.state}*"
    if notice.recovered:
        state = f"*RECOVERED* ({notice.state}, was {notice.previous})"
    where = f"`{plain(notice.representation)}` at step {notice.step:,}"
    return f"{state} {where}: {plain(notice.text, _MAX_TEXT)}"


def plain(text: str, limit: int = _MAX_NAME) -> str:
    """`text` so that a chat shows it and obeys nothing in it: no links, mentions, or breaks."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    text = _UNSAFE.sub("?", text).encode(errors="replace").decode()
    text = text.replace("://", ":\u200b//").replace("www.", "www\u200b.")  # else made a link
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("`", "'").replace("@", "@\u200b")
