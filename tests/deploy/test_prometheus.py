"""A real Prometheus takes the scrape configurations and finds the metrics."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from server.config import Address, ServeConfig
from server.metrics import Metrics, MetricsServer

T = TypeVar("T")
DEADLINE_S = 60.0
METHOD = "dragoman.v1.TranslationService/TranslateText"


@pytest.fixture
def metrics_address() -> Iterator[Address]:
    """Where metrics of the server's own kind are served."""
    metrics = Metrics(methods=[METHOD])
    metrics.call_started(METHOD)
    server = MetricsServer(metrics.registry, Address("127.0.0.1", 0))
    yield server.address
    server.close()


def until(ask: Callable[[], T | None], *, what: str) -> T:
    """The first answer; asks again until the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while (answer := ask()) is None:
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.05)
    return answer


@contextmanager
def running_prometheus(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """A Prometheus with this configuration on a port of its own choice; yields the API's address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    file, log = folder / "prometheus.yml", folder / "prometheus.log"
    file.write_text(yaml.safe_dump(config))
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:0", "--log.format=json"]

    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:

        def listening() -> str | None:
            assert process.poll() is None, log.read_text()
            entries = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            addresses = [entry["address"] for entry in entries if entry.get("msg") == "Listening on"]
            return f"http://{addresses[0]}/api/v1" if addresses else None

        try:
            yield until(listening, what="Prometheus to listen")
        finally:
            process.terminate()
            process.wait(timeout=DEADLINE_S)


def get(address: str) -> Any:
    """The data of an answer of Prometheus' API; None while it is starting."""
    try:
        with urllib.request.urlopen(address, timeout=10.0) as reply:
            return json.load(reply)["data"]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 503:
            raise
        return None


def value(api: str, expression: str) -> float:
    """The value of an expression's only series, once it has one."""

    def ask() -> float | None:
        data = get(f"{api}/query?{urllib.parse.urlencode({'query': expression})}")
        return float(data["result"][0]["value"][1]) if data and data["result"] else None

    return until(ask, what=expression)


def test_promtool_takes_the_local_configuration(deploy: Path, run_tool: Callable[..., str]) -> None:
    run_tool("promtool", "check", "config", deploy / "prometheus" / "prometheus.yml")


def test_the_local_configuration_scrapes_where_the_server_is(deploy: Path) -> None:
    config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [str(ServeConfig().metrics)]}]


def test_prometheus_scrapes_the_metrics(deploy: Path, tmp_path: Path, metrics_address: Address) -> None:
    config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [str(metrics_address)]
    with running_prometheus(config, tmp_path) as api:
        assert value(api, 'up{job="dragoman"}') == 1.0
        assert value(api, f'grpc_server_call_started_total{{grpc_method="{METHOD}"}}') == 1.0


def test_in_a_cluster_only_the_annotated_port_is_scraped(
    deploy: Path, tmp_path: Path, metrics_address: Address
) -> None:
    # Labels such as the service discovery would give stand in for it: no cluster is needed, nor a Prometheus that
    # was built with Kubernetes in it.
    config = yaml.safe_load((deploy / "prometheus" / "prometheus-kubernetes.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    deployment = yaml.safe_load((deploy / "kubernetes" / "base" / "deployment.yaml").read_text())
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    found = {f"annotation_{name.replace('.', '_').replace('/', '_')}": text for name, text in annotations.items()}
    found |= {"annotation_prometheus_io_port": str(metrics_address.port), "name": "dragoman-0"}
    quiet = found | {"annotation_prometheus_io_scrape": "false"}
    job["static_configs"] = [
        {"targets": [target], "labels": {f"__meta_kubernetes_pod_{name}": text for name, text in labels.items()}}
        for target, labels in [
            (str(metrics_address), found | {"container_port_number": str(metrics_address.port)}),
            ("127.0.0.1:1", found | {"container_port_number": "1"}),
            ("127.0.0.1:2", quiet | {"container_port_number": str(metrics_address.port)}),
        ]
    ]
    config["global"]["scrape_interval"] = "1s"
    with running_prometheus(config, tmp_path) as api:
        assert value(api, 'up{job="pods", pod="dragoman-0"}') == 1.0
        (target,) = get(f"{api}/targets?state=active")["activeTargets"]
    assert target["scrapeUrl"] == f"http://{metrics_address}/metrics"
