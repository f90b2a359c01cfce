"""Pieces of text never contradict the whole."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

import pytest
import sentencepiece

from model.tokenizer import Tokenizer
from server.service.streaming import TextStream
from tests.server.running import TEXTS


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """One that spells what it does not know in bytes, so that characters arrive in parts."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=buffer,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=2,
    )
    return Tokenizer.from_sentencepiece(buffer.getvalue())


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int], *, step: int = 1) -> list[str]:
    stream = TextStream(tokenizer)
    pieces = [stream.append(ids[start : start + step]) for start in range(0, len(ids), step)]
    return [*pieces, stream.finish(ids)]


def test_a_character_is_held_back_until_its_last_byte(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a 😀 man")[:-1]
    pieces = pieces_of(byte_tokenizer, ids)
    assert "".join(pieces) == "a 😀 man"
    assert all("�" not in piece for piece in pieces)
    assert pieces.count("") >= 3  # the first three of its four bytes


def test_bytes_that_never_become_a_character_come_at_the_end(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a 😀")[:-2]
    pieces = pieces_of(byte_tokenizer, ids)
    assert "".join(pieces) == byte_tokenizer.decode(ids)
    assert pieces[-1].startswith("�")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("which", ["tokenizer", "byte_tokenizer"])
def test_any_output_streams_to_its_text(request: pytest.FixtureRequest, which: str, seed: int) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(which)
    draw = random.Random(seed)
    for _ in range(20):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(40))]
        assert "".join(pieces_of(tokenizer, ids, step=draw.randrange(1, 4))) == tokenizer.decode(ids)
