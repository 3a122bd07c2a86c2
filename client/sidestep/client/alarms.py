"""The user's callbacks for alarms, all called in the sender's thread, once for each transition.

A callback that comes late is told how things stand: an alarm may have come with the connection,
before there was a chance to ask for it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from sidestep.proto import Alarm
from sidestep.proto.session.client import WELL

logger = logging.getLogger("sidestep")

Callback = Callable[[Alarm], object]


class Alarms:
    """Callbacks, and the alarms that stand. Without a lock: any thread adds, one calls."""

    def __init__(self) -> None:
        self._new: deque[Callback] = deque()
        self._callbacks: list[Callback] = []
        self._standing: dict[str, Alarm] = {}

    def add(self, callback: Callback) -> None:
        """Have `callback` called soon with each alarm that stands, and then with all to come."""
        self._new.append(callback)

    def take_up(self) -> None:
        """In the sender's thread: tell those who have come since."""
        while self._new:
            callback = self._new.popleft()
            self._callbacks.append(callback)
            for alarm in list(self._standing.values()):
                _call(callback, alarm)

    def hear(self, alarm: Alarm) -> None:
        """In the sender's thread: an alarm has come."""
        self.take_up()
        if alarm.state in WELL:
            self._standing.pop(alarm.tag, None)
        else:
            self._standing[alarm.tag] = alarm
        for callback in self._callbacks:
            _call(callback, alarm)


def _call(callback: Callback, alarm: Alarm) -> None:
    try:
        callback(alarm)
    except BaseException:  # sys.exit() in it would end the sender's thread
        logger.exception("sidestep: an on_alarm callback failed")
