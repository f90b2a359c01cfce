"""``dragoman translate``: texts from the command line or lines from standard input, through a running server."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from tqdm import tqdm

from dragoman.v1 import translation_pb2 as pb
from server.client import BadRequestError, ClientError, TranslationClient
from server.translate.lines import LineReader, UndecodableLineError

# Enough for the server to fill its rows while it works on the batches before; few enough for a short queue.
BATCH_LINES = 64
BATCHES_AHEAD = 4

_LINE_BREAKS = re.compile(r"\r\n|[\r\n]")
_CONTENT_FIELD = re.compile(r"contents\[(\d+)\]")


class TranslateError(Exception):
    """The command cannot go on; one line says why."""


class _Batch(NamedTuple):
    first_line: int
    texts: Sequence[str]
    reply: Future[list[pb.Translation]]


def run_translate(arguments: argparse.Namespace, *, server: str) -> int:
    """Translate what the command line names; returns the exit code."""
    if fault := _standard_streams(wanted_in=not arguments.text):
        print(f"dragoman translate: {fault}", file=sys.stderr)
        return 1
    decoding = pb.DecodingConfig(beam_size=arguments.beam_size)
    client = TranslationClient(
        server,
        model=arguments.model,
        source_language=arguments.source_language,
        target_language=arguments.target_language,
        decoding=decoding,
    )
    try:
        with client:
            if arguments.stream:
                _stream(client, arguments.text)
            elif arguments.text:
                _print_all(client.translate(arguments.text), first_line=1)
            else:
                _translate_lines(client, LineReader(sys.stdin.fileno()))
            sys.stdout.flush()
    except (ClientError, TranslateError, UndecodableLineError) as error:
        print(f"dragoman translate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        pass  # whoever read our output has had enough
    except OSError as error:
        print(f"dragoman translate: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _standard_streams(*, wanted_in: bool) -> str:
    """Make lines out UTF-8, as lines in are; returns what is wrong with the streams, or nothing."""
    streams: dict[str, TextIO | None] = {"output": sys.stdout, "input": sys.stdin if wanted_in else sys.stdout}
    for name, stream in streams.items():
        if stream is None:
            return f"standard {name} is closed"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return ""


def one_line(text: str) -> str:
    """``text`` with line breaks as spaces, so that lines out match lines in."""
    return _LINE_BREAKS.sub(" ", text)


def _translate_lines(client: TranslationClient, reader: LineReader) -> None:
    """One line out per line in, in order; several batches are under way at a time."""
    lines = reader.count_ahead()
    # Where the translations themselves scroll by, they are the progress.
    hidden = not sys.stderr.isatty() or sys.stdout.isatty()
    with (
        _closing_pool(client) as submit,
        tqdm(total=lines, unit=" lines", delay=1.0, disable=hidden, file=sys.stderr) as progress,
    ):
        for batch in _pipeline(reader, submit):
            _print_all(_reply(batch), first_line=batch.first_line)
            progress.update(len(batch.texts))


@contextmanager
def _closing_pool(client: TranslationClient) -> Iterator[Callable[[Sequence[str]], Future[list[pb.Translation]]]]:
    """Threads that call the server; on the way out, calls in progress are ended rather than waited for."""
    pool = ThreadPoolExecutor(BATCHES_AHEAD)
    try:
        yield lambda texts: pool.submit(client.translate, texts)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        client.close()


def _pipeline(reader: LineReader, submit: Callable[[Sequence[str]], Future[list[pb.Translation]]]) -> Iterator[_Batch]:
    """Batches in order, each handed out when its turn to be waited for has come."""
    under_way: deque[_Batch] = deque()
    next_line = 1
    fault: UndecodableLineError | None = None
    texts: Sequence[str] | None = ()
    while texts is not None or under_way:
        if texts is not None and len(under_way) < BATCHES_AHEAD:
            try:
                texts = reader.take(BATCH_LINES, wait=not under_way)
            except UndecodableLineError as error:
                fault, texts = error, None
            if texts:
                under_way.append(_Batch(next_line, texts, submit(texts)))
                next_line += len(texts)
                continue
        if under_way:
            # Nothing to read just now, or enough is under way.
            yield under_way.popleft()
    if fault is not None:
        raise fault


def _reply(batch: _Batch) -> list[pb.Translation]:
    try:
        return batch.reply.result()
    except BadRequestError as error:
        for field, description in error.violations:
            if match := _CONTENT_FIELD.fullmatch(field):
                raise TranslateError(f"line {batch.first_line + int(match[1])}: {description}") from error
        raise


def _print_all(translations: Sequence[pb.Translation], *, first_line: int) -> None:
    for line, translation in enumerate(translations, start=first_line):
        if translation.HasField("status"):
            raise TranslateError(f"line {line}: {translation.status.message}")
        print(one_line(translation.text))
    sys.stdout.flush()


def _stream(client: TranslationClient, texts: Sequence[str]) -> None:
    """Translate text by text and print every piece as it comes."""
    for text in texts or _lines(LineReader(sys.stdin.fileno())):
        for message in client.stream([text]):
            if message.translation.HasField("status"):
                raise TranslateError(message.translation.status.message)
            print(one_line(message.text), end="", flush=True)
        print(flush=True)


def _lines(reader: LineReader) -> Iterator[str]:
    while (batch := reader.take(1, wait=True)) is not None:
        yield from batch
