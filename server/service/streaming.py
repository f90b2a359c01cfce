"""Token ids to text, piece by piece; what was given out is never taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """What streaming needs of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of all ``ids``."""

    def decode_prefix(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without a trailing character whose bytes are not all there yet."""


class TextStream:
    """The growing text of one hypothesis.

    The whole output is decoded anew for every piece, because what a token looks like depends on its neighbours.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        """Begin with no token."""
        self._detokenizer = detokenizer
        self._ids: list[int] = []
        self._sent = ""

    def append(self, ids: Sequence[int]) -> str:
        """Add tokens; returns the text that has become final, possibly none."""
        self._ids.extend(ids)
        return self._advance(self._detokenizer.decode_prefix(self._ids))

    def finish(self, ids: Sequence[int]) -> str:
        """Take ``ids`` as the whole output; returns the text that is still missing."""
        return self._advance(self._detokenizer.decode(ids))

    def _advance(self, text: str) -> str:
        if not text.startswith(self._sent):
            # A later token changed what earlier ones look like: wait until the texts agree again.
            return ""
        piece = text[len(self._sent) :]
        self._sent = text
        return piece
