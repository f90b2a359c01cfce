"""What every segmenter offers: text to ids of pieces and back, without special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Segmenter(Protocol):
    """Cuts text into pieces; knows nothing of languages and templates."""

    @property
    def vocab_size(self) -> int:
        """Ids of source pieces are below."""
        ...

    @property
    def target_vocab_size(self) -> int:
        """Ids of target pieces are below."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of a source text that holds no lone surrogates."""
        ...

    def encode_target(self, text: str) -> list[int]:
        """Target ids of the pieces of a translation that holds no lone surrogates; unknown pieces may be left out."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of target ids, none of them special and all below ``target_vocab_size``."""
        ...

    def save(self, directory: Path) -> None:
        """Write the segmenter's files."""
        ...
