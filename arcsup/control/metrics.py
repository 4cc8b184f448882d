"""Prometheus metrics of the daemon, in a registry of their own."""

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from arcsup.model import ExitClass, State, VmStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the text exposition format (Prometheus documentation, "Exposition formats")."""

_START_BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_RECONCILE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    """What the daemon counts. Times are in seconds."""

    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry()
        self._vms = Gauge("arcsup_vms", "VMs by state.", ["state"], registry=self._registry)
        self._restarts = Counter(
            "arcsup_restarts_total",
            "Times a VM was started again, by how it had ended.",
            ["vm", "class"],
            registry=self._registry,
        )
        self._time_to_running = Histogram(
            "arcsup_time_to_running_seconds",
            "From the decision to start a VM until its guest runs.",
            buckets=_START_BUCKETS,
            registry=self._registry,
        )
        self._reconcile = Histogram(
            "arcsup_reconcile_seconds",
            "One pass of observing, planning and carrying out.",
            buckets=_RECONCILE_BUCKETS,
            registry=self._registry,
        )
        self._events_seen = Counter(
            "arcsup_events_seen_total",
            "Marks that made the daemon look, by source.",
            ["source"],
            registry=self._registry,
        )
        self._adopted = Counter(
            "arcsup_adopted_total",
            "Running VMs taken over from an earlier daemon.",
            registry=self._registry,
        )
        Info("arcsup_build", "The program.", registry=self._registry).info({"version": version})
        self._restart_series: set[tuple[str, str]] = set()

    def count_restart(self, vm: str, exit_class: ExitClass) -> None:
        """Count that ``vm`` is started again after an end of ``exit_class``."""
        self._restart_series.add((vm, exit_class.value))
        self._restarts.labels(vm, exit_class.value).inc()

    def observe_time_to_running(self, seconds: float) -> None:
        """Record how long a VM took from the decision until its guest ran."""
        self._time_to_running.observe(seconds)

    def observe_reconcile(self, seconds: float) -> None:
        """Record how long one pass took."""
        self._reconcile.observe(seconds)

    def count_event_seen(self, source: str) -> None:
        """Count a mark of ``source`` (files, kernel, qemu, operator, resync)."""
        self._events_seen.labels(source).inc()

    def count_adopted(self) -> None:
        """Count a VM taken over from an earlier daemon."""
        self._adopted.inc()

    def forget(self, vm: str) -> None:
        """Drop the series of a VM that is gone, so that their number stays bounded."""
        gone = {series for series in self._restart_series if series[0] == vm}
        for series in gone:
            self._restarts.remove(*series)
        self._restart_series -= gone

    def expose(self, statuses: Iterable[VmStatus]) -> bytes:
        """Return the text exposition; every state has a line, also at 0."""
        states = Tally(status.state for status in statuses)
        for state in State:
            self._vms.labels(state.value).set(states[state])
        return generate_latest(self._registry)
