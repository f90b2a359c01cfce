"""The tokenizer: round trips, special tokens and text it has never seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.tokenizer import Tokenizer, TokenizerError, train_tokenizer


def test_text_survives_a_round_trip(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("der Hund schläft auf der Bank")
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == "der Hund schläft auf der Bank"
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)


@pytest.mark.parametrize("text", ["", " ", " " * 10_000, "\t\n"])
def test_blank_text_is_the_end_token_alone(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(text) == [tokenizer.eos_id]


@pytest.mark.parametrize("text", ["🚲🚲", "رجل يركب دراجة", "男 \ud800"])
def test_unseen_characters_become_unknown_tokens(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.unk_id in tokenizer.encode(text)


def test_save_and_load_give_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a" / "sentencepiece.model").read_bytes() == (
        tmp_path / "b" / "sentencepiece.model"
    ).read_bytes()


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        Tokenizer(b"nonsense")
    with pytest.raises(TokenizerError, match=r"sentencepiece\.model: No such file"):
        Tokenizer.load(tmp_path)
    for content in (b"nonsense", b""):
        (tmp_path / "sentencepiece.model").write_bytes(content)
        with pytest.raises(TokenizerError, match=r"sentencepiece\.model: not a SentencePiece model"):
            Tokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match="cannot train a vocabulary of 9000"):
        train_tokenizer(["a b c"], vocab_size=9000)
