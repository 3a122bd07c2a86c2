"""What is known, as families of Prometheus' metrics: names, labels and base units by its rules.

Pure: in go the daemon's account of itself and the last values, out come families. What is not
known is absent, never 0; NaN is NaN. No family says the same series twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

from .last_values import RunValues

RUN_STATES: Final = ("running", "finished", "lost")
SINK_STATES: Final = ("idle", "starting", "ok", "degraded", "failed", "closed")

_MB: Final = 1e6
_GB: Final = 1e9
_GPU: Final[Sequence[tuple[str, str, float, str]]] = (
    ("utilization", "utilization_ratio", 0.01, "Time in which a kernel ran, of the last sample."),
    ("memory_utilization", "memory_utilization_ratio", 0.01, "Time in which memory was accessed."),
    ("memory_used_gb", "memory_used_bytes", _GB, "Device memory in use."),
    ("memory_total_gb", "memory_size_bytes", _GB, "Device memory there is."),
    ("power_w", "power_watts", 1.0, "Power drawn."),
    ("temperature_c", "temperature_celsius", 1.0, "Temperature of the chip."),
    ("sm_clock_mhz", "sm_clock_hertz", _MB, "Clock of the multiprocessors."),
    ("throttle_reasons", "throttle_reasons", 1.0, "NVML's bit mask of why clocks are held back."),
    ("pcie_tx_mb_s", "pcie_transmit_bytes_per_second", _MB, "Sent over PCIe."),
    ("pcie_rx_mb_s", "pcie_receive_bytes_per_second", _MB, "Received over PCIe."),
    ("nvlink_tx_mb_s", "nvlink_transmit_bytes_per_second", _MB, "Sent over all NVLinks."),
    ("nvlink_rx_mb_s", "nvlink_receive_bytes_per_second", _MB, "Received over all NVLinks."),
)
_HOST: Final[Sequence[tuple[str, str, float, str]]] = (
    ("cpu_percent", "cpu_utilization_ratio", 0.01, "CPU time in use, of all cores."),
    ("memory_percent", "memory_utilization_ratio", 0.01, "Memory not available to programs."),
    ("memory_used_gb", "memory_used_bytes", _GB, "Memory not available to programs."),
    ("disk_read_mb_s", "disk_read_bytes_per_second", _MB, "Read from physical disks."),
    ("disk_write_mb_s", "disk_written_bytes_per_second", _MB, "Written to physical disks."),
    ("network_recv_mb_s", "network_receive_bytes_per_second", _MB, "Received by network cards."),
    ("network_sent_mb_s", "network_transmit_bytes_per_second", _MB, "Sent by network cards."),
)


@dataclass(frozen=True, slots=True)
class Own:
    """What the exposition knows of itself and of the daemon without asking it.

    Attributes:
        responding: whether the daemon's main loop has answered of late.
        journal_bytes: the journal's files; None when they cannot be looked at.
        series: values of runs that are exposed.
        left_out: tags for which there was no room.
        skipped: records that left the journal before they were read here, or cannot be read.
        errors: times that the journal could not be read.
        refused: connections of scrapers that were too many.
    """

    responding: bool
    journal_bytes: int | None
    series: int
    left_out: int
    skipped: int
    errors: int
    refused: int


def families(
    status: Mapping[str, Any] | None, values: Mapping[int, RunValues], own: Own
) -> Iterator[Metric]:
    """All there is to say.

    Args:
        status: what `exposing.report` said last; None before that.
        values: the last values by the runs' ids.
        own: the rest.
    """
    yield from _of_itself(own)
    if status is not None:
        yield from (family for family in _of_daemon(status, values) if family.samples)


def _of_daemon(status: Mapping[str, Any], values: Mapping[int, RunValues]) -> Iterator[Metric]:
    yield from _daemon(status["daemon"])
    yield _gauge("runs_left_out", "Runs that are live or recent, and too many to be exposed.").one(
        status["left_out"]
    )
    names = run_labels(status["runs"])
    yield from _runs(status["runs"], names, values)
    yield from _sinks(status["runs"], names)
    yield from _gpus(status["gpus"])
    yield from _host(status["host"])


def run_labels(runs: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The label of each run by its id: its name, of several with one name the newest has it.

    The others have ``~`` and the journal's number behind it: names are unique in a log directory
    alone, and a series that is there twice would have the whole scrape refused.
    """
    labels: dict[int, str] = {}
    newest = {str(run["run"]): int(run["id"]) for run in sorted(runs, key=lambda run: run["id"])}
    for run in runs:
        run_id, name = int(run["id"]), str(run["run"])
        labels[run_id] = name if newest[name] == run_id else f"{name}~{run_id}"
    return labels


