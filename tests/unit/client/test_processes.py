"""What the client does to the process it lives in, and to its children: seen in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sidestep.proto.paths import RuntimePaths, outbox_dirs
from tests.unit.client.fake_daemon import FakeDaemon
from tests.unit.client.outboxes import adopted

ROOT = Path(__file__).resolve().parents[3]


def python(code: str, *, timeout: float = 40) -> subprocess.CompletedProcess[str]:
    """Run a script of its own, with the environment of the test."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
    )


def left_outboxes(places: RuntimePaths) -> list[Path]:
    directories = outbox_dirs(places, os.environ["SIDESTEP_STATE_DIR"], os.getuid())
    return [path for directory in directories for path in Path(directory).glob("*.outbox")]


def held(path: Path) -> int:
    return sum(data is not None for data in adopted(path.read_bytes()).values())


# --- what is loaded ------------------------------------------------------------------------------


def test_importing_loads_next_to_nothing() -> None:
    done = python(
        """
        import sys
        before = set(sys.modules)
        from sidestep import client
        print(*(set(sys.modules) - before))
        """
    )
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if name not in sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names == {"sidestep"}
    ours = {name for name in loaded if name.startswith("sidestep.")}
    assert ours == {"sidestep.client", "sidestep.client.importing"}


def test_numbers_need_neither_torch_nor_numpy(places: RuntimePaths) -> None:
    done = python(
        """
        import sys
        from sidestep import client
        client.connect("x", autostart=False)
        client.emit({"a": 1.0, "b": 2}, step=1)
        client.emit({"a": "no number", "text": client.Text("x")}, step=1)
        client.finish(0)
        assert client.stats().held == 2, client.stats()
        print(*{"torch", "numpy", "typer", "tensorboard", "yaml"} & set(sys.modules))
        """
    )
    assert done.returncode == 0, done.stderr
    # A value's arrays are numpy's, if it has none, too.
    assert set(done.stdout.split()) <= {"numpy"}


def test_every_public_name_is_there() -> None:
    done = python(
        """
        from sidestep import client
        missing = [name for name in client.__all__ if not hasattr(client, name)]
        assert not missing, missing
        assert set(dir(client)) >= set(client.__all__)
        try:
            client.nothing_of_the_kind
        except AttributeError as error:
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'sidestep.client' has no attribute 'nothing_of_the_kind'\n"


# --- forks -------------------------------------------------------------------------------------

FORKS = """
    import os, signal, sys, threading
    from sidestep import client

    parent = client.connect("x", autostart=False, outbox_bytes=8 << 20)
    stop = threading.Event()

    def work(index):
        n = 0
        while not stop.is_set():
            n += 1
            client.emit({"a": 1.0, f"b/{index}/{n % 50}": 2.0}, step=n)
            if n % 10 == 0:
                client.emit({"text": client.Text("x" * 10_000)}, step=n)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for n in range(FORKS):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)  # a deadlock ends here, and is seen
            for step in range(3):
                client.emit({"a": 1.0, "bad": "x"}, step=step)
            parent.emit({"a": client.Text("x")}, step=1)
            stats = client.stats()
            assert stats == client.Stats(rejected=7), stats
            assert client.flush(1) is False
            assert client.finish(1) is False
            if n % 10 == 0:
                # A client of its own works, and is another one.
                own = client.connect("y", autostart=False, outbox_bytes=256 << 10)
                client.emit({"a": 1.0}, step=1)
                assert client.stats().held == 1
                assert own._memory.path != parent._memory.path
                own.finish(0)
                os.unlink(own._memory.path)
            sys.exit(0)  # through atexit, as multiprocessing's children do not
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
    stop.set()
    for thread in threads:
        thread.join()
    stats = client.stats()
    assert stats.emitted == stats.acked + stats.held + stats.dropped
    client.finish(0)
    print(stats.emitted, stats.held)
