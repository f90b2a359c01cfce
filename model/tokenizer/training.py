"""Training a tokenizer of our own.

Source: Kudo and Richardson 2018, "SentencePiece"; Kudo 2018 (unigram language model).
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import sentencepiece

from model.tokenizer.errors import TokenizerError
from model.tokenizer.tokenizer import Tokenizer


def train_tokenizer(sentences: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train a unigram tokenizer whose ids begin pad, unk, bos, eos.

    Args:
        sentences: text of all languages that share the vocabulary.
        vocab_size: number of tokens, the four special ones counted.

    Raises:
        TokenizerError: the text is too small for that many tokens.
    """
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=buffer,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=1.0,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(f"cannot train a vocabulary of {vocab_size}: {error}") from error
    return Tokenizer.from_sentencepiece(buffer.getvalue())
