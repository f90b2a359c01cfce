"""Fixtures of the service."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from tests.server.stand_in_gpu import copy_for_gpu


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
    with _loads(models, caplog) as load_all:
        yield load_all


@contextmanager
def _loads(models: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Load]:
    done: list[Loaded] = []

    def load_all(**settings: Any) -> Loaded:
        done.append(Loaded(models, caplog, **settings))
        return done[-1]

    try:
        yield load_all
    finally:
        for loaded in done:
            loaded.close()


@pytest.fixture
def gpu_models(tmp_path: Path) -> Path:
    """A directory with one bundle that has graphs for a GPU too."""
    copy_for_gpu(tmp_path / "models", "good")
    return tmp_path / "models"


@pytest.fixture
def load_gpu(gpu_models: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Load]:
    with _loads(gpu_models, caplog) as load_all:
        yield load_all


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where engines are kept."""
    return tmp_path / "engines"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Where builds are told how to end."""
    return tmp_path / "gate"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog
