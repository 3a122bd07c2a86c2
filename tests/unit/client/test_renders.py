"""Figures: handed over, drawn in a thread of the client's own, counted at every moment."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure as MatplotlibFigure

from sidestep import client as sidestep
from sidestep.client import renders
from sidestep.client.values import Deferred, EmitContext, InvalidValueError, Prepared, Value
from sidestep.proto.paths import RuntimePaths
from sidestep.proto.records import decode_value
from tests.support.waiting import wait_until
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import numbers, values
from tests.unit.client.fake_daemon import FakeDaemon


def await_true(condition: Callable[[], object]) -> None:
    wait_until(condition, 20, "what a thread was to do")


@pytest.fixture(autouse=True)
def _no_thread_and_no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")
    await_true(lambda: not [t for t in threading.enumerate() if t.name == "sidestep-renders"])


def drawn(height: int = 120, width: int = 200) -> MatplotlibFigure:
    figure = MatplotlibFigure(figsize=(width / 100, height / 100), dpi=100)
    figure.subplots().plot([1, 3, 2])
    return figure


def pixels(value: Any) -> np.ndarray:
    (array,) = value.arrays
    return np.frombuffer(array.data, array.dtype).reshape(array.shape)


class Slow(Value):
    """A value that is made when the test says so."""

    kind = "slow"

    def __init__(self, gate: threading.Event, make: Callable[[], Prepared] | None = None) -> None:
        self.gate = gate
        self.make = make or (lambda: Prepared("text", {"text": "made"}))
        self.began = threading.Event()

    def prepare(self, context: EmitContext) -> Deferred:
        def make() -> Prepared:
            self.began.set()
            assert self.gate.wait(20)
            return self.make()

        return Deferred("slow", 100, make)


def assert_balanced(client: sidestep.Client) -> sidestep.Stats:
    stats = client.stats()
    assert stats.emitted == stats.acked + stats.held + stats.dropped
    return stats


# --- what is shown -----------------------------------------------------------------------------


def expected(figure: MatplotlibFigure) -> np.ndarray:
    """As `torch.utils.tensorboard` draws it."""
    from torch.utils.tensorboard._utils import figure_to_image

    return figure_to_image(figure, close=False).transpose(1, 2, 0)


def test_a_figure_is_drawn_as_torch_draws_it(connect: MakeClient) -> None:
    client = connect(outbox_bytes=8 << 20)
    plt.figure(figsize=(2, 1)).subplots().set_title(r"$\alpha$ é")
    kept = plt.gcf()
    client.emit({"kept": sidestep.Figure(kept, close=False)}, step=1)
    (value,) = values(client)  # before emit returned
    assert (value.kind, value.info, value.step) == ("image", {"layout": "HWC"}, 1)
    np.testing.assert_array_equal(pixels(value), expected(kept))
    assert plt.fignum_exists(kept.number)

    client.emit({"given": sidestep.Figure(kept, caption="c")}, step=2, wall_time=5.0)
    assert not plt.fignum_exists(kept.number)
    await_true(lambda: len(values(client)) == 2)
    given = values(client)[1]
    assert (given.step, given.time_ns, given.info["caption"]) == (2, 5_000_000_000, "c")
    np.testing.assert_array_equal(pixels(given), expected(kept))

    figures = [drawn(), drawn()]
    client.emit({"list": sidestep.Figure(figures, close=False)})
    grid = values(client)[2]
    assert (grid.kind, grid.info["layout"]) == ("images", "NHWC")
    np.testing.assert_array_equal(pixels(grid), np.stack([expected(f) for f in figures]))


@pytest.mark.parametrize("silent", [{"rank": 1, "world_size": 2}, "SIDESTEP_DISABLED"])
def test_figures_do_not_pile_up_where_nothing_is_sent(
    connect: MakeClient, monkeypatch: pytest.MonkeyPatch, silent: Any
) -> None:
    if isinstance(silent, str):
        monkeypatch.setenv(silent, "1")
    client = connect(**(silent if isinstance(silent, dict) else {}))
    other = plt.figure(5)
    client.emit({"f": sidestep.Figure([plt.figure(), plt.figure()]), "g": sidestep.Figure(5)})
    assert plt.get_fignums() == [other.number]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: 5, "takes a matplotlib.figure.Figure, not int"),
        (lambda: plt.figure().subplots(), "not Axes; axes and seaborn's grids have theirs"),
        (list, "figures of 0 sizes"),
        (lambda: [drawn(), drawn(width=100)], "figures of 2 sizes"),
        (lambda: drawn(width=20_000), "at most 16384 each way"),
    ],
)
@pytest.mark.parametrize("close", [False, True])
def test_what_is_no_figure(given: Any, message: str, close: bool) -> None:
    with pytest.raises(InvalidValueError, match=message):
        sidestep.Figure(given(), close=close).prepare(EmitContext(0, {}))


def test_a_figure_too_large_for_the_outbox_is_refused_at_once(connect: MakeClient) -> None:
    client = connect(strict=True)
    with pytest.raises(InvalidValueError, match="'f': image of 2160000 bytes: this outbox takes"):
        client.emit({"f": sidestep.Figure(drawn(600, 1200))})


def test_a_figure_that_cannot_be_drawn_is_rejected(
    connect: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    figure = drawn()
    figure.suptitle("$\\nonsense{$")
    client.emit({"broken": sidestep.Figure(figure), "loss": 1.0})
    client.emit({"fine": sidestep.Figure(drawn())})
    await_true(lambda: len(values(client)) == 1)
    assert (client.stats().rejected, client.stats().held) == (1, 2)
    assert "rejected 'broken'" in caplog.text


# --- the books ---------------------------------------------------------------------------------


def test_what_is_under_way_is_held_and_then_arrives(connect: MakeClient) -> None:
    client = connect()
    gate = threading.Event()
    slow = Slow(gate)
    before = time.monotonic()
    client.emit({"slow": slow, "loss": 1.0}, step=7)
    assert slow.began.wait(10)
    assert time.monotonic() - before < 10, "emit waited"
    assert (assert_balanced(client).emitted, client.stats().held) == (2, 2)
    assert numbers(client) == [{"loss": 1.0}]
    assert not client.flush(0.05)
    gate.set()
    await_true(lambda: len(values(client)) == 1)
    assert (assert_balanced(client).emitted, client.stats().held) == (2, 2)


def test_too_many_are_dropped_and_counted(connect: MakeClient) -> None:
    client = connect()
    gate = threading.Event()
    most = renders.MAX_PENDING
    for _ in range(most + 5):
        client.emit({"slow": Slow(gate)})
    stats = assert_balanced(client)
    assert (stats.emitted, stats.held, stats.dropped) == (most + 5, most, 5)
    gate.set()
    await_true(lambda: len(values(client)) == most)
    assert assert_balanced(client).dropped == 5


def test_the_books_balance_at_every_moment(connect: MakeClient) -> None:
    client = connect(outbox_bytes=4 << 20)
    gate = threading.Event()
    gate.set()
    emitted = 0
    deadline = time.monotonic() + 20
    for _ in range(300):
        client.emit({"quick": Slow(gate)})
        emitted += 1
        assert assert_balanced(client).emitted == emitted  # never one too many or too few
    while client.stats().held + client.stats().dropped < emitted or client._renders.pending:
        assert assert_balanced(client).emitted == emitted
        assert time.monotonic() < deadline


def test_finish_waits_for_its_timeout_and_counts_what_is_left(connect: MakeClient) -> None:
    client = connect()
    gate = threading.Event()
    slow, waiting = Slow(gate), Slow(gate)
    client.emit({"slow": slow, "waiting": waiting})
    assert slow.began.wait(10)
    assert not client.finish(0.1)
    stats = assert_balanced(client)
    assert (stats.emitted, stats.dropped) == (2, 2)
    gate.set()
    await_true(lambda: not [t for t in threading.enumerate() if t.name == "sidestep-renders"])
    assert client.stats() == stats
    client.emit({"late": Slow(gate)})
    assert client.stats().rejected == 1


def test_a_figure_is_given_free_when_it_is_drawn(connect: MakeClient) -> None:
    client = connect()
    figure = drawn()
    left = weakref.ref(figure)
    client.emit({"f": sidestep.Figure(figure)})
    del figure
    await_true(lambda: len(values(client)) == 1)

    def is_gone() -> bool:
        gc.collect()
        return left() is None

    await_true(is_gone)


def test_blocking_waits_in_the_thread_and_not_in_emit(connect: MakeClient) -> None:
    client = connect(on_full="block")
    while client._outbox.has_room(9000):
        client.emit({"text": sidestep.Text("x" * 8000)})
    gate = threading.Event()
    gate.set()
    slow = Slow(gate, lambda: Prepared("text", {"text": "x" * 9000}))
    client.emit({"slow": slow})
    assert slow.began.wait(10)
    assert assert_balanced(client).dropped == 0
    assert client.stats().held > 0  # and stats do not wait for it either


# --- threads, signals, children ----------------------------------------------------------------


def test_threads_that_emit_at_once_start_one_thread(connect: MakeClient) -> None:
    client = connect()
    gate, together = threading.Event(), threading.Barrier(8)

    def emit() -> None:
        together.wait(10)
        client.emit({"slow": Slow(gate)})

    threads = [threading.Thread(target=emit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([t for t in threading.enumerate() if t.name == "sidestep-renders"]) == 1
    gate.set()
    await_true(lambda: len(values(client)) == 8)


def test_a_flush_in_the_thread_itself_does_not_wait_for_itself(connect: MakeClient) -> None:
    client = connect()
    gate = threading.Event()
    gate.set()
    answers: list[bool] = []

    def make() -> Prepared:
        answers.append(client.flush(15))
        return Prepared("text", {"text": "made"})

    began = time.monotonic()
    client.emit({"slow": Slow(gate, make)})
    await_true(lambda: len(values(client)) == 1)
    assert (answers, time.monotonic() - began < 10) == ([False], True)


def test_a_signal_handler_emits_figures_too(connect: MakeClient) -> None:
    client = connect(outbox_bytes=8 << 20)
    handled = 0

    def handler(*_: object) -> None:
        nonlocal handled
        if handled < 20:
            handled += 1
            client.emit({"inner": sidestep.Figure(drawn(20, 20))})

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)
    try:
        outer = 0
        while handled < 20:
            client.emit({"outer": Slow(ready())})
            outer += 1
            assert_balanced(client)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    await_true(lambda: not client._renders.pending)
    stats = assert_balanced(client)
    assert (stats.emitted, stats.rejected) == (outer + handled, 0)


def ready() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


def test_a_fork_leaves_it_to_the_parent(connect: MakeClient) -> None:
    client = connect()
    gate = threading.Event()
    slow = Slow(gate)
    client.emit({"slow": slow})
    assert slow.began.wait(10)
    child = os.fork()
    if child == 0:
        client.emit({"f": sidestep.Figure(drawn())})
        stats = client.stats()
        quiet = not client.flush(5) and not client.finish(5)
        right = (stats.emitted, stats.held, stats.rejected) == (0, 0, 1) and quiet
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.set()
    await_true(lambda: len(values(client)) == 1)
    assert_balanced(client)


def test_figures_under_way_at_the_end_are_delivered(places: RuntimePaths) -> None:
    code = """
import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot as plt
from sidestep import client
client.connect("x", autostart=False)
for step in range(3):
    plt.figure(figsize=(0.5, 0.5), dpi=40).text(0, 0, str(step))
    client.emit({"f": client.Figure(plt.gcf())}, step=step)
"""
    with FakeDaemon(places) as daemon:
        done = subprocess.run([sys.executable, "-c", code], timeout=40, check=False)
    assert done.returncode == 0
    (known,) = daemon.clients.values()
    found = [decode_value(record) for record in known.records]
    assert [(value.kind, value.step) for value in found] == [("image", n) for n in range(3)]
    assert known.farewell
