"""The Kubernetes manifests: valid, and of one mind with the image and the server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config import SETTINGS, VARIABLE_PREFIX, ServeConfig, read_config
from server.service.health import LIVENESS, READINESS

Manifest = dict[str, Any]
NO_RESOURCE = ("kustomization.yaml",)


@pytest.fixture(scope="module")
def base(deploy: Path) -> Path:
    return deploy / "kubernetes" / "base"


@pytest.fixture(scope="module")
def manifests(base: Path) -> dict[str, Manifest]:
    """The resources as they are written, by kind."""
    files = [path for path in base.glob("*.yaml") if path.name not in NO_RESOURCE]
    loaded = [yaml.safe_load(path.read_text()) for path in files]
    return {manifest["kind"]: manifest for manifest in loaded}


@pytest.fixture(scope="module")
def kustomization(base: Path) -> Manifest:
    content: Manifest = yaml.safe_load((base / "kustomization.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def pod(manifests: dict[str, Manifest]) -> Manifest:
    """The pod's template."""
    template: Manifest = manifests["Deployment"]["spec"]["template"]
    return template


@pytest.fixture(scope="module")
def container(pod: Manifest) -> Manifest:
    (only,) = pod["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.fixture(scope="module")
def config(base: Path, image: dict[str, Any], container: Manifest) -> ServeConfig:
    """What the server makes of the image's and the pod's variables and of the mounted file."""
    variables = image["env"] | {variable["name"]: variable["value"] for variable in container["env"]}
    (mount,) = container["volumeMounts"]
    mounted = Path(variables["DRAGOMAN_CONFIG"])
    assert mounted.parent == Path(mount["mountPath"])
    return read_config({}, environ=variables | {"DRAGOMAN_CONFIG": str(base / mounted.name)})


def test_every_resource_is_valid(base: Path, run_tool: Callable[..., str]) -> None:
    resources = [path for path in base.glob("*.yaml") if path.name not in NO_RESOURCE]
    passed = run_tool("kubernetes-validate", "--strict", *resources)
    assert passed.count(" passed for resource ") == len(resources)


def test_what_kustomize_renders_is_valid(base: Path, tmp_path: Path, run_tool: Callable[..., str]) -> None:
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(run_tool("kubectl", "kustomize", base))
    run_tool("kubernetes-validate", "--strict", rendered)
    by_kind = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(rendered.read_text())}
    spec = by_kind["Deployment"]["spec"]["template"]["spec"]
    # The hash in its name is what makes a changed setting roll the pods.
    assert spec["volumes"][0]["configMap"]["name"] == by_kind["ConfigMap"]["metadata"]["name"] != "dragoman"
    assert ":" in spec["containers"][0]["image"]


def test_the_kustomization_takes_every_file(base: Path, kustomization: Manifest, container: Manifest) -> None:
    (generated,) = kustomization["configMapGenerator"]
    named = {*kustomization["resources"], *generated["files"], *NO_RESOURCE}
    assert named == {path.name for path in base.iterdir()}
    assert {entry["name"] for entry in kustomization["images"]} == {container["image"]}


def test_the_generated_config_is_the_mounted_one(kustomization: Manifest, pod: Manifest, container: Manifest) -> None:
    (generated,) = kustomization["configMapGenerator"]
    (volume,) = pod["spec"]["volumes"]
    assert volume["configMap"]["name"] == generated["name"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"]]


def test_every_selector_finds_the_pods(manifests: dict[str, Manifest], pod: Manifest) -> None:
    deployment, service, budget = (manifests[kind] for kind in ("Deployment", "Service", "PodDisruptionBudget"))
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert spread["labelSelector"]["matchLabels"] == labels


def test_ports_are_those_the_server_listens_on(
    manifests: dict[str, Manifest], pod: Manifest, container: Manifest, config: ServeConfig
) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": config.listen.port, "metrics": config.metrics.port}
    offered = {port["targetPort"]: port["port"] for port in manifests["Service"]["spec"]["ports"]}
    assert offered == ports
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(config.metrics.port)
    assert annotations["prometheus.io/path"] == "/metrics"


@pytest.mark.parametrize(
    ("probe", "service"), [("startupProbe", READINESS), ("readinessProbe", READINESS), ("livenessProbe", LIVENESS)]
)
def test_probes_ask_what_the_server_answers(container: Manifest, config: ServeConfig, probe: str, service: str) -> None:
    assert container[probe]["grpc"] == {"port": config.listen.port, "service": service}


def test_a_pod_is_given_the_time_to_drain(pod: Manifest, config: ServeConfig) -> None:
    assert pod["spec"]["terminationGracePeriodSeconds"] >= config.lame_duck_s + config.grace_s + 5


def test_a_rollout_takes_no_pod_before_its_successor_is_ready(manifests: dict[str, Manifest]) -> None:
    assert manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_pod_may_do_nothing_but_serve(pod: Manifest, container: Manifest, image: dict[str, Any]) -> None:
    context = pod["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == image["user"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_cpus_are_whole(container: Manifest) -> None:
    # The server starts a thread for each CPU of its limit.
    resources = container["resources"]
    assert int(resources["limits"]["cpu"]) >= 1
    assert resources["requests"] == resources["limits"]


def test_every_variable_is_one_the_server_reads(container: Manifest, image: dict[str, Any]) -> None:
    names = {*image["env"], *(variable["name"] for variable in container["env"])}
    known = {setting.variable for setting in SETTINGS} | {"DRAGOMAN_CONFIG"}
    assert {name for name in names if name.startswith(VARIABLE_PREFIX)} <= known
