"""The webhook's worker over a real journal, and real HTTP to a server that misbehaves on demand."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from sidestep.proto import RunSpec, Value
from sidestep.proto.records import Scalars, encode_scalars, encode_value
from sidestep.sidecar.alarms import State
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.supervision import cursor_file
from sidestep.sidecar.webhook import worker as worker_module
from sidestep.sidecar.webhook.message import MAX_NOTICES, body, notice_of, plain, unpacked
from sidestep.sidecar.webhook.post import Outcome, post, shown
from sidestep.sidecar.webhook.worker import WebhookWorker
from tests.support.hook_server import HookServer
from tests.support.waiting import wait_until

SPEC = RunSpec("vit-b", "/logs")
NOW_NS = time.time_ns()


def transition(
    tag: str, state: str, previous: str = "OK", step: int = 100, time_ns: int = NOW_NS
) -> Value:
    info = {
        "representation": tag,
        "state": state,
        "previous": previous,
        "since_step": step,
        "condition": "complete",
        "reason": "variance share from 0.9 to 0.0001",
        "text": "Variance share from 0.9 to 0.0001; since step 100",
    }
    return Value("alarm", f"sidestep/alarm/{tag}", step, time_ns, info)


class Bench:
    """A journal, workers one after another in threads, and a server."""

    def __init__(self, folder: Path, server: HookServer) -> None:
        self.path = str(folder / "journal.sqlite")
        self.cursor_path = str(folder / "1.webhook")
        self.server = server
        self.journal = Journal(self.path)
        self.journal.begin()
        self.run_id = self.journal.put_run(SPEC)
        client = ClientRow(0, b"u" * 16, self.run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
        self.client_id = self.journal.put_client(client)
        self.journal.put_tag_set(self.client_id, 0, ("loss",))
        self.journal.commit()
        self.reports: list[dict[str, Any]] = []
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.records = 0

    def append(self, *values: Value, scalars: int = 0) -> None:
        self.journal.begin()
        data = b"".join(encode_scalars(Scalars(0, step, 1, (0.5,))) for step in range(scalars))
        if scalars:
            self.journal.append(self.run_id, self.client_id, scalars, data)
        for value in values:
            encoded = b"".join(map(bytes, encode_value(value)[1]))
            self.journal.append(self.run_id, self.client_id, 1, encoded, {value.kind})
        self.journal.commit()
        self.records += scalars + len(values)
        self.inbox.put({"op": "rows"})

    def worker(self, min_state: str = "WARN", **more: Any) -> WebhookWorker:
        settings = {"url": self.server.url, "min_state": min_state, "host": "node7"}
        return WebhookWorker(
            settings, self.run_id, SPEC, self.path, self.cursor_path, self.reports.append, **more
        )

    def start(self, **named: Any) -> threading.Thread:
        # SQLite's connection is for the thread that opened it.
        thread = threading.Thread(target=lambda: self.worker(**named).serve(self.inbox))
        thread.start()
        return thread

    def close(self, thread: threading.Thread) -> None:
        self.inbox.put({"op": "close", "finished": True})
        thread.join(20)
        assert not thread.is_alive()

    def await_report(self, **wanted: Any) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            last = self.reports[-1] if self.reports else {}
            return last if last and all(last[k] == v for k, v in wanted.items()) else None

        report = wait_until(found, 20, lambda: f"{wanted}; {self.reports[-3:]}")
        assert report is not None
        return report

    def cursor(self) -> cursor_file.Cursor:
        return cursor_file.load(self.cursor_path, self.journal.identity())


@pytest.fixture
def server() -> Iterator[HookServer]:
    with HookServer() as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path, server: HookServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(worker_module, "_GATHER_S", 0.05)
    monkeypatch.setattr(worker_module, "_BACKOFF_FIRST_S", 0.02)
    made = Bench(tmp_path, server)
    yield made
    made.journal.close()


def states(posted: dict[str, Any]) -> list[tuple[str, str]]:
    return [(alarm["representation"], alarm["state"]) for alarm in posted["alarms"]]


# --- what is worth a message ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "previous", "least", "told", "recovered"),
    [
        ("WATCH", "OK", "WARN", False, False),
        ("WARN", "WATCH", "WARN", True, False),
        ("COLLAPSED", "WARN", "WARN", True, False),
        ("WARN", "COLLAPSED", "WARN", True, False),
        ("OK", "WATCH", "WARN", False, False),
        ("OK", "COLLAPSED", "WARN", True, True),
        ("WATCH", "COLLAPSED", "WARN", True, True),
        ("OK", "WATCH", "WATCH", True, True),
        ("WARN", "OK", "COLLAPSED", False, False),
        ("NONFINITE", "WARMUP", "COLLAPSED", True, False),
        ("COLLAPSED", "OK", "NONFINITE", False, False),
    ],
)
def test_what_is_told(state: str, previous: str, least: str, told: bool, recovered: bool) -> None:
    notice = notice_of(SPEC, transition("t", state, previous), State(least))
    assert (notice is not None) == told
    if notice is not None:
        assert notice.recovered == recovered
        assert unpacked([notice.packed()]) == [notice]


def test_a_message_says_it_to_people_and_to_programs() -> None:
    notice = notice_of(SPEC, transition("train/context", "COLLAPSED", "WATCH", 1200), State.WARN)
    assert notice is not None
    message = body(SPEC, "node7", [notice])
    assert message["text"] == (
        "*COLLAPSED* `train/context` at step 1,200: Variance share from 0.9 to 0.0001; since step "
        "100 (run vit-b on node7)"
    )
    assert (message["run"], message["host"], message["source"]) == ("vit-b", "node7", "sidestep")
    (alarm,) = message["alarms"]
    assert (alarm["state"], alarm["previous"], alarm["step"]) == ("COLLAPSED", "WATCH", 1200)
    json.dumps(message)


def test_many_are_one_message_that_says_how_many_more() -> None:
    notices = [notice_of(SPEC, transition(f"t{i}", "WARN"), State.WARN) for i in range(50)]
    text = body(SPEC, "h", [n for n in notices if n], left_out=7)["text"].splitlines()
    assert text[0] == "sidestep: 57 changes in run vit-b on h"
    assert len(text) == 22
    assert text[-1] == "... and 37 more"


@given(st.text(max_size=600))
@example("see https://www.evil.example/login")
def test_nothing_in_a_name_is_obeyed(name: str) -> None:
    said = plain(name)
    assert not any(c in said for c in "<>`\n\r\x1b\u202e")
    assert "@" not in said.replace("@\u200b", "")
    assert "://" not in said
    assert "www." not in said
    said.encode()


def test_a_tag_that_would_ping_a_channel_does_not() -> None:
    hostile = "<!channel> @here\n*x* `<https://evil|ok>`"
    notice = notice_of(SPEC, transition(hostile, "WARN"), State.WARN)
    assert notice is not None
    text = body(SPEC, "h", [notice])["text"]
    assert "<" not in text
    assert "\n" not in text
    assert "@h" not in text


# --- HTTP ----------------------------------------------------------------------------------------


def test_taken(server: HookServer) -> None:
    assert post(server.url, {"text": "ä"}) == Outcome()
    assert server.bodies() == [{"text": "ä"}]
    assert server.requests[0].headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("status", [500, 502, 408, 429])
def test_what_may_work_later(server: HookServer, status: int) -> None:
    server.script(status)
    outcome = post(server.url, {})
    assert outcome.error is not None
    assert f"answered {status}" in outcome.error
    assert not outcome.hopeless


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_a_person_must_mend(server: HookServer, status: int) -> None:
    server.script(status)
    outcome = post(server.url, {})
    assert outcome.hopeless
    assert "Set webhook_url" in str(outcome.error)


def test_a_redirect_is_not_taken_for_a_post(server: HookServer) -> None:
    server.script((302, {"Location": "/elsewhere"}))
    outcome = post(server.url, {})
    assert outcome.hopeless
    assert "redirects" in str(outcome.error)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("999999999999", 3600), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("soon", None)],
)
def test_retry_after(server: HookServer, header: str, seconds: float | None) -> None:
    server.script((429, {"Retry-After": header}))
    assert post(server.url, {}).retry_after_s == seconds


def test_a_server_that_hangs_and_one_that_drips(server: HookServer) -> None:
    server.script("hang")
    outcome = post(server.url, {}, 0.3)
    assert "did not answer within 0.3 s" in str(outcome.error)
    assert not outcome.hopeless
    server.script("drip")
    began = time.monotonic()
    outcome = post(server.url, {}, 0.5)
    assert outcome.hung
    assert time.monotonic() - began < 5


def test_no_failure_shows_the_address(server: HookServer) -> None:
    secret = server.url.rsplit("/", 1)[1]
    found: list[str] = []
    for answer in (404, 500, (302, {"Location": server.url}), "hang", "close", "garbage"):
        server.script(answer)
        found.append(str(post(server.url, {}, 0.3).error))
    found.append(str(post("http://127.0.0.1:1/services/" + secret, {}).error))
    found.append(str(post("http://no.such.host.invalid/" + secret, {}).error))
    found.append(str(post("http://127.0.0.1:1/a b/" + secret, {}).error))
    found.append(str(post(f"http://user:{secret}@127.0.0.1:1/x", {}).error))
    assert not [text for text in found if secret in text]
    assert all(text != "None" for text in found)
    assert shown(f"https://u:{secret}@hooks.slack.com/services/{secret}?{secret}") == (
        "https://hooks.slack.com/…"
    )


# --- the worker ----------------------------------------------------------------------------------


def test_delivers_what_is_told_and_passes_the_rest(bench: Bench, server: HookServer) -> None:
    thread = bench.start()
    bench.append(transition("a", "WATCH"), scalars=50)
    bench.append(transition("a", "COLLAPSED", "WATCH"), transition("b", "WARN"))
    (message,) = server.await_bodies(1)
    assert states(message) == [("a", "COLLAPSED"), ("b", "WARN")]
    bench.await_report(state="ok", total=bench.records)
    assert bench.cursor().total == bench.records
    bench.close(thread)
    assert bench.reports[-1]["state"] == "closed"
    # The next worker has nothing to say.
    bench.close(bench.start())
    assert len(server.requests) == 1


def test_a_flood_is_gathered(
    bench: Bench, server: HookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_INTERVAL_S", 3600.0)
    thread = bench.start()
    bench.append(transition("first", "WARN"))
    server.await_bodies(1)
    for number in range(MAX_NOTICES + 20):
        bench.append(transition(f"t{number}", "WARN", time_ns=time.time_ns()))
    report = bench.await_report(total=bench.records - MAX_NOTICES)
    assert report["state"] == "ok"
    assert len(server.requests) == 1
    bench.inbox.put({"op": "hurry"})  # somebody drains
    _, message = server.await_bodies(2)
    assert len(message["alarms"]) == MAX_NOTICES
    assert message["left_out"] == 20
    assert message["text"].startswith(f"sidestep: {MAX_NOTICES + 20} changes")
    bench.close(thread)


def test_retries_until_it_is_taken(bench: Bench, server: HookServer) -> None:
    server.script(500, "close", 503)
    thread = bench.start()
    bench.append(transition("a", "WARN"))
    bodies = server.await_bodies(4)
    assert all(message["alarms"][0]["id"] == bodies[0]["alarms"][0]["id"] for message in bodies)
    bench.await_report(state="ok", total=bench.records)
    degraded = [report for report in bench.reports if report["state"] == "degraded"]
    assert "1 alarm not delivered: http://127.0.0.1/… answered 500" in degraded[0]["error"]
    bench.close(thread)


def test_waits_as_long_as_it_is_asked_to_also_in_another_process(
    bench: Bench, server: HookServer
) -> None:
    ahead_s = [0.0]
    server.script((429, {"Retry-After": "1000"}))
    thread = bench.start(clock=lambda: time.time() + ahead_s[0])
    bench.append(transition("a", "WARN"))
    assert bench.await_report(state="degraded")["retry_in_s"] == pytest.approx(1000, abs=2)
    bench.append(transition("a", "COLLAPSED", "WARN"))
    bench.await_report(total=bench.records - 2)
    bench.close(thread)
    thread = bench.start(clock=lambda: time.time() + ahead_s[0])
    bench.inbox.put({"op": "hurry"})
    bench.await_report(state="ok")
    ahead_s[0] += 900
    bench.append(scalars=3)
    bench.await_report(row=5 - 2, total=bench.records - 2)
    assert len(server.requests) == 1
    ahead_s[0] += 101
    _, message = server.await_bodies(2)
    assert states(message) == [("a", "WARN"), ("a", "COLLAPSED")]
    bench.close(thread)


def test_a_revoked_address_needs_a_person_and_holds_no_rows(
    bench: Bench, server: HookServer
) -> None:
    server.script(404)
    thread = bench.start()
    bench.append(transition("a", "WARN"), scalars=10)
    report = bench.await_report(state="failed")
    assert "Set webhook_url" in report["error"]
    bench.append(scalars=1000)
    bench.await_report(total=bench.records - 1, row=3)
    bench.close(thread)
    assert bench.reports[-1]["error"].startswith("1 alarm not delivered")


def test_dies_between_the_two_and_says_it_again(bench: Bench, server: HookServer) -> None:
    bench.append(transition("a", "WARN"))

    class DiedError(Exception):
        pass

    def posts_and_dies(url: str, message: Any) -> Outcome:
        assert post(url, message) == Outcome()
        raise DiedError

    with pytest.raises(DiedError):
        bench.worker(send=posts_and_dies).serve(bench.inbox)
    bench.inbox = queue.SimpleQueue()
    thread = bench.start()
    first, second = server.await_bodies(2)
    assert first == second
    bench.close(thread)


def test_a_post_that_never_ends_costs_the_process_and_no_notice(bench: Bench) -> None:
    bench.append(transition("a", "WARN"))

    def hangs(_url: str, _body: Any) -> Outcome:
        return Outcome("did not answer", hung=True)

    worker = bench.worker(send=hangs)
    assert worker.serve(bench.inbox) is False
    assert bench.reports[-1]["state"] == "degraded"
    assert bench.cursor().total == bench.records - 1


def test_what_is_a_day_old_is_no_news(bench: Bench, server: HookServer) -> None:
    bench.append(transition("old", "WARN", time_ns=time.time_ns() - 90_000 * 10**9))
    thread = bench.start()
    report = bench.await_report(state="ok", total=bench.records)
    assert report["skipped"] == 1
    bench.close(thread)
    assert not server.requests


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
def test_a_clock_that_jumps_delays_nothing_for_long(
    bench: Bench, server: HookServer, jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_STALE_S", 1e9)
    ahead_s = [0.0]
    thread = bench.start(clock=lambda: time.time() + ahead_s[0])
    bench.append(transition("a", "WARN"))
    server.await_bodies(1)
    bench.await_report(total=bench.records)
    ahead_s[0] += jump_s
    bench.append(transition("b", "WARN"))
    server.await_bodies(2)
    bench.close(thread)
