"""``dragoman serve`` as its users meet it: exit codes, one clear line, no traceback."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import server.serving
from export.bundle import Bundle, write_certificate
from server.cli import main
from server.client import ClientError, TranslationClient
from server.serving import two_runtimes
from tests.served import DEMO
from tests.server.commands import ANYWHERE, pipe, run, wait_for
from tests.server.running import PATIENCE_S


class TestServe:
    def test_start_line_second_server_and_second_signal(self, begin: Any) -> None:
        first = begin("serve", *ANYWHERE, "--threads", "1", "--lame-duck", "600", "--max-queue", "77")
        started = wait_for(first, "started")
        (described,) = started["models"]
        assert (described["model"], described["runner"], described["precision"]) == (
            "multi30k-en-de",
            "onnxruntime-cpu",
            "fp32",
        )
        assert (started["threads"], started["rows"], started["max_queue"], started["lame_duck_s"]) == (1, 96, 77, 600.0)
        assert described["limits"]["max_contents"] == 77
        assert described["cache_bytes"] > 0
        assert described["certified"]
        for taken in (("--listen", started["listen"]), ("--metrics", started["metrics"])):
            second = run("serve", *ANYWHERE, *taken)
            assert (second.returncode, second.stdout) == (1, "")
            assert second.stderr.startswith(f"dragoman serve: {taken[1]}: ")
            assert second.stderr.count("\n") == 1
        first.send_signal(signal.SIGTERM)
        wait_for(first, "draining")
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 0

    def test_ctrl_c(self, begin: Any) -> None:
        process = begin("serve", *ANYWHERE, "--threads", "1")
        wait_for(process, "started")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert b"Traceback" not in pipe(process.stderr).read()

    def test_a_signal_while_it_loads(self, begin: Any) -> None:
        process = begin("serve", *ANYWHERE, "--lame-duck", "0")
        wait_for(process, "listening")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert b"Traceback" not in pipe(process.stderr).read()

    @pytest.mark.parametrize("certificate", ["none", "stale", "failed", "other runner", "broken"])
    def test_without_a_valid_certificate_it_does_not_serve(self, tmp_path: Path, certificate: str) -> None:
        path = uncertified(tmp_path, certificate)
        done = run("serve", *ANYWHERE, "--models", str(path))
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(
            f"dragoman serve: {path}: not certified for onnxruntime-cpu fp32"
        )
        assert "Traceback" not in done.stderr

    def test_uncertified_bundles_are_served_where_that_is_allowed(self, tmp_path: Path, begin: Any) -> None:
        path = uncertified(tmp_path, "none")
        process = begin("serve", *ANYWHERE, "--models", str(path), "--allow-uncertified", "--threads", "1")
        (described,) = wait_for(process, "started")["models"]
        assert (described["state"], described["certified"]) == ("serving", False)

    def test_one_of_two_models_is_certified(self, tmp_path: Path, begin: Any) -> None:
        path = Path(shutil.copytree(DEMO, tmp_path / "models" / "good"))
        twin = Path(shutil.copytree(path, path.with_name("twin")))
        renamed = replace(Bundle.open(twin).manifest, name="twin")
        (twin / "manifest.json").write_text(renamed.to_json())  # its exam is stale now
        process = begin("serve", *ANYWHERE, "--models", str(path.parent), "--threads", "1")
        started = wait_for(process, "started")
        states = {model["model"]: model["state"] for model in started["models"]}
        assert states == {"multi30k-en-de": "serving", "twin": "failed"}
        with TranslationClient(started["listen"], model="twin") as client, pytest.raises(ClientError) as raised:
            client.translate(["a"])
        assert (raised.value.code.name, raised.value.reason) == ("FAILED_PRECONDITION", "NOT_CERTIFIED")
        # Whoever names no model gets the one that serves.
        with TranslationClient(started["listen"]) as client:
            assert client.translate(["A man is riding a bicycle."])[0].text.startswith("Ein Mann")

    @pytest.mark.parametrize("name", ["readiness", "liveness"])
    def test_a_model_may_not_take_a_health_services_name(self, tmp_path: Path, name: str) -> None:
        path = Path(shutil.copytree(DEMO, tmp_path / "bundle"))
        (path / "manifest.json").write_text(replace(Bundle.open(path).manifest, name=name).to_json())
        done = run("serve", *ANYWHERE, "--models", str(path), "--allow-uncertified")
        assert done.returncode == 1
        assert f"name: got {name!r}, wanted none of liveness, readiness" in done.stderr.splitlines()[-1]

    def test_no_bundle(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "nowhere"):
            done = run("serve", *ANYWHERE, "--models", str(path))
            assert done.returncode == 1
            assert done.stderr.splitlines()[-1].startswith(f"dragoman serve: {path}: got no ")

    def test_a_path_that_cannot_be_looked_at_is_one_line(self) -> None:
        done = run("serve", *ANYWHERE, "--models", "a" * 5000)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == f"dragoman serve: {'a' * 5000}: File name too long"
        assert "Traceback" not in done.stderr

    def test_what_nobody_thought_of_is_one_line_of_the_log(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise MemoryError("so many rows")

        monkeypatch.setattr(server.serving, "load_models", fail)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # the server's own are not left to other tests
        assert main(["serve", *ANYWHERE]) == 1
        *_, last = capsys.readouterr().err.splitlines()
        assert json.loads(last)["event"] == "the server failed"
        assert "so many rows" in json.loads(last)["exception"]

    def test_wrong_settings_are_usage(self) -> None:
        done = run("serve", "--threads", "many")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("dragoman serve: --threads: got 'many'")


def uncertified(tmp_path: Path, certificate: str) -> Path:
    """A copy of the demo whose certificate is not valid for this machine's runner."""
    path = Path(shutil.copytree(DEMO, tmp_path / "bundle"))
    (exam,) = Bundle.open(path).certificate()
    file = path / "certificate.json"
    match certificate:
        case "none":
            file.unlink()
        case "broken":
            file.write_text("{")
        case _:
            changes: dict[str, dict[str, Any]] = {
                "stale": {"manifest_sha256": "0" * 64},
                "failed": {"passed": False},
                "other runner": {"runner": "tensorrt"},
            }
            write_certificate(file, [replace(exam, **changes[certificate])])
    return path


@pytest.mark.parametrize("names", [{"onnxruntime"}, {"onnxruntime-gpu"}, {"onnxruntime", "onnxruntime-gpu"}])
def test_two_runtimes_are_noticed(monkeypatch: pytest.MonkeyPatch, names: set[str]) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert two_runtimes() is (len(names) == 2)
