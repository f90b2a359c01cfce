"""SentencePiece models as segmenters, with ids of their own or with a vocabulary beside them.

Source: Kudo and Richardson 2018, "SentencePiece"; Kudo 2018 (unigram language model).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

from model.tokenizer.errors import TokenizerError
from model.tokenizer.reading import read_bytes, read_texts

SOURCE_MODEL = "source.model"
TARGET_MODEL = "target.model"
SOURCE_VOCAB = "source_vocab.json"
TARGET_VOCAB = "target_vocab.json"
SPACE = "▁"


def read_model(content: bytes) -> sentencepiece.SentencePieceProcessor:
    """A processor of a serialised SentencePiece model.

    Raises:
        TokenizerError: the bytes are none.
    """
    try:
        if not content:
            raise RuntimeError("empty")  # taken for no argument at all
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise TokenizerError("not a SentencePiece model") from error


def read_model_file(path: Path) -> bytes:
    """The bytes of a file that holds a SentencePiece model.

    Raises:
        TokenizerError: it is missing or holds none.
    """
    content = read_bytes(path)
    try:
        read_model(content)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    return content


class PieceSegmenter:
    """One SentencePiece model for both sides, or one for each; ids are the models' own or those of a vocabulary."""

    def __init__(
        self,
        source_model: bytes,
        *,
        unk_id: int,
        target_model: bytes | None = None,
        source_vocab: Sequence[str] | None = None,
        target_vocab: Sequence[str] | None = None,
        special_ids: Collection[int] = (),
    ) -> None:
        """Put models and vocabularies together.

        Args:
            source_model: cuts sources; also joins outputs where there is no ``target_model``.
            unk_id: source id of a piece that is not in the vocabulary.
            target_model: joins outputs; None: the source's.
            source_vocab: pieces by source id; None: the ids are the model's own.
            target_vocab: pieces by target id; None: as for the source.
            special_ids: ids that no piece of a text gets, whatever it looks like.

        Raises:
            TokenizerError: a model is no SentencePiece model.
        """
        self._source_bytes, self._target_bytes = source_model, target_model
        self._source_vocab = None if source_vocab is None else tuple(source_vocab)
        self._target_vocab = None if target_vocab is None else tuple(target_vocab)
        self._source = read_model(source_model)
        self._target = self._source if target_model is None else read_model(target_model)
        self._unk_id = unk_id
        self._ids = {piece: token for token, piece in enumerate(source_vocab or ()) if token not in special_ids}
        self._pieces = self._source_vocab if target_vocab is None else self._target_vocab
        self._special_ids = frozenset(special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of source ids."""
        return int(self._source.vocab_size()) if self._source_vocab is None else len(self._source_vocab)

    @property
    def target_vocab_size(self) -> int:
        """Number of target ids."""
        return int(self._target.vocab_size()) if self._pieces is None else len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of ``text``."""
        if self._source_vocab is None:
            own_ids: list[int] = self._source.encode(text)
            return own_ids
        pieces: list[str] = self._source.encode(text, out_type=str)
        return [self._ids.get(piece, self._unk_id) for piece in pieces]

    def encode_target(self, text: str) -> list[int]:
        """Target ids of the pieces of ``text``; those that are not in the vocabulary are left out."""
        if self._pieces is None:
            own_ids: list[int] = self._target.encode(text)
            return own_ids
        pieces: list[str] = self._target.encode(text, out_type=str)
        return [self._target_ids[piece] for piece in pieces if piece in self._target_ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, without blanks at either end."""
        vocab = self._pieces
        text: str = self._target.decode(list(ids) if vocab is None else [vocab[token] for token in ids])
        # A piece that the model does not know (a shared vocabulary holds those of both sides) keeps its mark.
        return text.replace(SPACE, " ").strip()

    @cached_property
    def _target_ids(self) -> Mapping[str, int]:
        """Target ids by piece, special ones left out; only who reads translations needs it."""
        return {piece: token for token, piece in enumerate(self._pieces or ()) if token not in self._special_ids}

    def save(self, directory: Path) -> None:
        """Write the models, and the vocabularies where there are any."""
        (directory / SOURCE_MODEL).write_bytes(self._source_bytes)
        if self._target_bytes is not None:
            (directory / TARGET_MODEL).write_bytes(self._target_bytes)
        for name, vocab in ((SOURCE_VOCAB, self._source_vocab), (TARGET_VOCAB, self._target_vocab)):
            if vocab is not None:
                text = json.dumps(vocab, ensure_ascii=False, indent=0)
                (directory / name).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, *, unk_id: int, special_ids: Collection[int]) -> PieceSegmenter:
        """Read what ``save`` wrote.

        Raises:
            TokenizerError: a file is missing or broken; the message names it.
        """
        models = {
            name: read_model_file(directory / name)
            for name in (SOURCE_MODEL, TARGET_MODEL)
            if name == SOURCE_MODEL or (directory / name).exists()
        }
        vocabs = {
            name: read_texts(directory / name) for name in (SOURCE_VOCAB, TARGET_VOCAB) if (directory / name).exists()
        }
        return cls(
            models[SOURCE_MODEL],
            unk_id=unk_id,
            target_model=models.get(TARGET_MODEL),
            source_vocab=vocabs.get(SOURCE_VOCAB),
            target_vocab=vocabs.get(TARGET_VOCAB),
            special_ids=special_ids,
        )
