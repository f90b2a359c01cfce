"""The command line as its users meet it: exit codes, one clear line, no traceback."""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

import export.cli
import model.cli
import server.serving
from dragoman.v1 import translation_pb2 as pb
from export.bundle import Bundle, write_certificate
from server.cli import main
from server.client import ClientError, TranslationClient
from server.models import ServedModel
from server.serving import two_runtimes
from server.translate.command import one_line
from tests.server.running import PATIENCE_S, TEXTS, RunningServer, gate_of, heard

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "server" / "assets" / "multi30k-en-de"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
DRAGOMAN = (sys.executable, "-m", "server.cli")
ANYWHERE = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")


def run(*arguments: str, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run ``dragoman``; what it prints is read as UTF-8."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*DRAGOMAN, *arguments], input=data, capture_output=True, env=ENVIRONMENT, timeout=PATIENCE_S, check=False
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def serving(server: RunningServer, model: ServedModel) -> tuple[str, ...]:
    """``translate`` with a server whose translations are its sources."""
    return ("translate", "--server", str(server.address))


@pytest.fixture
def begin() -> Iterator[Any]:
    """Starts ``dragoman`` and ends what a test leaves running."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen([*DRAGOMAN, *arguments], env=ENVIRONMENT, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):  # what was never flushed has no reader any more
                pipe(stream).close()


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


class TestTranslate:
    def test_texts_of_the_command_line(self, serving: tuple[str, ...]) -> None:
        done = run(*serving, TEXTS[0], "", TEXTS[1])
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{TEXTS[0]}\n\n{TEXTS[1]}\n", "")

    def test_one_line_out_per_line_in(self, serving: tuple[str, ...]) -> None:
        lines = [("", TEXTS[0], TEXTS[1], " ")[n % 4] for n in range(1000)]
        done = run(*serving, stdin="\n".join(lines))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "".join(line.strip() + "\n" for line in lines)

    @pytest.mark.parametrize(("stdin", "lines"), [("", 0), ("\n", 1), ("a\u2028a\n", 1), ("a\x0ba\ra\r\na", 2)])
    def test_only_line_feeds_split(self, serving: tuple[str, ...], stdin: str, lines: int) -> None:
        done = run(*serving, stdin=stdin)
        assert done.returncode == 0
        assert done.stdout.count("\n") == lines

    def test_line_breaks_of_a_translation_become_spaces(self) -> None:
        assert one_line("a\nb\r\nc\rd") == "a b c d"

    def test_a_line_is_answered_before_the_next_one_comes(self, serving: tuple[str, ...], begin: Any) -> None:
        process = begin(*serving)
        for text in TEXTS:
            pipe(process.stdin).write(f"{text}\n".encode())
            pipe(process.stdin).flush()
            assert pipe(process.stdout).readline().decode() == f"{text}\n"
        pipe(process.stdin).close()
        assert process.wait(PATIENCE_S) == 0

    def test_stream(self, serving: tuple[str, ...]) -> None:
        done = run(*serving, "--stream", *TEXTS)
        assert (done.returncode, done.stdout) == (0, "".join(f"{text}\n" for text in TEXTS))
        done = run(*serving, "--stream", stdin=f"{TEXTS[1]}\n\n")
        assert (done.returncode, done.stdout) == (0, f"{TEXTS[1]}\n\n")

    @pytest.mark.parametrize("arguments", [(), ("a man",), ("--stream", "a man")])
    def test_no_server(self, arguments: tuple[str, ...]) -> None:
        done = run("translate", "--server", "127.0.0.1:1", *arguments, stdin="a\n" * 500)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "dragoman translate: no Dragoman server answers at 127.0.0.1:1\n"

    def test_a_line_that_is_not_utf8_is_named_and_those_before_are_translated(self, serving: tuple[str, ...]) -> None:
        good = b"a man\n" * 100
        done = run(*serving, stdin=good + b"two \xff dogs\n" + good)
        assert (done.returncode, done.stdout) == (1, "a man\n" * 100)
        assert done.stderr == "dragoman translate: line 101: got bytes that are not UTF-8\n"

    def test_a_line_over_a_limit_is_named(self, serving: tuple[str, ...]) -> None:
        done = run(*serving, stdin="a man\n" * 80 + "dog " * 60 + "\n")
        assert done.returncode == 1
        assert done.stderr.startswith("dragoman translate: line 81: got ")
        assert done.stderr.endswith("wanted at most 40\n")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--model", "nope"), "NOT_FOUND"),
            (("--beam-size", "99"), "beam_size: got 99"),
            (("--target-language", "fr"), "'fr'"),
        ],
    )
    def test_what_the_server_refuses_is_one_line(
        self, serving: tuple[str, ...], arguments: tuple[str, ...], said: str
    ) -> None:
        done = run(*serving, *arguments, "a man")
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("stream", [(), ("--stream",)])
    def test_a_reader_that_leaves_ends_it_quietly(
        self, serving: tuple[str, ...], begin: Any, stream: tuple[str, ...]
    ) -> None:
        process = begin(*serving, *stream)
        pipe(process.stdin).write(b"a man\n")
        pipe(process.stdin).flush()
        assert pipe(process.stdout).readline() == b"a man\n"
        pipe(process.stdout).close()
        pipe(process.stdin).write(b"two dogs\n" * 100)
        pipe(process.stdin).close()
        assert process.wait(PATIENCE_S) == 0
        assert pipe(process.stderr).read() == b""

    @pytest.mark.parametrize(
        "argument",
        [
            (b"a \xff",),
            (b"--model", b"\xff", b"a"),
            (b"--source-language", b"\xff", b"a"),
            (b"--beam-size", b"9" * 12, b"a"),
        ],
    )
    @pytest.mark.parametrize("stream", [(), (b"--stream",)])
    def test_arguments_that_no_request_can_hold_are_usage(
        self, serving: tuple[str, ...], argument: tuple[bytes, ...], stream: tuple[bytes, ...]
    ) -> None:
        words = [*map(os.fsencode, (*DRAGOMAN, *serving)), *stream, *argument]
        done = subprocess.run(words, capture_output=True, env=ENVIRONMENT, timeout=PATIENCE_S, check=False)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("redirection", "said"),
        [
            ("</dev/null >/dev/full a", "No space left on device"),
            ("</dev/null >/dev/full --stream a", "No space left on device"),
            (">&- a", "standard output is closed"),
            ("<&-", "standard input is closed"),
            ("--stream <&-", "standard input is closed"),
        ],
    )
    def test_streams_that_cannot_be_used_are_one_line(
        self, serving: tuple[str, ...], redirection: str, said: str
    ) -> None:
        words = ["sh", "-c", f'exec "$@" {redirection}', "sh", *DRAGOMAN, *serving]
        done = subprocess.run(words, capture_output=True, env=ENVIRONMENT, timeout=PATIENCE_S, check=False)
        assert (done.returncode, done.stderr.decode()) == (1, f"dragoman translate: {said}\n")

    def test_lines_out_are_utf8_as_lines_in_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        printed = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
        monkeypatch.setattr(TranslationClient, "translate", lambda *_: [pb.Translation(text="Mädchen")])
        assert main(["translate", "a girl"]) == 0
        assert printed.getvalue().decode() == "Mädchen\n"

    def test_ctrl_c_while_it_waits_for_input(self, serving: tuple[str, ...], begin: Any) -> None:
        process = begin(*serving)
        pipe(process.stdin).write(b"a man\n")
        pipe(process.stdin).flush()
        assert pipe(process.stdout).readline() == b"a man\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert pipe(process.stderr).read() == b""

    @pytest.mark.parametrize("arguments", [(), ("a man",), ("--stream", "a man")])
    def test_ctrl_c_while_it_waits_for_the_server(
        self, serving: tuple[str, ...], model: ServedModel, begin: Any, arguments: tuple[str, ...]
    ) -> None:
        gate_of(model).close()
        process = begin(*serving, *arguments)
        pipe(process.stdin).write(b"a man\n")
        pipe(process.stdin).flush()
        heard(model).wait_until(lambda: heard(model).active > 0)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert pipe(process.stderr).read() == b""
        gate_of(model).open()
        heard(model).wait_until(lambda: heard(model).given_up == 1)


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
        assert (started["threads"], started["rows"], started["max_queue"], started["lame_duck_s"]) == (1, 64, 77, 600.0)
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
        done = run("serve", *ANYWHERE, "--models", str(path.parent))
        assert done.returncode == 1
        assert "second model 'multi30k-en-de'" in done.stderr.splitlines()[-1]
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


def wait_for(process: subprocess.Popen[bytes], event: str) -> dict[str, Any]:
    """Read the log up to ``event``; every line must be JSON."""
    for line in pipe(process.stderr):
        entry: dict[str, Any] = json.loads(line)
        if entry["event"] == event:
            return entry
    raise AssertionError(f"the server ended before {event}")


@pytest.mark.parametrize("names", [{"onnxruntime"}, {"onnxruntime-gpu"}, {"onnxruntime", "onnxruntime-gpu"}])
def test_two_runtimes_are_noticed(monkeypatch: pytest.MonkeyPatch, names: set[str]) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert two_runtimes() is (len(names) == 2)


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
