"""Fixtures of the service."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from model.tokenizer import Tokenizer
from server.models import ServedModel
from tests.served import ENVIRONMENT
from tests.server.bundles import copy_demo
from tests.server.commands import DRAGOMAN, pipe
from tests.server.loaded import Load, Loaded
from tests.server.running import RunningServer, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture
def server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    """A server with no model yet."""
    with RunningServer(tokenizer) as running:
        yield running


@pytest.fixture
def model(server: RunningServer) -> ServedModel:
    """The server's only model: the translation is the source."""
    return server.add_model()


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


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A directory with one sound bundle."""
    copy_demo(tmp_path / "models", "good")
    return tmp_path / "models"


@pytest.fixture
def load(models: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Load]:
    done: list[Loaded] = []

    def load_all(**settings: Any) -> Loaded:
        done.append(Loaded(models, caplog, **settings))
        return done[-1]

    yield load_all
    for loaded in done:
        loaded.close()
