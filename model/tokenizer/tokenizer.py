"""Text to token ids and back: a segmenter, and a config that says what goes around its pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from model.tokenizer.config import Kind, Part, TokenizerConfig
from model.tokenizer.errors import TokenizerError
from model.tokenizer.fast import FastSegmenter
from model.tokenizer.pieces import PieceSegmenter, read_model
from model.tokenizer.segmenter import Segmenter
from model.tokenizer.spaces import clean_up, settled

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SURROGATES = re.compile("[\ud800-\udfff]")
_CODE_IN_TEXT = re.compile(r">>([^<>\s]+)<<")


class Tokenizer:
    """Turns a source text into token ids and target ids into text.

    Attributes:
        pad_id: fills sources on the right.
        unk_id: stands for what no piece covers.
        eos_id: end token.
        bos_id: begin token; the end token where the model has none.
        vocab_size: source ids are below.
        target_vocab_size: target ids are below.
        language_ids: served BCP-47 code -> language token; empty where the model has none.
        language_aliases: the model's own code -> served code, where the two differ.
    """

    def __init__(self, config: TokenizerConfig, segmenter: Segmenter) -> None:
        self._config = config
        self._segmenter = segmenter
        self._silent = frozenset(config.silent_ids)
        self.pad_id = config.pad_id
        self.unk_id = config.unk_id
        self.eos_id = config.eos_id
        self.bos_id = config.eos_id if config.bos_id is None else config.bos_id
        self.vocab_size = max(segmenter.vocab_size, config.largest_id() + 1)
        self.target_vocab_size = max(segmenter.target_vocab_size, config.largest_id() + 1)
        self.language_ids: Mapping[str, int] = MappingProxyType(dict(config.language_ids))
        self.language_aliases: Mapping[str, str] = MappingProxyType(dict(config.language_aliases))

    @classmethod
    def from_sentencepiece(cls, model: bytes) -> Tokenizer:
        """A joint vocabulary whose ids are those of one serialised SentencePiece model.

        Raises:
            TokenizerError: the bytes are no SentencePiece model, or it defines no pad, unk, bos or eos.
        """
        processor = read_model(model)
        ids = {name: int(getattr(processor, name)()) for name in ("pad_id", "unk_id", "bos_id", "eos_id")}
        for name, token in ids.items():
            if token < 0:
                raise TokenizerError(f"{name}: got none, wanted a SentencePiece model that defines it")
        special_ids = (ids["pad_id"], ids["bos_id"], ids["eos_id"])
        config = TokenizerConfig(
            kind=Kind.SENTENCEPIECE,
            pad_id=ids["pad_id"],
            unk_id=ids["unk_id"],
            eos_id=ids["eos_id"],
            bos_id=ids["bos_id"],
            special_ids=special_ids,
            silent_ids=special_ids,
        )
        return cls(config, PieceSegmenter(model, unk_id=config.unk_id))

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a tokenizer's directory.

        Raises:
            TokenizerError: a file is missing or broken, or a library for it is not installed; the message names it.
        """
        for path in sorted(directory.glob("*")):
            if path.is_symlink():
                raise TokenizerError(f"{path}: got a link, wanted a file of this directory")
        config = TokenizerConfig.load(directory)
        return cls(config, _load_segmenter(config, directory))

    def save(self, directory: Path) -> None:
        """Write a directory that ``load`` reads."""
        directory.mkdir(parents=True, exist_ok=True)
        self._config.save(directory)
        self._segmenter.save(directory)

    def encode(self, text: str, *, source_language: str = "", target_language: str = "") -> list[int]:
        """Token ids of a source; blank text gives what stands around the text alone.

        Lone surrogates, which UTF-8 cannot hold, are read as the replacement character.

        Args:
            text: never read as special tokens, with one exception: where a source begins with its target language,
                ``>>code<<`` before the text, code being one of this model's, stands for that language.
            source_language: served code; unused where no template asks for it.
            target_language: served code; unused where no template asks for it.

        Raises:
            TokenizerError: a language that the source needs is missing or unknown.
        """
        config = self._config
        if config.source_template[0] is Part.TARGET_LANGUAGE:
            target_language, text = self._language_in_text(text, default=target_language)
        ids: list[int] = []
        for part in config.source_template:
            if part is Part.TEXT:
                ids += self._segmenter.encode(_SURROGATES.sub(_REPLACEMENT, text))
            else:
                ids.append(self._special(part, source_language=source_language, target_language=target_language))
        return ids

    def encode_target(self, text: str) -> list[int]:
        """Target ids of a translation, without anything around it; empty where no piece is known.

        Lone surrogates are read as ``encode`` reads them.
        """
        return self._segmenter.encode_target(_SURROGATES.sub(_REPLACEMENT, text))

    def forced_tokens(self, target_language: str = "") -> tuple[int, ...]:
        """Tokens that every output begins with.

        Raises:
            TokenizerError: the target language is needed and is missing or unknown.
        """
        return tuple(self._special(part, target_language=target_language) for part in self._config.forced_template)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of target ``ids``; special tokens, and ids beyond the vocabulary, give nothing."""
        text = self._join(ids)
        return clean_up(text) if self._config.clean_up_spaces else text

    def decode_prefix(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` without what later tokens may change: a character whose UTF-8 bytes are not all there yet."""
        text = self._join(ids).rstrip(_REPLACEMENT)
        return clean_up(settled(text)) if self._config.clean_up_spaces else text

    def _join(self, ids: Iterable[int]) -> str:
        size = self._segmenter.target_vocab_size
        return self._segmenter.decode([int(token) for token in ids if token not in self._silent and 0 <= token < size])

    def _special(self, part: Part, *, source_language: str = "", target_language: str = "") -> int:
        config = self._config
        if part is Part.EOS:
            return config.eos_id
        if part is Part.BOS:
            return self.bos_id
        code = source_language if part is Part.SOURCE_LANGUAGE else target_language
        if code not in config.language_ids:
            got, known = repr(code) if code else "none", ", ".join(sorted(config.language_ids))
            raise TokenizerError(f"{part.replace('_', ' ')}: got {got}, wanted one of {known}")
        return config.language_ids[code]

    def _language_in_text(self, text: str, *, default: str) -> tuple[str, str]:
        """The target language and the rest of a text that may begin with ``>>code<<``."""
        match = _CODE_IN_TEXT.match(text)
        if match:
            code = self.language_aliases.get(match[1], match[1])
            if code in self.language_ids:
                return code, text[match.end() :]
        return default, text


def _load_segmenter(config: TokenizerConfig, directory: Path) -> Segmenter:
    if config.kind is Kind.TOKENIZERS:
        return FastSegmenter.load(directory)
    return PieceSegmenter.load(directory, unk_id=config.unk_id, special_ids=config.special_ids)