class _Family:
    """A family that takes a series once."""

    def __init__(self, metric: GaugeMetricFamily | CounterMetricFamily) -> None:
        self.metric = metric
        self._seen: set[tuple[str, ...]] = set()

    def add(self, labels: Iterable[str], value: float) -> None:
        """A series, unless these labels have one."""
        key = tuple(labels)
        if key not in self._seen:
            self._seen.add(key)
            self.metric.add_metric(list(key), value)

    def one(self, value: float) -> Metric:
        """The family with one series, without labels."""
        self.add((), value)
        return self.metric


def _gauge(name: str, text: str, *labels: str) -> _Family:
    return _Family(GaugeMetricFamily(f"sidestep_{name}", text, labels=labels))


def _counter(name: str, text: str, *labels: str) -> _Family:
    return _Family(CounterMetricFamily(f"sidestep_{name}", text, labels=labels))


def _of_itself(own: Own) -> Iterator[Metric]:
    yield _gauge(
        "daemon_responding", "1 while the daemon's main loop answers, else 0: it hangs."
    ).one(float(own.responding))
    if own.journal_bytes is not None:
        yield _gauge("journal_bytes", "Size of the journal's files.").one(own.journal_bytes)
    yield _gauge("exposed_series", "Values of runs that are exposed.").one(own.series)
    yield _gauge(
        "series_left_out", "Tags of runs that are not exposed: more than prometheus_max_series."
    ).one(own.left_out)
    yield _counter(
        "exposition_skipped_records", "Records that the exposition came too late for."
    ).one(own.skipped)
    yield _counter(
        "exposition_read_errors", "Times that the exposition could not read the journal."
    ).one(own.errors)
    yield _counter(
        "exposition_refused_connections", "Connections to the metrics that were too many at once."
    ).one(own.refused)


def _daemon(daemon: Mapping[str, Any]) -> Iterator[Metric]:
    info = InfoMetricFamily("sidestep_build", "The daemon's version.")
    info.add_metric([], {"version": str(daemon["version"])})
    yield info
    yield _gauge("daemon_start_time_seconds", "When the daemon started, since the epoch.").one(
        daemon["start_time_s"]
    )
    yield _gauge("daemon_storage_error", "1 while the journal cannot be written, else 0.").one(
        float(daemon["storage_error"])
    )
    yield _gauge("damaged_journals", "Journals that were put aside because of damage.").one(
        daemon["damaged_journals"]
    )
    yield _counter("journal_rows", "Rows that the journal ever had.").one(daemon["rows"])
    refused = _counter("refused", "What clients sent and the daemon refused.", "what")
    for what, count in daemon["refused"].items():
        refused.add((str(what),), count)
    yield refused.metric