"""


def test_a_fork_does_not_fall_into_an_import_of_another_thread(places: RuntimePaths) -> None:
    done = python(
        """
        import os, signal, sys, threading, time
        from sidestep import client

        begun = threading.Event()

        class Slow:
            def find_spec(self, name, path, target=None):
                if name.endswith(".values.audio") and not begun.is_set():
                    begun.set()
                    time.sleep(0.5)  # nobody can end it: the fork waits for the import
                return None

        sys.meta_path.insert(0, Slow())
        thread = threading.Thread(target=lambda: client.Audio)
        thread.start()
        begun.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)  # a deadlock ends here, and is seen
            client.Audio
            os._exit(0)
        thread.join()
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
        """
    )
    assert done.returncode == 0, done.stderr


def test_fifty_forks_while_two_threads_emit(places: RuntimePaths) -> None:
    done = python(FORKS.replace("FORKS", "50"), timeout=55)
    assert done.returncode == 0, done.stderr
    emitted, kept = map(int, done.stdout.split())
    assert emitted > 100
    (path,) = left_outboxes(places)
    assert held(path) == kept


def test_a_fork_inside_an_emit_leaves_the_parents_memory_alone(places: RuntimePaths) -> None:
    done = python(
        """
        import os
        from sidestep import client
        from tests.unit.client.interrupts import Interrupter
        from tests.unit.client.emitted import numbers

        c = client.connect("x", autostart=False, outbox_bytes=1 << 20)
        client.emit({"a": 0.0}, step=0)
        expected = [0.0]
        for at in range(60):
            child, (wait, go) = None, os.pipe()

            def fork():
                global child
                child = os.fork()
                if not child:
                    os.read(wait, 1)

            with Interrupter(at, fork):
                client.emit({"a": float(at)}, step=at)
            if child == 0:
                os._exit(0)  # the emit that was interrupted has ended here, too
            for n in range(5):
                client.emit({"a": 100.0 + n}, step=n)
            expected += [float(at), 100.0, 101.0, 102.0, 103.0, 104.0]
            if child is None:
                break
            os.write(go, b"x")
            os.waitpid(child, 0)
            assert [row["a"] for row in numbers(c)] == expected, at
        assert at > 5
        c.finish(0)
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_dataloaders_workers_count(places: RuntimePaths) -> None:
    done = python(
        """
        import torch
        from sidestep import client

        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                client.emit({"worker/loss": torch.tensor(1.0)}, step=index)
                return client.stats().rejected

        client.connect("x", autostart=False)
        loader = torch.utils.data.DataLoader(
            Data(), num_workers=2, batch_size=4, multiprocessing_context="fork"
        )
        print(*(int(n) for batch in loader for n in batch))
        assert client.stats().emitted == 0
        client.finish(0)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "2", "3", "4"] * 2


# --- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", ["pass", "sys.exit(3)", "raise RuntimeError('boom')"], ids=lambda end: end.split("(")[0]
)
def test_at_exit_everything_is_delivered(places: RuntimePaths, end: str) -> None:
    with FakeDaemon(places) as daemon:
        done = python(
            f"""
            import sys
            from sidestep import client
            client.connect("x", autostart=False)
            for step in range(1000):
                client.emit({{"a": float(step)}}, step=step)
            {end}
            """
        )
        assert done.returncode == {"pass": 0, "sys.exit(3)": 3}.get(end, 1), done.stderr
    assert [values for _, _, values in daemon.rows()] == [(float(n),) for n in range(1000)]
    assert left_outboxes(places) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV], ids=lambda how: how.name)
def test_a_sudden_end_leaves_all_of_it_in_the_outbox(
    places: RuntimePaths, how: signal.Signals
) -> None:
    done = python(
        f"""
        import os
        from sidestep import client
        client.connect("x", autostart=False)
        for step in range(1000):
            client.emit({{"a": float(step), f"b/{{step % 7}}": 1.0}}, step=step)
        client.emit({{"t": client.Text("x" * 70_000)}}, step=1)
        os.kill(os.getpid(), {int(how)})
        """
    )
    assert done.returncode == -how
    (path,) = left_outboxes(places)
    assert held(path) == 1001


def test_without_a_daemon_the_exit_takes_no_longer_than_it_may(places: RuntimePaths) -> None:
    done = python(
        """
        import time
        from sidestep import client
        began = time.monotonic()
        client.connect("x", autostart=False)
        client.connect("y", autostart=False)
        connected = time.monotonic() - began
        client.emit({"a": 1.0}, step=1)
        import atexit
        ending = time.monotonic()
        from sidestep.client import emitter
        emitter._AT_EXIT_S = 0.5
        emitter._finish_all()
        print(connected, time.monotonic() - ending)
        """
    )
    assert done.returncode == 0, done.stderr
    connected, ending = map(float, done.stdout.split())
    assert connected < 5
    assert 0.5 <= ending < 3  # both clients together
    assert len(left_outboxes(places)) == 2


def test_emitting_during_the_interpreters_exit(places: RuntimePaths) -> None:
    done = python(
        """
        import atexit, sys, threading
        from sidestep import client

        class Late:
            def __del__(self):
                client.emit({"a": 1.0}, step=1)

        def last():
            client.emit({"a": 2.0}, step=2)
            print(client.stats().rejected)

        atexit.register(last)
        client.connect("x", autostart=False, outbox_bytes=256 << 10)
        from sidestep.client import emitter
        emitter._AT_EXIT_S = 0.1
        client.emit({"a": 0.0}, step=0)
        late = sys.modules["late"] = Late()
        cycle = [Late()]
        cycle.append(cycle)
        def daemonic():
            while True:
                client.emit({"b": 1.0}, step=3)
        threading.Thread(target=daemonic, daemon=True).start()
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout) >= 1
