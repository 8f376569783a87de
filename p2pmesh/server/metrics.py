"""The server's statistics, as Prometheus reads them.

They are taken from `snapshot()` when somebody asks, so nothing is counted twice, and the registry is the server's own:
several servers in one process don't meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from p2pmesh.server.http import Response

_GAUGES = {
    "clients": "Clients connected",
    "members": "Clients that have joined a room",
    "rooms": "Rooms with members",
    "connections": "Open connections, also of those that have not said yet what they want",
    "backlog": "Bytes that wait for clients",
}
_COUNTERS = {
    "joins": "Joins accepted",
    "relayed": "Messages relayed between clients",
    "undelivered": "Of these, left out since too much waited for the receiver",
    "received": "Messages received",
    "sent": "Messages sent",
    "closed": "Connections closed by this server's decision",
    "kicked": "Of these, by the server's owner",
    "banned": "Connections and joins turned away by a ban or for want of a place in the lists of those allowed",
    "refused": "Connections turned away before they spoke",
}
_LABELLED = {
    "errors": ("code", "Errors answered"),
    "dropped": ("reason", "Connections cut: slow, silent, flood, backlog, protocol error"),
    "failures": ("where", "What should not happen, and was caught: one connection ended, or was accepted later"),
}


class Metrics:
    """The `/metrics` page of one server."""

    def __init__(self, snapshot: Callable[[], Mapping[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Snapshot(snapshot))

    def page(self) -> Response:
        """All of it in the text exposition format."""
        return Response(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)


@frozen
class _Snapshot(Collector):
    snapshot: Callable[[], Mapping[str, Any]]

    def collect(self) -> Iterator[Metric]:
        values = self.snapshot()
        for name, what in _GAUGES.items():
            yield GaugeMetricFamily(f"p2pmesh_server_{name}", what, value=values[name])
        for name, what in _COUNTERS.items():
            yield CounterMetricFamily(f"p2pmesh_server_{name}", what, value=values[name])
        for name, (label, what) in _LABELLED.items():
            family = CounterMetricFamily(f"p2pmesh_server_{name}", what, labels=[label])
            for key, value in values[name].items():
                family.add_metric([key], value)
            yield family