def _runs(
    runs: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    values: Mapping[int, RunValues],
) -> Iterator[Metric]:
    scalar = _gauge("scalar", "The newest value of a tag, in the unit of the tag.", "run", "tag")
    alarm = _gauge(
        "alarm_level",
        "Of a representation: 0 OK or warming up, 1 WATCH, 2 WARN, 3 COLLAPSED, 4 NONFINITE.",
        "run",
        "tag",
    )
    newest = _gauge(
        "last_record_timestamp_seconds", "When the run emitted last, by its own clock.", "run"
    )
    step = _gauge("step", "The newest step of a run.", "run")
    state = _gauge("run_state", "1 for the state that a run is in, else 0.", "run", "state")
    worst = _gauge("run_alarm_level", "The worst of the run's alarms, as a number.", "run")
    clients = _gauge("clients", "Living clients of a run.", "run")
    attempts = _gauge("run_attempts", "Times that a run has begun, resumptions included.", "run")
    held = _gauge("records_held", "Records that wait with a run's clients.", "run")
    unaccounted = _gauge("records_unaccounted", "Records of which nobody knows.", "run")
    durable = _counter("records_durable", "Records of a run that were journalled.", "run")
    dropped = _counter("records_dropped", "Records of a run that will not arrive.", "run")
    rejected = _counter("values_rejected", "Values that a run's emit refused.", "run")
    for run in runs:
        label = (names[run["id"]],)
        known = values.get(run["id"])
        if known is not None:
            for tag, value in list(known.values.items()):
                scalar.add((*label, tag), value)
            for tag, value in list(known.alarms.items()):
                alarm.add((*label, tag), value)
            if known.newest_ns:
                newest.add(label, known.newest_ns / 1e9)
        if run["last_step"] is not None:
            step.add(label, run["last_step"])
        for one in RUN_STATES:
            state.add((*label, one), float(one == run["state"]))
        worst.add(label, run["alarm_level"])
        clients.add(label, run["clients"])
        attempts.add(label, run["attempts"])
        records = run["records"]
        held.add(label, records["held"])
        unaccounted.add(label, records["unaccounted"])
        durable.add(label, records["durable"])
        dropped.add(label, records["dropped"])
        rejected.add(label, records["rejected"])
    found = (scalar, alarm, newest, step, state, worst, clients, attempts, held, unaccounted)
    for family in (*found, durable, dropped, rejected):
        yield family.metric


def _sinks(runs: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> Iterator[Metric]:
    labels = ("run", "sink")
    lag = _gauge("sink_lag_records", "Records that a sink has not written yet.", *labels)
    state = _gauge("sink_state", "1 for the state that a sink is in, else 0.", *labels, "state")
    dropped = _counter("sink_dropped_records", "Records that left before a sink came.", *labels)
    skipped = _counter("sink_skipped_values", "Values that a sink could not show.", *labels)
    for run in runs:
        for sink in run["sinks"]:
            label = names[run["id"]], str(sink["name"])
            lag.add(label, sink["lag_records"])
            dropped.add(label, sink["dropped"])
            skipped.add(label, sink["skipped"])
            for one in SINK_STATES:
                state.add((*label, one), float(one == sink["state"]))
    for family in (lag, state, dropped, skipped):
        yield family.metric


def _gpus(gpus: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    info = _gauge("gpu_info", "1 for each GPU or MIG instance.", "gpu", "uuid", "name", "parent")
    for gpu in gpus:
        identity = str(gpu["index"]), str(gpu["uuid"])
        info.add((*identity, str(gpu["name"]), str(gpu["parent"])), 1.0)
    yield info.metric
    for key, name, scale, text in _GPU:
        family = _gauge(f"gpu_{name}", text, "gpu", "uuid")
        for gpu in gpus:
            if key in gpu["values"]:
                label = str(gpu["index"]), str(gpu["uuid"])
                family.add(label, _scaled(gpu["values"][key], scale))
        yield family.metric


def _host(host: Mapping[str, Any]) -> Iterator[Metric]:
    for key, name, scale, text in _HOST:
        value = host.get(f"system/{key}")
        if value is not None:
            yield _gauge(f"host_{name}", text).one(_scaled(value, scale))
    sampler = host.get("gpu_sampler")
    if sampler:
        yield _counter(
            "gpu_sampler_restarts", "Times that the GPUs' sampler was killed or had ended."
        ).one(sampler["restarts"])


def _scaled(value: float, scale: float) -> float:
    """A value in base units; bytes and hertz are whole, whatever a float makes of 4.04 * 1e9."""
    scaled = value * scale
    return float(round(scaled)) if scale >= _MB and math.isfinite(scaled) else scaled
