"""What /metrics says: every label set from the start, the right numbers after known work, few series."""

from __future__ import annotations

import http.client
import socket

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dragoman.v1 import translation_pb2 as pb
from model.tokenizer import Tokenizer
from server.config import Address
from server.histogram import ManyHistogram
from server.metrics import Metrics, MetricsServer
from server.models import ServedModel
from tests.server.running import DIGEST, PATIENCE_S, TEXTS, RunningServer

METHOD = "dragoman.v1.TranslationService/"


def fetch(server: MetricsServer, path: str, *, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.address.host, server.address.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def series_of(text: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def exposition(tokenizer: Tokenizer) -> str:
    """What a server that has done nothing tells."""
    with RunningServer(tokenizer) as running:
        running.add_model()
        metrics_server = MetricsServer(running.metrics.registry, Address("127.0.0.1", 0))
        try:
            status, text = fetch(metrics_server, "/metrics")
        finally:
            metrics_server.close()
    assert status == 200
    return text


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("grpc_server_call_duration_seconds_count", {"grpc_method": METHOD + "TranslateText", "grpc_status": "OK"}),
        ("grpc_server_call_started_total", {"grpc_method": METHOD + "StreamTranslateText"}),
        ("grpc_server_call_started_total", {"grpc_method": METHOD + "ListModels"}),
        ("dragoman_queue_depth", {"model": "copy"}),
        ("dragoman_active_sequences", {"model": "copy"}),
        ("dragoman_model_info", {"model": "copy", "runner": "fake", "precision": "fp32", "digest": DIGEST}),
        ("dragoman_model_serving", {"model": "copy"}),
        ("dragoman_bundles_refused", {}),
        ("dragoman_queue_wait_seconds_count", {"model": "copy"}),
        ("dragoman_step_rows_bucket", {"model": "copy", "le": "512.0"}),
        ("dragoman_step_rows_bucket", {"model": "copy", "le": "1.0"}),
        ("dragoman_step_seconds_count", {"model": "copy"}),
        ("dragoman_time_to_first_token_seconds_count", {"model": "copy"}),
        ("dragoman_inter_token_seconds_count", {"model": "copy"}),
        ("dragoman_padding_ratio_count", {"model": "copy"}),
        ("dragoman_tokens_total", {"model": "copy", "direction": "source"}),
        ("dragoman_tokens_total", {"model": "copy", "direction": "target"}),
        ("dragoman_rejected_total", {"model": "copy", "reason": "QUEUE_FULL"}),
        ("dragoman_rejected_total", {"model": "copy", "reason": "DRAINING"}),
        ("dragoman_rejected_total", {"model": "", "reason": "UNDECODABLE"}),
        ("dragoman_cancelled_total", {"model": "copy", "stage": "queued"}),
        ("dragoman_cancelled_total", {"model": "copy", "stage": "decoding"}),
    ],
)
def test_label_sets_are_there_from_the_start(exposition: str, name: str, labels: dict[str, str]) -> None:
    assert (name, frozenset(labels.items())) in series_of(exposition)


def test_series_are_few(exposition: str) -> None:
    series = series_of(exposition)
    assert len(series) <= 200
    assert not [name for name, _ in series if name.endswith("_created")]


def test_known_work_is_counted(server: RunningServer, model: ServedModel) -> None:
    lengths = [len(model.tokenizer.encode(text)) for text in TEXTS]
    request = pb.TranslateTextRequest(contents=[*TEXTS, ""])
    server.stub.TranslateText(request, timeout=PATIENCE_S)
    stream = pb.StreamTranslateTextRequest(contents=TEXTS)
    assert len(list(server.stub.StreamTranslateText(stream, timeout=PATIENCE_S))) > 0
    for name, labels, wanted in (
        ("dragoman_tokens_total", {"direction": "source"}, 2 * sum(lengths)),
        ("dragoman_tokens_total", {"direction": "target"}, 2 * sum(length - 1 for length in lengths)),
        ("dragoman_queue_wait_seconds_count", {}, 2 * len(TEXTS)),
        ("dragoman_time_to_first_token_seconds_count", {}, 2 * len(TEXTS)),
        # The end token is a step too.
        ("dragoman_inter_token_seconds_count", {}, 2 * sum(length - 1 for length in lengths)),
        ("dragoman_step_rows_sum", {}, 2 * sum(lengths)),
        ("dragoman_active_sequences", {}, 0),
        ("dragoman_queue_depth", {}, 0),
    ):
        assert server.sample(name, model="copy", **labels) == wanted, name
    for method in ("TranslateText", "StreamTranslateText"):
        server.run(server.app.calls_ended())
        assert server.sample("grpc_server_call_started_total", grpc_method=METHOD + method) == 1
        assert (
            server.sample("grpc_server_call_duration_seconds_count", grpc_method=METHOD + method, grpc_status="OK") == 1
        )


def test_two_models_have_series_of_their_own(tokenizer: Tokenizer) -> None:
    with RunningServer(tokenizer) as server:
        server.add_model(name="one")
        server.add_model(name="two", target_languages=("fr",))
        request = pb.TranslateTextRequest(contents=["a man"], model="one")
        server.stub.TranslateText(request, timeout=PATIENCE_S)
        assert server.sample("dragoman_step_rows_count", model="one")
        assert server.sample("dragoman_step_rows_count", model="two") == 0


def test_only_metrics_are_served() -> None:
    server = MetricsServer(Metrics().registry, Address("127.0.0.1", 0))
    try:
        assert fetch(server, "/")[0] == 404
        assert fetch(server, "/metrics", method="HEAD") == (200, "")
        assert fetch(server, "/metrics?name[]=x")[0] == 200
        assert fetch(server, "/metrics", method="POST")[0] == 501
        with pytest.raises(OSError, match="in use"):
            MetricsServer(Metrics().registry, server.address)
    finally:
        server.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_address() -> None:
    try:
        server = MetricsServer(Metrics().registry, Address("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    try:
        assert fetch(server, "/metrics")[0] == 200
    finally:
        server.close()


def test_one_value_many_times_is_what_prometheus_counts_one_by_one() -> None:
    bounds = (0.5, 1.0, 2.5)
    registry = CollectorRegistry()
    many = ManyHistogram("many_seconds", "Many.", buckets=bounds, registry=registry)
    one = Histogram("one_seconds", "One.", ["model"], buckets=bounds, registry=registry)
    many.add("m")
    one.labels("m")

    def of(name: str) -> list[str]:
        lines = generate_latest(registry).decode().splitlines()
        return sorted(line.removeprefix(name) for line in lines if line.startswith(f"{name}_seconds_"))

    assert of("many") == of("one")
    for value, times in ((0.25, 3), (0.5, 2), (0.75, 1), (2.5, 4), (9.0, 5), (1.0, 0)):
        many.observe("m", value, times=times)
        many.add("m")
        for _ in range(times):
            one.labels("m").observe(value)
    assert of("many") == of("one")
    assert '_seconds_count{model="m"} 15.0' in of("many")
