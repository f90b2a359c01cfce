"""Fixtures of the service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model.tokenizer import Tokenizer
from server.models import ServedModel
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
