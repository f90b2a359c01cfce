"""The image: its recipe, and in podman the image itself."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.config import VARIABLE_PREFIX, read_config


def test_hadolint_passes(deploy: Path, run_tool: Callable[..., str]) -> None:
    for dockerfile in deploy.glob("docker/*Dockerfile*"):
        run_tool("hadolint", "--failure-threshold", "style", dockerfile)
        assert "hadolint ignore" not in dockerfile.read_text()


def test_shellcheck_passes(deploy: Path, run_tool: Callable[..., str]) -> None:
    scripts = sorted(deploy.rglob("*.sh"))
    assert scripts != []
    run_tool("shellcheck", *scripts)


def test_the_server_is_process_one_and_drains_on_sigterm(image: dict[str, Any]) -> None:
    # In the exec form no shell stands between the signal and the server.
    assert image["entrypoint"] == ["dragoman"]
    assert image["cmd"] == ["serve"]
    assert image["stop_signal"] == "SIGTERM"


def test_it_runs_as_a_number_that_is_not_root(image: dict[str, Any]) -> None:
    assert min(image["user"]) > 0


def test_it_exposes_what_it_listens_on(image: dict[str, Any]) -> None:
    variables = {name: value for name, value in image["env"].items() if name.startswith(VARIABLE_PREFIX)}
    config = read_config({}, environ=variables)
    assert image["ports"] == {config.listen.port, config.metrics.port}
    assert config.listen.host == config.metrics.host == "0.0.0.0"


def test_it_reports_to_nobody(image: dict[str, Any]) -> None:
    assert image["env"]["ORT_DISABLE_TELEMETRY"] == "1"


def test_no_file_names_a_host(deploy: Path) -> None:
    # Images and packages come from where the builder says.
    hosts = re.compile(r"https?://(?!127\.0\.0\.1|localhost)|\b[\w-]+\.(io|com|org|dev)/[\w-]+/")
    for path in [*deploy.glob("docker/*"), *deploy.rglob("*.yaml")]:
        assert hosts.findall(path.read_text()) == [], path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_serves_read_only_without_capabilities_and_drains(deploy: Path, run_tool: Callable[..., str]) -> None:
    missing = [tool for tool in ("podman", "mmdebstrap") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    # What every container begins with; a container without rights cannot make another.
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], check=False).returncode != 0:
        pytest.skip("no right to make namespaces here")
    output = run_tool(deploy / "docker" / "try-image.sh", timeout_s=840.0)
    print(output)
    assert "exit 0 after SIGTERM" in output
