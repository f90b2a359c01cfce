"""Segmenters of the `tokenizers` library, which is asked for only where such a tokenizer is made.

BART's pieces are byte pairs, which SentencePiece does not know. NLLB and mBART-50 come from SentencePiece, but their
toolkit runs this library for them, which cuts some texts otherwise.

Source: Sennrich et al. 2016 (byte pairs); Radford et al. 2019 (of bytes); Kudo 2018 (unigram language model).
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.tokenizer.charsmap import check_charsmap
from model.tokenizer.errors import TokenizerError
from model.tokenizer.reading import read_bytes

if TYPE_CHECKING:
    import tokenizers

PIPELINE = "pipeline.json"


class FastSegmenter:
    """One pipeline of normaliser, pre-tokenizer, model and decoder, for both sides."""

    def __init__(self, pipeline: bytes) -> None:
        """Read a pipeline in the library's JSON.

        Raises:
            TokenizerError: the library is not installed, or it cannot read the pipeline.
        """
        self._pipeline = pipeline
        self._tokenizer = _read_pipeline(pipeline)
        self._size = max(self._tokenizer.get_vocab().values(), default=-1) + 1

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._size

    @property
    def target_vocab_size(self) -> int:
        """The same as for sources."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of ``text``."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_target(self, text: str) -> list[int]:
        """The same as for sources."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def save(self, directory: Path) -> None:
        """Write the pipeline."""
        (directory / PIPELINE).write_bytes(self._pipeline)

    @classmethod
    def load(cls, directory: Path) -> FastSegmenter:
        """Read what ``save`` wrote.

        Raises:
            TokenizerError: the file is missing or broken, or the library is not installed.
        """
        path = directory / PIPELINE
        content = read_bytes(path)
        try:
            return cls(content)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error


def _read_pipeline(content: bytes) -> tokenizers.Tokenizer:
    try:
        library = importlib.import_module("tokenizers")
    except ImportError as error:
        raise TokenizerError('this tokenizer needs: pip install "dragoman[bpe]"') from error
    try:
        text = content.decode("utf-8")
        for charsmap in _charsmaps(json.loads(text)):
            check_charsmap(charsmap)
        tokenizer: tokenizers.Tokenizer = library.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what the library raises is a plain Exception, and a BaseException where it panics
        raise TokenizerError(f"not a pipeline of the tokenizers library ({_first_line(error)})") from error
    return tokenizer


def _charsmaps(values: Any) -> Iterator[bytes]:
    """The character maps of a pipeline's normaliser."""
    if isinstance(values, dict):
        if "precompiled_charsmap" in values:
            yield base64.b64decode(values["precompiled_charsmap"], validate=True)
        for step in (values.get("normalizer"), *(values.get("normalizers") or ())):
            yield from _charsmaps(step)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:100] if str(error) else type(error).__name__
