"""What daemon and client take does not grow with what happened to them; `bounds` prints it."""

from __future__ import annotations

import pytest

from tests.chaos import bounds
from tests.support.sandbox import Sandbox

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1200)]

LEEWAY = 3
"""Descriptors: a worker that is not yet gone, a connection that is just made."""


def test_daemon_with_a_thousand_clients(sandbox: Sandbox) -> None:
    pid = sandbox.serve().pid
    rest = bounds.use_of(pid)
    (_, most), (_, after) = bounds.daemon_with_clients(sandbox, pid, 1000)
    print(rest, most, after, sep="\n")
    assert most.rss_mb < 150
    assert most.threads == after.threads
    assert after.descriptors <= rest.descriptors + LEEWAY


def test_daemon_with_hostile_peers(sandbox: Sandbox) -> None:
    pid = sandbox.serve().pid
    rest = bounds.use_of(pid)
    (_, most), (_, after) = bounds.daemon_with_hostile_peers(sandbox, pid, 20)
    print(rest, most, after, sep="\n")
    # 256 MiB of records in parts, of all peers together, and a copy of one of them.
    assert most.rss_mb < 500
    assert after.rss_mb < 150
    assert after.descriptors <= rest.descriptors + LEEWAY


def test_daemon_after_a_hundred_clients(sandbox: Sandbox) -> None:
    pid = sandbox.serve().pid
    with bounds.at_home(sandbox):
        (_, before), (_, after) = bounds.daemon_after_reconnects(sandbox, pid, 100)
    print(before, after, sep="\n")
    assert after.threads == before.threads
    assert after.descriptors <= before.descriptors + LEEWAY
    assert after.rss_mb < before.rss_mb + 10


def test_client_whose_daemon_is_gone(sandbox: Sandbox) -> None:
    with bounds.at_home(sandbox):
        _, (_, rest), (_, most) = bounds.client_alone(sandbox, 1_000_000)
    print(rest, most, sep="\n")
    assert most.rss_mb < rest.rss_mb + 20
    assert most.descriptors == rest.descriptors
    assert most.threads == rest.threads + 1, "the one that measures"


def test_client_after_twenty_daemons(sandbox: Sandbox) -> None:
    with bounds.at_home(sandbox):
        (_, before), (_, after) = bounds.client_after_reconnects(sandbox, 20)
    print(before, after, sep="\n")
    assert after.threads == before.threads
    assert after.descriptors <= before.descriptors + LEEWAY
    assert after.rss_mb < before.rss_mb + 10
