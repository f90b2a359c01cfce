"""Prometheus metrics of the service and of every model, and the HTTP port they are read from."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterable

import grpc
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from server.config import Address
from server.decoding.observer import Stage
from server.gauges import ModelGauges, ModelNow
from server.histogram import ManyHistogram

# A `_created` series beside every counter and histogram would double their number and tell nobody anything.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_CALL_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WAIT_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_STEP_ROWS = tuple(float(1 << power) for power in range(10))
_RATIOS = tuple(tenth / 10 for tenth in range(1, 10))


class Metrics:
    """All metric families of a server; the label sets known at start exist from the start.

    ``grpc_server_call_duration_seconds`` is made with status OK for each method; other statuses join as they occur,
    since all of them for all methods would be hundreds of series of which most stay zero.
    """

    def __init__(self, *, methods: Iterable[str] = (), model_less_reasons: Iterable[str] = ()) -> None:
        """Create the families.

        Args:
            methods: gRPC methods, ``package.Service/Method``.
            model_less_reasons: rejections that can concern no model; their label ``model`` is empty.
        """
        self.registry = CollectorRegistry(auto_describe=True)
        prometheus_client.ProcessCollector(registry=self.registry)
        self._call_seconds = Histogram(
            "grpc_server_call_duration_seconds",
            "Time from the start of a call's handler to its end.",
            ["grpc_method", "grpc_status"],
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._started = Counter("grpc_server_call_started", "Calls begun.", ["grpc_method"], registry=self.registry)
        for method in methods:
            self._started.labels(method)
            self._call_seconds.labels(method, grpc.StatusCode.OK.name)
        self.queue_depth = self._gauge("queue_depth", "Texts that wait.")
        self.active_sequences = self._gauge("active_sequences", "Texts that are being decoded.")
        self._models = ModelGauges(self.registry)
        self._bundles_refused = Gauge(
            "dragoman_bundles_refused", "Bundles that were found and are not served.", registry=self.registry
        )
        self.queue_wait = self._histogram("queue_wait_seconds", "Time a text waited for its rows.", _WAIT_SECONDS)
        self.step_rows = self._many("step_rows", "Live rows of a decoder step.", _STEP_ROWS)
        self.step_seconds = self._many("step_seconds", "Time of a decoder step, its head included.", _STEP_SECONDS)
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Time from a text's submission to its first step's end.", _WAIT_SECONDS
        )
        self.inter_token = self._many("inter_token_seconds", "Time between two steps of a text.", _STEP_SECONDS)
        self.padding = self._histogram("padding_ratio", "Share of an encoder batch that was padding.", _RATIOS)
        self.tokens = self._counter("tokens", "Tokens encoded (source) and delivered (target).", "direction")
        self.rejected = self._counter("rejected", "Calls turned away before decoding.", "reason")
        self.cancelled = self._counter("cancelled", "Texts given up, by the client or a deadline.", "stage")
        for reason in model_less_reasons:
            self.rejected.labels("", reason)

    def model_found(self, model: str, *, now: Callable[[], ModelNow]) -> None:
        """There is a model of that name; ``now`` tells at any time, from any thread, what there is to tell of it."""
        self._models.add(model, now)

    def bundle_refused(self) -> None:
        """A bundle was found and is not served."""
        self._bundles_refused.inc()

    def call_started(self, method: str) -> None:
        """A call of ``method`` began."""
        self._started.labels(method).inc()

    def call_ended(self, method: str, *, status: str, seconds: float) -> None:
        """A call of ``method`` ended with ``status`` (a gRPC code's name) after ``seconds``."""
        self._call_seconds.labels(method, status).observe(seconds)

    def call_rejected(self, reason: str, *, model: str) -> None:
        """A call was turned away; ``model`` is empty where none was found."""
        self.rejected.labels(model, reason).inc()

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"dragoman_{name}", text, ["model", *labels], registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"dragoman_{name}", text, ["model", *labels], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"dragoman_{name}", text, ["model"], buckets=buckets, registry=self.registry)

    def _many(self, name: str, text: str, buckets: tuple[float, ...]) -> ManyHistogram:
        return ManyHistogram(f"dragoman_{name}", text, buckets=buckets, registry=self.registry)


