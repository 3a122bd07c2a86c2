"""Scrapers that hang, flood, or have no business here; real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from sidestep.sidecar.exposition import server as under_test
from sidestep.sidecar.exposition.server import Cached, Server
from tests.support.prometheus import get
from tests.support.waiting import wait_until

Start = Callable[..., Server]
TEXT = b"a 1\n"


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[tuple[Server, threading.Thread]] = []

    def serve(token: str | None = None) -> Server:
        server = Server("127.0.0.1", 0, lambda accept: ("text/plain", TEXT), token)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        started.append((server, thread))
        return server

    yield serve
    for server, thread in started:
        server.shutdown()
        thread.join(10)
        server.server_close()


def url(server: Server, path: str = "/metrics") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


def connection(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_connections_that_say_nothing_are_bounded_and_end(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    hanging = [connection(server) for _ in range(under_test._CONNECTIONS)]
    wait_until(lambda: len(server._open) == len(hanging), 10, "not all are open")
    with connection(server) as one_more:
        assert one_more.recv(100) == b""  # closed unread
    assert server.refused == 1
    server.sweep()  # their time is not over
    assert len(server._open) == len(hanging)
    monkeypatch.setattr(under_test, "_CONNECTION_S", 0.0)
    server.sweep()
    for one in hanging:
        assert one.recv(100) == b""
        one.close()
    wait_until(lambda: not server._open, 10, "some stay open")
    monkeypatch.undo()
    assert get(url(server))[2] == TEXT.decode()


def test_a_byte_now_and_then_is_no_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    with connection(server) as slow:
        slow.sendall(b"GET /metr")
        wait_until(lambda: server._open, 10, "not open")
        monkeypatch.setattr(under_test, "_CONNECTION_S", 0.0)
        server.sweep()
        assert slow.recv(100) == b""


def test_garbage_is_answered_and_harms_nobody(start: Start) -> None:
    server = start()
    for garbage in (b"\0" * 1000 + b"\r\n\r\n", b"BREW /metrics HTTP/1.1\r\n\r\n", b"G" * 70_000):
        with connection(server) as one:
            one.sendall(garbage)
            one.shutdown(socket.SHUT_WR)
            try:
                while one.recv(65536):
                    pass
            except ConnectionResetError:
                pass  # it did not read all of it
    assert get(url(server))[0] == 200


def test_with_a_token_nothing_is_shown_without_it(start: Start) -> None:
    server = start("0123456789abcdef")
    for headers in ({}, {"Authorization": "Bearer 0123456789abcdeF"}, {"Authorization": "é"}):
        status, _, text = get(url(server), **headers)
        assert status == 401
        assert TEXT.decode() not in text
    assert get(url(server), Authorization="Bearer 0123456789abcdef")[2] == TEXT.decode()


def test_what_a_page_of_another_name_asks_for_is_refused(start: Start) -> None:
    assert get(url(start()), Host="rebound.example")[0] == 403


def test_paths(start: Start) -> None:
    server = start()
    assert "/metrics" in get(url(server, "/"))[2]
    assert get(url(server, "/else"))[0] == 404
    assert get(url(server, "/metrics?x=1"))[0] == 200


def test_however_many_ask_the_text_is_made_twice_a_second() -> None:
    now = [0.0]
    made: list[str] = []

    def render(accept: str) -> tuple[str, bytes]:
        made.append(accept)
        return "text/plain", str(len(made)).encode()

    cached = Cached(render, clock=lambda: now[0])
    for i in range(100):
        assert cached(f"text/plain;q={i}")[1] == b"1"
    assert cached("application/openmetrics-text;version=1.0.0")[1] == b"2"
    now[0] += 0.5
    assert cached("")[1] == b"3"
