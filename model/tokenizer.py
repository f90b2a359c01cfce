"""SentencePiece tokenizer: text to token ids and back, without torch.

Source: Kudo and Richardson 2018, "SentencePiece"; Kudo 2018 (unigram language model).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

MODEL_FILE = "sentencepiece.model"
_REPLACEMENT = "�"
_SURROGATES = re.compile("[\ud800-\udfff]")


class TokenizerError(ValueError):
    """A tokenizer file cannot be read, or lacks a special token."""


class Tokenizer:
    """One SentencePiece model for source and target (joint vocabulary)."""

    def __init__(self, model_bytes: bytes) -> None:
        """Read a serialised SentencePiece model.

        Raises:
            TokenizerError: the bytes are no SentencePiece model, or it defines no pad, unk, bos or eos.
        """
        try:
            if not model_bytes:
                raise RuntimeError("empty")  # taken for no argument at all
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise TokenizerError("not a SentencePiece model") from error
        self.pad_id: int = self._processor.pad_id()
        self.unk_id: int = self._processor.unk_id()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.vocab_size: int = self._processor.vocab_size()
        for name in ("pad_id", "unk_id", "bos_id", "eos_id"):
            if getattr(self, name) < 0:
                raise TokenizerError(f"{name}: got none, wanted a SentencePiece model that defines it")

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read ``directory/sentencepiece.model``.

        Raises:
            TokenizerError: the file is missing or no SentencePiece model.
        """
        path = directory / MODEL_FILE
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise TokenizerError(f"{path}: {error.strerror}") from error
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    def save(self, directory: Path) -> None:
        """Write ``directory/sentencepiece.model``."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MODEL_FILE).write_bytes(self._processor.serialized_model_proto())

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, end token last; blank text gives the end token alone.

        Lone surrogates, which UTF-8 cannot hold, are read as the replacement character.
        """
        ids: list[int] = self._processor.encode(_SURROGATES.sub(_REPLACEMENT, text))
        return [*ids, self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens give nothing."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        text: str = self._processor.decode([int(token) for token in ids if token not in special])
        return text

    def decode_prefix(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without a trailing character whose UTF-8 bytes are not all there yet."""
        return self.decode(ids).rstrip(_REPLACEMENT)


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
    return Tokenizer(buffer.getvalue())