class ModelMetrics:
    """One model's metrics; listens to one decode loop as an Observer.

    A model that changes its decode loop has two for a while, and an object of this class for each: they write to the
    same series, and what waits or is decoded adds up.
    """

    def __init__(self, metrics: Metrics, model: str, *, reasons: Iterable[str] = ()) -> None:
        """Create the series of ``model``; ``reasons`` are the rejections that can concern it."""
        self._metrics = metrics
        self._model = model
        self._waiting = self._decoding = 0  # so much of the two gauges is this loop's
        self._queue_depth = metrics.queue_depth.labels(model)
        self._active = metrics.active_sequences.labels(model)
        self._queue_wait = metrics.queue_wait.labels(model)
        self._first_token = metrics.first_token.labels(model)
        for many in (metrics.step_rows, metrics.step_seconds, metrics.inter_token):
            many.add(model)
        self._padding = metrics.padding.labels(model)
        self._source_tokens = metrics.tokens.labels(model, "source")
        self._target_tokens = metrics.tokens.labels(model, "target")
        stages: tuple[Stage, ...] = ("queued", "decoding")
        self._cancelled = {stage: metrics.cancelled.labels(model, stage) for stage in stages}
        for reason in reasons:
            metrics.rejected.labels(model, reason)

    def delivered(self, target_tokens: int) -> None:
        """Translations of ``target_tokens`` in all were decoded for a call."""
        self._target_tokens.inc(target_tokens)

    def queue_changed(self, depth: int) -> None:
        """See Observer."""
        self._queue_depth.inc(depth - self._waiting)
        self._waiting = depth

    def active_changed(self, sequences: int) -> None:
        """See Observer."""
        self._active.inc(sequences - self._decoding)
        self._decoding = sequences

    def admitted(self, wait_s: float) -> None:
        """See Observer."""
        self._queue_wait.observe(wait_s)

    def encoded(self, padding_ratio: float, source_tokens: int) -> None:
        """See Observer."""
        self._padding.observe(padding_ratio)
        self._source_tokens.inc(source_tokens)

    def stepped(self, rows: int, seconds: float, steps: int) -> None:
        """See Observer."""
        self._metrics.step_rows.observe(self._model, rows, times=steps)
        self._metrics.step_seconds.observe(self._model, seconds, times=steps)

    def first_token(self, seconds: float) -> None:
        """See Observer."""
        self._first_token.observe(seconds)

    def inter_token(self, seconds: float, tokens: int) -> None:
        """See Observer."""
        self._metrics.inter_token.observe(self._model, seconds, times=tokens)

    def cancelled(self, stage: Stage) -> None:
        """See Observer."""
        self._cancelled[stage].inc()


class MetricsServer:
    """Serves ``/metrics`` on a thread of its own, so that a busy event loop does not hide behind silence."""

    def __init__(self, registry: CollectorRegistry, address: Address) -> None:
        """Bind and begin to serve.

        Raises:
            OSError: the address cannot be bound.
        """
        self._server = _HttpServer((address.host, address.port), registry, ipv6=":" in address.host)
        self.address = Address(address.host, self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _HttpServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    server_address: tuple[str, int]

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry, *, ipv6: bool) -> None:
        self.registry = registry
        self.address_family = socket.AF_INET6 if ipv6 else socket.AF_INET
        super().__init__(address, _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _HttpServer
    timeout = 10.0
    """A client that says nothing for this many seconds is hung up on."""

    def do_GET(self) -> None:
        """Answer with the text exposition."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "Not found; metrics are at /metrics")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Scrapes are no events."""

    def version_string(self) -> str:
        """Tell no client which Python this is."""
        return "dragoman"
