"""`MetricsLogger`: what ported trainers log with, one import line away from their old one.

    from sidestep.client.metrics_logger import MetricsLogger

Nothing here raises into training but the constructors, for wrong arguments: what cannot be logged
is counted in ``logger.client.stats().rejected`` and said once. (`SIDESTEP_STRICT=1` lets it raise.)

One rule for steps holds for every method: ``step=None`` takes the counter and then adds one to it;
an explicit step sets it. So after 40, None takes 40, and None after that 41.
"""

from __future__ import annotations

from .logger import MetricsLogger

__all__ = ["MetricsLogger"]
