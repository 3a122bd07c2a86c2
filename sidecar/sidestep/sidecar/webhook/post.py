"""Posts one JSON body, and says in a sentence without the address what became of it.

The address is a secret: who has it can post. No message, log or exception of this module has more
of it than scheme and host.
"""

from __future__ import annotations

import email.utils
import http
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

_SOCKET_TIMEOUT_S: Final = 10.0
DEADLINE_S: Final = 15.0
"""For all of a post: who sends a byte now and then never runs into a socket's timeout."""

_MAX_RETRY_AFTER_S: Final = 3600.0
_TRANSIENT: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a post.

    Attributes:
        error: None when it was taken; else what was wrong and, where a person can help, what to do.
        hopeless: it will not be taken before a person has changed something.
        retry_after_s: seconds that the service asked to wait, if it did.
        hung: it is still under way: nobody can tell what will become of it.
    """

    error: str | None = None
    hopeless: bool = False
    retry_after_s: float | None = None
    hung: bool = False


Post = Callable[[str, Mapping[str, Any]], Outcome]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET: nothing would be posted, and all would look well."""

    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_NoRedirect)


def shown(url: str) -> str:
    """As much of the address as anybody may see."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/…"


def post(url: str, body: Mapping[str, Any], deadline_s: float = DEADLINE_S) -> Outcome:
    """Post `body`; takes at most `deadline_s`, whatever the other end and the resolver do."""
    outcomes: list[Outcome] = []
    thread = threading.Thread(
        target=lambda: outcomes.append(_post(url, body, min(_SOCKET_TIMEOUT_S, deadline_s))),
        name="post",
        daemon=True,
    )
    thread.start()
    thread.join(deadline_s)
    if outcomes:
        return outcomes[0]
    return Outcome(f"{shown(url)} did not answer within {deadline_s:g} s", hung=True)


def _post(url: str, body: Mapping[str, Any], timeout_s: float) -> Outcome:
    try:
        request = urllib.request.Request(  # noqa: S310 - `config` lets http and https through
            url,
            json.dumps(body).encode(),
            {"Content-Type": "application/json; charset=utf-8", "User-Agent": "sidestep"},
        )
        with _OPENER.open(request, timeout=timeout_s) as answer:
            status = int(answer.status)
        return Outcome() if 200 <= status < 300 else _refused(url, status, None)
    except urllib.error.HTTPError as error:
        with error:
            return _refused(url, error.code, error.headers.get("Retry-After"))
    except TimeoutError:
        return Outcome(f"{shown(url)} did not answer within {timeout_s:g} s")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return Outcome(f"{shown(url)} did not answer within {timeout_s:g} s")
        return Outcome(f"{shown(url)} cannot be reached: {_without(url, reason)}")


def _refused(url: str, status: int, retry_after: str | None) -> Outcome:
    try:
        phrase = f" ({http.HTTPStatus(status).phrase})"
    except ValueError:
        phrase = ""
    said = f"{shown(url)} answered {status}{phrase}"
    if status >= 500 or status in _TRANSIENT:
        return Outcome(said, retry_after_s=_seconds(retry_after))
    if 300 <= status < 400:
        return Outcome(f"{said}: set webhook_url to the address that it redirects to", True)
    return Outcome(
        f"{said}: it does not take this. Set webhook_url (SIDESTEP_WEBHOOK_URL) to the address "
        "that the service shows for its incoming webhook",
        hopeless=True,
    )


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header asks for: seconds, or a date."""
    if not retry_after:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        asked = float(text[:9])
    else:
        try:
            asked = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(_MAX_RETRY_AFTER_S, max(0.0, asked))


def _without(url: str, error: object) -> str:
    """An error's words, with nothing in them of what the address hides."""
    words = f"{type(error).__name__}: {error}"
    parts = urlsplit(url)
    for secret in (url, parts.path, parts.query, parts.password or "", parts.username or ""):
        if len(secret) > 1:
            words = words.replace(secret, "…")
    return words.splitlines()[0][:300]
