"""The command line as a whole: usage, missing extras, versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import export.cli
import model.cli
from server.cli import main
from tests.served import DEMO, ENVIRONMENT
from tests.server.commands import DRAGOMAN
from tests.server.running import PATIENCE_S


class TestMain:
    def test_output_that_cannot_be_written_is_one_line(self, tmp_path: Path) -> None:
        words = ["sh", "-c", 'exec "$@" >/dev/full', "sh", *DRAGOMAN, "verify", str(DEMO), "--out", str(tmp_path / "c")]
        done = subprocess.run(words, capture_output=True, env=ENVIRONMENT, timeout=PATIENCE_S, check=False)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert done.stderr.endswith(b"No space left on device\n")

    def test_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        for argv in ([], ["nonsense"], ["translate", "--beam-size", "x"]):
            with pytest.raises(SystemExit) as raised:
                main(argv)
            assert raised.value.code == 2
        assert main(["translate", "--server", "nowhere", "a"]) == 2
        assert "--server: got 'nowhere', wanted HOST:PORT" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("module", "function", "argv", "extra"),
        [
            (model.cli, "run_train", ["train", "--config", "c", "--data", "d", "--out", "o"], "train"),
            (export.cli, "run_export", ["export", "c", "--out", "o"], "export"),
        ],
    )
    def test_a_missing_extra_is_one_line(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        module: Any,
        function: str,
        argv: list[str],
        extra: str,
    ) -> None:
        def without_torch(_: object) -> int:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

        monkeypatch.setattr(module, function, without_torch)
        assert main(argv) == 2
        assert capsys.readouterr().err == f'dragoman {argv[0]} needs: pip install "dragoman[{extra}]"\n'

    def test_a_module_of_ours_that_is_missing_is_no_missing_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(_: object) -> int:
            raise ModuleNotFoundError("No module named 'model.nothing'", name="model.nothing")

        monkeypatch.setattr(model.cli, "run_train", broken)
        with pytest.raises(ModuleNotFoundError):
            main(["train", "--config", "c", "--data", "d", "--out", "o"])

    def test_help_loads_nothing_heavy(self) -> None:
        heavy = ("torch", "numpy", "onnx", "onnxruntime", "grpc", "sacrebleu", "sentencepiece", "prometheus_client")
        script = f"import sys, server.cli; print(*sorted(set({heavy}) & set(sys.modules)))"
        done = subprocess.run(
            [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == ""
