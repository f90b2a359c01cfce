"""``dragoman translate`` as its users meet it: exit codes, one clear line, no traceback."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from dragoman.v1 import translation_pb2 as pb
from server.cli import main
from server.client import TranslationClient
from server.models import ServedModel
from server.translate.command import one_line
from tests.served import ENVIRONMENT
from tests.server.commands import DRAGOMAN, pipe, run
from tests.server.running import PATIENCE_S, TEXTS, gate_of, heard


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
