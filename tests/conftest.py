"""What holds for every test: Ctrl-C works, also when the run is a background job."""

from __future__ import annotations

import signal

# A shell starts background jobs with SIGINT ignored, and every process that a test starts would
# inherit that: `tail` and `run` could not be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
