"""What GET /metrics reports."""

from __future__ import annotations

import time
from collections.abc import Sequence

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from slm.server.batcher import Batcher, Event

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # buckets of the latencies


class Metrics:
    """Counts and latencies of one server."""

    def __init__(self, batcher: Batcher):
        self.registry = registry = prometheus_client.CollectorRegistry()
        self.requests = Counter("slm_requests", "requests to the API by HTTP status", ["status"], registry=registry)
        self.prompt_tokens = Counter("slm_prompt_tokens", "tokens of prompts", registry=registry)
        self.tokens = Counter("slm_completion_tokens", "tokens written", registry=registry)
        self.streams = 0
        Gauge("slm_streams", "requests being streamed to", registry=registry).set_function(lambda: self.streams)
        Gauge("slm_queue_length", "requests waiting", registry=registry).set_function(lambda: batcher.waiting)
        Gauge("slm_running_sequences", "texts being written", registry=registry).set_function(lambda: batcher.running)

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(f"slm_{name}_seconds", what, registry=registry, buckets=SECONDS)

        self.first = seconds("time_to_first_token", "from a request to its first token")
        self.between = seconds("time_between_tokens", "from a text's token to its next")
        self.whole = seconds("request_duration", "from a request to the end of its last text")


class Clock:
    """Measures one request: call `saw` with each of its events."""

    def __init__(self, metrics: Metrics):
        self._metrics, self._begin, self._latest = metrics, time.perf_counter(), dict[int, float]()
        self.tokens = 0

    def saw(self, events: Sequence[Event]) -> None:
        """Count these, which arrived now."""
        now = time.perf_counter()
        for event in events:
            if event.tokens and not event.echoed:
                if not self._latest:
                    self._metrics.first.observe(now - self._begin)
                if event.number in self._latest:
                    self._metrics.between.observe(now - self._latest[event.number])
                self._latest[event.number] = now
                self.tokens += len(event.tokens)

    def done(self) -> None:
        """The request is over."""
        self._metrics.tokens.inc(self.tokens)
        self._metrics.whole.observe(time.perf_counter() - self._begin)
