"""What `sidestep doctor` looks at: facts are gathered, then each area judges them by itself.

Everything runs in processes of its own (`isolate`) that can hang, crash and be killed. Facts come
first (`facts`: the daemon, trainers, journal, GPUs, other processes), become one `Scene`, and
each module named after an area turns that into findings: what is well, or what is wrong, with the
one command that mends it. Nothing is started and nothing is changed.
"""

from .examine import Report, examine
from .finding import COMPLAINTS, Finding, Level

__all__ = ["COMPLAINTS", "Finding", "Level", "Report", "examine"]
